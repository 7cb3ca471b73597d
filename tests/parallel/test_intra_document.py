"""`intra_document`: a row of documents trains exactly as each document alone, in every layout."""

from __future__ import annotations

import intra_document_layouts
import pytest
from parallel_runs import results_of

LAYOUTS = [name for named in intra_document_layouts.LAYOUTS.values() for name in named]


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    folder = tmp_path_factory.mktemp("intra")
    return results_of(intra_document_layouts.main, folder, intra_document_layouts.LAYOUTS)


def gap(found, expected):
    return max(
        abs(x - y) / abs(y)
        for one, other in zip(found, expected, strict=True)
        for x, y in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["dense", "hybrid"])
def test_losses_and_gradient_norms_of_documents_alone(curves, kind, layout):
    assert gap(curves[f"{kind}-{layout}"], curves[f"{kind}-alone"]) <= 1e-5


@pytest.mark.parametrize("kind", ["dense", "hybrid"])
def test_rows_of_one_text_train_differently(curves, kind):
    assert gap(curves[f"{kind}-leaking"], curves[f"{kind}-alone"]) > 5e-3
