"""What goes over the wire of an OpenAI-compatible `/completions` endpoint: a request's fields, an answer's meaning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from megatron_prism.errors import ServerError
from megatron_prism.generation.engine import (
    Completion,
    FinishReason,
    SamplingParams,
    cut_at_stop,
)

if TYPE_CHECKING:
    from megatron_prism.data.tokenizer import Tokenizer

# What the engine decides itself; `extra` fields must not touch it.
OWN_FIELDS = (
    "model",
    "prompt",
    "max_tokens",
    "temperature",
    "top_p",
    "stop",
    "seed",
    "logprobs",
    "n",
    "best_of",
    "echo",
    "stream",
)
ASK_FOR_IDS = "ask the server for token ids (vLLM: extra={'return_token_ids': True})"


def request_body(
    *,
    model: str,
    prompt: str | list[int],
    seed: int,
    params: SamplingParams,
    logprobs: bool,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """The fields of one request for one completion; `prompt` is a text or token ids, `seed` that completion's own."""
    body = {
        **extra,
        "model": model,
        "prompt": prompt,
        "max_tokens": params.max_new_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "seed": seed,
    }
    if params.stop:
        body["stop"] = list(params.stop)
    if logprobs:
        # 0 would do for OpenAI and vLLM, but other servers take it for "none".
        body["logprobs"] = 1
    return body


def check_prompt(answer: Any, sent: Sequence[int], as_ids: bool) -> None:
    """Compare the prompt that the server read with the one it should have read, as far as it reports it.

    Servers report the number of tokens (`usage.prompt_tokens`), some of them the ids (`prompt_token_ids`).

    Args:
        sent: the prompt's token ids by our tokenizer.
        as_ids: whether the request held these ids, or the text.

    Raises:
        ServerError: where the two differ: the answer would be to another question than the other engines are asked.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    ids = choice.get("prompt_token_ids")
    if not isinstance(ids, list):
        ids = answer.get("prompt_token_ids") if isinstance(answer, dict) else None
    usage = answer.get("usage") if isinstance(answer, dict) else None
    count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    if isinstance(ids, list):
        if ids == list(sent):
            return
        count = len(ids)
    # Some servers say 0 where they do not count.
    elif not isinstance(count, int) or isinstance(count, bool) or count < 1 or count == len(sent):
        return
    said = f"the server read a prompt of {count} tokens"
    if as_ids:
        raise ServerError(
            f"{said}, and was sent {len(sent)} ids: it adds tokens of its own to a prompt; tell it not to add a start "
            "token"
        )
    raise ServerError(
        f"{said} from a text that has {len(sent)} here: it begins a prompt otherwise, reads the names of special "
        "tokens otherwise, or has another tokenizer; set begin and special_tokens (engine.text of a stage) to what "
        "it does, give the tokenizer of the model it serves, or use a server that takes token ids"
    )


def read_answer(
    answer: Any, params: SamplingParams, logprobs: bool, tokenizer: Tokenizer | None
) -> Completion:
    """The completion in a server's answer.

    Token ids are the server's where it reports them (`choices[0].token_ids`). Elsewhere `tokenizer` encodes the
    tokens' texts, or the whole text where that is not unique; without one they stay empty if `logprobs` is off.

    Raises:
        ServerError: if text, finish reason, log-probabilities or token ids are missing, or do not match each other.
    """
    try:
        choice = answer["choices"][0]
        text, finish = choice["text"], choice["finish_reason"]
    except (KeyError, IndexError, TypeError):
        text = finish = None
    if not isinstance(text, str):
        raise ServerError(
            "the answer has no choices[0].text and finish_reason; is this a /completions endpoint?"
        )
    if finish not in ("stop", "length"):
        raise ServerError(f"finish_reason={finish!r}: neither 'stop' nor 'length', so the text is not whole")
    values = _logprobs(choice) if logprobs else []
    ids = _reported_ids(choice)
    if ids is None:
        ids = _encoded_ids(choice, text=text, finish=finish, logprobs=logprobs, tokenizer=tokenizer)
    elif tokenizer is not None:
        _check_spelling(ids, text, tokenizer)
    if logprobs and len(ids) != len(values):
        raise ServerError(f"{len(values)} log-probabilities but {len(ids)} token ids; {ASK_FOR_IDS}")
    shown = cut_at_stop(text, params.stop)
    return Completion(shown, ids, values, "stop" if len(shown) < len(text) else finish)


def _logprobs(choice: Mapping[str, Any]) -> list[float]:
    """The log-probability of each sampled token."""
    reported = choice.get("logprobs")
    values = reported.get("token_logprobs") if isinstance(reported, dict) else None
    if not isinstance(values, list) or not all(_is_number(value) for value in values):
        raise ServerError(
            "the answer has no log-probabilities (choices[0].logprobs.token_logprobs); use a server that reports "
            "them (vLLM does), or set logprobs=False where texts are enough"
        )
    return [float(value) for value in values]


def _reported_ids(choice: Mapping[str, Any]) -> list[int] | None:
    ids = choice.get("token_ids")
    return ids if isinstance(ids, list) and all(type(item) is int for item in ids) else None


def _check_spelling(ids: Sequence[int], text: str, tokenizer: Tokenizer) -> None:
    """Refuse ids that are not the text's: the model behind the server has another tokenizer than ours."""
    # A model may have more rows than its tokenizer has tokens, and a server may sample them.
    if any(number >= tokenizer.vocab_size for number in ids):
        return
    # What a server may leave out: special tokens, spaces beside them, a stop string, half a character.
    spelled, shown = (
        "".join(tokenizer.without_special_names(each).split()) for each in (tokenizer.decode(ids), text)
    )
    if not spelled.startswith(shown) and "\N{REPLACEMENT CHARACTER}" not in spelled + shown:
        raise ServerError(
            f"its token ids spell {spelled[:40]!r} with the tokenizer given, and its text is {shown[:40]!r}: give the "
            "tokenizer of the model that the server has"
        )


def _encoded_ids(
    choice: Mapping[str, Any], *, text: str, finish: FinishReason, logprobs: bool, tokenizer: Tokenizer | None
) -> list[int]:
    """Token ids that the server does not report."""
    if tokenizer is None:
        if logprobs:
            raise ServerError(f"the answer has no token ids; give the engine a tokenizer, or {ASK_FOR_IDS}")
        return []
    tokens = choice["logprobs"].get("tokens") if logprobs else None
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        return tokenizer.encode_fragment(text)
    return _ids_of_tokens(tokens, text, finish, tokenizer)


def _ids_of_tokens(tokens: Sequence[str], text: str, finish: FinishReason, tokenizer: Tokenizer) -> list[int]:
    """One id for each token's text; where a token is only part of a character, the encoded `text` instead."""
    end: list[int] = []
    if finish == "stop" and tokens and tokens[-1] == tokenizer.decode([tokenizer.eos_id]):
        tokens, end = tokens[:-1], [tokenizer.eos_id]
    pieces = tokenizer.encode_fragments(tokens)
    ids = [piece[0] for piece in pieces if len(piece) == 1]
    # A tokenizer may put a space before a word that stands alone: then the parts are not the whole.
    if len(ids) < len(tokens) or tokenizer.decode(ids) != "".join(tokens):
        ids = tokenizer.encode_fragment(text)
    return ids + end


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
