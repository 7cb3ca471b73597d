"""The text policy of a tokenizer: start and end tokens, and how names of special tokens in a text are read.

There is one policy per tokenizer, and everything that encodes text follows it: training documents, prompts of every
engine, reinforcement learning, RULER's lengths, calibration. The default is what the tokenizer's files do: the
post-processor of `tokenizer.json`, or, with a `tokenizer.model`, `add_bos_token` and `add_eos_token` of
`tokenizer_config.json`. So LLaMA 3, Mistral and Nemotron-H add a start token, and Granite does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.config import one_of

AS_TOKENIZER, NOTHING = "tokenizer", "none"
SPELL_OUT, PARSE, REFUSE = "spell_out", "parse", "refuse"
SPECIAL_TOKENS = (SPELL_OUT, PARSE, REFUSE)


@dataclass
class TextSettings:
    """The policy that a user chooses, as a part of a stage's config.

    Attributes:
        begin: added before a document or a prompt: "tokenizer" (as its files say), "none", or the name of a token.
        end: added after a document: "tokenizer" (as its files say, and always its end token), or the name of a token.
            Nothing is added after a prompt.
        special_tokens: how the name of a special token in a text is read. "spell_out": as ordinary characters, for
            third-party text; "parse": as that token, for rendered chat templates; "refuse": it is an error.
    """

    begin: str = AS_TOKENIZER
    end: str = AS_TOKENIZER
    special_tokens: str = SPELL_OUT

    def __post_init__(self) -> None:
        one_of(self.special_tokens, SPECIAL_TOKENS, "special_tokens")
        if not self.begin:
            raise ConfigError("begin='': must be 'tokenizer', 'none' or the name of a token")
        if self.end in ("", NOTHING):
            raise ConfigError(
                f"end='{self.end}': documents need an end token; set it to 'tokenizer' or the name of a token"
            )


@dataclass(frozen=True)
class TextPolicy:
    """The policy of a tokenizer.

    Attributes:
        begin: ids before a document and before a prompt; may be empty.
        end: ids after a document.
        special_tokens: "spell_out", "parse" or "refuse"; see `TextSettings`.
    """

    begin: tuple[int, ...]
    end: tuple[int, ...]
    special_tokens: str = SPELL_OUT

    def prompt(self, ids: Sequence[int]) -> list[int]:
        """The ids of a text after the start token.

        With "parse", a start token that the text already has (as a rendered chat template does) is not repeated.
        """
        length = len(self.begin)
        begun = self.special_tokens == PARSE and tuple(ids[:length]) == self.begin
        return list(ids) if begun else [*self.begin, *ids]

    def document(self, ids: Sequence[int]) -> list[int]:
        """The ids of a text with start and end token. With "parse", neither is added a second time."""
        length = len(self.end)
        ended = self.special_tokens == PARSE and length > 0 and tuple(ids[-length:]) == self.end
        return self.prompt(ids) if ended else [*self.prompt(ids), *self.end]


def text_policy(
    settings: TextSettings,
    *,
    before: Sequence[int],
    after: Sequence[int],
    eos_id: int,
    find: Callable[[str], int | None],
    where: str,
) -> TextPolicy:
    """The policy of a tokenizer whose files add `before` and `after` around a text.

    Args:
        find: maps the name of a token to its id, or None.
        where: the tokenizer's name in messages.

    Raises:
        ConfigError: if `begin` or `end` names a token that the tokenizer does not have.
    """

    def named(key: str, name: str) -> tuple[int, ...]:
        token_id = find(name)
        if token_id is None:
            raise ConfigError(f"text.{key}='{name}': {where} has no token of this name")
        return (token_id,)

    begin, end = tuple(before), tuple(after)
    if settings.begin != AS_TOKENIZER:
        begin = () if settings.begin == NOTHING else named("begin", settings.begin)
    if settings.end != AS_TOKENIZER:
        end = named("end", settings.end)
    elif eos_id not in end[-1:]:
        end = (*end, eos_id)
    return TextPolicy(begin, end, settings.special_tokens)
