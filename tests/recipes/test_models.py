"""The recipes of the seven published models: the paper's numbers, and their small form end to end."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from megatron_prism.errors import ConfigError
from megatron_prism.evaluation.plan import SuiteSampling
from megatron_prism.models.families import FAMILIES, architecture_from_config, parameter_count
from megatron_prism.study.model_recipe import ModelRecipe
from megatron_prism.study.registry import list_recipes, load_recipe

MODELS = {
    "llama-3.1-8b": 8_030_261_248,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-small-24b": 23_572_403_200,
    "granite-3.3-8b": 8_170_835_968,
    "granite-4.0-micro": 3_402_836_480,
    "granite-4.0-h-micro": 3_191_396_096,
    "nemotron-h-8b": 8_100_852_736,
}
ALL = pytest.mark.parametrize("name", MODELS)


@pytest.fixture
def data(tmp_path):
    """A folder that holds every source of the paper's default mixture."""
    from megatron_prism.data.mixture import Mixture

    folder = tmp_path / "data"
    folder.mkdir()
    for index, source in enumerate(Mixture.load("mcs").weights | Mixture.load("long-context").weights):
        (folder / f"{source}{('.jsonl', '')[index % 2]}").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """Shared by all models, so that corpus and vocabulary are made once."""
    return tmp_path_factory.mktemp("runs")


@ALL
def test_a_recipe_says_only_what_is_its_own(name):
    """What the recipes share stands once, in `study`; a file that defines more would no longer be one of them."""
    recipe = load_recipe(name).function
    assert isinstance(recipe, ModelRecipe)
    assert recipe.name == name


def test_every_published_model_has_a_recipe():
    assert set(MODELS) <= set(list_recipes())
    assert len(MODELS) == sum(len(family.published) for family in FAMILIES.values())


@ALL
def test_the_full_size_has_the_papers_numbers(name, data, tmp_path):
    graph = load_recipe(name).build({"checkpoint": str(tmp_path), "data": str(data)})
    train = graph.node("midtrain").stage
    assert parameter_count(train.architecture) == MODELS[name]
    assert train.steps * train.batch.global_batch_size * train.batch.sequence_length == 26_214_400_000
    assert (train.schedule.lr, train.schedule.warmup_steps, train.schedule.style) == (5e-5, 500, "cosine")
    assert train.schedule.at(24_999, 25_000) == pytest.approx(5e-6, rel=1e-3)
    assert (train.optimizer.beta1, train.optimizer.beta2, train.optimizer.eps) == (0.9, 0.95, 1e-10)
    assert (train.optimizer.weight_decay, train.dtype) == (0.1, "bf16")
    assert train.parallel.world_size == 8
    assert graph.node("export").stage.check == "tensors"


@ALL
def test_the_long_context_branch_has_the_papers_numbers(name, data, tmp_path):
    values = {"checkpoint": str(tmp_path), "data": str(data), "long_context": True}
    graph = load_recipe(name).build(values)
    assert graph.node("merge").stage.weights == {"base": 0.15, "midtrain": 0.85}
    assert graph.node("merge").inputs["base"].name == "import"
    extend = graph.node("extend").stage
    assert graph.node("extend").inputs["init"].name == "merge"
    assert graph.node("export").inputs["model"].name == "extend"
    assert (extend.steps, extend.batch.sequence_length, extend.batch.global_batch_size) == (1000, 131_072, 9)
    assert (extend.schedule.lr, extend.schedule.warmup_steps) == (5e-5, 100)
    assert (extend.schedule.style, extend.schedule.final_factor) == ("exponential", 0.0)
    # The layout, and with it what is computed again, is the choice of recipes/layouts.
    assert (extend.optimizer.eps, extend.dtype) == (1e-10, "bf16")
    assert extend.parallel.world_size == 8
    assert extend.trained_architecture.max_position_embeddings == 131_072
    before = extend.architecture
    kept = before.max_position_embeddings == 131_072 or before.position_embedding == "none"
    assert (extend.trained_architecture.rope_theta == before.rope_theta) == kept
    rows = [node.removeprefix("ruler_") for node in graph.nodes if node.startswith("ruler_")]
    assert rows == [
        *("base", "midtrain", "midtrain_extend_attention", "midtrain_extend"),
        *("merge", "extend_attention", "extend"),
    ]
    trainable = [graph.node(row).stage.trainable for row in rows if "extend" in row]
    assert trainable == ["attention", "all", "attention", "all"]
    # No model is evaluated at lengths beyond its positions.
    assert max(graph.node("ruler_base").stage.lengths) == before.max_position_embeddings
    assert graph.node("ruler_extend").stage.lengths == [8192, 16384, 32768, 65536, 131072]


def test_the_extension_can_be_set_as_the_page_says(data, tmp_path):
    values = {"checkpoint": str(tmp_path), "data": str(data), "long_context": True}
    graph = load_recipe("mistral-7b-v0.1").build(values)
    scaling = {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 32768}
    graph.override({"extend.extension": {"max_position_embeddings": 131072, "rope_scaling": scaling}})
    made = graph.node("extend").stage.trained_architecture
    assert (made.max_position_embeddings, made.rope_scaling.rope_type) == (131072, "yarn")
    # The other three rows that are compared have the same extension.
    for row in ("midtrain_extend_attention", "midtrain_extend", "extend_attention"):
        assert graph.node(row).stage.trained_architecture == made
    wrong = {"max_position_embeddings": 131072, "rope_scaling": scaling | {"factor": 2}}
    with pytest.raises(ConfigError, match=r"extension\.rope_scaling\.factor=2"):
        graph.override({"extend.extension": wrong})


def test_another_extension_reaches_all_that_follows_it(data, tmp_path):
    (tmp_path / "prompts.jsonl").write_text("")
    values = {"checkpoint": str(tmp_path), "data": str(data), "prompts": str(tmp_path / "prompts.jsonl")}
    graph = load_recipe("mistral-7b-v0.1").build(values | {"long_context": True, "rl": True})
    assert graph.node("rl_extend").stage.architecture.rope_theta == 1e6
    half = {"extend.extension.max_position_embeddings": 65_536, "packed.sequence_length": 65_536}
    graph.override({"extend.extension.rope_theta": 2e6, "extend.steps": 500, **half})
    followers = [name for name in graph.nodes if "extend" in name and not name.startswith("ruler")]
    assert sorted(followers) == [
        *("extend", "extend_attention", "midtrain_extend", "midtrain_extend_attention", "rl_extend")
    ]
    for name in followers:
        stage = graph.node(name).stage
        made = stage.architecture if name == "rl_extend" else stage.trained_architecture
        assert (made.rope_theta, made.max_position_embeddings) == (2e6, 65_536)
        if name != "rl_extend":
            assert (stage.steps, stage.batch.sequence_length) == (500, 65_536)
            assert max(graph.node(f"ruler_{name}").stage.lengths) == 65_536
    # Runs from the base keep its architecture.
    assert graph.node("rl_import").stage.architecture.rope_theta == 1e4


def test_the_long_context_branch_needs_its_own_sources(data, tmp_path):
    for path in data.glob("codex*"):
        path.unlink()
    values = {"checkpoint": str(tmp_path), "data": str(data)}
    load_recipe("granite-3.3-8b").build(values)
    with pytest.raises(ConfigError, match=r"source 'codex' of mixture=long-context is missing"):
        load_recipe("granite-3.3-8b").build(values | {"long_context": True})


def test_what_is_missing_is_named(data, tmp_path):
    recipe = load_recipe("granite-3.3-8b")
    with pytest.raises(ConfigError, match="checkpoint: give the Hugging Face folder of ibm-granite"):
        recipe.build({})
    with pytest.raises(ConfigError, match="no such folder"):
        recipe.build({"checkpoint": str(tmp_path / "none")})
    with pytest.raises(ConfigError, match="data: give the folder with the sources of mixture=mcs"):
        recipe.build({"checkpoint": str(tmp_path)})
    (data / "dclm-edu.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"source 'dclm-edu' of mixture=mcs is missing"):
        recipe.build({"checkpoint": str(tmp_path), "data": str(data)})


@ALL
def test_the_small_form_keeps_what_tells_the_family(name):
    tiny = load_recipe(name).build({"tiny": True}).node("midtrain").stage.architecture
    assert parameter_count(tiny) < 1_000_000
    assert (tiny.rope_scaling is not None) == (name == "llama-3.1-8b")
    assert (tiny.sliding_window is not None) == (name == "mistral-7b-v0.1")
    wide = tiny.head_dim * tiny.num_attention_heads != tiny.hidden_size
    assert wide == (name == "mistral-small-24b")
    assert (tiny.mamba_num_groups == 1) or name == "nemotron-h-8b"
    assert tiny.is_hybrid == (name in ("granite-4.0-h-micro", "nemotron-h-8b"))


SIZES = ("tensor_model", "pipeline_model", "context", "data")


def one_process(graph):
    # Sequence parallelism needs tensor parallelism, so it is switched off first.
    graph.override({"midtrain.parallel.sequence_parallel": False})
    graph.override({f"midtrain.parallel.{size}_parallel_size": 1 for size in SIZES})
    return graph


def run_alone(values, name, run_dir):
    """The small form with these parameters, every stage in this process."""
    graph = load_recipe(name).build({"tiny": True, **values})
    for node in graph.nodes.values():
        if hasattr(node.stage, "grading"):
            # Starting a grading process takes longer than grading these few answers.
            graph.override({f"{node.name}.grading.workers": 1})
        if hasattr(node.stage, "parallel"):
            graph.override({f"{node.name}.parallel.sequence_parallel": False})
            graph.override({f"{node.name}.parallel.{size}_parallel_size": 1 for size in SIZES})
    return graph.run(run_dir)


def check_run(artifacts):
    exported = artifacts["export"]
    assert exported.metrics["max_abs_logit_difference"] < 1e-4
    assert artifacts["midtrain"].metrics["steps"] == 4
    before = load_file(artifacts["checkpoint"].file("model/model.safetensors"))
    after = load_file(exported.file("model/model.safetensors"))
    assert before.keys() == after.keys()
    assert any((before[key] != after[key]).any() for key in before)
    config = json.loads(exported.file("model/config.json").read_text())
    assert config == json.loads(artifacts["checkpoint"].file("model/config.json").read_text())
    assert architecture_from_config(config)
    assert (
        exported.file("model/tokenizer.json").read_bytes()
        == artifacts["tokenizer"].file("tokenizer.json").read_bytes()
    )


@ALL
def test_the_small_form_runs_from_import_to_export(name, run_dir):
    check_run(one_process(load_recipe(name).build({"tiny": True})).run(run_dir))


@pytest.mark.parametrize("name", ["mistral-7b-v0.1", "nemotron-h-8b"])
def test_the_small_form_of_the_long_context_branch_runs(name, run_dir):
    """One model gets a new rotary base, the other has no rotary positions; the exported config shows both."""
    graph = one_process(load_recipe(name).build({"tiny": True, "long_context": True}))
    for stage in ("midtrain_extend_attention", "midtrain_extend", "extend_attention", "extend"):
        graph.override({f"{stage}.parallel.context_parallel_size": 1})
    artifacts = graph.run(run_dir)
    before = json.loads(artifacts["checkpoint"].file("model/config.json").read_text())
    after = json.loads(artifacts["export"].file("model/config.json").read_text())
    # The export writes both spellings; the checkpoint has only the newer one.
    rope = {"rope_parameters", "rope_theta"} if name.startswith("mistral") else set()
    assert {key for key in after if after[key] != before.get(key)} == {"max_position_embeddings"} | rope
    assert after["max_position_embeddings"] == 1024
    assert artifacts["export"].metrics["max_abs_logit_difference"] < 1e-4
    assert list(artifacts["ruler_extend"].metrics["lengths"]) == ["1024"]
    page = artifacts["report"].file("report.html").read_text()
    assert "Retrieval by length" in page


@pytest.mark.parametrize("name", ["granite-4.0-h-micro"])
def test_the_small_form_of_reinforcement_learning_runs(name, run_dir):
    """From filter to frontier, from the mid-trained and the imported model; the former is exported."""
    artifacts = run_alone({"rl": True, "method": "grpo"}, name, run_dir)
    assert artifacts["difficulty"].metrics["samples"] == 2
    assert artifacts["mix"].metrics["prompts"] == {"code": 8, "math": 8, "science": 8}
    for stage in ("rl_midtrain", "rl_import"):
        assert artifacts[stage].metrics["steps"] == 2
        assert artifacts[stage].receipt.config["objective"]["normalization"] == "sequence"
    assert artifacts["export"].receipt.inputs["model"] == artifacts["rl_midtrain"].fingerprint
    assert "Reinforcement learning" in artifacts["report"].file("report.html").read_text()


def test_the_analyses_of_a_study_compare_its_models():
    graph = load_recipe("granite-3.3-8b").function(
        tiny=True, rl=True, evaluate=True, long_context=True, analyze=True
    )
    inputs = {name: {key: n.name for key, n in node.inputs.items()} for name, node in graph.nodes.items()}
    assert inputs["weights"] == {
        **{"base": "import", "midtrain": "midtrain", "extend": "extend"},
        **{"rl_extend": "rl_extend", "rl_import": "rl_import"},
    }
    assert list(inputs["direction"]) == ["base", "midtrain", "extend", "rl_extend"]
    # Reinforcement learning began with the extended model.
    assert inputs["weights_rl"] == inputs["trajectory"] == {"extend": "extend", "rl_extend": "rl_extend"}
    assert graph.nodes["weights_rl"].stage.base == graph.nodes["trajectory"].stage.start == "extend"
    assert graph.nodes["rl_extend"].stage.checkpoints.weights_every == 1
    assert inputs["confidence"] == {
        "base": "evaluate_base",
        "extend": "evaluate_extend",
        "rl_extend": "evaluate_rl_extend",
    }
    alone = load_recipe("granite-3.3-8b").function(tiny=True, analyze=True).nodes
    assert {"weights", "spectrum", "cka"} <= alone.keys()
    assert not {"weights_rl", "trajectory", "confidence", "direction"} & alone.keys()


@pytest.mark.slow
def test_the_analyses_of_a_hybrid_study_run(run_dir):
    artifacts = run_alone({"rl": True, "method": "grpo", "analyze": True}, "granite-4.0-h-micro", run_dir)
    moved = artifacts["weights"].metrics["models"]
    assert list(moved) == ["midtrain", "rl_midtrain", "rl_import"]
    # Mid-training moves weights; two steps without a reward do not.
    assert moved["midtrain"]["norm_delta"] > 0
    assert artifacts["trajectory"].metrics["steps"] == [1, 2]
    parts = json.loads(artifacts["weights"].file("weights.json").read_text())["models"][0]["sub_components"]
    assert {"mamba.in_proj.dt", "mamba.conv1d", "attention.q", "mlp.gate"} <= parts.keys()
    assert {"direction", "spectrum", "cka", "weights_rl"} <= artifacts.keys()
    assert "confidence" not in artifacts, "nothing was evaluated"


def check_branch(artifacts, extended, run):
    """One extension of the merge, one run of reinforcement learning on a balanced mix, scores of every model."""
    trained = {name for name, each in artifacts.items() if each.kind == "train"}
    assert trained == {"midtrain", extended}
    assert artifacts[extended].receipt.inputs["init"] == artifacts["merge"].fingerprint
    assert artifacts["mix"].receipt.config["mix"] == "balanced"
    assert set(artifacts["mix"].metrics["prompts"]) == {"math", "code", "science"}
    assert artifacts["difficulty"].receipt.inputs["model"] == artifacts[extended].fingerprint
    assert {name for name, each in artifacts.items() if each.kind == "rl"} == {run}
    assert artifacts["export"].receipt.inputs["model"] == artifacts[run].fingerprint
    scored = {name.removeprefix("evaluate_") for name in artifacts if name.startswith("evaluate_")}
    assert scored == {"base", "midtrain", extended, run}
    for model in scored:
        read = artifacts[f"evaluate_{model}"].receipt.inputs["model"]
        assert read == artifacts["import" if model == "base" else model].fingerprint
    page = artifacts["report"].file("report.html").read_text()
    assert "Retrieval by length" in page
    assert "Reinforcement learning" in page


BRANCH = {"long_context": True, "rl": True, "rl_balance": "balanced", "evaluate": True}


def test_one_extension_a_balanced_mix_and_evaluations_run(run_dir):
    values = {"extension": "attention", "rl_start": "extend"}
    artifacts = run_alone(BRANCH | values, "granite-3.3-8b", run_dir)
    check_branch(artifacts, "extend_attention", "rl_extend_attention")
    assert artifacts["frontier"].receipt.inputs["rl"] == artifacts["rl_extend_attention"].fingerprint
    assert artifacts["extend_attention"].metrics["trainable_parameters"] < 100_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["granite-3.3-8b", "nemotron-h-8b"])
@pytest.mark.parametrize("extension", ["full", "attention"])
def test_the_same_from_the_base(name, extension, run_dir):
    artifacts = run_alone(BRANCH | {"extension": extension, "rl_start": "base"}, name, run_dir)
    check_branch(artifacts, "extend" if extension == "full" else "extend_attention", "rl_import")
    assert "frontier" not in artifacts


@ALL
def test_evaluation_has_the_papers_numbers(name):
    """Section 5 of the appendix: 64 samples of mathematics, three of the rest."""
    nodes = load_recipe(name).build({"evaluate": True}, planned=True).nodes
    settings = {
        made.name: (made.problems, made.samples, made.temperature, made.top_p, made.max_new_tokens)
        for made in nodes["benchmarks"].stage.definitions()
    }
    # A model has no more positions than it was published with (docs/recipes.md).
    longest = 8192 if name == "nemotron-h-8b" else 32_768
    rest = {"livecodebench": 279, "codeforces": 453, "gpqa_diamond": 198}
    mathematics = {"aime24": 30, "aime25": 30, "aime26": 30, "math500": 500}
    assert settings == {
        **{benchmark: (count, 64, 0.6, 0.95, longest) for benchmark, count in mathematics.items()},
        **{benchmark: (count, 3, 0.7, 1.0, longest) for benchmark, count in rest.items()},
    }
    for model in ("base", "midtrain"):
        stage = nodes[f"evaluate_{model}"].stage
        # What the stage leaves open is as the suite says.
        assert (stage.suites, stage.samples_per_problem, stage.limit) == ([], None, None)
        assert stage.sampling == SuiteSampling(seed=1)


@ALL
def test_reinforcement_learning_has_the_papers_numbers(name, data, tmp_path):
    """Table 21 and section 9.1."""
    given = {"checkpoint": str(tmp_path), "data": str(data), "rl": True, "prompts": str(data)}
    graph = load_recipe(name).build(given)
    for start in ("midtrain", "import"):
        train = graph.node(f"rl_{start}").stage
        assert (train.steps, train.loop.prompts_per_step, train.loop.samples_per_prompt) == (1000, 64, 16)
        assert (train.objective.kl_coefficient, train.objective.tis_cap, train.loop.minibatches) == (
            0.05,
            2.0,
            1,
        )
        assert (train.schedule.lr, train.schedule.style, train.schedule.final_factor) == (5e-7, "linear", 0.0)
        assert (train.checkpoint_every, train.evaluate_every) == (20, 20)
        assert train.context_length == (8192 if name == "nemotron-h-8b" else 16_384)
    assert graph.node("difficulty").stage.samples == 16
    mix = graph.node("mix").stage
    assert (mix.ranges["math"], mix.ranges["code"][0], mix.ranges["science"][0]) == ([1, 1], 1, 1)


def test_reinforcement_learning_wants_prompts(data, tmp_path):
    given = {"checkpoint": str(tmp_path), "data": str(data), "rl": True, "prompts": "nowhere"}
    with pytest.raises(ConfigError, match="prompts=nowhere: rl=true needs an existing file"):
        load_recipe("granite-3.3-8b").build(given)


@pytest.mark.slow
@ALL
def test_the_small_form_runs_on_two_processes_through_the_launcher(name, run_dir):
    check_run(load_recipe(name).build({"tiny": True}).run(run_dir))


def test_a_failed_task_fails_the_run(run_dir, capsys):
    from megatron_prism.cli.main import main

    arguments = [
        "run",
        "granite-4.0-h-micro",
        "--tiny",
        "--run-dir",
        str(run_dir),
        "midtrain.schedule.lr=1e-3",
    ]
    impossible = "midtrain.parallel.tensor_model_parallel_size=2"
    with pytest.raises(SystemExit) as ended:
        main([*arguments, impossible])
    assert ended.value.code == 2
    assert "mamba_num_groups=1; use context_parallel_size" in capsys.readouterr().err


def test_general_suites_are_evaluated_by_lm_eval(tmp_path):
    values = {"evaluate": True, "suites": "reasoning,general-v1"}
    nodes = load_recipe("granite-3.3-8b").build(values, planned=True).nodes
    assert nodes["harness_midtrain"].stage.suites == ["leaderboard-v1"]
    assert nodes["harness_midtrain"].inputs["model"] is nodes["midtrain"]
    assert "evaluate_midtrain" in nodes
    only = load_recipe("granite-3.3-8b").build(values | {"suites": "general"}, planned=True).nodes
    assert "benchmarks" not in only
    for suites, said in (
        ("reasonin", "did you mean 'reasoning'"),
        ("reasoning,long", "long_context=true evaluates long contexts"),
        ("general,general", "a suite is named twice"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_recipe("granite-3.3-8b").build(values | {"suites": suites}, planned=True)
