"""Sampling from a frozen model behind any OpenAI-compatible server, with nothing lost when the server goes away.

One request asks for one completion, so that each has its own seed and is retried, kept and counted by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from megatron_prism.errors import ConfigError, DataError, ServerError
from megatron_prism.generation.completion_store import CompletionStore, request_key
from megatron_prism.generation.completions_api import OWN_FIELDS, check_prompt, read_answer, request_body
from megatron_prism.generation.engine import Completion, SamplingParams, prompt_seeds, sample_seed
from megatron_prism.generation.json_post import JsonEndpoint, RequestRefused
from megatron_prism.pipeline.config import one_of
from megatron_prism.platform.console import get_logger

if TYPE_CHECKING:
    from megatron_prism.data.tokenizer import Tokenizer

AUTO, IDS, TEXT = "auto", "ids", "text"

log = get_logger(__name__)


@dataclass(frozen=True)
class _Request:
    """A request with its prompt as text, and the prompt's token ids where a tokenizer is known."""

    fields: dict[str, Any]
    prompt_ids: list[int] | None

    def body(self, form: str) -> dict[str, Any]:
        return self.fields if form == TEXT else self.fields | {"prompt": self.prompt_ids}


class OpenAIEngine:
    """Samples over HTTP. The model is frozen: a server has no way to take new weights here.

    Token ids are the server's own where it reports them (vLLM with `extra={"return_token_ids": True}`). Elsewhere
    they are encoded by `tokenizer`: what the model sampled may have been cut differently, though never in another
    number than the log-probabilities. With `logprobs=False`, encoded ids lack the end token, and without a tokenizer
    they are empty. Log-probabilities are those the server reports; vLLM's are of the untempered distribution.

    With a tokenizer, prompts are sent as its token ids, so that no server begins them in its own way. A server that
    refuses ids is sent text. Either way, the number of prompt tokens that it reports is compared with ours.

    Args:
        base_url: up to and including `/v1`, for example `http://localhost:8000/v1`.
        model: the name the server knows the model by.
        tokenizer: of the model that the server has: encodes prompts, and texts where the server reports no token ids.
        prompts: what is sent: "ids", "text", or "auto": ids where there is a tokenizer and the server takes them.
        api_key_variable: the environment variable that holds the key.
        logprobs: False where texts are enough; completions then have none.
        extra: more fields for each request. What neither they nor SamplingParams name is the server's default.
        timeout: seconds without a byte from the server after which a request counts as broken off.
        retries, first_wait: how often a request is tried again, and the seconds before the first time; each later
            wait is twice as long, up to a minute.
        concurrency: most requests under way at once.
        store: a folder that keeps finished completions, for this model and this tokenizer.

    Raises:
        ConfigError: for a value that is impossible, or a key variable that is not set.
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
            raise ConfigError("prompts='ids': needs a tokenizer")
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
            api_key=_api_key(api_key_variable),
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
        progress: Callable[[int], None] = lambda finished: None,
        seeds: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> list[list[Completion]]:
        """`samples` completions of each prompt, in order; `progress` gets the number that just finished.

        When a request fails for good, those under way are awaited (and kept in `store`), and no more are sent.

        Raises:
            DataError: for an empty prompt.
            ServerError: if the server refuses a request, stays away, or answers without what was asked for.
        """
        requests, order = self._requests(prompts, params, samples, seeds)
        finished = {} if self.store is None else self.store.read(requests)
        if finished:
            progress(len(finished))
        missing = [key for key in requests if key not in finished]
        given_up = Event()

        def ask(key: str) -> None:
            completion = self._ask(requests[key], params, given_up)
            if self.store is not None:
                self.store.add(key, completion)
            finished[key] = completion

        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="completions")
        try:
            if self.prompts == AUTO and missing:
                # Alone: its answer tells whether the server takes ids.
                ask(missing[0])
                progress(1)
                del missing[0]
            for asked in as_completed([pool.submit(ask, key) for key in missing]):
                asked.result()
                progress(1)
        except ServerError as problem:
            _stop(pool, given_up)
            raise ServerError(f"{problem}; {self._kept(len(finished), len(requests))}") from None
        finally:
            _stop(pool, given_up)
        in_order = iter([finished[key] for key in order])
        return [[next(in_order) for _ in range(samples)] for _ in prompts]

    def _requests(
        self, prompts: Sequence[str], params: SamplingParams, samples: int, seeds: Sequence[int] | None
    ) -> tuple[dict[str, _Request], list[str]]:
        """The requests by the hash of what they ask, and these hashes in the order of prompts and samples."""
        ids = None if self.tokenizer is None else self.tokenizer.encode_batch(list(prompts))
        if "" in prompts if ids is None else [] in ids:
            raise DataError("prompt '' has no tokens; give at least one")
        seeds = prompt_seeds(params.seed, prompts) if seeds is None else seeds
        requests, order = {}, []
        for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            for number in range(samples):
                body = request_body(
                    model=self.model,
                    prompt=prompt,
                    seed=sample_seed(seed, number),
                    params=params,
                    logprobs=self.logprobs,
                    extra=self.extra,
                )
                request = _Request(body, None if ids is None else ids[index])
                order.append(request_key(request.body(IDS if ids else TEXT)))
                requests[order[-1]] = request
        return requests, order

    def _ask(self, request: _Request, params: SamplingParams, given_up: Event) -> Completion:
        """One completion; the first answer decides whether ids or text are sent from then on."""
        form = IDS if self.prompts == AUTO else self.prompts
        try:
            answer = self.endpoint.post(request.body(form), given_up)
        except RequestRefused as refusal:
            if self.prompts != AUTO:
                raise
            form = TEXT
            answer = self.endpoint.post(request.body(form), given_up)
            log.warning(
                "%s: prompts are sent as text, because it refused token ids (%s); their number of tokens is compared",
                self.endpoint.url,
                str(refusal).removeprefix(f"{self.endpoint.url}: "),
            )
        self.prompts = form
        try:
            if request.prompt_ids is not None:
                check_prompt(answer, request.prompt_ids, form == IDS)
            return read_answer(answer, params, self.logprobs, self.tokenizer)
        except ServerError as problem:
            raise ServerError(f"{self.endpoint.url}: {problem}") from None

    def _kept(self, finished: int, wanted: int) -> str:
        count = f"{finished} of {wanted} completions"
        if self.store is None:
            return f"{count} were finished and are lost, store=FOLDER would keep them"
        return f"{count} are kept in {self.store.file}, run again to ask for the rest"


def _stop(pool: ThreadPoolExecutor, given_up: Event) -> None:
    """Send no more requests, wait no more for retries, and await what is under way."""
    given_up.set()
    pool.shutdown(wait=True, cancel_futures=True)


def _api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"api_key_variable={variable}: this environment variable is not set; export it")
    return key
