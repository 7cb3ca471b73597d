"""The stage behind `prism analyze cka`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from megatron_prism.analysis.result import Analysis
from megatron_prism.analysis.stage import AnalysisStage
from megatron_prism.errors import ConfigError
from megatron_prism.pipeline.artifact import Artifact
from megatron_prism.pipeline.config import one_of, positive, seeds

TOKENIZER, CORPUS = "tokenizer", "corpus"
# `comparison.DTYPES`, which needs torch.
PRECISIONS = ("fp32", "bf16")


@dataclass
class AnalyzeCka(AnalysisStage):
    """Linear CKA of mean-pooled hidden states, for every pair of models, layer and set of texts.

    Inputs: label of a model -> the model; "tokenizer" (default: that of each model); and "corpus" if there
    are `texts`.

    Fields:
        texts: name of a set -> FILE or FILE#KEY in the corpus, as for `--inputs`; none: the sets of this machine's
            Python, which are others on another installation.
        samples: texts of each set.
        resamples: of the bootstrap.
        resample_size: texts of a resample.
        seed: of the resamples.
        max_tokens: longer texts are cut; null: 512, or what the models can read if that is less.
        dtype: in which the models compute, fp32 or bf16.
    """

    kind: ClassVar[str] = "analysis_cka"

    texts: dict[str, str] = field(default_factory=dict)
    samples: int = 200
    resamples: int = 20
    resample_size: int = 100
    seed: int = 0
    max_tokens: int | None = None
    dtype: str = "fp32"

    def __post_init__(self) -> None:
        positive(self, "samples", "resamples", "resample_size")
        seeds(self, "seed")
        if self.max_tokens is not None:
            positive(self, "max_tokens")
        one_of(self.dtype, PRECISIONS, "dtype")
        if self.resamples < 2:
            raise ConfigError(f"resamples={self.resamples}: must be 2 or more, for a standard deviation")
        if self.resample_size >= self.samples:
            raise ConfigError(f"resample_size={self.resample_size}: must be less than samples={self.samples}")

    def analyze(self, inputs: Mapping[str, Artifact]) -> Analysis:
        from megatron_prism.analysis.cka.comparison import ComparedModel, Resampling, analyze_cka
        from megatron_prism.analysis.cka.input_sets import file_sets, installed_sets
        from megatron_prism.evaluation.given_model import folder_engine, own_tokenizer
        from megatron_prism.models.model_folder import find_model

        resampling = Resampling(self.resamples, self.resample_size, self.seed)
        resampling.check(self.samples)
        models = []
        for label, artifact in inputs.items():
            if label not in (TOKENIZER, CORPUS):
                folder = find_model(artifact.path)
                tokenizer = (
                    inputs[TOKENIZER].path if TOKENIZER in inputs else own_tokenizer(artifact.path, folder)
                )
                models.append(ComparedModel(label, folder, folder_engine(folder, None), tokenizer))
        if not self.texts:
            sets = installed_sets(self.samples)
        elif CORPUS not in inputs:
            raise ConfigError("texts: they are files of a corpus; add the input 'corpus'")
        else:
            named = [f"{name}={place}" for name, place in self.texts.items()]
            sets = file_sets(named, self.samples, inputs[CORPUS].path)
        return analyze_cka(models, sets, resampling, max_tokens=self.max_tokens, dtype=self.dtype)
