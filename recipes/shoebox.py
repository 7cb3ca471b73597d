"""The whole pipeline with a tiny Granite (dense) or a tiny Nemotron-H (hybrid), small enough for two CPU cores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from megatron_prism.analysis.stages.cka import AnalyzeCka
from megatron_prism.analysis.stages.landscape import AnalyzeLandscape
from megatron_prism.conversion.stage import ExportHF
from megatron_prism.data.chat_format import STOP
from megatron_prism.data.mixture import Mixture
from megatron_prism.data.packing import PackDocuments
from megatron_prism.data.shoebox.corpus import SUITES, ShoeboxCorpus
from megatron_prism.data.tokenization import TokenizeCorpus
from megatron_prism.data.tokenizer import TrainTokenizer
from megatron_prism.errors import ConfigError
from megatron_prism.evaluation.plan import SuiteSampling
from megatron_prism.evaluation.ruler.stage import RulerEvaluate
from megatron_prism.evaluation.stage import Evaluate
from megatron_prism.generation.engine import SamplingParams
from megatron_prism.merging.stage import Merge
from megatron_prism.models.architecture import Architecture
from megatron_prism.pipeline.config import one_of
from megatron_prism.pipeline.graph import Graph, Node
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.report.stage import Report
from megatron_prism.rl.check_prompts import CheckPrompts
from megatron_prism.rl.difficulty import Difficulty
from megatron_prism.rl.mix import PromptMix
from megatron_prism.rl.settings import LoopSettings
from megatron_prism.rl.stage import Reinforce
from megatron_prism.rl.variants import variant
from megatron_prism.study.analyses import StudiedModels, add_analyses
from megatron_prism.study.long_context import MERGE, extension_of
from megatron_prism.study.midtraining import trained_architecture, with_architecture_of
from megatron_prism.study.reinforcement import RLStages, add_reinforcement
from megatron_prism.study.small_models import MODELS, VOCABULARY
from megatron_prism.training.batch import BatchConfig
from megatron_prism.training.checkpoint_settings import CheckpointSettings
from megatron_prism.training.optimizer import OptimizerSettings
from megatron_prism.training.schedule import Schedule
from megatron_prism.training.stage import Train
from megatron_prism.verification.sandbox.isolation import STRONG
from megatron_prism.verification.settings import GradingSettings

# There are two cores. Base and mid-training, which all later stages need, use both, with one thread each. Later stages
# run in parallel.
PROCESSES = 2
# Characters of training text per source: more than any mixture here reads.
CHARACTERS = {
    "web": 2_000_000,
    "code": 2_000_000,
    "math": 3_000_000,
    "science": 1_000_000,
    "code_reasoning": 1_000_000,
    "chat": 500_000,
    "retrieval": 4_000_000,
}
SEQUENCE_LENGTH = 128
LONG_MIXTURE = "shoebox-long"
LEARNING_RATES = {"dense": 4e-3, "hybrid": 3e-3}
# The hybrid needs more text for the same score.
MIDTRAIN_STEPS = {"dense": 1000, "hybrid": 1200}
RL_RATE = 5e-4
# The base model does not know the answer format, so all its rewards are 0 and no number of steps would change that.
GIVE_UP_AFTER = 10

# The long context of this recipe: four times the length of mid-training. The base is trained with it, and the extension
# restores it.
LONG = 4 * SEQUENCE_LENGTH
LENGTHS = [SEQUENCE_LENGTH, 2 * SEQUENCE_LENGTH, LONG]
# The extension uses only documents of at least half a sequence, except for problems, which are all shorter.
LONG_DOCUMENT = LONG // 2
SOURCE_MIN_TOKENS = {"math": 2}
# The retrieval tasks of the base model's training text (`data.shoebox.retrieval`), which always ask for one answer.
NEEDLES = ["needle_single", "needle_multikey", "needle_prose"]


# Train on prompts with this many right answers of 16. Fewer right answers occur by chance (a guessed digit modulo 7 is
# right once in seven); with more, the model already knows the answer.
SOLVABLE = [3, 14]
DOMAINS = ["math"]
# A prompt with its answer needs at most half of RL_CONTEXT. Packing short texts into longer rows needs fewer small
# kernels.
ANSWER_TOKENS, RL_CONTEXT = 96, 4 * SEQUENCE_LENGTH


@dataclass(frozen=True)
class Preset:
    """Training steps, and sizes of evaluations and analyses.

    Attributes:
        midtrain_steps: the steps by model.
        problems: problems per evaluation.
        needles: samples per retrieval task and length.
        prompts: prompts per domain for reinforcement learning.
        texts: texts of each set whose representations are compared; half of them are drawn in each resample.
        landscape: math problems at each point of the landscape between base, mid-trained and RL model.
        grid: whether the landscape has a grid beside its path.
    """

    base_steps: int
    midtrain_steps: Mapping[str, int]
    extension_steps: int
    rl_steps: int
    problems: int
    needles: int
    prompts: int
    texts: int
    landscape: int
    grid: bool


# Texts of the corpus whose representations are compared. Those of `math` are held out.
TEXTS = {
    "web": "train/web.jsonl.zst",
    "science": "train/science.jsonl.zst",
    "math": "problems/math.jsonl#prompt",
}
# The weights of so many steps of reinforcement learning are kept for its trajectory.
KEPT_STEPS = 5

# Approximate seconds per stage of the full preset on two cores with AVX-512, for the estimate of the remaining time.
# Keys are the names of stages, or in SECONDS_BY_KIND the first part of a name. Only the proportions matter, because
# the run measures the speed of the machine.
SECONDS = {
    "base": 105,
    "midtrain": 125,
    "rl_midtrain": 195,
    "rl_base": 45,
    "difficulty": 45,
    "corpus": 6,
    "tokens": 6,
    "cka": 15,
    "landscape": 70,
}
SECONDS_BY_KIND = {"extend": 80, "evaluate": 8, "ruler": 10}

PRESETS = {
    "full": Preset(450, MIDTRAIN_STEPS, 150, 50, 200, 50, 640, 200, 100, True),
    "short": Preset(6, dict.fromkeys(MODELS, 8), 4, 2, 8, 2, 8, 8, 2, False),
}


PARAMETERS = {
    "model": f"{', '.join(MODELS)}",
    "seed": "of data order, initial weights and sampling; 0 or more",
    "preset": f"sizes of the study: {', '.join(PRESETS)}",
    "mixture": "of mid-training: shoebox-math, shoebox-mc, shoebox-mcs, or the path of a YAML file",
    "variants": "add the other rows of the paper's Table 7",
    "sandbox": "how programs that a model wrote are isolated: strong, weak",
    "method": "of reinforcement learning: paper, grpo, dapo, dr_grpo, rloo, gspo",
    "processes": "1, 2 or 4; base and mid-training use them as ranks, later stages run in parallel",
}


def recipe(
    *,
    model: str = "dense",
    seed: int = 1,
    preset: str = "full",
    mixture: str = "shoebox-mcs",
    variants: bool = False,
    sandbox: str = STRONG,
    method: str = "paper",
    processes: int = PROCESSES,
) -> Graph:
    """Corpus, tokenizer, base, mid-training, merge, extension, filter, RL from both ends, export, evaluation, report.

    Args:
        sandbox: how programs that a model wrote are isolated; "weak" where bubblewrap does not work.
        method: the method of reinforcement learning, see rl/variants.py.
        processes: number of processes. Base and mid-training use them as ranks; later stages run in parallel. Use 1 if
            they would share one GPU.
        variants: add the other rows of the paper's Table 7: extension of the unmerged model, and of attention only.
    """
    one_of(model, MODELS, "model")
    one_of(preset, PRESETS, "preset")
    if seed < 0:
        raise ConfigError(f"seed={seed}: must be 0 or more")
    if processes not in (1, 2, 4):
        raise ConfigError(
            f"processes={processes}: must be 1, 2 or 4, because they must divide a batch of 4 sequences"
        )
    size, architecture, rate = PRESETS[preset], MODELS[model], LEARNING_RATES[model]
    midtrain_steps = size.midtrain_steps[model]
    graph = Graph("shoebox", jobs=processes)
    corpus = graph.add("corpus", ShoeboxCorpus(characters=dict(CHARACTERS), prompts=size.prompts))
    tokenizer = graph.add("tokenizer", TrainTokenizer(vocab_size=VOCABULARY), corpus=corpus)
    tokens = graph.add("tokens", TokenizeCorpus(), corpus=corpus, tokenizer=tokenizer)

    def train(
        mixture: str,
        *,
        steps: int,
        length: int,
        sequences: int,
        schedule: Schedule,
        ranks: int = 1,
        **fields: Any,
    ) -> Train:
        return Train(
            architecture=architecture,
            mixture=mixture,
            steps=steps,
            seed=seed,
            batch=BatchConfig(length, sequences // ranks, sequences),
            parallel=ParallelConfig(data_parallel_size=ranks),
            schedule=schedule,
            optimizer=OptimizerSettings(beta2=0.98, eps=1e-8),
            validate_every=max(1, steps // 4),
            checkpoint_every=200,
            log_every=25,
            **fields,
        )

    def cosine(steps: int) -> Schedule:
        return Schedule(lr=rate, warmup_steps=max(1, steps // 20), final_factor=0.05)

    questions = Evaluate(
        suites=list(SUITES),
        limit=size.problems,
        batch_size=size.problems,
        grading=GradingSettings(workers=1, sandbox=sandbox),
        sampling=SuiteSampling(
            max_new_tokens=ANSWER_TOKENS, temperature=0.6, top_p=0.95, stop=list(STOP), seed=seed
        ),
    )
    needles = RulerEvaluate(tasks=NEEDLES, lengths=LENGTHS, samples=size.needles, seed=seed)

    def score(node: Node) -> list[Node]:
        return [
            graph.add(f"evaluate_{node.name}", questions, model=node, tokenizer=tokenizer, corpus=corpus),
            graph.add(f"ruler_{node.name}", needles, model=node, tokenizer=tokenizer),
        ]

    # Stages whose inputs are complete start in this order. The base is evaluated before mid-training takes all
    # processes. The longest chain (difficulty, reinforcement learning) comes before stages that no other stage needs.
    base = graph.add(
        "base",
        train(
            "shoebox-base",
            steps=size.base_steps,
            length=LONG,
            sequences=4,
            schedule=cosine(size.base_steps),
            ranks=processes,
        ),
        tokens=tokens,
        tokenizer=tokenizer,
    )
    scores = score(base)
    midtrain = graph.add(
        "midtrain",
        train(
            mixture,
            steps=midtrain_steps,
            length=SEQUENCE_LENGTH,
            sequences=8,
            schedule=cosine(midtrain_steps),
            ranks=processes,
        ),
        partial(with_architecture_of, base),
        tokens=tokens,
        tokenizer=tokenizer,
        init=base,
    )
    rl_nodes = add_reinforcement(
        graph,
        _rl_stages(architecture, size=size, seed=seed, sandbox=sandbox, method=method),
        starts=[(node, partial(trained_architecture, node)) for node in (midtrain, base)],
        corpus=corpus,
        tokenizer=tokenizer,
    )
    scores += score(midtrain)
    merge = graph.add("merge", Merge(weights=dict(MERGE)), base=base, midtrain=midtrain)
    packed = graph.add(
        "packed",
        PackDocuments(
            sequence_length=LONG,
            min_tokens=LONG_DOCUMENT,
            source_min_tokens=SOURCE_MIN_TOKENS,
            sources=list(Mixture.load(LONG_MIXTURE).weights),
        ),
        tokens=tokens,
    )

    def extend(name: str, start: Node, trainable: str, first: Node | None = None) -> Node:
        # As in the paper (Table 17): exponential decay to 0 after a warm-up of a tenth of the steps.
        schedule = Schedule(
            warmup_steps=max(1, size.extension_steps // 10),
            lr=rate / 2,
            style="exponential",
            final_factor=0.0,
        )
        stage = train(
            LONG_MIXTURE,
            steps=size.extension_steps,
            length=LONG,
            sequences=4,
            schedule=schedule,
            trainable=trainable,
        )
        derive = partial(extension_of, midtrain, packed, first)
        return graph.add(name, stage, derive, tokens=packed, tokenizer=tokenizer, init=start)

    extended = extend("extend", merge, "all")
    later = [merge, extended]
    if variants:
        later += [
            extend("extend_attention", merge, "attention", extended),
            extend("extend_unmerged", midtrain, "all", extended),
            extend("extend_unmerged_attention", midtrain, "attention", extended),
        ]
    export = graph.add("export", ExportHF(), model=extended, tokenizer=tokenizer)
    for node in later:
        scores += score(node)
    # The run from the mid-trained model comes last, because the report shows changes from the first to the last model.
    scores += [
        graph.add(f"evaluate_{name}", questions, model=rl_nodes[name], tokenizer=tokenizer, corpus=corpus)
        for name in ("rl_base", "rl_midtrain")
    ]
    rl_run, rl_from_base = rl_nodes["rl_midtrain"], rl_nodes["rl_base"]
    studied = StudiedModels(
        base,
        trained=[midtrain, extended],
        start=midtrain,
        tokenizer=tokenizer,
        rl=rl_run,
        other_runs=[rl_from_base],
        evaluations={name: graph.nodes[f"evaluate_{name}"] for name in ("base", "midtrain", "rl_midtrain")},
    )
    cka = AnalyzeCka(texts=dict(TEXTS), samples=size.texts, resample_size=size.texts // 2, seed=seed)
    analyses = add_analyses(graph, studied, cka, corpus=corpus)
    landscape = AnalyzeLandscape(
        suites=["math"],
        limit=size.landscape,
        batch_size=size.landscape,
        sampling=questions.sampling,
        grading=questions.grading,
    )
    if not size.grid:
        landscape = replace(landscape, grid_alpha=[], grid_beta=[])
    corners = {"base": base, "midtrain": midtrain, "rl": rl_run}
    analyses.append(graph.add("landscape", landscape, tokenizer=tokenizer, corpus=corpus, **corners))
    models = [base, midtrain, *later]
    reported = {
        node.name: node
        for node in (
            corpus,
            tokenizer,
            tokens,
            packed,
            *models,
            export,
            *rl_nodes.values(),
            *scores,
            *analyses,
        )
    }
    if preset == "full":
        graph.expected_seconds = {name: _expected_seconds(name) for name in [*graph.nodes, "report"]}
    graph.add("report", Report(title=f"shoebox: PRISM on a small {model} model"), **reported)
    return graph


def _expected_seconds(name: str) -> float:
    return SECONDS.get(name) or SECONDS_BY_KIND.get(name.split("_")[0], 2)


def _rl_stages(architecture: Architecture, *, size: Preset, seed: int, sandbox: str, method: str) -> RLStages:
    """Reinforcement learning on math: models of this size guess in science, and their programs are rarely right."""
    chosen, grading = variant(method), GradingSettings(sandbox=sandbox)
    settings = LoopSettings(prompts_per_step=32, samples_per_prompt=8, reference_interval=20)
    if size.prompts < settings.prompts_per_step:
        settings = replace(settings, prompts_per_step=4, samples_per_prompt=2)
    train = Reinforce(
        architecture=architecture,
        steps=size.rl_steps,
        give_up_after=GIVE_UP_AFTER,
        seed=seed,
        loop=chosen.loop(settings),
        objective=chosen.objective,
        rewards=chosen.rewards(ANSWER_TOKENS),
        schedule=Schedule(lr=RL_RATE, warmup_steps=0, style="linear", final_factor=0.0),
        optimizer=OptimizerSettings(weight_decay=0.0, beta2=0.95, eps=1e-8),
        context_length=RL_CONTEXT,
        max_new_tokens=ANSWER_TOKENS,
        stop=list(STOP),
        evaluate_every=-(-size.rl_steps // 2),
        evaluation_suites=list(DOMAINS),
        evaluation_problems=min(128, size.problems),
        evaluation_samples=4,
        checkpoint_every=0,
        checkpoints=CheckpointSettings(weights_every=max(1, size.rl_steps // KEPT_STEPS)),
        slots=512,
        grading=grading,
    )
    sampling = SamplingParams(max_new_tokens=ANSWER_TOKENS, stop=list(STOP), seed=seed)
    # After eight steps of mid-training the model solves nothing, so the short preset keeps all prompts.
    ranges = {domain: list(SOLVABLE) if size.rl_steps > 2 else [0, 16] for domain in DOMAINS}
    return RLStages(
        prompts=CheckPrompts(domains=list(DOMAINS), grading=grading),
        filter=Difficulty(sampling=sampling, chunk=256, slots=512, grading=grading),
        mix=PromptMix(domains=list(DOMAINS), ranges=ranges, seed=seed),
        tracked=PromptMix(domains=list(DOMAINS), ranges={d: [0, 1] for d in DOMAINS}, limit=64, seed=seed),
        train=train,
    )
