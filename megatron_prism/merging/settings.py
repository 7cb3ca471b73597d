"""What a merge is asked to do, checked as far as it can be without a model: method, weights, and what they come to.

One `MergeSettings` gives one or more `Blend`s: one for each alpha of a list, otherwise one. A blend knows the weights
of the models in every component.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypeAlias

from megatron_prism.errors import ConfigError
from megatron_prism.merging.decimals import exact_number, listed, short
from megatron_prism.models.components import COMPONENTS
from megatron_prism.pipeline.config import one_of


@dataclass(frozen=True)
class Kind:
    """What a method takes: a base the others are changes of, how many models beside it, which options."""

    base: bool = False
    models: int | None = None
    density: bool = False
    normalize: bool = True
    components: bool = True


METHODS = {
    "linear": Kind(),
    "task-arithmetic": Kind(base=True),
    "slerp": Kind(models=2),
    "ties": Kind(base=True, density=True),
    "dare": Kind(base=True, density=True),
    "interpolate": Kind(base=True, models=2, normalize=False, components=False),
}
# Methods whose weights scale changes of a base: any number is an ordinary one.
CHANGES = ("task-arithmetic", "ties", "dare")
# How far a sum of weights may be from 1 for a user who typed 0.333333 three times.
SUM_TOLERANCE = Fraction(1, 10**6)
# fp32 holds no number that is much larger.
LARGEST_WEIGHT = 1e38
# What a weight may be given as; see `decimals.exact_number`. Settings hold fractions.
Number: TypeAlias = Fraction | float | str


@dataclass(frozen=True)
class Blend:
    """The weights of one result: of each model beside the base, and of the last model (alpha) in some components.

    Attributes:
        name: folder of the result under the output; empty where there is one result.
        pair: whether the first of two models gets `1 - alpha` where the last gets alpha.
    """

    name: str
    weights: tuple[Fraction, ...]
    component_weights: Mapping[str, Fraction]
    pair: bool

    def in_component(self, component: str) -> tuple[Fraction, ...]:
        """The weights of the models, without the base, in one component."""
        alpha = self.component_weights.get(component)
        if alpha is None:
            return self.weights
        return (1 - alpha, alpha) if self.pair else (*self.weights[:-1], alpha)


@dataclass(frozen=True)
class MergeSettings:
    """A merge without its models.

    Attributes:
        method: one of `METHODS`.
        weights: one for each model beside the base, in order; empty where `alphas` says them.
        component_weights: component -> alpha, the weight of the last model in it. The first of two models without a
            base gets `1 - alpha`; with a base the others keep theirs.
        alphas: one result for each, with the models weighing `1 - alpha` and alpha (one model beside a base: alpha).
        normalize: divide the weights by their sum.
        density: TIES and DARE: the share of each change that is kept.
        seed: DARE's.
        exact_weights, exact_components, exact_alphas: the numbers above as fractions (see `merging/decimals.py`).

    Raises:
        ConfigError: for a method that is not known, weights that are no numbers, or options a method does not have.
    """

    method: str = "linear"
    weights: Sequence[Number] = ()
    component_weights: Mapping[str, Number] = field(default_factory=dict)
    alphas: Sequence[Number] = ()
    normalize: bool = False
    density: float | None = None
    seed: int = 1
    exact_weights: tuple[Fraction, ...] = field(init=False)
    exact_components: dict[str, Fraction] = field(init=False)
    exact_alphas: tuple[Fraction, ...] = field(init=False)

    def __post_init__(self) -> None:
        one_of(self.method, METHODS, "method")
        self._take_numbers()
        if self.kind.density and (self.density is None or not 0 < self.density <= 1):
            raise ConfigError(
                f"density={self.density}: method={self.method} needs the share of each change to keep, in (0, 1], "
                "for example 0.2"
            )
        if not self.kind.density and self.density is not None:
            raise ConfigError(f"density={self.density}: method={self.method} has none; ties and dare do")
        if self.normalize and (not self.kind.normalize or self.alphas):
            what = "a list of alphas" if self.alphas else f"method={self.method}"
            raise ConfigError(f"normalize: {what} says its weights exactly; leave it out")
        for component in self.component_weights:
            one_of(component, COMPONENTS, "component weight")
        if self.component_weights and not self.kind.components:
            raise ConfigError(f"component weights: method={self.method} has one pair (a, b) for all")

    @property
    def kind(self) -> Kind:
        return METHODS[self.method]

    def _take_numbers(self) -> None:
        exact = {
            "exact_weights": tuple(
                exact_number(weight, f"weight number {place}") for place, weight in enumerate(self.weights, 1)
            ),
            "exact_components": {
                name: exact_number(weight, f"component weight {name}")
                for name, weight in self.component_weights.items()
            },
            "exact_alphas": tuple(
                exact_number(alpha, f"alpha number {place}") for place, alpha in enumerate(self.alphas, 1)
            ),
        }
        for name, exact_values in exact.items():
            object.__setattr__(self, name, exact_values)
        named: dict[str, Fraction] = {
            **{f"weight number {place}": value for place, value in enumerate(self.exact_weights, 1)},
            **{f"component weight {name}": value for name, value in self.exact_components.items()},
            **{f"alpha number {place}": value for place, value in enumerate(self.exact_alphas, 1)},
        }
        for where, value in named.items():
            if abs(value) > LARGEST_WEIGHT:
                raise ConfigError(
                    f"{where} is {float(value):g}: at most {LARGEST_WEIGHT:g}, as fp32 holds no larger number"
                )
        if bool(self.weights) == bool(self.alphas):
            raise ConfigError("give a weight for each model, or a list of alphas for two, and not both")
        if len(set(map(short, self.exact_alphas))) < len(self.alphas):
            raise ConfigError(f"alphas {listed(self.exact_alphas)}: one is given twice")

    def blends(self, models: int) -> list[Blend]:
        """The results to make of that many models beside the base.

        Raises:
            ConfigError: when weights and models do not fit each other or the method.
        """
        kind = self.kind
        pair = not kind.base and models == 2
        if kind.models is not None and models != kind.models:
            beside = " beside its base" if kind.base else ""
            raise ConfigError(f"method={self.method} takes {kind.models} models{beside}, {models} given")
        if models < (1 if kind.base else 2):
            raise ConfigError(f"method={self.method}: {models} models given; two or more are needed")
        if self.component_weights and not kind.base and not pair:
            raise ConfigError(
                f"component weights say the weight of the last of two models; {models} are given"
            )
        if self.alphas:
            if not pair and not (kind.base and models == 1):
                raise ConfigError(
                    f"alphas {listed(self.exact_alphas)}: need two models, or one beside a base; {models} are given"
                )
            return [
                Blend(
                    f"alpha-{short(alpha)}",
                    (1 - alpha, alpha) if pair else (alpha,),
                    self.exact_components,
                    pair,
                )
                for alpha in self.exact_alphas
            ]
        if len(self.weights) != models:
            raise ConfigError(f"{len(self.weights)} weights for {models} models; each needs one")
        return [Blend("", self._normalized(), self.exact_components, pair)]

    def shares(self, weights: Sequence[Fraction]) -> tuple[float, ...]:
        """How much of each model is in a result of these weights, the base first where the method has one."""
        if self.method == "interpolate":
            a, b = weights
            return (float(1 - a), float(a - b), float(b))
        shares = (1 - sum(weights), *weights) if self.kind.base else weights
        return tuple(map(float, shares))

    def _normalized(self) -> tuple[Fraction, ...]:
        weights, total = self.exact_weights, sum(self.exact_weights, start=Fraction(0))
        if self.normalize:
            if abs(total) < SUM_TOLERANCE:
                raise ConfigError(f"normalize: weights {listed(weights)} sum to {float(total):g}")
            return tuple(weight / total for weight in weights)
        if self.method == "slerp" and abs(total - 1) > SUM_TOLERANCE:
            raise ConfigError(
                f"method=slerp: weights {listed(weights)} sum to {float(total):g}; they are 1 - t and t, "
                "or use normalize"
            )
        return weights

    def remarks(self) -> list[str]:
        """What a user should hear before work starts, one line each."""
        said, weights = [], self.exact_weights
        total = sum(weights, start=Fraction(0))
        if self.normalize:
            said.append(
                f"weights {listed(weights)} are divided by their sum {float(total):g}, as normalize asks"
            )
        elif self.method == "linear" and weights and abs(total - 1) > SUM_TOLERANCE:
            said.append(
                f"weights {listed(weights)} sum to {float(total):g}, not 1; they are used exactly as given"
            )
        shares = () if self.method in CHANGES else weights
        alphas = (*shares, *self.exact_alphas, *self.exact_components.values())
        outside = [alpha for alpha in alphas if not 0 <= alpha <= 1]
        if outside:
            said.append(f"alpha {listed(outside)} lies outside [0, 1]: this extrapolates beyond the models")
        return said
