"""Fusion fitted to judged queries."""

from __future__ import annotations

import json

import numpy as np
import pytest

from consilience.errors import DataError, RecipeError
from consilience.retrieval.fusion import fuse
from consilience.retrieval.fusion.learning import LearnedFusion, fit_fusion


def make_queries(count=60, seed=0):
    """`sure` puts the relevant key first mostly, `dull` in any place, `blind` never among its first."""
    random = np.random.default_rng(seed)
    queries, qrels = {}, {}
    for query in range(count):
        keys = [f"d{i}" for i in range(12)]
        relevant = keys[int(random.integers(12))]
        lists = {}
        for name, strength in (("sure", 3.0), ("dull", 0.3), ("blind", -3.0)):
            values = random.normal(size=12) + strength * np.array([key == relevant for key in keys])
            order = np.argsort(-values)
            lists[name] = [(keys[i], float(values[i])) for i in order]
        queries[f"q{query}"], qrels[f"q{query}"] = lists, {relevant: 1}
    return queries, qrels


@pytest.mark.parametrize("kind", ["weights", "logistic"])
def test_a_fitted_fusion_beats_equal_weights_on_held_out_queries(kind):
    queries, qrels = make_queries()
    model = fit_fusion(queries, qrels, kind=kind)
    assert model.fitted["queries"] == 60 and model.fitted["metric"] == "nDCG@10"
    assert model.fitted["learned"] > model.fitted["equal_weights"] + 0.1
    assert model.fitted["learned"] >= max(model.fitted["lists"].values())
    held_out, judged = make_queries(seed=1)
    first = {
        name: np.mean([fused(lists)[0][0] in judged[query] for query, lists in held_out.items()])
        for name, fused in (("learned", lambda x: fuse(x, "learned", model=model)), ("equal", fuse))
    }
    assert first["learned"] > first["equal"] + 0.1
    assert fit_fusion(queries, qrels, kind=kind) == model


def test_weights_of_two_lists_are_the_best_of_the_grid():
    queries, qrels = make_queries(30)
    queries = {query: {"sure": lists["sure"], "dull": lists["dull"]} for query, lists in queries.items()}
    model = fit_fusion(queries, qrels, metric="MRR@10")

    def mrr(share):
        places = []
        for query, lists in queries.items():
            order = [key for key, _ in fuse(lists, weights={"sure": share, "dull": 1 - share})]
            places.append(next((p for p, key in enumerate(order[:10], 1) if key in qrels[query]), np.inf))
        return float(np.mean(1 / np.array(places)))

    grid = [mrr(i / 20) for i in range(21)]
    assert model.fitted["learned"] == pytest.approx(max(grid))
    assert mrr(model.values[0]) == pytest.approx(max(grid))
    assert sum(model.values) == pytest.approx(1)


def test_a_harmful_list_gets_no_weight_and_its_keys_do_not_come_back():
    queries, qrels = make_queries()
    for lists in queries.values():
        lists["blind"] = [("only here", 99.0), *lists["blind"]]
    model = fit_fusion(queries, qrels)
    assert dict(zip(model.lists, model.values, strict=True))["blind"] == 0
    assert "only here" not in dict(fuse(queries["q0"], "learned", model=model))


def test_it_is_saved_as_json_and_read_again(tmp_path):
    queries, qrels = make_queries(20)
    for kind in ("weights", "logistic"):
        model = fit_fusion(queries, qrels, kind=kind)
        path = tmp_path / f"{kind}.json"
        model.save(path)
        assert json.loads(path.read_text())["version"] == 1
        assert LearnedFusion.load(path) == model
        assert fuse(queries["q3"], "learned", model=path) == fuse(queries["q3"], "learned", model=model)


def test_lists_may_be_missing_but_not_unknown():
    model = LearnedFusion("weights", ("text", "vector"), (0.5, 0.5))
    assert fuse({"text": [("a", 2.0), ("b", 1.0)]}, "learned", model=model) == [("a", 0.5), ("b", 0.0)]
    with pytest.raises(RecipeError, match="knows no list 'vectors'; did you mean 'vector'"):
        fuse({"vectors": [("a", 2.0)]}, "learned", model=model)
    with pytest.raises(RecipeError, match="weights of its own"):
        fuse({"text": []}, "learned", model=model, weights={"text": 1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a saved fusion"),
        ("[]", "does not say format"),
        ('{"format": "consilience fusion", "version": 2}', "version 2; this program reads version 1"),
        ('{"format": "consilience fusion", "version": 1, "kind": "weights", "lists": ["a"]}', "damaged"),
        (
            '{"format": "consilience fusion", "version": 1, "kind": "weights", "lists": ["a"], "values": [-1], '
            '"intercept": 0}',
            "damaged",
        ),
        (
            '{"format": "consilience fusion", "version": 1, "kind": "weights", "lists": ["a"], "values": [NaN], '
            '"intercept": 0}',
            "damaged",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path, text, message):
    path = tmp_path / "model.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        LearnedFusion.load(path)
    assert str(path) in str(error.value)
    with pytest.raises(DataError, match="no such file"):
        LearnedFusion.load(tmp_path / "nowhere.json")


def test_what_cannot_be_learned_from_is_refused():
    lists = {"one": [("a", 1.0)]}
    with pytest.raises(DataError, match="none of 1 queries has a relevant key"):
        fit_fusion({"q": lists}, {"other": {"a": 1}})
    with pytest.raises(DataError, match="same keys"):
        fit_fusion({"q": lists}, {"q": {"b": 1}})
    with pytest.raises(DataError, match="every key of every list is judged relevant"):
        fit_fusion({"q": lists}, {"q": {"a": 1}}, kind="logistic")
    with pytest.raises(DataError, match=r"grade 0\.5 of 'a'"):
        fit_fusion({"q": lists}, {"q": {"a": 0.5}})
    with pytest.raises(RecipeError, match="kind: 'forest'"):
        fit_fusion({"q": lists}, {"q": {"a": 1}}, kind="forest")
    with pytest.raises(DataError, match="ndgc"):
        fit_fusion({"q": lists}, {"q": {"a": 1}}, metric="ndgc@10")
