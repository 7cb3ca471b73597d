"""Chooses the files with the weights of a Hugging Face folder: the files that transformers would load.

Source: transformers 5.23, modeling_utils.py, `_get_resolved_checkpoint_files` (model.safetensors before the index,
and pickled files last) and `_load_pretrained_model` (only the file names of an index are used; every tensor in these
files is read, and if two files hold tensors of the same name, the file whose name sorts last wins).
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
# Other weights in published folders: a second format, or old files next to a model that was saved again.
OTHER_SETS = (
    *("*.safetensors", "pytorch_model*.bin", "consolidated*.pth", "*.gguf", "*.pt", "tf_model.h5"),
    "flax_model.msgpack",
)


@dataclass
class WeightFiles:
    """The files that hold a folder's weights.

    Attributes:
        files: their names in the folder, in the order in which transformers reads them.
        weight_map: tensor -> file, from the index; empty without an index.
        remarks: messages for the user: which other weights in the folder are not read.
    """

    files: list[str]
    weight_map: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def find_weight_files(folder: Path) -> WeightFiles:
    """Choose the files as transformers does. Only file names and the index are read.

    Raises:
        CheckpointError: naming the folder or the index, if there are no weights in safetensors, or the index cannot be
            read or points outside the folder.
    """
    index = folder / INDEX
    if (folder / SINGLE).is_file():
        found = WeightFiles([SINGLE])
        if index.is_file():
            found.remarks.append(
                f"{folder}: {SINGLE} is read, as in transformers, and {INDEX}{_state(folder)} is not; remove the "
                "outdated one"
            )
    elif index.is_file():
        weight_map = read_weight_map(index)
        found = WeightFiles(sorted(set(weight_map.values())), weight_map)
    else:
        raise CheckpointError(f"{folder}: {_why_nothing_is_read(folder)}")
    others = sorted({path.name for pattern in OTHER_SETS for path in folder.glob(pattern)} - set(found.files))
    if others:
        named = others[0] if len(others) == 1 else f"{others[0]} (and {len(others) - 1} more)"
        what = SINGLE if found.files == [SINGLE] else f"the files of {INDEX}"
        found.remarks.append(f"{folder}: {named} is not read; the weights are read from {what}")
    if (folder / ADAPTER).is_file():
        found.remarks.append(f"{folder}: the adapter of {ADAPTER} is not applied")
    return found


def read_weight_map(index: Path) -> dict[str, str]:
    """tensor -> file of an index. A CheckpointError if it cannot be read or points outside the folder."""
    try:
        weight_map = read_object(index, CheckpointError)["weight_map"]
        files = {str(name): str(PurePosixPath(_name(file))) for name, file in weight_map.items()}
    except (KeyError, TypeError, AttributeError) as problem:
        raise CheckpointError(f"{index}: not a readable index ({problem!r})") from None
    if not files:
        raise CheckpointError(f"{index}: its weight_map is empty")
    for name, file in files.items():
        # Only the name is checked: the files may be links, as in the Hugging Face cache.
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise CheckpointError(
                f"{index}: weight_map puts '{name}' in '{file}', which is outside the folder"
            )
    return files


def _name(file: object) -> str:
    if not isinstance(file, str) or "\0" in file:
        raise TypeError(f"{file!r} is not a file name")
    return file


def _state(folder: Path) -> str:
    """The problem of an index next to a single file, in brackets; empty if the files of the index exist."""
    try:
        missing = [file for file in read_weight_map(folder / INDEX).values() if not (folder / file).is_file()]
    except CheckpointError:
        return " (not readable)"
    return f" (it names {missing[0]}, which is not there)" if missing else ""


def _why_nothing_is_read(folder: Path) -> str:
    if (folder / ADAPTER).is_file():
        return (
            f"this is an adapter ({ADAPTER}) without its model; merge it into the model (peft's merge_and_unload) and "
            "save the result"
        )
    for name in (SINGLE, INDEX):
        if (folder / name).is_symlink():
            return f"{name} is a link to a missing file, as after an unfinished download; download it again"
    for name in PICKLED:
        if (folder / name).is_file():
            return (
                f"the weights are pickled ({name}), and pickle files are not read; save them as safetensors "
                "(transformers: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW))"
            )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        return (
            f"{others[0]} is there, but neither {SINGLE} nor {INDEX}, so transformers would not find it; download the "
            f"index, or rename the file to {SINGLE} if it is the whole model"
        )
    return f"neither {SINGLE} nor {INDEX} is there; name a Hugging Face folder with safetensors"


def locate_tensors(
    folder: Path, found: WeightFiles, headers: Mapping[str, Mapping[str, object]]
) -> tuple[dict[str, str], list[str]]:
    """tensor -> the file it is read from, and remarks.

    Args:
        headers: the tensors in each file.

    Raises:
        CheckpointError: for a tensor of the index that no file holds, and for a tensor that is in two files, if
            transformers and the index choose different ones.
    """
    where: dict[str, str] = {}
    duplicates: dict[str, str] = {}
    for file in found.files:
        for name in headers[file]:
            if name in where:
                duplicates[name] = where[name]
            where[name] = file
    remarks = []
    for name, file in sorted(found.weight_map.items()):
        if name not in where:
            raise CheckpointError(f"{folder / file}: has no tensor '{name}', although {INDEX} puts it there")
    for name, first in sorted(duplicates.items()):
        if found.weight_map.get(name) != where[name]:
            raise CheckpointError(
                f"{folder}: tensor '{name}' is in {first} and in {where[name]}, and {INDEX} and transformers choose "
                "different ones; remove one"
            )
    unlisted = [name for name in where if found.weight_map and found.weight_map.get(name) != where[name]]
    if unlisted:
        more = f" (and {len(unlisted) - 1} more tensors)" if len(unlisted) > 1 else ""
        remarks.append(
            f"{folder}: {INDEX} does not put '{unlisted[0]}'{more} in {where[unlisted[0]]}; it is read from there, as "
            "in transformers"
        )
    return where, remarks
