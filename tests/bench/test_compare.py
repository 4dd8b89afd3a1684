from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from consilience.bench import Evaluation, evaluate, paired_bootstrap
from consilience.errors import DataError, RequestError, WorkError
from tests.bench.toy import BrokenEncoder, WordEncoder, suite
from tests.models.tiny import write_bert

MODELS = {
    "base": WordEncoder("base", {"code": 3.0, "law": 3.0}),
    "coder": WordEncoder("coder", {"code": 0.5, "law": 5.0}),
    "lawyer": WordEncoder("lawyer", {"code": 5.0, "law": 0.5}),
    "merged": WordEncoder("merged", {"code": 1.0, "law": 1.0}),
}


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluate(suite(), MODELS, experts=["coder", "lawyer"], progress=False)


def test_rows_and_values(evaluation: Evaluation) -> None:
    assert evaluation.names == ("base", "coder", "lawyer", "merged", "oracle")
    assert [row.kind for row in evaluation.rows] == ["base", "expert", "expert", "candidate", "oracle"]
    assert (evaluation.n(), evaluation.n("code")) == (20, 10)
    for name in evaluation.names:
        values = [100 * np.mean(evaluation.row(name).scores[domain]) for domain in ("code", "law")]
        assert evaluation.value(name, "law") == pytest.approx(values[1])
        assert evaluation.value(name) == pytest.approx(np.mean(values))
    assert evaluation.value("coder", "code") > evaluation.value("base", "code")
    assert set(evaluation.row("base").also) == {"recall@10", "MRR@10"}
    assert "the uniform average is left out: some experts were given without their weights" in evaluation.notes


def test_differences_are_paired_bootstraps(evaluation: Evaluation) -> None:
    merged, base = evaluation.row("merged").scores, evaluation.row("base").scores
    strata = ["code"] * 10 + ["law"] * 10
    both = [np.concatenate([row["code"], row["law"]]) for row in (merged, base)]
    expected = paired_bootstrap(both[0], both[1], strata=strata)
    found = evaluation.difference("merged")
    assert found[:3] == pytest.approx([100 * value for value in expected[:3]])
    assert found.n == 20
    alone = paired_bootstrap(merged["law"], base["law"], strata=["law"] * 10)
    assert evaluation.difference("merged", "law")[:3] == pytest.approx([100 * value for value in alone[:3]])
    back = evaluation.difference("base", to="merged")
    assert (back.difference, back.low, back.high) == pytest.approx((-found.difference, -found.high, -found.low))
    assert evaluation.difference("base")[:3] == (0.0, 0.0, 0.0)


def test_oracle_on_the_measured_split_is_called_an_upper_bound(evaluation: Evaluation) -> None:
    oracle = evaluation.row("oracle")
    assert evaluation.oracle_chosen_on == "test"
    for domain in ("code", "law"):
        choices = {name: evaluation.value(name, domain) for name in ("base", "coder", "lawyer")}
        assert evaluation.value("oracle", domain) == max(choices.values())
        assert oracle.chosen[domain] == max(choices, key=choices.__getitem__)
    assert "chosen on test itself: an upper bound" in shown(evaluation)


def test_oracle_is_chosen_on_dev_where_there_is_one() -> None:
    found = evaluate(suite(dev=True), MODELS, experts=["coder", "lawyer"], progress=False)
    assert found.oracle_chosen_on == "dev"
    on_dev = evaluate(suite(dev=True), MODELS, experts=["coder", "lawyer"], split="dev", progress=False)
    for domain in ("code", "law"):
        choices = {name: on_dev.value(name, domain) for name in ("base", "coder", "lawyer")}
        chosen = found.row("oracle").chosen[domain]
        assert chosen == max(choices, key=choices.__getitem__)
        assert found.value("oracle", domain) == found.value(chosen, domain)
    forced = evaluate(suite(dev=True), MODELS, experts=["coder", "lawyer"], oracle="test", progress=False)
    assert forced.oracle_chosen_on == "test"


def test_failures_are_counted_beside_the_mean() -> None:
    models = {**MODELS, "broken": BrokenEncoder("broken")}
    found = evaluate(suite(), models, experts=["coder", "lawyer"], progress=False)
    assert found.row("broken").failures["law"].startswith("WorkError: the vector of query 0 is NaN")
    assert (found.failed("broken"), found.n(None, "broken")) == (1, 10)
    assert math.isnan(found.value("broken", "law"))
    code = found.difference("broken", "code")
    assert (found.difference("broken").difference, found.difference("broken").n) == (code.difference, 10)
    assert found.best(("candidate",)) == "merged"
    text = shown(found)
    assert "†" in text
    assert "broken, law failed: WorkError" in text
    numbers = found.summary()["broken"]
    assert numbers["law"]["value"] is None
    assert (numbers["failures"], numbers["mean"]["n"]) == (1, 10)


def test_a_base_that_fails_everywhere_is_an_error() -> None:
    class Nothing(WordEncoder):
        def encode(self, texts, **options):  # type: ignore[no-untyped-def]
            return super().encode(texts, **options) * np.nan

    with pytest.raises(WorkError, match="the base 'base' failed in every domain: WorkError: the vector of"):
        evaluate(suite(), {"base": Nothing("base")}, progress=False)


def test_all_wrong_requests_are_reported_together() -> None:
    with pytest.raises(RequestError) as caught:
        evaluate(
            suite(),
            {"baze": MODELS["base"], "oracle": MODELS["merged"], "gone": "nowhere/at-all"},
            experts=["coder", "baze", "baze"],
            transductive=["merge"],
            progress=False,
        )
    message = str(caught.value)
    for part in (
        "base: no model is named 'base'; did you mean 'baze'?",
        "experts: no model is named 'coder'",
        "names a model twice",
        "transductive: no model is named 'merge'",
        "the name 'oracle' is taken",
        "models.gone: ",
    ):
        assert part in message
    with pytest.raises(RequestError, match="none were given; at least the base is needed"):
        evaluate(suite(), {}, progress=False)


def test_the_cache_saves_the_encoding(tmp_path: Path) -> None:
    fresh = [WordEncoder("base"), WordEncoder("base")]
    results = [evaluate(suite(), {"base": encoder}, cache=tmp_path / "cache", progress=False) for encoder in fresh]
    assert fresh[0].calls
    assert not fresh[1].calls
    assert results[0].row("base").scores == results[1].row("base").scores
    assert (results[1].row("base").encoded, results[1].row("base").reused) == (0, results[0].row("base").encoded)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RequestError, match="the folder cannot be made"):
        evaluate(suite(), {"base": fresh[0]}, cache=blocked / "inside", progress=False)


def test_json_round_trip(evaluation: Evaluation) -> None:
    text = evaluation.to_json()
    assert Evaluation.from_json(text) == evaluation
    content = json.loads(text)
    assert content["table"]["merged"]["law"]["value"] == pytest.approx(evaluation.value("merged", "law"))
    assert content["claim"] == evaluation.claim()
    with pytest.raises(DataError, match="not valid JSON"):
        Evaluation.from_json("{")
    with pytest.raises(DataError, match="the format 'consilience/evaluation' is expected"):
        Evaluation.from_json("{}")
    with pytest.raises(DataError, match="format version 9"):
        Evaluation.from_json(json.dumps({**content, "version": 9}))
    with pytest.raises(DataError, match="incomplete or damaged"):
        Evaluation.from_json(json.dumps({**content, "rows": [{}]}))


def test_the_claim_says_no_more_than_the_interval() -> None:
    same = {"base": MODELS["base"], "copy": WordEncoder("base", {"code": 3.0, "law": 3.0})}
    assert "copy does not differ measurably from base" in evaluate(suite(), same, progress=False).claim()
    better = {"base": MODELS["base"], "better": MODELS["merged"], "worse": WordEncoder("worse", {"code": 9.0})}
    claim = evaluate(suite(), better, progress=False).claim()
    assert claim.startswith("better (best of 2 candidates on this split) beats base in the mean of 2 domains")
    assert "n = 20 queries, 0 failures" in claim
    assert "there is nothing to compare it with" in evaluate(suite(), {"base": MODELS["base"]}, progress=False).claim()


def test_references_get_the_uniform_average(tmp_path: Path) -> None:
    references = {}
    for seed, name in enumerate(("base", "one", "two")):
        write_bert(tmp_path / name, seed=seed)
        references[name] = str(tmp_path / name)
    plain = suite(max_tokens=12)
    found = evaluate(plain, references, experts=["one", "two"], progress=False, device="cpu")
    assert found.names == ("base", "one", "two", "uniform", "oracle")
    import torch
    from safetensors.torch import load_file, save_file

    write_bert(tmp_path / "mean", seed=9)
    parts = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    mean = {name: torch.stack([part[name] for part in parts]).double().mean(0).float() for name in parts[0]}
    save_file(mean, tmp_path / "mean" / "model.safetensors", metadata={"format": "pt"})
    expected = evaluate(plain, {"base": str(tmp_path / "mean")}, progress=False, device="cpu")
    assert found.row("uniform").scores == expected.row("base").scores
    given = evaluate(plain, {**references, "uniform": str(tmp_path / "mean")}, experts=["one", "two"], progress=False)
    assert [row.kind for row in given.rows].count("baseline") == 1
    assert given.row("uniform").reference == str(tmp_path / "mean")


def test_experts_that_do_not_fit_leave_the_average_out_and_say_so(tmp_path: Path) -> None:
    write_bert(tmp_path / "base")
    write_bert(tmp_path / "wide", width=64)
    models = {name: str(tmp_path / name) for name in ("base", "wide")}
    found = evaluate(suite(max_tokens=12), models, experts=["wide"], progress=False, device="cpu")
    assert "uniform" not in found.names
    assert "the uniform average is left out" in found.notes[0]
    assert "do not fit base" in found.notes[0]


def test_the_table_compares_with_any_row(evaluation: Evaluation) -> None:
    text = shown(evaluation, to="coder")
    assert "mean - coder" in text
    with pytest.raises(DataError, match=r"no row 'codr'; did you mean 'coder'\?"):
        evaluation.to_table(to="codr")


def shown(evaluation: Evaluation, *, to: str | None = None) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(evaluation.to_table(to=to))
    return " ".join(console.export_text().split())
