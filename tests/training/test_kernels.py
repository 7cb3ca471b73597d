"""Communication and kernel settings: what reaches upstream, what is refused, and that overlap changes no number."""

from __future__ import annotations

from dataclasses import replace

import overlap_layouts
import pytest
from overlap_layouts import DENSE
from parallel_runs import HYBRID, layout, results_of

from megatron_prism.errors import ConfigError, ParallelError
from megatron_prism.models.architecture import Architecture
from megatron_prism.training import kernels as module
from megatron_prism.training.kernels import KernelSettings

MISTRAL = Architecture("mistral", 64, 32, 2, 48, 8, 8, 8, sliding_window=8, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("overlap")
    return results_of(overlap_layouts.main, folder, [2])


def steps(found):
    """The loss and the gradient norm of every step."""
    return [*found["first"], found["refused"], *found["then"]]


@pytest.mark.parametrize("name", overlap_layouts.CASES)
def test_overlapped_communication_changes_no_number(results, name):
    on, off = results[name]
    assert on["then"] == on["resumed"]
    for mine, reference in zip(steps(on), steps(off), strict=True):
        assert mine[0] == reference[0]
        # Ranks add up other parts of the gradients before they exchange their sums.
        assert mine[1] == pytest.approx(reference[1], rel=1e-6)
    assert on["evaluation"] == off["evaluation"]
    assert on["weights"] == off["weights"]


def test_weights_that_are_not_gathered_are_stale(results):
    early, gathered = results["early"], results["dense"][0]
    assert early["first"] == gathered["first"]
    assert early["weights"] != gathered["weights"]


def test_upstream_saves_the_state_of_several_buckets_at_wrong_places(results):
    control = results["unpadded"]
    assert control["resumed"][0][0] - control["then"][0][0] > 0.1


def test_on_a_gpu_overlap_follows_the_layout():
    def overlaps(parallel, gpu=True, **fields):
        return KernelSettings(**fields).overlaps(parallel, gpu)

    assert overlaps(layout(dp=2)) == overlaps(layout(cp=2)) == (True, True)
    assert overlaps(layout(dp=2), gpu=False) == overlaps(layout(tp=2)) == (False, False)
    assert overlaps(replace(layout(dp=2), use_distributed_optimizer=False)) == (True, False)
    assert overlaps(layout(dp=2), overlap_param_gather=False) == (True, False)
    assert overlaps(layout(dp=2), overlap_grad_reduce=False) == (False, False)
    assert overlaps(layout(dp=2), gpu=False, overlap_param_gather=True) == (True, True)


def test_fused_kernels_are_used_where_their_libraries_are(monkeypatch):
    def fields(architecture, backend, gpu=True, **settings):
        return KernelSettings(**settings).transformer_fields(architecture, layout(dp=2), backend, gpu)

    off = {"gradient_accumulation_fusion": False, "bias_activation_fusion": False, "apply_rope_fusion": False}
    assert fields(DENSE, "torch", gpu=False) == off
    assert fields(DENSE, "torch") == off
    assert fields(HYBRID, "torch") == off
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object())
    everything = dict.fromkeys(off, True)
    assert everything.items() <= fields(DENSE, "te").items()
    assert fields(DENSE, "torch") == off | {"gradient_accumulation_fusion": True}
    assert not fields(DENSE, "te", fused_swiglu=False)["bias_activation_fusion"]


@pytest.mark.parametrize(
    ("architecture", "cp", "chosen"),
    [(DENSE, 2, "p2p"), (MISTRAL, 4, "a2a"), (replace(MISTRAL, num_query_groups=2), 4, "all_gather")],
)
def test_context_parallelism_is_chosen_by_the_attention(architecture, cp, chosen):
    fields = KernelSettings().transformer_fields(architecture, layout(cp=cp), "te", gpu=True)
    assert fields["cp_comm_type"] == chosen
    assert fields["attention_backend"].name == "auto"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"overlap_param_gather": True, "overlap_grad_reduce": False},
            "needs kernels.overlap_grad_reduce=true",
        ),
        ({"bucket_size": 10, "overlap_grad_reduce": False}, "there are no buckets"),
        ({"bucket_size": 0}, "bucket_size=0: must be a finite number greater than zero"),
        ({"cp_comm_type": "ring"}, r"kernels\.cp_comm_type='ring' is not possible"),
        ({"attention_backend": "flsh"}, "did you mean 'flash'"),
        ({"collective_timeout": 0}, "collective_timeout=0"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        KernelSettings(**fields)


@pytest.mark.parametrize(
    ("architecture", "parallel", "backend", "fields", "message"),
    [
        (HYBRID, layout(), "auto", {"fused_swiglu": True}, "activation is squared_relu"),
        (HYBRID, layout(), "auto", {"fused_rope": True}, "no rotary embedding"),
        (MISTRAL, layout(cp=2), "te", {"cp_comm_type": "p2p"}, "cannot do sliding windows"),
        (DENSE, layout(cp=4), "te", {"cp_comm_type": "a2a"}, "does not divide the 2 key and value heads"),
        (DENSE, layout(cp=2), "torch", {"cp_comm_type": "a2a"}, "only backend=te has a choice"),
        (DENSE, layout(), "torch", {"fused_swiglu": True}, "only backend=te has a choice"),
        (DENSE, layout(), "torch", {"attention_backend": "flash"}, "only backend=te has a choice"),
        (
            DENSE,
            replace(layout(dp=2), use_distributed_optimizer=False),
            "auto",
            {"overlap_param_gather": True},
            "use_distributed_optimizer=true",
        ),
    ],
)
def test_what_the_model_or_layout_cannot_do_is_refused(architecture, parallel, backend, fields, message):
    with pytest.raises((ConfigError, ParallelError), match=message):
        KernelSettings(**fields).check(architecture, parallel, backend)


def test_a_kernel_without_its_library_is_refused():
    with pytest.raises(ConfigError, match="transformer_engine is not installed"):
        KernelSettings(fused_rope=True).transformer_fields(DENSE, layout(), "te", gpu=True)
