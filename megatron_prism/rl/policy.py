"""The policy under training and its reference: log-probabilities of texts, and updates along the objective."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from megatron_prism.errors import ParallelError
from megatron_prism.models.architecture import Architecture
from megatron_prism.models.build import build_model
from megatron_prism.models.checkpoint_io import unwrap
from megatron_prism.models.layers.segments import check_packing, set_segments
from megatron_prism.models.layers.vocabulary import install_vocabulary_limit
from megatron_prism.platform.hardware import device
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.rl.gate import GateReport, GateSettings, conclude, observe
from megatron_prism.rl.micro_batches import MicroBatch, TrainingText, build, plan_rows
from megatron_prism.rl.objective import METRICS, Objective, policy_loss, sequence_log_ratio
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.trainer import Trainer, sum_over_ranks


@dataclass
class BatchShape:
    """How texts become micro-batches.

    Attributes:
        context_length: most tokens of prompt and answer, and of a packed row.
        packing: several texts in a row, kept apart in attention and Mamba; else rows of one text each, padded.
        micro_batch_size: padded texts in a micro-batch; packed, it is one row.
    """

    context_length: int
    packing: bool
    micro_batch_size: int


@dataclass(frozen=True)
class Update:
    """What an optimizer step reports; `metrics` are means over the answers' tokens on all ranks."""

    loss: float
    grad_norm: float
    tokens: int
    rows: int
    metrics: dict[str, float]
    gate: GateReport


class Policy:
    """This rank's part of the trained model, its optimizer, and the reference of the same layout.

    Needs a running `platform.process_groups.session`.

    Args:
        vocabulary: tokens of the tokenizer; the model's further rows get no probability, as in sampling.
    """

    def __init__(
        self,
        architecture: Architecture,
        parallel: ParallelConfig,
        shape: BatchShape,
        optimizer: OptimizerSettings,
        objective: Objective,
        gate_settings: GateSettings,
        vocabulary: int,
        dtype: torch.dtype,
        recompute: str = "none",
    ) -> None:
        from megatron.core import parallel_state

        # An interleaved pipeline takes micro-batches by as many as it has stages.
        virtual = parallel.virtual_pipeline_model_parallel_size
        self.rows_multiple = parallel.data_parallel_size * (
            parallel.pipeline_model_parallel_size if virtual else 1
        )
        batch = BatchConfig(shape.context_length, 1, self.rows_multiple)
        self.trainer = Trainer(architecture, parallel, batch, optimizer, dtype, "torch", recompute=recompute)
        self.parallel, self.shape, self.objective = parallel, shape, objective
        self.gate_settings = gate_settings
        self.reference: list[Any] = []
        if objective.kl_coefficient:
            for stage in range(virtual or 1):
                chunk = build_model(
                    architecture, dtype, parallel, vp_stage=stage if virtual else None, backend="torch"
                )
                chunk = chunk.to(device=device(), dtype=dtype).eval().requires_grad_(False)
                chunk.model_type = unwrap(self.trainer.models[0]).model_type
                self.reference.append(chunk)
        for chunk in [*map(unwrap, self.trainer.models), *self.reference]:
            if shape.packing:
                check_packing(chunk)
            if chunk.post_process and chunk.vocab_size > vocabulary:
                install_vocabulary_limit(chunk.output_layer, vocabulary)
        if shape.packing and recompute == "full" and parallel.pipeline_model_parallel_size > 1:
            raise ParallelError(
                "recompute=full, packing=true: a pipeline has several rows under way at once, and a recomputed layer "
                "could not tell their texts apart; use packing=false"
            )
        self.data_rank = parallel_state.get_data_parallel_rank()
        self.context_group = parallel_state.get_context_parallel_group()

    def take_reference(self) -> None:
        """Make the reference the policy as it is."""
        self.blend_reference(1.0)

    @torch.no_grad()
    def blend_reference(self, alpha: float) -> None:
        """reference <- alpha * policy + (1 - alpha) * reference (TR-DPO, arXiv 2404.09656, soft update)."""
        for chunk, kept in zip(self.trainer.models, self.reference, strict=False):
            for mine, theirs in zip(unwrap(chunk).parameters(), kept.parameters(), strict=True):
                blended = theirs.float().lerp_(mine.float(), alpha)
                theirs.copy_(blended)

    def micro_batches(self, texts: Sequence[TrainingText]) -> list[MicroBatch]:
        """This data-parallel rank's micro-batches of the texts, which are the same on all ranks."""
        packing, pipelined = self.shape.packing, self.parallel.pipeline_model_parallel_size > 1
        size = 1 if pipelined else self.shape.micro_batch_size
        rows = plan_rows([text.length for text in texts], self.shape.context_length, packing, size)
        # Every rank runs as many micro-batches: the divisor of the gradients counts them all.
        rows += [[] for _ in range(-len(rows) % self.rows_multiple)]
        total = sum if packing else max
        lengths = [total([texts[number].length for number in row] or [1]) for row in rows]
        if pipelined:
            # Stages pass hidden states of one shape.
            lengths = [max(lengths)] * len(rows)
        multiple = self._row_multiple()
        return [
            build(texts, row, -(-length // multiple) * multiple, packing)
            for row, length in list(zip(rows, lengths, strict=True))[
                self.data_rank :: self.parallel.data_parallel_size
            ]
        ]

    def note_reference(self, batches: Sequence[MicroBatch]) -> None:
        """Keep the reference's log-probabilities with each micro-batch (its objective's KL term needs them)."""
        if self.reference:
            for batch, logprobs in zip(batches, self._logprobs(batches, self.reference), strict=False):
                batch.reference = logprobs

    def note_old(self, batches: Sequence[MicroBatch]) -> None:
        """Keep the policy's own log-probabilities: needed where it will have moved when a batch's turn comes."""
        for batch, logprobs in zip(batches, self._logprobs(batches, self.trainer.models), strict=False):
            batch.old = logprobs

    def update(self, batches: Sequence[MicroBatch], lr: float, step: int) -> Update:
        """One optimizer step.

        Raises:
            GateStop: if trainer and sampler disagree and the gate says stop; no weight has moved.
        """
        self.trainer.prepare_step(lr)
        reports = self._run(batches, self.trainer.models, partial(self._loss, len(batches)))
        names = list(METRICS)
        sums = sum_over_ranks([report["sums"] for report in reports], size=2 + len(names))
        gated = conclude([report["gate"] for report in reports], self.gate_settings, step)
        loss, tokens = sums[0], max(1.0, sums[1])
        grad_norm = self.trainer.apply_gradients()
        return Update(
            loss=loss,
            grad_norm=grad_norm,
            tokens=int(sums[1]),
            rows=len(batches) * self.parallel.data_parallel_size,
            metrics={name: value / tokens for name, value in zip(names, sums[2:], strict=True)},
            gate=gated,
        )

    def _loss(self, count: int, batch: MicroBatch, losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Megatron's loss function for one micro-batch; `losses` are its cross entropies, -log p(label)."""
        logprobs, values = -losses.float(), batch.values
        old = batch.old
        before = logprobs.detach() if old is None else old
        seen = observe(before, values["sampler"], values["mask"], values["texts"], self.gate_settings)
        ratio = None
        if self.objective.ratio == "sequence":
            ratio = sequence_log_ratio(logprobs, before, seen.mask, values["texts"], self.context_group)
        loss, metrics = policy_loss(
            logprobs,
            old,
            values["sampler"],
            batch.reference,
            values["advantages"],
            values["weights"],
            seen.mask,
            self.objective,
            ratio,
        )
        sums = torch.stack([loss.detach(), seen.mask.sum(), *(metrics[name] for name in METRICS)])
        # Megatron divides the gradients by the tokens all ranks report; ours are divided already, by the weights.
        ones = count * self.parallel.data_parallel_size * self.parallel.context_parallel_size
        return (
            loss * ones,
            torch.ones((), dtype=torch.int, device=loss.device),
            {"sums": sums, "gate": seen},
        )

    def _logprobs(self, batches: Sequence[MicroBatch], models: Sequence[Any]) -> list[Tensor]:
        """`[rows, length]` of each micro-batch, on the last pipeline stage; nothing elsewhere."""

        def keep(batch: MicroBatch, losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            return (
                losses.sum(),
                torch.ones((), dtype=torch.int, device=losses.device),
                {"kept": -losses.float()},
            )

        with torch.no_grad():
            reports = self._run(batches, models, keep, forward_only=True)
        return [report["kept"] for report in reports]

    def _run(
        self,
        batches: Sequence[MicroBatch],
        models: Sequence[Any],
        loss: Callable[[MicroBatch, Tensor], Any],
        forward_only: bool = False,
    ) -> list[Any]:
        def forward_step(source: Iterator[MicroBatch], model: Any) -> tuple[Tensor, Any]:
            batch = next(source)
            values = batch.values
            set_segments(unwrap(model), batch.segments)
            output = model(values["tokens"], values["position_ids"], None, labels=values["labels"])
            return output, partial(loss, batch)

        rows, length = batches[0].values["tokens"].shape
        # The schedule is told the shape of what stages send each other: the whole row's, before it is cut.
        shape = (rows, length * self.parallel.context_parallel_size)
        for model in models:
            unwrap(model).train(not forward_only)
        try:
            return self.trainer.run_micro_batches(
                lambda: iter(batches), forward_step, len(batches), shape, forward_only, models
            )
        finally:
            for model in models:
                set_segments(unwrap(model), None)

    def _row_multiple(self) -> int:
        """Context parallelism cuts a row into 2 pieces per rank, sequence parallelism into one per tensor rank."""
        size = self.parallel
        pieces = 2 * size.context_parallel_size if size.context_parallel_size > 1 else 1
        return pieces * (size.tensor_model_parallel_size if size.sequence_parallel else 1)
