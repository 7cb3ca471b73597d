"""The stage behind `prism analyze landscape`: the pass rate of models between and beyond those of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from megatron_prism.analysis.landscape.points import (
    GRID,
    PATH_A,
    PATH_B,
    Point,
    coordinates,
)
from megatron_prism.conversion.stage import DTYPES, torch_dtype
from megatron_prism.errors import ConfigError
from megatron_prism.evaluation.plan import SuitePlan, SuiteSampling, chosen_suites, read_plan
from megatron_prism.evaluation.replicas import check_layout, open_replicas
from megatron_prism.generation.engine_config import EngineConfig
from megatron_prism.models.model_folder import find_model
from megatron_prism.pipeline.artifact import RESUME, Artifact
from megatron_prism.pipeline.config import one_of, positive
from megatron_prism.pipeline.stage import Stage, tuning
from megatron_prism.platform.console import get_logger, is_rank_zero, progress_bar
from megatron_prism.platform.process_groups import ParallelConfig
from megatron_prism.verification.grade import GRADER_VERSION, grader_versions
from megatron_prism.verification.settings import GradingSettings

MODELS = ("base", "midtrain", "rl")
# In the folder of the artifact: a folder for each point.
POINTS = "points"

log = get_logger(__name__)


@dataclass
class AnalyzeLandscape(Stage):
    """W(a, b) = base + a (midtrain - base) + b (rl - midtrain), evaluated on a path and on a grid (section 10.1).

    Inputs: "base", "midtrain", and "rl" if there is one; "tokenizer" and "corpus". Without "rl", `path_b` and the grid
    must be empty.

    Every point is kept as the folder of an evaluation under `points/`. An interrupted stage goes on, and completions of
    other landscapes and evaluations of the same run are taken over where model, prompts and sampling are the same.

    Fields:
        path_a: values of a, with b = 0: numbers, or text such as "1/6".
        path_b: values of b, with a = 1.
        grid_alpha: steps from the mid-trained model towards RL: a = 1 - beta, b = alpha.
        grid_beta: steps from the mid-trained model back to the base.
        dtype: of the merged weights, before an engine loads them; 'keep' is that of the base. They are rounded once.
        suites, samples_per_problem, limit, engine, sampling, batch_size, parallel, grading, confidence: as for the
            stage `Evaluate`; all points answer the same problems with the same seeds.
    """

    kind: ClassVar[str] = "analysis_landscape"
    resumable: ClassVar[bool] = True

    path_a: list[Any] = field(default_factory=lambda: list(PATH_A))
    path_b: list[Any] = field(default_factory=lambda: list(PATH_B))
    grid_alpha: list[Any] = field(default_factory=lambda: list(GRID))
    grid_beta: list[Any] = field(default_factory=lambda: list(GRID))
    dtype: str = "keep"
    suites: list[str] = field(default_factory=list)
    samples_per_problem: int | None = None
    limit: int | None = None
    engine: EngineConfig = field(default_factory=EngineConfig)
    sampling: SuiteSampling = field(default_factory=SuiteSampling)
    batch_size: int = tuning(32)
    parallel: ParallelConfig = tuning(default_factory=ParallelConfig)
    grading: GradingSettings = field(default_factory=lambda: GradingSettings(workers=1))
    confidence: float = 0.95

    def __post_init__(self) -> None:
        for name in ("path_a", "path_b", "grid_alpha", "grid_beta"):
            setattr(self, name, coordinates(getattr(self, name), name))
        if bool(self.grid_alpha) != bool(self.grid_beta):
            raise ConfigError("grid_alpha, grid_beta: give both axes of the grid, or leave both empty")
        if not (self.path_a or self.path_b or self.grid_alpha):
            raise ConfigError("path_a, path_b, grid_alpha: no point is left; give a path or a grid")
        one_of(self.dtype, DTYPES, "dtype")
        positive(self, "batch_size")
        for name in ("samples_per_problem", "limit"):
            if getattr(self, name) is not None:
                positive(self, name)
        if len(set(self.suites)) != len(self.suites):
            raise ConfigError(f"suites={self.suites}: a suite occurs twice")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"confidence={self.confidence}: must be between 0 and 1, for example 0.95")
        if self.engine.name == "openai":
            raise ConfigError(
                "engine 'openai': a server has one model, and a landscape merges many; use engine 'megatron', 'hf' or "
                "'vllm'"
            )
        check_layout(self.parallel, self.engine.name)

    @property
    def world_size(self) -> int:
        return self.parallel.world_size

    def identity(self) -> dict[str, Any]:
        """Includes the version of the grader, so that a new one grades the kept completions again."""
        return super().identity() | {"grader": GRADER_VERSION}

    def remarks(self) -> list[str]:
        return [f"{len(self._points())} points, evaluated one after the other"]

    def run(self, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
        from megatron_prism.analysis.landscape.summary import Plane, landscape_analysis
        from megatron_prism.analysis.result import write_analysis

        names = [name for name in MODELS if name in inputs]
        if "rl" not in names and (self.path_b or self.grid_alpha):
            raise ConfigError(
                "path_b, grid_alpha: without an input 'rl' there is only the path from base to midtrain; leave them "
                "empty"
            )
        folders = [find_model(inputs[name].path) for name in names]
        remarks = self._check_models(folders)
        plans = self._plans(inputs["corpus"].path)
        plane = Plane(names, self.path_a, self.path_b, self.grid_alpha, self.grid_beta)
        identities = {point: self._identity(point, names, inputs) for point in plane.points}
        details = self._details(plans, names, inputs)
        self._evaluate(identities, plans, folders, inputs["tokenizer"].path, out=out, details=details)
        if not is_rank_zero():
            return {}
        for remark in remarks:
            log.warning("%s", remark)
        analysis = landscape_analysis(
            plane,
            lambda point: out / POINTS / point.name,
            plans,
            confidence=self.confidence,
            details={"engine": self.engine.name, "dtype": self.dtype},
            remarks=remarks,
        )
        write_analysis(analysis, out)
        return dict(analysis.summary)

    def _evaluate(
        self,
        identities: Mapping[Point, Mapping[str, Any]],
        plans: list[SuitePlan],
        folders: list[Path],
        tokenizer: Path,
        *,
        out: Path,
        details: Mapping[str, Any],
    ) -> None:
        """Evaluate the points that are not finished."""
        from megatron_prism.analysis.landscape.engine import LandscapeEngine
        from megatron_prism.analysis.landscape.scoring import Scorer

        work = out / RESUME
        work.mkdir(exist_ok=True)
        engine = LandscapeEngine(
            self.engine,
            folders,
            tokenizer,
            self.batch_size,
            work,
            parallel=self.parallel,
            dtype=torch_dtype(self.dtype),
        )
        completions = len(identities) * sum(plan.completions for plan in plans)
        with (
            open_replicas(self.parallel) as replicas,
            self.grading.open_pool() as pool,
            engine,
            progress_bar("evaluating points", completions) as bar,
        ):
            scorer = Scorer(
                points=out / POINTS,
                plans=plans,
                tokenizer=self.engine.tokenizer(tokenizer),
                engine=engine,
                replicas=replicas,
                pool=pool,
                grading=self.grading,
                earlier=_earlier(out),
                confidence=self.confidence,
                details=details,
            )
            scorer.run(identities, lambda finished: bar.advance(bar.task_ids[0], finished))

    def _check_models(self, folders: list[Path]) -> list[str]:
        """Refuse models that cannot be merged; returns remarks, also about what rounding does to points between."""
        from megatron_prism.analysis.inputs import dtype_name
        from megatron_prism.merging.inputs import dtype_remarks, open_models

        models, remarks = open_models(folders)
        wanted = torch_dtype(self.dtype)
        rounded = sorted({dtype_name(each) for each in models[0].dtypes.values() if each.itemsize < 4})
        if wanted is None and rounded:
            remarks.append(
                f"points between models are rounded once to {', '.join(rounded)}, in which {folders[0]} is stored, so "
                "that steps below its precision vanish; dtype=fp32 leaves rounding to the engine"
            )
        return remarks + dtype_remarks(models, wanted)

    def _details(
        self, plans: list[SuitePlan], names: list[str], inputs: Mapping[str, Artifact]
    ) -> dict[str, Any]:
        """What the scores of each point say besides; warns if a model was trained on texts encoded differently."""
        kinds = self.grading.check_kinds(problem for plan in plans for problem in plan.problems)
        described = [self.engine.describe({**inputs, "model": inputs[name]}) for name in names]
        return {
            "engine": self.engine.name,
            "grader": grader_versions(kinds, self.grading.sandbox),
            "text": described[0],
        }

    def _points(self) -> list[Point]:
        from megatron_prism.analysis.landscape.summary import Plane

        return Plane(MODELS, self.path_a, self.path_b, self.grid_alpha, self.grid_beta).points

    def _plans(self, corpus: Path) -> list[SuitePlan]:
        return [
            read_plan(corpus, suite, self.sampling, samples=self.samples_per_problem, limit=self.limit)
            for suite in chosen_suites(corpus, self.suites)
        ]

    def _identity(self, point: Point, names: list[str], inputs: Mapping[str, Artifact]) -> dict[str, Any]:
        """What decides a point's completions besides prompts and sampling; of a given model as `Evaluate` has it."""
        given = point.given(len(names))
        model: Any = {name: inputs[name].fingerprint for name in names} | {
            "a": str(point.a),
            "b": str(point.b),
            "dtype": self.dtype,
        }
        return {
            "model": model if given is None else inputs[names[given]].fingerprint,
            "tokenizer": inputs["tokenizer"].fingerprint,
            "engine": self.engine.identity(),
        }


def _earlier(out: Path) -> list[Path]:
    """Evaluations of the same run, and the points of its landscapes, this one's among them."""
    points = sorted(out.parent.glob(f"{AnalyzeLandscape.kind}-*/{POINTS}/*"))
    return [*sorted(out.parent.glob("evaluation-*")), *points]
