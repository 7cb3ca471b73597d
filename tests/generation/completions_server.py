"""A small `/v1/completions` server that really samples, and fails in the ways that its options define.

`python completions_server.py MODEL` loads the model once. Then, for each JSON line of options on its standard input,
it forks a server process (which a test may kill) and prints the id of that process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass
class Options:
    """Attributes:
    log: a file that gets every request's body and headers, one JSON line each.
    refuse: how many requests are refused with `status` before one is answered.
    drop: how many connections are closed without an answer.
    die_at: the request, counted from 1, at which the server kills itself.
    retry_after: value of the `Retry-After` header of every refusal.
    page: answer with a web page, as a proxy might.
    keep_stop: leave the stop string in the text, as some servers do.
    begin: token ids that are put before every prompt, as some servers do with the model's start token.
    text_only: refuse prompts of token ids, as `transformers serve` does.
    silent: do not report the number of prompt tokens.
    models: the names in the list of models; None: there is no such list.
    """

    port: int
    log: str
    refuse: int = 0
    status: int = 429
    drop: int = 0
    die_at: int = 0
    retry_after: str = ""
    page: bool = False
    keep_stop: bool = False
    begin: tuple[int, ...] = ()
    text_only: bool = False
    silent: bool = False
    models: list[str] | None = None


class Refused(Exception):
    pass


def complete(
    model: Any, tokenizer: Any, body: dict[str, Any], options: Options
) -> tuple[dict[str, Any], int]:
    """One choice of the OpenAI schema, sampled with the request's seed, and the number of prompt tokens."""
    prompt = body["prompt"]
    if isinstance(prompt, list) and options.text_only:
        raise Refused("prompt must be a string.")
    prompt_ids = [*options.begin, *(prompt if isinstance(prompt, list) else tokenizer(prompt)["input_ids"])]
    limit, length = model.config.max_position_embeddings, len(prompt_ids)
    if length + body["max_tokens"] > limit:
        raise Refused(f"This model's maximum context length is {limit} tokens")
    torch.manual_seed(body["seed"])
    sampled = body["temperature"] > 0
    made = model.generate(
        torch.tensor([prompt_ids]),
        attention_mask=torch.ones(1, length, dtype=torch.long),
        max_new_tokens=body["max_tokens"],
        do_sample=sampled,
        **({"temperature": body["temperature"], "top_p": body["top_p"], "top_k": 0} if sampled else {}),
        stop_strings=body.get("stop"),
        tokenizer=tokenizer,
        return_dict_in_generate=True,
        output_logits=True,
    )
    ids = made.sequences[0, length:].tolist()
    logprobs = torch.log_softmax(torch.cat(made.logits).float(), -1)
    ended = ids[-1] == tokenizer.eos_token_id
    text = tokenizer.decode(ids[:-1] if ended else ids)
    stops = [stop for stop in body.get("stop", ()) if stop in text]
    if stops and not options.keep_stop:
        text = text[: min(text.index(stop) for stop in stops)]
    choice = {"index": 0, "text": text, "finish_reason": "stop" if ended or stops else "length"}
    if "logprobs" in body:
        choice["logprobs"] = {
            "tokens": [tokenizer.decode([item]) for item in ids],
            "token_logprobs": [logprobs[place, item].item() for place, item in enumerate(ids)],
        }
    if body.get("return_token_ids"):
        choice["token_ids"] = ids
    return choice, length


def serve(model: Any, tokenizer: Any, options: Options) -> None:
    lock = Lock()
    seen = 0

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/v1/models" or options.models is None:
                self.answer(404, {"detail": "Not Found"})
                return
            listed = [{"id": name, "object": "model"} for name in options.models]
            self.answer(200, {"object": "list", "data": listed})

        def do_POST(self) -> None:
            nonlocal seen
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock, open(options.log, "a") as log:
                seen += 1
                place = seen
                log.write(json.dumps({"path": self.path, "headers": dict(self.headers), "body": body}) + "\n")
            if place == options.die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if place <= options.drop:
                self.close_connection = True
                return
            if place <= options.drop + options.refuse:
                self.answer(options.status, {"error": {"message": "come back\nlater"}})
                return
            try:
                with lock:
                    choice, length = complete(model, tokenizer, body, options)
            except Refused as refusal:
                self.answer(400, {"error": {"message": str(refusal), "type": "invalid_request_error"}})
            else:
                answer = {"object": "text_completion", "model": body["model"], "choices": [choice]}
                self.answer(200, answer | ({} if options.silent else {"usage": {"prompt_tokens": length}}))

        def answer(self, status: int, content: dict[str, Any]) -> None:
            data = b"<html>Sign in</html>" if options.page else json.dumps(content).encode()
            self.send_response(status)
            if status != 200:
                self.send_header("Retry-After", options.retry_after)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()


def end_with(parent: int) -> None:
    """End this process when its parent has ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


def main() -> None:
    torch.set_num_threads(1)
    # Children are reaped automatically, so that a test sees that a killed one has ended.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    for line in sys.stdin:
        parent = os.getpid()
        child = os.fork()
        if not child:
            Thread(target=end_with, args=(parent,), daemon=True).start()
            serve(model, tokenizer, Options(**json.loads(line)))
        print(child, flush=True)


if __name__ == "__main__":
    main()
