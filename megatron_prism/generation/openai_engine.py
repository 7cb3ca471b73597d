"""Sampling from a frozen model behind any OpenAI-compatible server. Finished completions survive a server failure.

Each request asks for one completion, so each has its own seed and is retried, stored and counted separately.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import TYPE_CHECKING, Any

from megatron_prism.errors import ConfigError, ServerError
from megatron_prism.generation.completion_store import CompletionStore, request_key
from megatron_prism.generation.completions_api import OWN_FIELDS, check_prompt, read_response, request_body
from megatron_prism.generation.engine import (
    Completion,
    Keep,
    Progress,
    Refuse,
    SamplingParams,
    check_prompts,
    keep_nothing,
    no_progress,
    prompt_seeds,
    sample_numbers,
    sample_seed,
)
from megatron_prism.generation.json_post import JsonEndpoint, RequestRefused
from megatron_prism.pipeline.config import one_of
from megatron_prism.platform.console import get_logger

if TYPE_CHECKING:
    from megatron_prism.data.tokenizer import Tokenizer

AUTO, IDS, TEXT = "auto", "ids", "text"

log = get_logger(__name__)


@dataclass(frozen=True)
class _Request:
    """A request with its prompt as text, and the prompt's token ids if the engine has a tokenizer."""

    fields: dict[str, Any]
    prompt_ids: list[int] | None

    def body(self, form: str) -> dict[str, Any]:
        return self.fields if form == TEXT else self.fields | {"prompt": self.prompt_ids}


class OpenAIEngine:
    """Samples over HTTP. The model is frozen: there is no way to send new weights to the server.

    Token ids are the server's if it reports them (vLLM with `extra={"return_token_ids": True}`). Otherwise `tokenizer`
    encodes the text. The model may have sampled other tokens for the same text, but their number always equals the
    number of log-probabilities. With `logprobs=False`, encoded ids lack the end token, and without a tokenizer they are
    empty. Log-probabilities are those that the server reports; vLLM's are of the untempered distribution.

    With a tokenizer, prompts are sent as token ids, so that the server cannot add a start token. A server that refuses
    ids gets text. In both cases, the number of prompt tokens that the server reports is compared with ours.

    Args:
        base_url: the address up to and including `/v1`, for example `http://localhost:8000/v1`.
        model: the name of the model on the server.
        tokenizer: the tokenizer of that model; it encodes prompts, and texts if the server reports no token ids.
        prompts: what is sent: "ids", "text", or "auto" (ids if there is a tokenizer and the server accepts them).
        api_key_variable: the environment variable that holds the key.
        logprobs: False if texts are enough; completions then have no log-probabilities.
        extra: more fields for each request. For all other parameters, the server's defaults apply.
        timeout: seconds without a byte from the server after which a request counts as failed.
        retries, first_wait: maximum number of retries of a request, and the seconds before the first one; each later
            wait is twice as long, up to a minute.
        concurrency: maximum number of simultaneous requests.
        store: a folder for finished completions; use one folder for each model and tokenizer.

    Raises:
        ConfigError: for an invalid value, or an `api_key_variable` that is not set.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        tokenizer: Tokenizer | None = None,
        *,
        api_key_variable: str | None = None,
        logprobs: bool = True,
        extra: Mapping[str, Any] | None = None,
        timeout: float = 600.0,
        retries: int = 6,
        first_wait: float = 1.0,
        concurrency: int = 16,
        store: Path | None = None,
        prompts: str = AUTO,
    ) -> None:
        one_of(prompts, (AUTO, IDS, TEXT), "prompts")
        if prompts == IDS and tokenizer is None:
            raise ConfigError("prompts='ids': needs a tokenizer; set tokenizer, or prompts='text'")
        if concurrency < 1:
            raise ConfigError(f"concurrency={concurrency}: must be 1 or more")
        for name in extra or {}:
            if name in OWN_FIELDS:
                raise ConfigError(f"extra.{name}: the engine sets this field itself")
        self.model = model
        self.tokenizer = tokenizer
        self.logprobs = logprobs
        self.prompts = TEXT if tokenizer is None else prompts
        self.extra = dict(extra or {})
        self.concurrency = concurrency
        self.endpoint = JsonEndpoint(
            f"{base_url.rstrip('/')}/completions",
            api_key=api_key(api_key_variable),
            timeout=timeout,
            retries=retries,
            first_wait=first_wait,
        )
        self.store = None if store is None else CompletionStore(Path(store))

    def generate(
        self,
        prompts: Sequence[str],
        params: SamplingParams,
        *,
        samples: int = 1,
        progress: Progress = no_progress,
        seeds: Sequence[int] | None = None,
        batch_size: int | None = None,
        numbers: Sequence[Sequence[int]] | None = None,
        keep: Keep = keep_nothing,
        refuse: Refuse | None = None,
    ) -> list[list[Completion]]:
        """`samples` completions of each prompt, in order; `progress` gets the number that just finished.

        If a request fails after all retries, the engine waits for the running ones (they go to `store`) and stops. With
        `refuse`, a request that the server refuses for its contents (a prompt that is too long) does not end the call.

        Raises:
            DataError: for an empty prompt, if `refuse` is None.
            ServerError: if the server refuses a request, stays unavailable, or sends an incomplete response.
        """
        wanted = sample_numbers(prompts, samples, numbers)
        ids = None if self.tokenizer is None else self.tokenizer.encode_batch(list(prompts))
        check_prompts(prompts, prompts if ids is None else ids, sys.maxsize, wanted=wanted, refuse=refuse)
        requests, order = self._requests(prompts, ids, params, wanted=wanted, seeds=seeds)
        # Equal prompts with equal seeds share a request.
        places: dict[str, list[tuple[int, int]]] = {}
        for place, key in order.items():
            places.setdefault(key, []).append(place)
        finished: dict[str, Completion] = {}
        refused: dict[str, RequestRefused] = {}

        def note(key: str, completion: Completion) -> None:
            finished[key] = completion
            for index, number in places[key]:
                keep(index, number, completion)

        stored = {} if self.store is None else self.store.read(requests)
        for key, completion in stored.items():
            note(key, completion)
        if stored:
            progress(len(stored))
        missing = [key for key in requests if key not in finished]
        stopped = Event()

        def request(key: str) -> tuple[str, Completion]:
            started = perf_counter()
            completion = self._complete(requests[key], params, stopped)
            completion = replace(completion, seconds=perf_counter() - started)
            if self.store is not None:
                self.store.add(key, completion)
            return key, completion

        def settle(key: str, answer: Callable[[], tuple[str, Completion]]) -> None:
            """Note a completion, or that the server refused what this request asks for."""
            try:
                note(*answer())
            except RequestRefused as refusal:
                if refuse is None or not refusal.about_content:
                    raise
                refused[key] = refusal
            progress(1)

        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="completions")
        futures: list[Future[tuple[str, Completion]]] = []
        try:
            while self.prompts == AUTO and missing:
                # The first request runs alone, because its response shows whether the server accepts ids.
                first = missing.pop(0)
                settle(first, partial(request, first))
            keys = {pool.submit(request, key): key for key in missing}
            futures += keys
            for future in as_completed(futures):
                settle(keys[future], future.result)
        except ServerError as problem:
            _stop(pool, stopped)
            for future in futures:
                if not future.cancelled() and future.exception() is None:
                    key, completion = future.result()
                    if key not in finished:
                        note(key, completion)
            raise ServerError(f"{problem}; {self._kept(len(finished), len(requests))}") from None
        finally:
            _stop(pool, stopped)
        for key, refusal in refused.items():
            for index, number in places[key]:
                assert refuse is not None
                refuse(index, number, str(refusal))
        return [
            [finished[key] for number in row if (key := order[index, number]) in finished]
            for index, row in enumerate(wanted)
        ]

    def _requests(
        self,
        prompts: Sequence[str],
        ids: Sequence[list[int]] | None,
        params: SamplingParams,
        *,
        wanted: Sequence[Sequence[int]],
        seeds: Sequence[int] | None,
    ) -> tuple[dict[str, _Request], dict[tuple[int, int], str]]:
        """The requests by their hash, and the hash for each (index of the prompt, number of the sample)."""
        seeds = prompt_seeds(params.seed, prompts) if seeds is None else seeds
        requests, order = {}, {}
        for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            for number in wanted[index]:
                body = request_body(
                    model=self.model,
                    prompt=prompt,
                    seed=sample_seed(seed, number),
                    params=params,
                    logprobs=self.logprobs,
                    extra=self.extra,
                )
                request = _Request(body, None if ids is None else ids[index])
                key = request_key(request.body(IDS if ids else TEXT))
                order[index, number] = key
                requests[key] = request
        return requests, order

    def _complete(self, request: _Request, params: SamplingParams, stopped: Event) -> Completion:
        """One completion. The first response decides whether ids or text are sent from then on."""
        form = IDS if self.prompts == AUTO else self.prompts
        try:
            response = self.endpoint.post(request.body(form), stopped)
        except RequestRefused as refusal:
            if self.prompts != AUTO:
                raise
            form = TEXT
            response = self.endpoint.post(request.body(form), stopped)
            log.warning(
                "%s: the server refused token ids (%s); prompts are sent as text, and their token count is checked",
                self.endpoint.url,
                str(refusal).removeprefix(f"{self.endpoint.url}: "),
            )
        self.prompts = form
        try:
            if request.prompt_ids is not None:
                check_prompt(response, request.prompt_ids, form == IDS)
            return read_response(response, params, self.logprobs, self.tokenizer)
        except ServerError as problem:
            raise ServerError(f"{self.endpoint.url}: {problem}") from None

    def _kept(self, finished: int, wanted: int) -> str:
        count = f"{finished} of {wanted} completions"
        if self.store is None:
            return f"{count} were finished and are lost; set store=FOLDER to keep them"
        return f"{count} are kept in {self.store.file}; run again to request the rest"


def _stop(pool: ThreadPoolExecutor, stopped: Event) -> None:
    """Start no more requests or retries, and wait for the running requests."""
    stopped.set()
    pool.shutdown(wait=True, cancel_futures=True)


def api_key(variable: str | None) -> str | None:
    """The key in an environment variable; a ConfigError if it is not set."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"api_key_variable={variable}: this environment variable is not set; export it")
    return key
