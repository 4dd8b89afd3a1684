"""`consilience bundle`: create, info, expand, route."""

import json

import pytest

from consilience.bundles.bundle import Bundle
from consilience.bundles.routers.centroid import CentroidRouter
from consilience.checkpoints.open import open_checkpoint
from consilience.cli.app import run
from tests.bundles.models import models, save, word_data
from tests.models.tiny import write_bert


@pytest.fixture
def folders(tmp_path):
    base, experts = models("bfloat16")
    save(tmp_path / "base", base)
    for name in "ab":
        save(tmp_path / name, experts[name])
    return tmp_path


def create(folders, out, *more):
    models = [f"--expert={name}={folders / name}" for name in "ab"]
    return run(["bundle", "create", "--base", str(folders / "base"), *models, "-o", str(out), *more])


def test_create_info_expand(folders, capsys):
    assert create(folders, folders / "bundle", "--set", "rank=3", "--shared", "linear") == 0
    assert "low_rank, shared weights from linear, router none" in capsys.readouterr().out
    assert run(["bundle", "info", str(folders / "bundle"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["experts"] == ["a", "b"] and shown["shared"]["method"] == "linear"
    assert shown["sizes"]["experts.a"] < shown["sizes"]["full"]
    assert run(["bundle", "expand", str(folders / "bundle"), "b", "-o", str(folders / "b-again")]) == 0
    assert "verified" in capsys.readouterr().out
    found, wanted = open_checkpoint(folders / "b-again"), Bundle.open(folders / "bundle").expert("b")
    for name, source in wanted.tensors.items():
        assert found.tensors[name].read_raw(0, source.numel).tobytes() == source.read_raw(0, source.numel).tobytes()


def test_wrong_requests_end_with_2(folders, capsys):
    assert create(folders, folders / "bundle", "--set", "rank") == 2
    assert "write NAME=VALUE" in capsys.readouterr().err
    assert create(folders, folders / "bundle", "--residual", "mask") == 2
    assert "did you mean 'masks'" in capsys.readouterr().err
    assert run(["bundle", "info", str(folders / "base")]) == 2
    assert run(["bundle", "route", str(folders / "base")]) == 2
    assert create(folders, folders / "bundle") == 0
    assert run(["bundle", "route", str(folders / "bundle")]) == 2
    assert "give texts, or --suite" in capsys.readouterr().err


def test_route_texts_and_a_suite(tmp_path, capsys):
    from consilience.models import load_encoder

    write_bert(tmp_path / "base", seed=0)
    for seed, name in enumerate(("odd", "even"), start=1):
        write_bert(tmp_path / name, seed=seed)
    experts = [f"--expert={name}={tmp_path / name}" for name in ("odd", "even")]
    places = ["--base", str(tmp_path / "base"), "-o", str(tmp_path / "bundle")]
    assert run(["bundle", "create", *places, "--set", "rank=2", *experts]) == 0
    texts = ["w1 w3 w5", "w2 w4 w6"]
    centroids = load_encoder(tmp_path / "base").encode(texts)
    Bundle.open(tmp_path / "bundle").set_router(CentroidRouter(centroids, ["odd", "even"]))
    capsys.readouterr()
    assert run(["bundle", "route", str(tmp_path / "bundle"), *texts, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"even": 0.0, "odd": 1.0, "base": 0.0},
        {"even": 1.0, "odd": 0.0, "base": 0.0},
    ]
    assert run(["bundle", "route", str(tmp_path / "bundle"), *texts]) == 0
    assert "w2 w4 w6" in capsys.readouterr().out

    write_suite(tmp_path / "data")
    suite = str(tmp_path / "data/suite.yml")
    assert run(["bundle", "route", str(tmp_path / "bundle"), "--suite", suite, "--train", "pilots"]) == 0
    shown = capsys.readouterr().out
    assert "regret" in shown and "router pilots" in shown
    assert Bundle.open(tmp_path / "bundle").router.kind == "pilots"
    assert run(["bundle", "route", str(tmp_path / "bundle"), "--suite", suite, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["inputs"] == 12 and report["regret"] == pytest.approx(report["oracle"] - report["routed"])
    assert run(["bundle", "route", str(tmp_path / "bundle"), "--suite", suite, "--train", "oracle"]) == 2


def write_suite(folder):
    """Write two domains of texts with odd and even words."""
    for name in ("odd", "even"):
        write_dataset(folder / name, word_data(name))
    (folder / "suite.yml").write_text("domains: {odd: odd, even: even}\n")


def write_dataset(folder, data):
    """Write a dataset as the three tables."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    tables = data.tables
    corpus = {"_id": tables.document_ids, "title": [""] * len(tables.document_ids), "text": tables.document_texts}
    queries = {"_id": tables.query_ids, "text": tables.query_texts, "split": tables.query_splits}
    splits = dict(zip(tables.query_ids, tables.query_splits, strict=True))
    qrels = {
        "query_id": [j.query_id for j in tables.judgements],
        "corpus_id": [j.document_id for j in tables.judgements],
        "score": [j.score for j in tables.judgements],
        "split": [splits[j.query_id] for j in tables.judgements],
    }
    for name, columns in (("corpus", corpus), ("queries", queries), ("qrels", qrels)):
        pq.write_table(pa.table({key: list(values) for key, values in columns.items()}), folder / f"{name}.parquet")
