"""Ask a trained model a question: sample answers from a checkpoint, with their log-probabilities.

python examples/ask.py runs/shoebox midtrain "What is 12+34?" --samples 2
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_prism.data.chat_format import STOP, chat_prompt
from megatron_prism.generation.engine import SamplingParams
from megatron_prism.generation.megatron_engine import MegatronEngine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("stage", help="a training stage of the run, for example midtrain")
    parser.add_argument("question")
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    arguments = parser.parse_args()
    params = SamplingParams(
        max_new_tokens=arguments.max_new_tokens, temperature=arguments.temperature, stop=list(STOP)
    )
    prompt = chat_prompt(arguments.question)
    with MegatronEngine.load(arguments.run_dir / arguments.stage, arguments.run_dir / "tokenizer") as engine:
        for answer in engine.generate([prompt], params, samples=arguments.samples)[0]:
            print(
                f"{prompt}{answer.text}\n[{answer.finish_reason}, log-probability {sum(answer.logprobs):.2f}]\n"
            )


if __name__ == "__main__":
    main()
