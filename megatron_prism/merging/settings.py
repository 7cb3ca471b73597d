"""The settings of a merge (method, weights and options), checked as far as possible without the models.

A `MergeSettings` gives one `Blend` for each result: one for each alpha of a list, otherwise one. A blend has the
weights of the models in every component.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypeAlias

from megatron_prism.errors import ConfigError
from megatron_prism.merging.decimals import exact_number, listed, shortest_decimal
from megatron_prism.models.components import COMPONENTS
from megatron_prism.pipeline.config import one_of


@dataclass(frozen=True)
class MethodSpec:
    """The inputs and options of a method.

    Attributes:
        base: whether it adds the changes of the models to a base.
        models: how many models it takes, not counting the base; None for any number.
        density, normalize, components: whether it has these options.
    """

    base: bool = False
    models: int | None = None
    density: bool = False
    normalize: bool = True
    components: bool = True


METHODS = {
    "linear": MethodSpec(),
    "task-arithmetic": MethodSpec(base=True),
    "slerp": MethodSpec(models=2),
    "ties": MethodSpec(base=True, density=True),
    "dare": MethodSpec(base=True, density=True),
    "interpolate": MethodSpec(base=True, models=2, normalize=False, components=False),
}
# Methods whose weights scale changes of a base, and so need not sum to 1.
CHANGES = ("task-arithmetic", "ties", "dare")
# The sum of weights may differ from 1 by this much, as it does if a user types 0.333333 three times.
SUM_TOLERANCE = Fraction(1, 10**6)
# fp32 holds no numbers that are much larger.
LARGEST_WEIGHT = 1e38
# Types in which a weight may be written; `decimals.exact_number` turns them into fractions.
Number: TypeAlias = Fraction | float | str


@dataclass(frozen=True)
class Blend:
    """The weights of the models in one result.

    Attributes:
        name: folder of the result inside the output folder; empty if there is only one result.
        weights: of the models, without the base.
        component_weights: component -> alpha, the weight of the last model in it.
        pair: whether there are two models without a base: if the last has the weight alpha, the first has `1 - alpha`.
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
    """The settings of a merge, without its models.

    Attributes:
        method: one of `METHODS`.
        weights: one for each model except the base, in order; empty if there are `alphas`.
        component_weights: component -> alpha, the weight of the last model in it. With two models and no base
            the first gets `1 - alpha` there; with a base the other models keep their weights.
        alphas: one result for each. The two models have the weights `1 - alpha` and alpha; with a base there is one
            model, with the weight alpha.
        normalize: divide the weights by their sum.
        density: for TIES and DARE: the fraction of each change that is kept.
        seed: for DARE.
        exact_weights, exact_components, exact_alphas: the numbers above as fractions (see `merging/decimals.py`).

    Raises:
        ConfigError: for an unknown method, weights that are not numbers, or options that the method does not have.
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
        self._set_exact_numbers()
        if self.spec.density and (self.density is None or not 0 < self.density <= 1):
            raise ConfigError(
                f"density={self.density}: method={self.method} needs the fraction of each change to keep, in (0, 1], "
                "for example 0.2"
            )
        if not self.spec.density and self.density is not None:
            raise ConfigError(
                f"density={self.density}: method={self.method} has no density; only ties and dare have one"
            )
        if self.normalize and (not self.spec.normalize or self.alphas):
            what = "a list of alphas" if self.alphas else f"method={self.method}"
            raise ConfigError(f"normalize: {what} does not allow it; leave it out")
        for component in self.component_weights:
            one_of(component, COMPONENTS, "component weight")
        if self.component_weights and not self.spec.components:
            raise ConfigError(
                f"component weights: method={self.method} has one pair (a, b) for all components; leave them out"
            )

    @property
    def spec(self) -> MethodSpec:
        return METHODS[self.method]

    def _set_exact_numbers(self) -> None:
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
                    f"{where} is {float(value):g}; use at most {LARGEST_WEIGHT:g}, because fp32 holds no larger numbers"
                )
        if bool(self.weights) == bool(self.alphas):
            raise ConfigError("give either a weight for each model, or a list of alphas for two models")
        if len(set(map(shortest_decimal, self.exact_alphas))) < len(self.alphas):
            raise ConfigError(f"alphas {listed(self.exact_alphas)}: one is named twice")

    def blends(self, models: int) -> list[Blend]:
        """The results to make of this number of models, not counting the base.

        Raises:
            ConfigError: if weights, models and method do not fit each other.
        """
        spec = self.spec
        pair = not spec.base and models == 2
        if spec.models is not None and models != spec.models:
            without_base = " and a base" if spec.base else ""
            raise ConfigError(
                f"method={self.method} takes {spec.models} models{without_base}; the number of models is {models}"
            )
        if models < (1 if spec.base else 2):
            raise ConfigError(
                f"method={self.method} needs two or more models; the number of models is {models}"
            )
        if self.component_weights and not spec.base and not pair:
            raise ConfigError(
                f"component weights need two models, or a base; the number of models is {models}"
            )
        if self.alphas:
            if not pair and not (spec.base and models == 1):
                raise ConfigError(
                    f"alphas {listed(self.exact_alphas)}: two models are needed, or one model and a base; the number "
                    f"of models is {models}"
                )
            return [
                Blend(
                    f"alpha-{shortest_decimal(alpha)}",
                    (1 - alpha, alpha) if pair else (alpha,),
                    self.exact_components,
                    pair,
                )
                for alpha in self.exact_alphas
            ]
        if len(self.weights) != models:
            raise ConfigError(
                f"there are {len(self.weights)} weights for {models} models; give each model one weight"
            )
        return [Blend("", self._normalized(), self.exact_components, pair)]

    def shares(self, weights: Sequence[Fraction]) -> tuple[float, ...]:
        """The share of each model in a result with these weights, with the base first if the method has one."""
        if self.method == "interpolate":
            a, b = weights
            return (float(1 - a), float(a - b), float(b))
        shares = (1 - sum(weights), *weights) if self.spec.base else weights
        return tuple(map(float, shares))

    def _normalized(self) -> tuple[Fraction, ...]:
        weights, total = self.exact_weights, sum(self.exact_weights, start=Fraction(0))
        if self.normalize:
            if abs(total) < SUM_TOLERANCE:
                raise ConfigError(
                    f"normalize: weights {listed(weights)} sum to {float(total):g}; choose weights with another sum"
                )
            return tuple(weight / total for weight in weights)
        if self.method == "slerp" and abs(total - 1) > SUM_TOLERANCE:
            raise ConfigError(
                f"method=slerp: weights {listed(weights)} sum to {float(total):g}; use 1 - t and t, "
                "or normalize"
            )
        return weights

    def remarks(self) -> list[str]:
        """Messages for the user before the merge starts, one line each."""
        remarks, weights = [], self.exact_weights
        total = sum(weights, start=Fraction(0))
        if self.normalize:
            remarks.append(f"weights {listed(weights)} are divided by their sum {float(total):g} (normalize)")
        elif self.method == "linear" and weights and abs(total - 1) > SUM_TOLERANCE:
            remarks.append(
                f"weights {listed(weights)} sum to {float(total):g}, not 1; they are used exactly as they are"
            )
        shares = () if self.method in CHANGES else weights
        alphas = (*shares, *self.exact_alphas, *self.exact_components.values())
        outside = [alpha for alpha in alphas if not 0 <= alpha <= 1]
        if outside:
            remarks.append(f"alpha {listed(outside)} is outside [0, 1]: this extrapolates beyond the models")
        return remarks
