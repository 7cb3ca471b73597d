"""The released models: their configs build, on the meta device, exactly the parameters they are known to have."""

from __future__ import annotations

import pytest
import torch

from megatron_prism.errors import ConfigError
from megatron_prism.models.build import build_on_meta, local_parameter_count
from megatron_prism.models.families import (
    FAMILIES,
    architecture_from_config,
    hf_config,
    parameter_count,
    published_config,
)
from megatron_prism.platform.process_groups import session

# Recomputed from the values of each released config.json; Nemotron-H's also from its TensorRT-LLM test config.
PARAMETERS = {
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mistral-Small-24B-Base-2501": 23_572_403_200,
    "ibm-granite/granite-3.3-8b-base": 8_170_835_968,
    "ibm-granite/granite-4.0-micro-base": 3_402_836_480,
    "ibm-granite/granite-4.0-h-micro-base": 3_191_396_096,
    "nvidia/Nemotron-H-8B-Base-8K": 8_100_852_736,
}


@pytest.fixture(scope="module", autouse=True)
def one_process():
    with session(seed=1):
        yield


@pytest.mark.parametrize("name", PARAMETERS)
def test_builds_on_the_meta_device_with_its_known_size(name):
    architecture = architecture_from_config(published_config(name))
    model = build_on_meta(architecture)
    assert local_parameter_count(model) == parameter_count(architecture) == PARAMETERS[name]
    assert all(parameter.is_meta for parameter in model.parameters())


def test_granites_instruct_model_has_its_known_size():
    config = published_config("ibm-granite/granite-3.3-8b-base") | {"vocab_size": 49159}
    assert parameter_count(architecture_from_config(config)) == 8_170_864_640


def test_every_published_config_is_counted_here():
    assert {name for family in FAMILIES.values() for name in family.published} == set(PARAMETERS)
    with pytest.raises(ConfigError, match="did you mean 'meta-llama/Llama-3"):
        published_config("meta-llama/Llama-3.1")


@pytest.mark.parametrize("name", PARAMETERS)
def test_transformers_reads_the_same_model_from_the_published_config(name):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = published_config(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_architecture_survives_its_own_config(name):
    read = architecture_from_config(published_config(name))
    assert architecture_from_config(hf_config(read)) == read
    assert read.rope_theta == float(published_config(name).get("rope_theta", 10000.0))
    assert torch.tensor(read.norm_epsilon) == torch.tensor(1e-5)
