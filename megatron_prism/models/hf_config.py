"""Reads a Hugging Face config strictly: a key that could change the maths is supported or refused, never ignored.

A family's `from_config` reads the keys that it supports, each with its type. Any other key is an error, unless it is
known not to change a logit (`harmless_keys`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from megatron_prism.errors import ConfigError
from megatron_prism.models.harmless_keys import HARMLESS, HARMLESS_WHEN
from megatron_prism.pipeline.config import LARGEST_COUNT

SHOWN = 80


class ConfigReader:
    """Reads the keys of a config by name and type; `finish` refuses the keys that were not read.

    Attributes:
        family: the family of the config, for messages.
        remarks: messages for the user, one line each: which of several spellings was read, and which keys were ignored.
    """

    def __init__(self, config: Mapping[str, Any], family: str) -> None:
        self.family = family
        self.remarks: list[str] = []
        self._config, self._known = config, set(HARMLESS)

    def __contains__(self, key: str) -> bool:
        """Whether the config has the key, with any value."""
        return key in self._config

    def get(self, key: str, default: Any = None) -> Any:
        """The value, unchecked, or `default` if it is absent or null."""
        self._known.add(key)
        value = self._config.get(key)
        return default if value is None else value

    def size(
        self, key: str, default: int | None = None, null: int | None = None, maximum: int = LARGEST_COUNT
    ) -> int:
        """A whole number from 1 to `maximum`.

        Args:
            default: the value of an absent key; None if the key is required.
            null: the value of a null, as in transformers; None if a null is refused.
        """
        value = self._value(key, default, null)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= maximum:
            raise self._wrong(key, value, f"must be a whole number from 1 to {maximum}")
        return value

    def number(
        self, key: str, default: float | None = None, minimum: float = -math.inf, above: float = -math.inf
    ) -> float:
        """A finite number of at least `minimum` and greater than `above`; `default` as in `size`."""
        value = as_number(self._value(key, default))
        if value is None or not (value >= minimum and value > above):
            bound = f" greater than {above:g}" if above > -math.inf else f" of {minimum:g} or more"
            bound = bound if max(minimum, above) > -math.inf else ""
            raise self._wrong(key, self._config.get(key), f"must be a number{bound}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "must be true or false")
        return value

    def names(self, key: str) -> list[str] | None:
        """A list of strings; None if it is absent or null."""
        value = self.get(key)
        if value is not None and not (
            isinstance(value, list) and all(isinstance(each, str) for each in value)
        ):
            raise self._wrong(key, value, "must be a list of strings")
        return value

    def text(self, key: str) -> str | None:
        """A string; None if it is absent or null."""
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise self._wrong(key, value, "must be a string")
        return value

    def fixed(self, key: str, allowed: Any, default: Any = None) -> None:
        """Refuse any value except `allowed`. An absent key has the value `default` (None: the allowed one)."""
        value = self.get(key, allowed if default is None else default)
        if value != allowed:
            raise ConfigError(
                f"config.json: {key}={shown(value)} is not supported for {self.family}; only {allowed!r} is"
            )

    def unlimited(self, key: str) -> None:
        """Refuse a range other than all positive numbers; transformers writes infinity as {"__float__": "Infinity"}."""
        bounds = self.get(key, [0.0, math.inf])
        try:
            numbers = [float(bound["__float__"] if isinstance(bound, dict) else bound) for bound in bounds]
        except (KeyError, TypeError, ValueError):
            numbers = []
        if numbers != [0.0, math.inf]:
            raise ConfigError(f"config.json: {key}={shown(bounds)} is not supported; only [0.0, Infinity] is")

    def unused(self, *keys: str) -> None:
        """Accept these keys with any value: they have no effect on this model."""
        self._known.update(keys)

    def remark(self, line: str) -> None:
        """Add a remark on config.json for the user."""
        self.remarks.append(f"config.json: {line}")

    def finish(self) -> None:
        """Raise a ConfigError that names every key with a value that was not read."""
        unknown = sorted(
            str(key)
            for key, value in self._config.items()
            if key not in self._known
            and value is not None
            and not (key in HARMLESS_WHEN and value == HARMLESS_WHEN[key])
        )
        if unknown:
            named = ", ".join(f"'{key}'={shown(self._config[key])}" for key in unknown)
            what, remedy = (
                (f"key {named} is", "remove it if it does not")
                if len(unknown) == 1
                else (f"keys {named} are", "remove those that do not")
            )
            raise ConfigError(
                f"config.json: {what} not known for {self.family} and could change the model's computation; {remedy}"
            )

    def _value(self, key: str, default: Any, null: Any = None) -> Any:
        """The unchecked value. A ConfigError if it is absent or null and has neither `default` nor `null`."""
        self._known.add(key)
        if key not in self._config:
            if default is None:
                raise ConfigError(f"config.json: key '{key}' is missing, and {self.family} needs it")
            return default
        value = self._config[key]
        if value is None:
            if null is None:
                raise ConfigError(f"config.json: {key} is null, but {self.family} needs a value")
            return null
        return value

    def _wrong(self, key: str, value: Any, requirement: str) -> ConfigError:
        return ConfigError(f"config.json: {key}={shown(value)}: {requirement}")


def as_number(value: Any) -> float | None:
    """A finite JSON number as a float; None for anything else, including booleans and strings."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def shown(value: Any) -> str:
    """A value as a message shows it, cut to one short line."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
