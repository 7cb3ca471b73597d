"""A Hugging Face checkpoint to Megatron and back: convert, train two steps at tensor parallel size 2, export, generate.

    prism run granite-3.3-8b:checkpoint --tiny         # a tiny stand-in with Granite's architecture
    python examples/convert_and_train.py runs/granite-3.3-8b/checkpoint/model TEXTS out

TEXTS is a folder of text files, or JSON lines. The folder of any supported model can replace the stand-in. The two
training processes read their halves of the weights directly from the Hugging Face folder (`init_from`). The import is
not needed for this; it shows how a long run would start, and `verify` proves that it lost nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

from megatron_prism.cli.main import main as prism
from megatron_prism.conversion.stage import ExportHF, ImportHF
from megatron_prism.conversion.weights import HFWeights
from megatron_prism.data.corpus import FileCorpus
from megatron_prism.data.readers import read_texts
from megatron_prism.data.tokenization import TokenizeCorpus
from megatron_prism.data.tokenizer import ModelTokenizer
from megatron_prism.pipeline.graph import Graph
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.schedule import Schedule
from megatron_prism.training.stage import Train


def training(hf_folder: Path, texts: Path) -> Graph:
    """Two steps on the user's texts, by two processes, from a Hugging Face folder to a Hugging Face folder."""
    graph = Graph("convert-and-train")
    model = graph.add("import", ImportHF(source=str(hf_folder)))
    corpus = graph.add("corpus", FileCorpus(sources={"text": str(texts)}, valid_percent=20.0))
    tokenizer = graph.add("tokenizer", ModelTokenizer(), model=model)
    tokens = graph.add("tokens", TokenizeCorpus(), corpus=corpus, tokenizer=tokenizer)
    mixture = Path(__file__).with_name("own_text.yaml")
    train = Train(
        architecture=HFWeights(hf_folder).architecture,
        mixture=str(mixture),
        init_from=str(hf_folder),
        steps=2,
        batch=BatchConfig(sequence_length=64, micro_batch_size=2, global_batch_size=2),
        schedule=Schedule(lr=1e-4),
        parallel=ParallelConfig(tensor_model_parallel_size=2),
        validation_batches=1,
    )
    trained = graph.add("train", train, tokens=tokens, tokenizer=tokenizer)
    graph.add("export", ExportHF(), model=trained)
    return graph


def main(hf_folder: Path, texts: Path, out: Path) -> str:
    """Run all stages; returns the text that the exported model generates after the first words of the texts."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    artifacts = training(hf_folder, texts).run(out)
    imported, exported = artifacts["import"].path, artifacts["export"].file("model")
    # This command exits with 2 if a single bit differs.
    try:
        prism(["convert", "verify", str(hf_folder), str(imported)])
    except SystemExit as done:
        if done.code:
            raise
    tokenizer = AutoTokenizer.from_pretrained(exported)
    model = AutoModelForCausalLM.from_pretrained(exported)
    prompt = " ".join(next(iter(read_texts(texts))).split()[:8])
    inputs = tokenizer(prompt, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    text: str = tokenizer.decode(tokens[0])
    return text


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    print(main(*(Path(argument) for argument in sys.argv[1:])))
