"""A GPU and its links as data: peaks, memory, bandwidths, and the shares of them that kernels reach, with sources.

The packaged profiles are YAML files in `hardware/`. A user's own file has the same keys, each with value and source.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_prism.errors import ConfigError, suggest

FOLDER = Path(__file__).parent / "hardware"
NUMBERS = (
    *("memory", "memory_bandwidth", "nvlink", "network", "gpus_per_nvlink_domain", "gpus_per_node"),
    *("watts", "collectives"),
)
TABLES = ("peak", "matmul", "attention")
OPTIONAL = ("rated_watts", "title")


@dataclass(frozen=True)
class GpuProfile:
    """One GPU of a node.

    Attributes:
        peak: FLOP/s by dtype, dense.
        memory, memory_bandwidth: bytes, bytes per second.
        nvlink, network: bytes per second and direction, per GPU.
        gpus_per_nvlink_domain: GPUs that reach each other by NVLink.
        watts: the power limit.
        collectives: share of `nvlink` that a large all-gather or reduce-scatter reaches.
        matmul: share of the peak that matrix products reach, by dtype.
        attention: shares of the bf16 peak that attention reaches, (forward, backward), by backend.
        rated_watts: the power at which the peaks hold.
        sources: of each key.
    """

    name: str
    title: str
    peak: dict[str, float]
    memory: float
    memory_bandwidth: float
    nvlink: float
    network: float
    gpus_per_nvlink_domain: int
    gpus_per_node: int
    watts: float
    collectives: float
    matmul: dict[str, float]
    attention: dict[str, tuple[float, float]]
    rated_watts: float
    sources: dict[str, str]

    @property
    def power(self) -> float:
        """The speed of products and attention, which draw all power, under this power limit.

        Assumption: proportional to the power, as a chip's speed is where its voltage cannot fall any more.
        """
        return min(1.0, self.watts / self.rated_watts)

    def matmul_speed(self, dtype: str) -> float:
        """FLOP/s of large matrix products."""
        if dtype not in self.matmul:
            raise ConfigError(f"--gpu {self.name}: it has no {dtype} products; use bf16")
        return self.peak[dtype] * self.matmul[dtype] * self.power

    def attention_speed(self, backend: str, backward: bool) -> float:
        """FLOP/s of causal attention."""
        return self.peak["bf16"] * self.attention[backend][backward] * self.power


def packaged_profiles() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_profile(name: str) -> GpuProfile:
    """A packaged profile by name, or one of the user's by the path of its YAML file.

    Raises:
        ConfigError: for an unknown name (nearest suggested), or a key that is missing, unknown or no number.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"--gpu {name}: there is no such file")
    else:
        path = FOLDER / f"{name.lower()}.yaml"
        if not path.is_file():
            raise ConfigError(f"--gpu {name}: no such profile{suggest(name.lower(), packaged_profiles())}")
    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        raise ConfigError(f"{path}: cannot be read as YAML ({str(problem).splitlines()[0]})") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a mapping of keys, as {FOLDER / 'h100.yaml'} is")
    return _parse(data, path)


def _parse(data: dict[str, Any], path: Path) -> GpuProfile:
    known = {"name", *NUMBERS, *TABLES, *OPTIONAL}
    for key in data:
        if key not in known:
            raise ConfigError(f"{path}: unknown key '{key}'{suggest(str(key), known)}")
    for key in (*NUMBERS, *TABLES):
        if key not in data:
            raise ConfigError(f"{path}: key '{key}' is missing")
    sources: dict[str, str] = {}

    def number(value: Any, key: str, field: str = "value") -> float:
        found = value.get(field) if isinstance(value, dict) else value
        if isinstance(found, bool) or not isinstance(found, int | float) or found <= 0:
            raise ConfigError(f"{path}: {key}={found!r}: must be a number above 0")
        sources[key] = value.get("source", "") if isinstance(value, dict) else ""
        return float(found)

    def table(key: str) -> dict[str, Any]:
        if not isinstance(data[key], dict) or not data[key]:
            raise ConfigError(f"{path}: {key}: must be a mapping")
        return dict(data[key])

    numbers = {key: number(data[key], key) for key in NUMBERS}
    peak = {each: number(value, f"peak.{each}") for each, value in table("peak").items()}
    matmul = {each: number(value, f"matmul.{each}") for each, value in table("matmul").items()}
    attention = {
        each: (
            number(value, f"attention.{each}.forward", "forward"),
            number(value, f"attention.{each}.backward", "backward"),
        )
        for each, value in table("attention").items()
    }
    for key, found in (("peak", peak), ("matmul", matmul)):
        if "bf16" not in found:
            raise ConfigError(f"{path}: {key}.bf16 is missing")
    for backend in ("te", "torch"):
        if backend not in attention:
            raise ConfigError(f"{path}: attention.{backend} is missing")
    name = str(data.get("name", path.stem))
    rated = number(data["rated_watts"], "rated_watts") if "rated_watts" in data else numbers["watts"]
    domain, node = int(numbers.pop("gpus_per_nvlink_domain")), int(numbers.pop("gpus_per_node"))
    return GpuProfile(
        name=name,
        title=str(data.get("title", name)),
        peak=peak,
        gpus_per_nvlink_domain=domain,
        gpus_per_node=node,
        matmul=matmul,
        attention=attention,
        rated_watts=rated,
        sources=sources,
        **numbers,
    )
