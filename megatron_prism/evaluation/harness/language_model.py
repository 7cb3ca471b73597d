"""Our engines as the language model of lm-evaluation-harness.

Texts become the token ids that lm-eval's own `hf` model sends: context and continuation are encoded together and split
where the context alone ends, spaces at the end of a context belong to the continuation, and a text without a context
follows the start token. lm-eval 0.4.13, `api/model.py` (TemplateLM) and `models/huggingface.py` (HFLM).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs

from megatron_prism.data.tokenizer import Tokenizer
from megatron_prism.errors import ConfigError
from megatron_prism.evaluation.replicas import Replicas, exchanged
from megatron_prism.generation.engine import (
    Engine,
    LikelihoodEngine,
    Progress,
    SamplingParams,
    cut_at_stop,
)
from megatron_prism.generation.likelihood_plan import rolling_windows

# Tokens that a task generates if it does not say how many (HFLM.max_gen_toks).
DEFAULT_TOKENS = 256
# What a task may say about sampling.
KNOWN = {"until", "max_gen_toks", "do_sample", "temperature", "top_p"}


class EngineLM(LM):
    """lm-eval's `LM` over an engine.

    Args:
        engine: log-likelihoods need one that has `log_likelihoods`.
        name: of the engine, for messages.
        batch_tokens: number of tokens that are read together for log-likelihoods.
        batch_size: maximum number of completions that are decoded together.
        seed: of tasks that sample.
        replicas: this process's place among those that share the requests; all get all answers.
        progress: called with the share of a call's requests that just finished.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        name: str,
        batch_tokens: int,
        batch_size: int | None = None,
        seed: int = 0,
        replicas: Replicas | None = None,
        progress: Callable[[float], None] = lambda share: None,
    ) -> None:
        super().__init__()
        self.engine, self.tokenizer, self.name = engine, tokenizer, name
        self.batch_tokens, self.batch_size, self.seed = batch_tokens, batch_size, seed
        self.replicas, self.progress = replicas or Replicas(), progress
        # Prompts of generate_until that lost their beginning because they did not fit.
        self.shortened = 0

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log-likelihood, whether greedy decoding writes it) of each request's (context, continuation)."""
        return self._together(requests, self._likelihoods)

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """The log-likelihood of each request's whole text."""
        return self._together(requests, self._whole_texts)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The text after each request's context, up to the first of its stop strings."""
        return self._together(requests, self._completions)

    def _together(
        self, requests: Sequence[Any], answer: Callable[[Sequence[Any]], Sequence[Any]]
    ) -> list[Any]:
        """The answers to all requests. Each replica gives those to some contexts, which it reads once."""
        contexts = self.replicas.share(list(dict.fromkeys(request.args[0] for request in requests)))
        chosen = set(contexts)
        own = [number for number, request in enumerate(requests) if request.args[0] in chosen]
        before = self.shortened
        answers = answer([requests[number] for number in own]) if own else []
        mine = dict(zip(own, answers, strict=True)), self.shortened - before
        everyone = exchanged(self.replicas.first, mine)
        self.shortened = before + sum(shortened for _, shortened in everyone)
        found = {number: made for answers, _ in everyone for number, made in answers.items()}
        return [found[number] for number in range(len(requests))]

    def _likelihoods(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        engine = self._scoring(requests)
        pairs = encode_pairs(self.tokenizer, [request.args for request in requests])
        advance = self._advance(len(pairs))
        found = engine.log_likelihoods(pairs, batch_tokens=self.batch_tokens, progress=advance)
        return [(each.logprob, each.greedy) for each in found]

    def _whole_texts(self, requests: Sequence[Any]) -> list[float]:
        engine = self._scoring(requests)
        rows = self.tokenizer.encode_batch([request.args[0] for request in requests])
        windows = [rolling_windows(ids, self.tokenizer.bos_id, engine.context_length) for ids in rows]
        pairs = [pair for row in windows for pair in row]
        advance = self._advance(len(pairs))
        found = iter(engine.log_likelihoods(pairs, batch_tokens=self.batch_tokens, progress=advance))
        return [sum(next(found).logprob for _ in row) for row in windows]

    def _completions(self, requests: Sequence[Any]) -> list[str]:
        texts: dict[int, str] = {}
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        for numbers in groups.values():
            chosen = [requests[number] for number in numbers]
            texts |= zip(numbers, self._generate(chosen, self._advance(len(requests))), strict=True)
        return [texts[number] for number in range(len(requests))]

    def _generate(self, requests: Sequence[Any], advance: Progress) -> Iterable[str]:
        """For requests that sample in the same way."""
        params = sampling(requests[0].args[1], self.seed, requests[0].task_name)
        prompts = self._fitting([request.args[0] for request in requests], params, requests[0].task_name)
        found = self.engine.generate(prompts, params, progress=advance, batch_size=self.batch_size)
        for [completion] in found:
            # The names of special tokens are no part of the text, as in HFLM.
            yield cut_at_stop(self.tokenizer.without_special_names(completion.text), params.stop)

    def _fitting(self, prompts: list[str], params: SamplingParams, task: str) -> list[str]:
        """Prompts after which `max_new_tokens` fit: a longer one loses its beginning, but not its start token."""
        limit = getattr(self.engine, "context_length", None)
        if limit is None:
            return prompts
        begin = len(self.tokenizer.policy.begin)
        room = limit - params.max_new_tokens - begin
        if room < 1:
            raise ConfigError(
                f"task '{task}' generates up to {params.max_new_tokens} tokens, but the model reads only {limit}; "
                "extend the model, or set generation_kwargs.max_gen_toks in a YAML of your own (include_path)"
            )
        encoded = self.tokenizer.encode_batch(prompts)
        long = [number for number, ids in enumerate(encoded) if len(ids) - begin > room]
        self.shortened += len(long)
        for number in long:
            prompts[number] = self.tokenizer.decode(encoded[number][-room:])
        return prompts

    def _advance(self, total: int) -> Progress:
        return lambda finished: self.progress(finished / total)

    def _scoring(self, requests: Sequence[Any]) -> LikelihoodEngine:
        if not isinstance(self.engine, LikelihoodEngine):
            raise no_likelihoods(self.name, requests[0].task_name)
        return self.engine


def no_likelihoods(engine: str, task: str) -> ConfigError:
    """The error for a task that an engine cannot score."""
    return ConfigError(
        f"task '{task}' compares log-likelihoods, which engine '{engine}' does not have; use engine 'megatron' or "
        "'hf' (a checkpoint or a Hugging Face folder), or tasks that only generate"
    )


def encode_pairs(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    """(context, continuation) as token ids; each different text is encoded once."""
    split = []
    for context, continuation in pairs:
        kept = context.rstrip() if context else context
        split.append((kept, context[len(kept) :] + continuation))
    texts = {context for context, _ in split if context} | {c + e for c, e in split if c}
    known = _encoded(texts, tokenizer.encode_batch)
    fragments = _encoded({ending for context, ending in split if not context}, tokenizer.encode_fragments)
    encoded = []
    for context, ending in split:
        if context:
            ids, whole = known[context], known[context + ending]
            encoded.append((ids, whole[len(ids) :]))
        else:
            ids = fragments[ending]
            begun = ids[:1] == [tokenizer.bos_id]
            encoded.append((ids[:1], ids[1:]) if begun else ([tokenizer.bos_id], ids))
    return encoded


def _encoded(
    texts: Iterable[str], encode: Callable[[Sequence[str]], list[list[int]]]
) -> Mapping[str, list[int]]:
    listed = sorted(texts)
    return dict(zip(listed, encode(listed), strict=True))


def sampling(options: Mapping[str, Any], seed: int, task: str) -> SamplingParams:
    """The parameters of a task's `generation_kwargs`.

    Raises:
        ConfigError: for an option that our engines do not have.
    """
    given = normalize_gen_kwargs(dict(options), DEFAULT_TOKENS)
    for key, value in given.items():
        if key not in KNOWN:
            raise ConfigError(
                f"task '{task}': generation_kwargs.{key}={value!r} is not supported; the engines know "
                f"{', '.join(sorted(KNOWN))}"
            )
    until = given["until"] or []
    return SamplingParams(
        max_new_tokens=given["max_gen_toks"],
        temperature=given.get("temperature", 1.0 if given["do_sample"] else 0.0),
        top_p=given.get("top_p", 1.0),
        stop=[text for text in ([until] if isinstance(until, str) else until) if text] or None,
        seed=seed,
    )
