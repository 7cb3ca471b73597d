"""Reading a Hugging Face config strictly: a key that could change the maths is understood or refused, never ignored.

A family's `from_config` asks for the keys it knows; whatever it did not ask for and is not on the list of keys that
cannot change a logit is an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from megatron_prism.errors import ConfigError
from megatron_prism.models.rope import NEEDED, OPTIONAL, RopeScaling

# What a Hugging Face folder may hold of its tokenizer; the first two are needed here.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "tekken.json",
    "vocab.json",
    "merges.txt",
)
# Bookkeeping of transformers: what to print, cache, sample or where a file came from.
HARMLESS = frozenset(
    [
        *(
            "architectures",
            "model_type",
            "torch_dtype",
            "dtype",
            "transformers_version",
            "_name_or_path",
            "auto_map",
        ),
        *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id"),
        *("use_cache", "return_dict", "output_attentions", "output_hidden_states", "output_router_logits"),
        *("torchscript", "chunk_size_feed_forward", "pretraining_tp", "is_decoder", "is_encoder_decoder"),
        *("id2label", "label2id", "num_labels", "problem_type", "task_specific_params", "finetuning_task"),
        *(
            "attn_implementation",
            "_attn_implementation_autoset",
            "tokenizer_class",
            "prefix",
            "mask_token_id",
        ),
        *("max_length", "min_length", "do_sample", "temperature", "top_k", "top_p", "num_beams"),
        *("repetition_penalty", "length_penalty", "no_repeat_ngram_size"),
    ]
)


class ConfigReader:
    """A config's keys, each asked for by name; `finish` refuses those that nobody asked for."""

    def __init__(self, config: Mapping[str, Any], family: str) -> None:
        self._config, self._family, self._known = config, family, set(HARMLESS)

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or `default` where it is absent or null."""
        self._known.add(key)
        value = self._config.get(key)
        return default if value is None else value

    def require(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise ConfigError(f"config.json: no key '{key}', which {self._family} needs")
        return value

    def fixed(self, key: str, allowed: Any, default: Any = None) -> None:
        """Refuse any value but `allowed`; an absent key counts as `default` (None: as allowed)."""
        value = self.get(key, allowed if default is None else default)
        if value != allowed:
            raise ConfigError(
                f"config.json: {key}={value!r} is not supported for {self._family}; only {allowed!r} is"
            )

    def unlimited(self, key: str) -> None:
        """Refuse a range other than all positive numbers; transformers writes infinity as {"__float__": "Infinity"}."""
        bounds = self.get(key, [0.0, math.inf])
        numbers = [float(bound["__float__"] if isinstance(bound, dict) else bound) for bound in bounds]
        if numbers != [0.0, math.inf]:
            raise ConfigError(f"config.json: {key}={bounds} is not supported; only [0.0, Infinity] is")

    def unused(self, *keys: str) -> None:
        """Keys whose value has no effect on this model."""
        self._known.update(keys)

    def finish(self) -> None:
        unknown = sorted(
            key for key, value in self._config.items() if key not in self._known and value is not None
        )
        if unknown:
            raise ConfigError(
                f"config.json: key '{unknown[0]}'={self._config[unknown[0]]!r} is not known for {self._family} and "
                "could change what the model computes; remove it if it does not"
            )

    def rope(self, default_theta: float = 10000.0) -> tuple[float, RopeScaling | None]:
        """theta and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
        new, old = self.get("rope_parameters", {}), self.get("rope_scaling", {})
        if new and old and new != old:
            raise ConfigError("config.json: rope_parameters and rope_scaling say different things; keep one")
        theta = float(new.get("rope_theta", self.get("rope_theta", default_theta)))
        numbers = {key: value for key, value in (old or new).items() if key != "rope_theta"}
        kinds = {numbers.pop(key) for key in ("rope_type", "type") if key in numbers}
        if len(kinds) > 1:
            raise ConfigError(f"config.json: rope_type and type are both named and differ: {sorted(kinds)}")
        kind = kinds.pop() if kinds else "default"
        if kind == "default" and not numbers.keys() - {"partial_rotary_factor"}:
            if numbers.get("partial_rotary_factor", 1.0) != 1.0:
                raise ConfigError("config.json: partial_rotary_factor other than 1 is not supported")
            return theta, None
        if kind == "default":
            raise ConfigError(
                f"config.json: rope_type='default' takes no numbers, but '{min(numbers)}' is given"
            )
        return theta, _scaling(kind, numbers)


def _scaling(kind: str, numbers: Mapping[str, Any]) -> RopeScaling:
    """The scaling of this type; every number it needs is there, and none that it does not know."""
    if kind not in NEEDED:
        kinds = ", ".join(repr(each) for each in ("default", *sorted(NEEDED)))
        raise ConfigError(f"config.json: rope_type={kind!r} is not supported; only {kinds}")
    given = {key for key, value in numbers.items() if value is not None}
    wanted, optional = set(NEEDED[kind]), OPTIONAL[kind]
    if not wanted <= given or not numbers.keys() <= wanted | optional.keys():
        odd = min((wanted - given) or (numbers.keys() - wanted - optional.keys()))
        also = f", and may have {', '.join(optional)}" if optional else ""
        raise ConfigError(
            f"config.json: rope_type={kind!r} needs exactly {', '.join(sorted(wanted))}{also}; see '{odd}'"
        )
    # To transformers a null here is false, and an absent key true.
    if not isinstance(numbers.get("truncate", True), bool):
        raise ConfigError(f"config.json: truncate={numbers['truncate']!r} must be true or false")
    for key in given - {"truncate"}:
        if isinstance(numbers[key], bool) or not isinstance(numbers[key], int | float):
            raise ConfigError(f"config.json: {key}={numbers[key]!r} of rope_type={kind!r} is not a number")
    exact: dict[str, Any] = {
        key: numbers[key] if key == "truncate" else float(numbers[key])
        for key in given - {"original_max_position_embeddings"}
    }
    length = numbers.get("original_max_position_embeddings")
    return RopeScaling(
        rope_type=kind, original_max_position_embeddings=None if length is None else int(length), **exact
    )


def rope_to_config(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """The value of `rope_parameters`."""
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    return {"rope_type": scaling.rope_type, "rope_theta": theta, **scaling.numbers()}
