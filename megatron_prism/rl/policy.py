"""The policy under training and its reference: log-probabilities of texts, and updates along the objective."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from megatron_prism.models.architecture import Architecture
from megatron_prism.models.build import build_model
from megatron_prism.models.checkpoint_io import unwrap
from megatron_prism.models.layers.output_layer import install_vocabulary_limit
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.rl.gate import GateSettings, conclude, observe
from megatron_prism.rl.micro_batches import MicroBatch, TrainingText, build_micro_batch, plan_rows
from megatron_prism.rl.objective import METRICS, LossInputs, Objective, policy_loss, sequence_log_ratio
from megatron_prism.rl.step_report import Update
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.kernels import KernelSettings
from megatron_prism.training.megatron_block import MegatronBlock
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.precision import PrecisionSettings
from megatron_prism.training.text_losses import sum_over_ranks
from megatron_prism.training.trainer import Trainer


@dataclass
class BatchShape:
    """How texts become micro-batches.

    Attributes:
        context_length: largest number of tokens of a prompt with its answer, and of a packed row.
        packing: True puts several texts into a row, separated in attention and Mamba layers; False pads one per row.
        micro_batch_size: padded texts per micro-batch; a packed micro-batch is one row.
    """

    context_length: int
    packing: bool
    micro_batch_size: int


class Policy:
    """This rank's part of the trained model, its optimizer, and a reference model with the same layout.

    Its weights, and the reference's, are undefined until they are loaded, as `load_weights` and `copy_to_reference` do.
    Needs a running `platform.process_groups.session`.

    Args:
        vocabulary: size of the tokenizer's vocabulary; padded rows of the output layer get probability 0, as in
            sampling.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        parallel: ParallelConfig,
        shape: BatchShape,
        optimizer: OptimizerSettings,
        objective: Objective,
        gate_settings: GateSettings,
        vocabulary: int,
        dtype: torch.dtype,
        recompute: str = "none",
        kernels: KernelSettings | None = None,
        precision: PrecisionSettings | None = None,
        megatron: MegatronBlock | None = None,
    ) -> None:
        from megatron.core import parallel_state

        # The number of micro-batches of an interleaved pipeline must be a multiple of its stages.
        virtual = parallel.virtual_pipeline_model_parallel_size
        self.rows_multiple = parallel.data_parallel_size * (
            parallel.pipeline_model_parallel_size if virtual else 1
        )
        batch = BatchConfig(shape.context_length, 1, self.rows_multiple)
        self.trainer = Trainer(
            architecture,
            parallel,
            batch,
            optimizer,
            dtype=dtype,
            backend="torch",
            recompute=recompute,
            kernels=kernels,
            precision=precision,
            megatron=megatron,
            initialize=False,
        )
        self.parallel, self.shape, self.objective = parallel, shape, objective
        self.gate_settings = gate_settings
        self.reference: list[Any] = []
        if objective.kl_coefficient:
            for stage in range(virtual or 1):
                chunk = build_model(
                    architecture,
                    dtype,
                    self.trainer.parallel,
                    vp_stage=stage if virtual else None,
                    backend="torch",
                    initialize=False,
                    **(megatron.transformer if megatron else {}),
                )
                chunk = chunk.to(dtype).eval().requires_grad_(False)
                chunk.model_type = unwrap(self.trainer.models[0]).model_type
                self.reference.append(chunk)
        for chunk in [*map(unwrap, self.trainer.models), *self.reference]:
            if chunk.post_process and chunk.vocab_size > vocabulary:
                install_vocabulary_limit(chunk.output_layer, vocabulary)
        self.data_rank = parallel_state.get_data_parallel_rank()
        self.context_group = parallel_state.get_context_parallel_group()

    @torch.no_grad()
    def copy_to_reference(self) -> None:
        """Make the reference a copy of the policy."""
        for source, target in self._pairs():
            target.copy_(source)

    @torch.no_grad()
    def soft_update_reference(self, alpha: float) -> None:
        """reference <- alpha * policy + (1 - alpha) * reference (TR-DPO, arXiv 2404.09656, soft update)."""
        for source, target in self._pairs():
            target.copy_(target.float().lerp_(source.float(), alpha))

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each parameter of the policy, with that of the reference, if there is one."""
        for chunk, reference in zip(self.trainer.models, self.reference, strict=False):
            yield from zip(unwrap(chunk).parameters(), reference.parameters(), strict=True)

    def micro_batches(self, texts: Sequence[TrainingText]) -> list[MicroBatch]:
        """This data-parallel rank's micro-batches; all ranks pass the same texts."""
        packing, pipelined = self.shape.packing, self.parallel.pipeline_model_parallel_size > 1
        size = 1 if pipelined else self.shape.micro_batch_size
        rows = plan_rows(
            [text.length for text in texts],
            capacity=self.shape.context_length,
            packing=packing,
            micro_batch_size=size,
        )
        # All ranks run the same number of micro-batches, because the divisor of the gradients counts them all.
        rows += [[] for _ in range(-len(rows) % self.rows_multiple)]
        total = sum if packing else max
        lengths = [total([texts[number].length for number in row] or [1]) for row in rows]
        if pipelined:
            # Pipeline stages exchange hidden states of one fixed shape.
            lengths = [max(lengths)] * len(rows)
        multiple = self._row_multiple()
        return [
            build_micro_batch(texts, row, -(-length // multiple) * multiple, packing)
            for row, length in list(zip(rows, lengths, strict=True))[
                self.data_rank :: self.parallel.data_parallel_size
            ]
        ]

    def compute_reference_logprobs(self, batches: Sequence[MicroBatch]) -> None:
        """Store the reference's log-probabilities in each micro-batch, for the KL term."""
        if self.reference:
            for batch, logprobs in zip(batches, self._logprobs(batches, self.reference), strict=False):
                batch.reference_logprobs = logprobs

    def compute_old_logprobs(self, batches: Sequence[MicroBatch]) -> None:
        """Store the policy's current log-probabilities in each micro-batch, before earlier minibatches change it."""
        for batch, logprobs in zip(batches, self._logprobs(batches, self.trainer.models), strict=False):
            batch.old_logprobs = logprobs

    def update(
        self,
        batches: Sequence[MicroBatch],
        lr: float,
        step: int,
        *,
        accept: Callable[[float, float], bool] | None = None,
    ) -> Update:
        """One optimizer step.

        Args:
            accept: takes loss and gradient norm; if it returns False, on all ranks, the weights stay as they are.

        Raises:
            GateStop: if trainer and sampler disagree and the gate's action is 'stop'; the weights are unchanged.
        """
        self.trainer.prepare_step(lr)
        reports = self._run(batches, self.trainer.models, partial(self._loss, len(batches)))
        names = list(METRICS)
        sums = sum_over_ranks([report["sums"] for report in reports], size=2 + len(names))
        gated = conclude([report["gate"] for report in reports], self.gate_settings, step)
        loss, tokens = sums[0], max(1.0, sums[1])
        answers = [True]

        def decide(norm: float) -> bool:
            answers[0] = accept is None or accept(loss, norm)
            return answers[0]

        grad_norm = self.trainer.apply_gradients(decide)
        return Update(
            loss=loss,
            grad_norm=grad_norm,
            tokens=int(sums[1]),
            rows=len(batches) * self.parallel.data_parallel_size,
            metrics={name: value / tokens for name, value in zip(names, sums[2:], strict=True)},
            gate=gated,
            applied=answers[0],
        )

    def _loss(self, count: int, batch: MicroBatch, losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Megatron's loss function for one micro-batch; `losses` are its cross entropies, -log p(label)."""
        logprobs = -losses.float()
        old = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
        observation = observe(
            old, batch.sampler_logprobs, batch.mask, batch.texts, settings=self.gate_settings
        )
        ratio = None
        if self.objective.ratio == "sequence":
            ratio = sequence_log_ratio(logprobs, old, observation.mask, batch.texts, group=self.context_group)
        inputs = LossInputs(
            logprobs=logprobs,
            sampler_logprobs=batch.sampler_logprobs,
            advantages=batch.advantages,
            weights=batch.weights,
            mask=observation.mask,
            old_logprobs=batch.old_logprobs,
            reference_logprobs=batch.reference_logprobs,
            sequence_log_ratio=ratio,
        )
        loss, metrics = policy_loss(inputs, self.objective)
        sums = torch.stack([loss.detach(), observation.mask.sum(), *(metrics[name] for name in METRICS)])
        # Megatron divides the gradients by the token counts that all ranks report. The weights of our tokens already
        # hold the divisor, so every micro-batch reports 1, and the loss is multiplied by the number of reports.
        ones = count * self.parallel.data_parallel_size * self.parallel.context_parallel_size
        return (
            loss * ones,
            torch.ones((), dtype=torch.int, device=loss.device),
            {"sums": sums, "gate": observation},
        )

    def _logprobs(self, batches: Sequence[MicroBatch], models: Sequence[Any]) -> list[Tensor]:
        """`[rows, length]` of each micro-batch on the last pipeline stage; an empty list on the other stages."""

        def report(batch: MicroBatch, losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            return (
                losses.sum(),
                torch.ones((), dtype=torch.int, device=losses.device),
                {"logprobs": -losses.float()},
            )

        with torch.no_grad():
            reports = self._run(batches, models, report, forward_only=True)
        return [each["logprobs"] for each in reports]

    def _run(
        self,
        batches: Sequence[MicroBatch],
        models: Sequence[Any],
        loss: Callable[[MicroBatch, Tensor], Any],
        forward_only: bool = False,
    ) -> list[Any]:
        def forward_step(source: Iterator[MicroBatch], model: Any) -> tuple[Tensor, Any]:
            batch = next(source)
            output = model(
                batch.tokens, batch.position_ids, None, labels=batch.labels, packed_seq_params=batch.documents
            )
            return output, partial(loss, batch)

        rows, length = batches[0].tokens.shape
        # The schedule expects the length of whole rows, before context parallelism cuts them.
        shape = (rows, length * self.parallel.context_parallel_size)
        for model in models:
            unwrap(model).train(not forward_only)
        return self.trainer.run_micro_batches(
            lambda: iter(batches),
            forward_step,
            count=len(batches),
            shape=shape,
            forward_only=forward_only,
            models=models,
        )

    def _row_multiple(self) -> int:
        """A row's length is a multiple of this: 2 pieces per context-parallel rank, 1 per sequence-parallel rank."""
        size = self.parallel
        pieces = 2 * size.context_parallel_size if size.context_parallel_size > 1 else 1
        return pieces * (size.tensor_model_parallel_size if size.sequence_parallel else 1)
