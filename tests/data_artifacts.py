"""Running a data stage into an artifact, and a shoebox small enough for tests."""

from megatron_prism.data.shoebox.corpus import DEFAULT_CHARACTERS, ShoeboxCorpus
from megatron_prism.pipeline.artifact import Receipt, partial_path, seal


def make_artifact(stage, folder, **inputs):
    partial = partial_path(folder)
    partial.mkdir(parents=True)
    metrics = stage.run(inputs, partial)
    return seal(partial, folder, Receipt(stage.kind, "0", stage.kind, {}, {}, metrics=metrics))


def small_corpus(**changes):
    return ShoeboxCorpus(
        **{"characters": dict.fromkeys(DEFAULT_CHARACTERS, 60_000), "held_out_problems": 60} | changes
    )
