"""Which files of a Hugging Face folder hold its weights, where several could: the ones that transformers would load.

Source: transformers 5.23, modeling_utils.py, `_get_resolved_checkpoint_files` (model.safetensors before the index, and
pickled files last) and `_load_pretrained_model` (of an index only the names of its files count; every tensor in them is
read, and the last file in the order of names wins).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from megatron_prism.errors import CheckpointError
from megatron_prism.models.model_folder import INDEX, SINGLE
from megatron_prism.pipeline.json_text import read_object

PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER = "adapter_config.json"
# Names under which a second set of weights lies in published folders, or a first one after a model was saved again.
OTHER_SETS = (
    *("*.safetensors", "pytorch_model*.bin", "consolidated*.pth", "*.gguf", "*.pt", "tf_model.h5"),
    "flax_model.msgpack",
)


@dataclass
class WeightFiles:
    """The files that hold a folder's weights.

    Attributes:
        files: their names in the folder, in the order in which transformers reads them.
        weight_map: tensor -> file, as the index says; empty without an index.
        remarks: what a user should hear: what else lies there and is not read.
    """

    files: list[str]
    weight_map: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def find_weight_files(folder: Path) -> WeightFiles:
    """Choose as transformers does; only names and the index are read.

    Raises:
        CheckpointError: naming the folder or the index, where there are no weights in safetensors, or an index cannot
            be read or points out of the folder.
    """
    index = folder / INDEX
    if (folder / SINGLE).is_file():
        found = WeightFiles([SINGLE])
        if index.is_file():
            found.remarks.append(
                f"{folder}: {SINGLE} is read, as transformers does, and {INDEX}{_state(folder)} is not; remove the "
                "one that is out of date"
            )
    elif index.is_file():
        weight_map = read_weight_map(index)
        found = WeightFiles(sorted(set(weight_map.values())), weight_map)
    else:
        raise CheckpointError(f"{folder}: {_what_is_there(folder)}")
    others = sorted({path.name for pattern in OTHER_SETS for path in folder.glob(pattern)} - set(found.files))
    if others:
        named = others[0] if len(others) == 1 else f"{others[0]} and {len(others) - 1} more"
        what = SINGLE if found.files == [SINGLE] else f"the files of {INDEX}"
        found.remarks.append(f"{folder}: also holds {named}, not read: the weights are {what}")
    if (folder / ADAPTER).is_file():
        found.remarks.append(f"{folder}: {ADAPTER} is there; the adapter is not applied")
    return found


def read_weight_map(index: Path) -> dict[str, str]:
    """tensor -> file of an index; a CheckpointError where it cannot be read or leaves the folder."""
    try:
        weight_map = read_object(index, CheckpointError)["weight_map"]
        files = {str(name): str(PurePosixPath(_name(file))) for name, file in weight_map.items()}
    except (KeyError, TypeError, AttributeError) as problem:
        raise CheckpointError(f"{index}: not a readable index ({problem!r})") from None
    if not files:
        raise CheckpointError(f"{index}: its weight_map is empty")
    for name, file in files.items():
        # By its name alone: files may be links, as in the Hugging Face cache.
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise CheckpointError(f"{index}: weight_map puts '{name}' in '{file}', which leaves the folder")
    return files


def _name(file: object) -> str:
    if not isinstance(file, str) or "\0" in file:
        raise TypeError(f"{file!r} is no file name")
    return file


def _state(folder: Path) -> str:
    """What is wrong with an index beside a single file, in brackets; nothing where its files are there."""
    try:
        missing = [file for file in read_weight_map(folder / INDEX).values() if not (folder / file).is_file()]
    except CheckpointError:
        return " (not readable)"
    return f" (it names {missing[0]}, which is not there)" if missing else ""


def _what_is_there(folder: Path) -> str:
    if (folder / ADAPTER).is_file():
        return (
            f"{ADAPTER} and no {SINGLE}: an adapter without its model; merge it into the model first (peft's "
            "merge_and_unload) and save that"
        )
    for name in (SINGLE, INDEX):
        if (folder / name).is_symlink():
            return f"{name} is a link to a file that is not there, as an unfinished download leaves; fetch it again"
    for name in PICKLED:
        if (folder / name).is_file():
            return (
                f"only pickled weights ({name}), which are not read; save them as safetensors (transformers: "
                "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW))"
            )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        return (
            f"holds {others[0]}, but neither {SINGLE} nor {INDEX}, so transformers would not find it; fetch the "
            f"index, or rename the file to {SINGLE} if it is the whole model"
        )
    return f"neither {SINGLE} nor {INDEX}; a Hugging Face folder with safetensors is needed"


def merged(
    folder: Path, found: WeightFiles, headers: Mapping[str, Mapping[str, object]]
) -> tuple[dict[str, str], list[str]]:
    """tensor -> the file it is read from, and remarks, given what the header of each file names.

    Raises:
        CheckpointError: for a tensor that the index names and no file holds, and for one that is in two files of which
            transformers and the index choose different ones.
    """
    where: dict[str, str] = {}
    twice: dict[str, str] = {}
    for file in found.files:
        for name in headers[file]:
            if name in where:
                twice[name] = where[name]
            where[name] = file
    remarks = []
    for name, file in sorted(found.weight_map.items()):
        if name not in where:
            raise CheckpointError(f"{folder / file}: has no tensor '{name}', but {INDEX} says so")
    for name, first in sorted(twice.items()):
        if found.weight_map.get(name) != where[name]:
            raise CheckpointError(
                f"{folder}: tensor '{name}' is in {first} and in {where[name]}; {INDEX} and transformers do not choose "
                "the same one; keep one"
            )
    unlisted = [name for name in where if found.weight_map and found.weight_map.get(name) != where[name]]
    if unlisted:
        more = f" and {len(unlisted) - 1} more tensors" if len(unlisted) > 1 else ""
        remarks.append(
            f"{folder}: {INDEX} does not put '{unlisted[0]}' in {where[unlisted[0]]}{more}; read from where it is, as "
            "transformers does"
        )
    return where, remarks
