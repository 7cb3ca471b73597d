"""The singular values of an update matrix, all of them or the leading ones by passes over its rows; and its ranks.

Pure functions for a notebook, too; all arithmetic is in fp64. A large matrix A is never held. It is read row block by
row block, a few times: a block Krylov space of A^T A (Musco and Musco, arXiv 1504.05477) grows by one block of vectors
with each pass, and the last pass finds the values in it. Memory is about
(rows + columns x 2 passes) x (top + OVERSAMPLING) numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

OVERSAMPLING = 10
# Passes over the matrix: at least three, then until the values are found to `TOLERANCE`, at most so many.
MOST_PASSES = 8
TOLERANCE = 1e-6
# Energies whose rank is given.
ENERGIES = (0.9, 0.95, 0.99)
EPSILON = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a matrix, largest first.

    Attributes:
        shape: rows and columns.
        values: [number] all of them if `exact`, otherwise the leading ones, each at most the true one.
        energy: the sum of the squares of all, which is the squared Frobenius norm.
        exact: whether all singular values are there.
        residual: the largest ||A^T A v - s^2 v|| of the pairs (s, v) that were asked for, relative to the largest s^2;
            near 0 they are the true ones.
        passes: how often the matrix was read.
        left: [rows, number] left singular vectors.
        right: [columns, number] right singular vectors.
    """

    shape: tuple[int, int]
    values: Tensor
    energy: float
    exact: bool
    residual: float
    passes: int
    left: Tensor
    right: Tensor

    @property
    def size(self) -> int:
        """The number of singular values, found or not."""
        return min(self.shape)

    def share(self, top: int) -> float | None:
        """The share of the energy in the `top` leading directions; None for a matrix of zeros."""
        if not self.energy:
            return None
        return min(1.0, float(self.values[:top].square().sum()) / self.energy)

    @property
    def stable_rank(self) -> float | None:
        """||A||_F^2 / ||A||_2^2; None for a matrix of zeros."""
        return self.energy / float(self.values[0]) ** 2 if self.energy else None

    @property
    def rank(self) -> int | None:
        """How many singular values exceed max(rows, columns) eps s_1, numpy's rule; None if all that were found do."""
        if not self.energy:
            return 0
        limit = max(self.shape) * EPSILON * float(self.values[0])
        above = int((self.values > limit).sum())
        return above if self.exact or above < len(self.values) else None

    def rank_at(self, energy: float) -> int | None:
        """The least number of directions with this share of the energy; None if those found have less."""
        if not self.energy:
            return None
        reached = self.values.square().cumsum(0) / self.energy
        # A share that is exactly reached may miss by rounding.
        enough = (reached >= energy - 1e-12).nonzero()
        return int(enough[0]) + 1 if len(enough) else None

    def effective_rank(self) -> tuple[float, float] | None:
        """The least and the greatest effective rank that the values allow; equal if all are known. None for zeros."""
        if not self.energy:
            return None
        if self.exact:
            found = effective_rank(self.values)
            return found, found
        return effective_rank_bounds(self.values, self.energy, self.size - len(self.values))


def exact_spectrum(matrix: Tensor) -> Spectrum:
    """By a full singular value decomposition of [rows, columns]."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    energy = float(matrix.double().square().sum())
    rows, columns = matrix.shape
    return Spectrum((rows, columns), values, energy, True, 0.0, 1, left, right.T)


def leading_spectrum(
    blocks: Callable[[], Iterable[Tensor]],
    shape: tuple[int, int],
    top: int,
    *,
    most_passes: int = MOST_PASSES,
    seed: int = 1,
) -> Spectrum:
    """The `top` leading singular values and vectors.

    Args:
        blocks: the matrix's row blocks in order, each [some rows, columns] in fp64; called once for each pass.
        shape: rows and columns.
        top: at least 1.
        most_passes: at least 2.
        seed: of the random directions of the first pass.
    """
    rows, columns = shape
    width = min(top + OVERSAMPLING, rows, columns)
    generator = torch.Generator().manual_seed(seed)
    newest = torch.linalg.qr(torch.randn(columns, width, dtype=torch.float64, generator=generator)).Q
    # An orthonormal basis of the space, and A^T A times it.
    space = products = newest.new_empty(columns, 0)
    passes = 0
    while True:
        passes += 1
        product, _, energy = _multiply(blocks, newest, rows)
        if not energy:
            nothing = newest.new_zeros(min(shape))
            return Spectrum(shape, nothing, 0.0, True, 0.0, passes, newest[:0], newest[:0])
        space, products = torch.cat([space, newest], 1), torch.cat([products, product], 1)
        squares, turn = torch.linalg.eigh(space.T @ products)
        squares, turn = squares.flip(0)[:width], turn.flip(1)[:, :width]
        vectors = space @ turn
        if _residual(products @ turn, vectors, squares, top) <= TOLERANCE or passes == most_passes - 1:
            break
        newest = _new_directions(product, space)
        if not newest.shape[1]:
            break
    product, image, energy = _multiply(blocks, vectors, rows)
    # Squares lose small values to rounding; the image itself does not.
    left, values, turn = torch.linalg.svd(image, full_matrices=False)
    right = vectors @ turn.T
    residual = _residual(product @ turn.T, right, values.square(), top)
    return Spectrum(
        shape,
        values[:top],
        energy,
        len(values[:top]) == min(shape) and residual <= TOLERANCE,
        residual,
        passes + 1,
        left[:, :top],
        right[:, :top],
    )


def _multiply(
    blocks: Callable[[], Iterable[Tensor]], vectors: Tensor, rows: int
) -> tuple[Tensor, Tensor, float]:
    """A^T A V, A V and the sum of the squares of A, in one pass."""
    image = vectors.new_empty(rows, vectors.shape[1])
    product = torch.zeros_like(vectors)
    row, energy = 0, 0.0
    for block in blocks():
        part = image[row : row + len(block)]
        torch.mm(block, vectors, out=part)
        product.addmm_(block.T, part)
        energy += float(torch.linalg.vector_norm(block)) ** 2
        row += len(block)
    return product, image, energy


def _residual(products: Tensor, vectors: Tensor, squares: Tensor, top: int) -> float:
    """The largest ||A^T A v - s^2 v|| of the leading pairs, relative to the largest s^2."""
    wrong = (products - vectors * squares)[:, :top]
    largest = float(squares[0])
    return float(torch.linalg.vector_norm(wrong, dim=0).max()) / largest if largest > 0 else 0.0


def _new_directions(product: Tensor, space: Tensor) -> Tensor:
    """An orthonormal basis of what `product` adds to the space; without columns if it adds nothing."""
    scale = float(torch.linalg.matrix_norm(product))
    rest = product
    # Twice is enough (Kahan and Parlett): the first time leaves rounding errors of the size of `product`.
    for _ in range(2):
        rest = rest - space @ (space.T @ rest)
    left, sizes, _ = torch.linalg.svd(rest, full_matrices=False)
    found = left[:, sizes > 1e-12 * scale]
    return torch.linalg.qr(found - space @ (space.T @ found)).Q if found.shape[1] else found


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of s / sum(s) over all singular values s, not all zero.

    (Roy and Vetterli, "The effective rank", EUSIPCO 2007.)
    """
    shares = values.double() / values.double().sum()
    return math.exp(float(torch.special.entr(shares).sum()))


def effective_rank_bounds(values: Tensor, energy: float, rest: int) -> tuple[float, float]:
    """The least and the greatest effective rank of a spectrum of which only the leading values are known.

    The `rest` other values are at most the last known one, and the squares of all sum to `energy`. Under these
    constraints the entropy is greatest if the others are all equal. It is least if as many as possible are as large as
    the last known one, at most one is between, and the rest are zero.
    """
    last = float(values[-1])
    # Rounding leaves more than there can be if the last known value is about 0.
    left_over = min(max(0.0, energy - float(values.square().sum())), rest * last**2)
    if not rest or not left_over:
        found = effective_rank(values)
        return found, found
    flat = values.new_full((rest,), math.sqrt(left_over / rest))
    whole = min(rest, int(left_over / last**2))
    between = math.sqrt(max(0.0, left_over - whole * last**2)) if whole < rest else 0.0
    steep = torch.cat([values.new_full((whole,), last), values.new_tensor([between])])
    return effective_rank(torch.cat([values, steep])), effective_rank(torch.cat([values, flat]))


def share_sizes(top: int) -> list[int]:
    """1, 2, 4, ... and `top`: the numbers of directions whose share of the energy is given."""
    return [*(2**power for power in range(top.bit_length()) if 2**power < top), top]


def decay(values: Tensor, top: int) -> Sequence[float]:
    """The leading singular values relative to the largest one, which is not 0."""
    found: list[float] = (values[:top] / values[0]).tolist()
    return found
