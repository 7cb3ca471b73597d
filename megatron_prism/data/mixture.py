"""A mixture: which share of the training samples each source gets, read from a YAML file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from megatron_prism.errors import ConfigError, DataError, suggest
from megatron_prism.pipeline.config import from_mapping
from megatron_prism.pipeline.yaml_file import load_yaml
from megatron_prism.platform.source_tree import recipes_folder

MAX_SEED = 2**32 - 1
YAML_SUFFIXES = (".yaml", ".yml")


@dataclass
class _MixtureFile:
    """The keys of a mixture file."""

    name: str
    weights: dict[str, float]
    description: str = ""
    source: str = ""


@dataclass(frozen=True)
class Mixture:
    """Sampling weights of sources.

    Attributes:
        weights: source -> share of the samples, normalised to sum to 1.
        total: sum of the weights as written (100 for a file in percent).
        description: purpose of the mixture.
        source: origin of the numbers.
    """

    name: str
    weights: dict[str, float]
    description: str = ""
    source: str = ""
    total: float = field(init=False)

    def __post_init__(self) -> None:
        if not self.weights:
            raise ConfigError(f"mixture '{self.name}': weights is empty; name at least one source")
        for key, weight in self.weights.items():
            if not (weight > 0 and math.isfinite(weight)):
                raise ConfigError(
                    f"mixture '{self.name}': weights.{key}={weight}: must be a number greater than zero; "
                    "remove the key to leave the source out"
                )
        total = math.fsum(self.weights.values())
        object.__setattr__(self, "total", total)
        object.__setattr__(self, "weights", {key: weight / total for key, weight in self.weights.items()})

    @classmethod
    def load(cls, name_or_path: str | Path) -> Mixture:
        """A packaged mixture by name ("mcs"), or a YAML file with `name`, `weights`, `description`, `source`.

        Raises:
            ConfigError: for an unknown name (the nearest one is suggested), an unreadable file, or an invalid weight.
        """
        path = Path(name_or_path)
        if path.suffix not in YAML_SUFFIXES:
            name = str(name_or_path)
            if name not in packaged_mixtures():
                raise ConfigError(
                    f"mixture '{name}' is not packaged{suggest(name, packaged_mixtures())} "
                    "(or give the path of a .yaml file)"
                )
            path = recipes_folder() / "mixtures" / f"{name}.yaml"
        parsed = from_mapping(_MixtureFile, load_yaml(path), where=str(path))
        try:
            return cls(parsed.name, dict(parsed.weights), parsed.description, parsed.source)
        except ConfigError as problem:
            raise ConfigError(f"{path}: {problem}") from None


def packaged_mixtures() -> list[str]:
    """The names that `Mixture.load` accepts without a path."""
    return sorted(path.stem for path in (recipes_folder() / "mixtures").glob("*.yaml"))


def check_sources(weights: Mapping[str, float], available: Iterable[str], where: str) -> None:
    """Raise a DataError that names `where` unless every weighted source is available."""
    known = sorted(available)
    for source in weights:
        if source not in known:
            raise DataError(f"{where}: no source '{source}'{suggest(source, known)}")


def check_blend(sequence_length: int, num_samples: int, seed: int, weights: Mapping[str, float]) -> None:
    """Raise a ConfigError for invalid numbers."""
    for name, value in (("sequence_length", sequence_length), ("num_samples", num_samples)):
        if value < 1:
            raise ConfigError(f"{name}={value}: must be 1 or more")
    if not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"seed={seed}: must be 0 to {MAX_SEED}")
    if not weights:
        raise ConfigError("weights: empty; name at least one source")
    for name, weight in weights.items():
        if not (weight > 0 and math.isfinite(weight)):
            raise ConfigError(f"weights.{name}={weight}: must be a number greater than zero")
