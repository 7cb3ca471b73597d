"""Opens any engine by its name and options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from megatron_prism.errors import ConfigError, suggest
from megatron_prism.generation.engine import Engine
from megatron_prism.generation.hf_engine import HFEngine
from megatron_prism.generation.megatron_engine import MegatronEngine
from megatron_prism.generation.openai_engine import OpenAIEngine
from megatron_prism.generation.vllm_engine import VLLMEngine

# The functions that take an engine's options: constructors, or a context manager that also closes the engine.
OPENERS: dict[str, Callable[..., Any]] = {
    "megatron": MegatronEngine.load,
    "hf": HFEngine.load,
    "vllm": VLLMEngine,
    "openai": OpenAIEngine,
}


def check_options(name: str, options: Collection[str]) -> None:
    """Raise a ConfigError unless the engine exists, accepts all these options, and needs no further ones."""
    if name not in OPENERS:
        raise ConfigError(f"engine '{name}' does not exist{suggest(name, OPENERS)}")
    parameters = inspect.signature(OPENERS[name]).parameters
    for option in options:
        if option not in parameters:
            raise ConfigError(f"engine '{name}': unknown option '{option}'{suggest(option, parameters)}")
    for option, parameter in parameters.items():
        if option not in options and parameter.default is parameter.empty:
            raise ConfigError(f"engine '{name}': option '{option}' is missing")


def has_likelihoods(name: str) -> bool:
    """Whether the engine can tell how probable a given text is (`LikelihoodEngine`)."""
    owner = getattr(OPENERS[name], "__self__", OPENERS[name])
    return hasattr(owner, "log_likelihoods")


@contextmanager
def open_engine(name: str, **options: Any) -> Iterator[Engine]:
    """The engine `name`: 'megatron', 'hf', 'vllm' or 'openai'.

    Args:
        options: the arguments of `MegatronEngine.load`, `HFEngine.load`, `VLLMEngine` or `OpenAIEngine`.

    Raises:
        ConfigError: for an unknown name or option (the nearest one is suggested), or a missing option.
    """
    check_options(name, options)
    opened = OPENERS[name](**options)
    entered = opened if isinstance(opened, AbstractContextManager) else nullcontext(opened)
    with entered as engine:
        yield engine
