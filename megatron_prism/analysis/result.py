"""The result of an analysis: one JSON document, Parquet files for its many rows, and figures made from the document.

A command, a stage of a recipe and the report share this form. The document has all that tables and figures show, so
both can be made again without the models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_prism.analysis.figures import save
from megatron_prism.analysis.view import view
from megatron_prism.errors import ArtifactError
from megatron_prism.pipeline.artifact import write_json
from megatron_prism.pipeline.json_text import read_object

SCHEMA = "megatron_prism.analysis"
# Raised when a key of a document is renamed, removed or gets another meaning.
SCHEMA_VERSION = 1
FIGURES = "figures"


@dataclass(frozen=True)
class Analysis:
    """What one verb of `prism analyze` found.

    Attributes:
        verb: such as "weights"; it names the document.
        summary: the few numbers that a receipt keeps, JSON-ready.
        values: everything else that tables and figures show, JSON-ready. A number that is not defined is None.
        rows: name of a Parquet file -> its records, with equal keys.
        remarks: messages for the user, one line each.
    """

    verb: str
    summary: Mapping[str, Any]
    values: Mapping[str, Any]
    rows: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    remarks: Sequence[str] = ()

    @property
    def document(self) -> dict[str, Any]:
        """The JSON document; docs/analysis.md says what each key means."""
        return {
            "schema": f"{SCHEMA}.{self.verb}/{SCHEMA_VERSION}",
            "summary": dict(self.summary),
            **self.values,
            "remarks": list(self.remarks),
        }


def write_analysis(analysis: Analysis, folder: Path) -> None:
    """Write VERB.json, NAME.parquet and figures/NAME.pdf, .svg and .png into an existing folder."""
    document = analysis.document
    write_json(folder / f"{analysis.verb}.json", document)
    for name, records in analysis.rows.items():
        _write_rows(folder / f"{name}.parquet", records)
    drawings = view(document).drawings
    if drawings:
        (folder / FIGURES).mkdir(exist_ok=True)
    for name, drawing in drawings.items():
        save(drawing, folder / FIGURES / name)


def read_analysis(folder: Path, verb: str) -> dict[str, Any]:
    """The document that `write_analysis` left in a folder.

    Raises:
        ArtifactError: if it is missing, is not JSON, or has another schema.
    """
    file = folder / f"{verb}.json"
    document: dict[str, Any] = read_object(file, ArtifactError)
    wanted = f"{SCHEMA}.{verb}/{SCHEMA_VERSION}"
    if document.get("schema") != wanted:
        raise ArtifactError(
            f"{file}: schema={document.get('schema')!r}, but this version reads {wanted!r}; analyse again"
        )
    return document


def _write_rows(file: Path, records: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([dict(each) for each in records]), file)
