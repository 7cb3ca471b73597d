"""The protocol of an OpenAI-compatible `/completions` endpoint: the fields of a request, the meaning of a response."""

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

# Fields that the engine sets itself; `extra` must not set them.
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
    """The fields of a request for one completion. `prompt` is a text or token ids; `seed` is that of the completion."""
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
        # 0 is enough for OpenAI and vLLM, but other servers read it as "none".
        body["logprobs"] = 1
    return body


def check_prompt(response: Any, sent: Sequence[int], as_ids: bool) -> None:
    """Compare the prompt that the server read, as far as it reports it, with the prompt that was sent.

    Servers report the number of tokens (`usage.prompt_tokens`), some of them the ids (`prompt_token_ids`).

    Args:
        sent: the prompt's token ids by our tokenizer.
        as_ids: whether the request held these ids, or the text.

    Raises:
        ServerError: if the two differ; the server would complete a different prompt from the one sent.
    """
    choices = response.get("choices") if isinstance(response, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    ids = choice.get("prompt_token_ids")
    if not isinstance(ids, list):
        ids = response.get("prompt_token_ids") if isinstance(response, dict) else None
    usage = response.get("usage") if isinstance(response, dict) else None
    count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    if isinstance(ids, list):
        if ids == list(sent):
            return
        count = len(ids)
    # Some servers that do not count report 0.
    elif not isinstance(count, int) or isinstance(count, bool) or count < 1 or count == len(sent):
        return
    found = f"the server read a prompt of {count} tokens"
    if as_ids:
        raise ServerError(
            f"{found}, but was sent {len(sent)} ids, so it adds tokens to prompts; configure it not to "
            "add a start token"
        )
    raise ServerError(
        f"{found} from a text that has {len(sent)} tokens here: it uses a different start token, reads the names "
        "of special tokens differently, or has a different tokenizer; set begin and special_tokens (engine.text of a "
        "stage) to match the server, use the tokenizer of its model, or use a server that accepts token ids"
    )


def read_response(
    response: Any, params: SamplingParams, logprobs: bool, tokenizer: Tokenizer | None
) -> Completion:
    """The completion in a server's response.

    Token ids are the server's if it reports them (`choices[0].token_ids`). Otherwise `tokenizer` encodes the tokens'
    texts, or the whole text if that is ambiguous. Without a tokenizer they stay empty if `logprobs` is off.

    Raises:
        ServerError: if text, finish reason, log-probabilities or token ids are missing, or do not match each other.
    """
    try:
        choice = response["choices"][0]
        text, finish = choice["text"], choice["finish_reason"]
    except (KeyError, IndexError, TypeError):
        text = finish = None
    if not isinstance(text, str):
        raise ServerError(
            "the response has no choices[0].text and finish_reason; check that this is a /completions endpoint"
        )
    if finish not in ("stop", "length"):
        raise ServerError(
            f"finish_reason={finish!r}: neither 'stop' nor 'length', so the text is not complete"
        )
    values = _logprobs(choice) if logprobs else []
    ids = _reported_ids(choice)
    if ids is None:
        ids = _encoded_ids(choice, text=text, finish=finish, logprobs=logprobs, tokenizer=tokenizer)
    elif tokenizer is not None:
        _check_spelling(ids, text, tokenizer)
    if logprobs and len(ids) != len(values):
        raise ServerError(f"{len(values)} log-probabilities but {len(ids)} token ids; {ASK_FOR_IDS}")
    kept = cut_at_stop(text, params.stop)
    return Completion(kept, ids, values, "stop" if len(kept) < len(text) else finish)


def _logprobs(choice: Mapping[str, Any]) -> list[float]:
    """The log-probability of each sampled token."""
    reported = choice.get("logprobs")
    values = reported.get("token_logprobs") if isinstance(reported, dict) else None
    if not isinstance(values, list) or not all(_is_number(value) for value in values):
        raise ServerError(
            "the response has no log-probabilities (choices[0].logprobs.token_logprobs); use a server that reports "
            "them (vLLM does), or set logprobs=False if texts are enough"
        )
    return [float(value) for value in values]


def _reported_ids(choice: Mapping[str, Any]) -> list[int] | None:
    ids = choice.get("token_ids")
    return ids if isinstance(ids, list) and all(type(item) is int for item in ids) else None


def _check_spelling(ids: Sequence[int], text: str, tokenizer: Tokenizer) -> None:
    """Refuse ids that do not spell the text: then the server's model has a different tokenizer."""
    # A model may have more vocabulary rows than its tokenizer has tokens, and a server may sample them.
    if any(number >= tokenizer.vocab_size for number in ids):
        return
    # A server may leave out special tokens, spaces next to them, a stop string, and half a character.
    spelled, shown = (
        "".join(tokenizer.without_special_names(each).split()) for each in (tokenizer.decode(ids), text)
    )
    if not spelled.startswith(shown) and "\N{REPLACEMENT CHARACTER}" not in spelled + shown:
        raise ServerError(
            f"its token ids decode to {spelled[:40]!r} with this tokenizer, but its text is {shown[:40]!r}; use the "
            "tokenizer of the server's model"
        )


def _encoded_ids(
    choice: Mapping[str, Any], *, text: str, finish: FinishReason, logprobs: bool, tokenizer: Tokenizer | None
) -> list[int]:
    """Token ids of a response that does not report them."""
    if tokenizer is None:
        if logprobs:
            raise ServerError(f"the response has no token ids; give the engine a tokenizer, or {ASK_FOR_IDS}")
        return []
    tokens = choice["logprobs"].get("tokens") if logprobs else None
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        return tokenizer.encode_fragment(text)
    return _ids_of_tokens(tokens, text, finish, tokenizer)


def _ids_of_tokens(tokens: Sequence[str], text: str, finish: FinishReason, tokenizer: Tokenizer) -> list[int]:
    """One id for each token's text. If a token is only part of a character, the ids of the encoded `text` instead."""
    end: list[int] = []
    if finish == "stop" and tokens and tokens[-1] == tokenizer.decode([tokenizer.eos_id]):
        tokens, end = tokens[:-1], [tokenizer.eos_id]
    pieces = tokenizer.encode_fragments(tokens)
    ids = [piece[0] for piece in pieces if len(piece) == 1]
    # Some tokenizers put a space before a single word; then the pieces do not add up to the text.
    if len(ids) < len(tokens) or tokenizer.decode(ids) != "".join(tokens):
        ids = tokenizer.encode_fragment(text)
    return ids + end


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
