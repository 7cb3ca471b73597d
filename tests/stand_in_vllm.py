"""What the `vllm` engine calls of vLLM, over transformers: vLLM itself needs a GPU.

It really samples, from weights that it loads from the folder and takes in by name, so it shows whether a run hands
over the right ones at the right time. What vLLM makes of the same calls it cannot show.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass
class SamplingParams:
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    logprobs: int
    skip_special_tokens: bool
    spaces_between_special_tokens: bool
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)


class LLM:
    """`deaf` ignores new weights, as a sampler would whose update goes wrong; `begin` goes before every prompt."""

    deaf = False
    begin: tuple[int, ...] = ()
    made: list[LLM] = []  # noqa: RUF012

    def __init__(self, model, tokenizer, max_model_len, gpu_memory_utilization, logprobs_mode):
        assert logprobs_mode == "raw_logprobs"
        [self.file] = Path(model).glob("*.safetensors")
        self._load()
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        self.model_config = SimpleNamespace(max_model_len=max_model_len)
        self.updates = 0
        LLM.made.append(self)

    def _load(self):
        self.model = AutoModelForCausalLM.from_pretrained(self.file.parent).eval()
        for parameter in self.model.parameters():
            # In memory of its own: the file is written anew, and where it lay would show in the last bit.
            parameter.data = parameter.data.clone()

    def generate(self, prompts, params, use_tqdm):
        read = [[*self.begin, *prompt["prompt_token_ids"]] for prompt in prompts]
        return [
            SimpleNamespace(prompt_token_ids=ids, outputs=[self._complete(ids, each)])
            for ids, each in zip(read, params, strict=True)
        ]

    @torch.no_grad()
    def _complete(self, prompt_ids, params):
        assert (params.temperature, params.top_p, params.stop) == (1.0, 1.0, []), "all this stand-in knows"
        generator = torch.Generator().manual_seed(params.seed)
        ids, logprobs = [], []
        reason = "length"
        for _ in range(min(params.max_tokens, self.model_config.max_model_len - len(prompt_ids))):
            logits = self.model(torch.tensor([prompt_ids + ids])).logits[0, -1].float()
            token = int(torch.multinomial(logits.softmax(-1), 1, generator=generator))
            ids.append(token)
            logprobs.append({token: SimpleNamespace(logprob=float(logits.log_softmax(-1)[token]))})
            if token in params.stop_token_ids:
                reason = "stop"
                break
        kept = ids[:-1] if reason == "stop" else ids
        text = self.tokenizer.decode(kept)
        return SimpleNamespace(text=text, token_ids=ids, logprobs=logprobs, finish_reason=reason)

    def collective_rpc(self, method, kwargs):
        assert method == "reload_weights"
        self.updates += 1
        given = dict(kwargs["weights_iterator"])
        with safe_open(self.file, "pt") as kept:
            assert given.keys() == set(kept.keys()), "the names of the folder"
        if not self.deaf:
            save_file({name: tensor.contiguous() for name, tensor in given.items()}, self.file)
            self._load()

    def reset_prefix_cache(self):
        return True
