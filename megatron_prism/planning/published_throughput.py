"""Published training throughput, which the planner is compared with. Nothing is fitted to it.

`TARGETS` are the rows that the planner must meet; `HELD_OUT` are further ones. Settings that a source does not give
are stated in `assumed`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from megatron_prism.models.architecture import Architecture
from megatron_prism.planning.gpu_profile import load_profile
from megatron_prism.planning.kernel_work import Software
from megatron_prism.planning.step_time import Job, StepTime, step_time
from megatron_prism.planning.workload import Workload
from megatron_prism.platform.process_groups import ParallelConfig

LLAMA3_8B = Architecture(
    "llama", 128256, 4096, 32, 14336, 32, 8, 128, tie_word_embeddings=False, max_position_embeddings=2**20
)
LLAMA3_70B = replace(
    LLAMA3_8B, hidden_size=8192, num_layers=80, ffn_hidden_size=28672, num_attention_heads=64
)
LLAMA2_7B = replace(LLAMA3_8B, vocab_size=32000, ffn_hidden_size=11008, num_query_groups=32)
LLAMA2_13B = replace(
    LLAMA2_7B,
    hidden_size=5120,
    num_layers=40,
    ffn_hidden_size=13824,
    num_attention_heads=40,
    num_query_groups=40,
)
LLAMA2_70B = replace(LLAMA3_70B, vocab_size=32000)
NEMOTRON_8B = Architecture(
    "llama", 256000, 4096, 32, 16384, 32, 32, 128, activation="squared_relu", tie_word_embeddings=False,
    max_position_embeddings=4096,
)  # fmt: skip

NEMO = "NVIDIA NeMo, docs/source/performance/performance_summary.md, commit 070a0bb (container 24.07)"
NEMO_LONG = (
    "NVIDIA NeMo, docs/source/performance/performance_long_sequence.md, commit 0aa2671 (container 24.03)"
)
TITAN = "torchtitan, benchmarks/llama3_h100_202412_torchtitan.md, commit 31a17bf"
BRIDGE = "NVIDIA Megatron Bridge, performance summary, {}"
BRIDGE_2025 = Software(backend="te", loss="fused", fp8=True, hidden_tensor_communication=True)
NEMO_2024 = replace(BRIDGE_2025, loss="fp32")
# bias_activation_fusion is false and the activation is squared ReLU (NeMo-Framework-Launcher, nemotron_8b.yaml).
NEMO_NEMOTRON = replace(NEMO_2024, fused=False)
# Keys and values are repeated for every head (torchtitan/models/llama/model.py, Attention.forward).
TORCHTITAN = Software(backend="torch", loss="fused", repeated_keys=True, sharded_weights=True)


@dataclass(frozen=True)
class Row:
    """A published measurement.

    Attributes:
        published: tokens per second and GPU; for `teraflops`, TFLOP/s of the model per GPU instead.
        assumed: what the source does not say.
    """

    name: str
    gpu: str
    architecture: Architecture
    parallel: ParallelConfig
    work: Workload
    software: Software
    published: float
    source: str
    teraflops: bool = False
    assumed: str = ""

    def predicted(self) -> StepTime:
        gpu = load_profile(self.gpu)
        return step_time(Job(self.architecture, self.parallel, self.work, gpu, self.software))

    def error(self) -> float:
        """Predicted / published - 1."""
        found = self.predicted()
        value = found.flops_per_second / 1e12 if self.teraflops else found.tokens_per_second
        return value / self.published - 1


def _layout(gpus: int, *, tp: int = 1, pp: int = 1, cp: int = 1, vp: int | None = None) -> ParallelConfig:
    return ParallelConfig(
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        virtual_pipeline_model_parallel_size=vp,
        context_parallel_size=cp,
        data_parallel_size=gpus // (tp * pp * cp),
        sequence_parallel=tp > 1,
    )


def _work(parallel: ParallelConfig, length: int, batch: int, micro: int = 1, **fields: Any) -> Workload:
    count = batch // (micro * parallel.data_parallel_size)
    return Workload(length, micro, count, **{"fp8": True} | fields)


def _nemo(
    name: str,
    a: Architecture,
    layout: ParallelConfig,
    published: float,
    *,
    length: int,
    batch: int = 128,
    **more: Any,
) -> Row:
    work = _work(layout, length, batch, more.pop("micro", 1))
    software = more.pop("software", NEMO_2024)
    return Row(name, "h100", a, layout, work, software, published, NEMO)


def _titan(
    name: str, layout: ParallelConfig, published: float, *, length: int, batch: int, fp8: bool = True
) -> Row:
    """Two rows a micro-batch with selective recomputation (tables 1 and 3), or one with full (table 2)."""
    long = length > 8192
    recompute = "full" if long else "selective"
    work = _work(layout, length, batch, 1 if long else 2, recompute=recompute, fp8=fp8)
    software = replace(TORCHTITAN, fp8=fp8)
    return Row(name, "h100-500w", LLAMA3_8B, layout, work, software, published, TITAN)


def _long(length: int, layout: ParallelConfig, published: float) -> Row:
    sizes = f"TP {layout.tensor_model_parallel_size} CP {layout.context_parallel_size}"
    return Row(
        f"Llama2-7B, {length // 1024}k, FP8, {sizes}, {layout.world_size} H100",
        "h100",
        LLAMA2_7B,
        layout,
        _work(layout, length, 8 * layout.data_parallel_size),
        NEMO_2024,
        published,
        NEMO_LONG,
        teraflops=True,
        assumed="eight micro-batches a step",
    )


EIGHT, SIXTEEN_NODES = _layout(8), _layout(128)
TARGETS = [
    Row(
        "Llama3-8B, 8k, FP8, 8 H100",
        "h100",
        LLAMA3_8B,
        EIGHT,
        _work(EIGHT, 8192, 128),
        BRIDGE_2025,
        14451,
        BRIDGE.format("release 25.11, DGX-H100"),
        assumed="the distributed optimizer in place of FSDP 8",
    ),
    _titan("Llama3-8B, 8k, bf16, 8 H100 of 500 W", EIGHT, 6667, length=8192, batch=16, fp8=False),
    _titan("Llama3-8B, 131k, FP8, CP 4, 8 H100 of 500 W", _layout(8, cp=4), 1071, length=131072, batch=2),
    _nemo(
        "Nemotron-8B, 4k, FP8, TP 2, 64 H100",
        NEMOTRON_8B,
        _layout(64, tp=2),
        12701,
        length=4096,
        batch=256,
        micro=4,
        software=NEMO_NEMOTRON,
    ),
]
HELD_OUT = [
    _titan("Llama3-8B, 8k, FP8, 8 H100 of 500 W", EIGHT, 8532, length=8192, batch=16),
    _titan("Llama3-8B, 8k, bf16, 128 H100 of 500 W", SIXTEEN_NODES, 6514, length=8192, batch=256, fp8=False),
    _titan("Llama3-8B, 8k, FP8, 128 H100 of 500 W", SIXTEEN_NODES, 8380, length=8192, batch=256),
    _titan("Llama3-8B, 32k, FP8, 8 H100 of 500 W", EIGHT, 3890, length=32768, batch=8),
    _titan("Llama3-8B, 65k, FP8, CP 2, 8 H100 of 500 W", _layout(8, cp=2), 2540, length=65536, batch=4),
    _titan("Llama3-8B, 262k, FP8, CP 8, 8 H100 of 500 W", _layout(8, cp=8), 548, length=262144, batch=1),
    _nemo("Llama3-8B, 8k, FP8, CP 2, 8 H100", LLAMA3_8B, _layout(8, cp=2), 12036, length=8192),
    _nemo("Llama2-7B, 4k, FP8, 8 H100", LLAMA2_7B, EIGHT, 16847, length=4096),
    _nemo(
        "Llama2-13B, 4k, FP8, PP 4 VP 10, 16 H100", LLAMA2_13B, _layout(16, pp=4, vp=10), 8646, length=4096
    ),
    _nemo(
        "Llama2-70B, 4k, FP8, TP 4 PP 4 VP 20, 64 H100",
        LLAMA2_70B,
        _layout(64, tp=4, pp=4, vp=20),
        1707,
        length=4096,
    ),
    _nemo(
        "Llama3-70B, 8k, FP8, TP 4 PP 4 CP 2 VP 5, 64 H100",
        LLAMA3_70B,
        _layout(64, tp=4, pp=4, cp=2, vp=5),
        1533,
        length=8192,
    ),
    _long(16384, _layout(16, tp=2), 660),
    _long(32768, _layout(32, tp=2, cp=2), 610),
    _long(65536, _layout(64, tp=4, cp=2), 574),
    _long(131072, _layout(128, tp=4, cp=4), 555),
    Row(
        "Llama3-8B, 8k, FP8, 8 GB200",
        "gb200",
        LLAMA3_8B,
        EIGHT,
        _work(EIGHT, 8192, 128, 2),
        BRIDGE_2025,
        31357,
        BRIDGE.format("release 25.09, DGX-GB200"),
    ),
]


def table() -> list[str]:
    """The lines of the table in docs/results/planning.md."""
    lines = ["| measurement | published | planner | difference |", "|---|---:|---:|---:|"]
    for rows, kind in ((TARGETS, ""), (HELD_OUT, "held out: ")):
        for row in rows:
            found = row.predicted()
            value = found.flops_per_second / 1e12 if row.teraflops else found.tokens_per_second
            unit = " TFLOP/s" if row.teraflops else ""
            lines.append(
                f"| {kind}{row.name} | {row.published:,.0f}{unit} | {value:,.0f}{unit} | {row.error():+.0%} |"
            )
    return lines
