"""Says why a stage runs anew although the run folder has an older artifact of that name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_prism.errors import PrismError
from megatron_prism.pipeline.artifact import partial_path
from megatron_prism.pipeline.config import to_mapping
from megatron_prism.pipeline.continuation import shorter_run
from megatron_prism.pipeline.json_text import read_object
from megatron_prism.pipeline.node import Located, flat
from megatron_prism.pipeline.run_record import read_run_record
from megatron_prism.pipeline.stage import Stage, decisive_fields

GRAPH = "graph.json"
MOST_CHANGES = 3


def explain_new_folders(run_dir: Path, located: Mapping[str, Located]) -> list[str]:
    """One line for each stage whose last folder in `run_dir` is not used, unless only its inputs have changed."""
    try:
        stages = read_object(run_dir / GRAPH)["stages"] if (run_dir / GRAPH).is_file() else []
        last = {each["name"]: each for each in stages}
        lines = [
            _explain(run_dir, each, last, located) for each in located.values() if each.node.name in last
        ]
    except (PrismError, KeyError, TypeError, AttributeError):
        # The file describes the last run for a reader; this run does not need it.
        return []
    return [line for line in lines if line]


def _explain(
    run_dir: Path,
    each: Located,
    last: Mapping[str, Mapping[str, Any]],
    located: Mapping[str, Located],
) -> str:
    before, stage = last[each.node.name], each.node.stage
    folder = run_dir / before["folder"]
    exists = [path for path in (folder, partial_path(folder)) if path.is_dir()]
    here = each.folder.exists() or partial_path(each.folder).exists()
    if folder == each.folder or here or not exists or before["kind"] != stage.kind:
        return ""
    if shorter_run(stage, each.lineage, each.folder) is not None:
        return ""
    changes = _changes(before["config"], stage)
    record = read_run_record(exists[0])
    if record is not None and record.lineage == each.lineage and (lack := stage.why_not_continued(exists[0])):
        changes.append(lack)
    version = record.version if record is not None else 0
    if version != stage.version:
        made = f"version {version}" if version else "an older version"
        changes.insert(
            0, f"it was made by {made} of the stage '{stage.kind}', which has version {stage.version}"
        )
    inputs_changed = any(
        parent.name not in last or run_dir / last[parent.name]["folder"] != located[parent.name].folder
        for parent in each.node.inputs.values()
    )
    if not changes and inputs_changed:
        return ""
    reason = (
        ", ".join(changes[:MOST_CHANGES]) or "the files it names have changed, or an older release made it"
    )
    return f"stage '{each.node.name}': {exists[0].name} is kept but not used: {reason}"


def _changes(before: Mapping[str, Any], stage: Stage) -> list[str]:
    """The settings in which an older config differs; a key that only one of them has is in a mapping of free keys."""
    old, new = flat(before), flat(to_mapping(stage))
    decisive = decisive_fields(stage)
    lines = [
        f"{key} was {old[key]} and is {value}"
        for key, value in decisive.items()
        if key in old and old[key] != value
    ]
    lines += [
        f"{key} was not set and is {new[key]}" for key in decisive if key not in old and _free(before, key)
    ]
    now = to_mapping(stage)
    return lines + [
        f"{key} was {old[key]} and is not set" for key in old if key not in new and _free(now, key)
    ]


def _free(config: Mapping[str, Any], key: str) -> bool:
    """Whether `config` has the mapping that holds the dotted `key`, so that the key itself is the user's."""
    inside: Any = config
    for part in key.split(".")[:-1]:
        inside = inside.get(part) if isinstance(inside, Mapping) else None
    return "." in key and isinstance(inside, Mapping)
