"""Training, evaluating and the demonstration from the command line, on tiny encoders and toy data."""

import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from consilience.cli.app import run
from consilience.models import load_encoder
from tests.cli.folders import write_dataset
from tests.models.tiny import TEXTS, write_bert
from tests.training.toy import toy_data

SHORT = ("--steps", "3", "--batch", "4", "--rank", "2", "--max-tokens", "8", "--device", "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two encoders, two datasets of a suite, one dataset with a train split only."""
    root = tmp_path_factory.mktemp("work")
    write_bert(root / "base")
    write_bert(root / "other", seed=1)
    counts = {"train": 20, "dev": 8, "test": 12}
    for seed, name in enumerate(("red", "blue")):
        write_dataset(root / "suite" / name, toy_data(seed=seed, counts=counts))
    write_dataset(root / "train-only", toy_data(counts={"train": 20}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONSILIENCE_DATA", str(root / "no-data"))  # the same list of reserved queries everywhere: none
        yield root


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def expert(folder):
    command = ["train", "--base", str(folder / "base"), "--data", str(folder / "suite/red"), *SHORT]
    assert run([*command, "--out", str(folder / "expert"), "--learning-rate", "0.01"]) == 0
    return folder / "expert"


def test_train(capsys, expert):
    capsys.readouterr()
    record = json.loads((expert / "expert.json").read_text())
    command = ["train", "--base", record["base"], "--data", record["data"]["path"], *SHORT, "--out", str(expert)]
    assert run([*command, "--learning-rate", "0.01"]) == 0  # the same request: the record, without training again
    shown = capsys.readouterr().out
    assert "steps        3 of 4 pairs" in shown
    assert f"{record['dev']['base']:.1f} (base) -> {record['dev']['expert']:.1f} (expert)" in shown
    assert run([*command, "--learning-rate", "0.01", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == record
    assert {"adapter_model.safetensors", "adapter_config.json"} <= {p.name for p in expert.iterdir()}


def test_train_on_several_datasets(capsys, folder, tmp_path):
    rows = [(f"w{i} w{i + 1}", f"w{i} w{i + 2}", float(i % 3), "train" if i < 12 else "dev") for i in range(20)]
    columns = dict(zip(("sentence1", "sentence2", "score", "split"), map(list, zip(*rows, strict=True)), strict=True))
    (tmp_path / "pairs").mkdir()
    parquet.write_table(pa.table(columns), tmp_path / "pairs" / "data.parquet")
    data = ["--data", "suite/red", "--data", str(tmp_path / "pairs"), "--negatives", "1"]
    command = ["train", "--base", "base", *data, *SHORT, "--out", str(tmp_path / "joint")]
    assert run(command) == 0
    shown = capsys.readouterr().out
    assert "dev nDCG@10, red" in shown and "dev Spearman, pairs" in shown
    record = json.loads((tmp_path / "joint/expert.json").read_text())
    assert record["settings"]["joint"]["negatives"] == 1
    assert run([*command, "--objective", "infonse"]) == 2
    assert "did you mean 'infonce'" in capsys.readouterr().err


def test_train_without_a_dev_split(capsys, tmp_path):
    out = str(tmp_path / "expert")
    assert run(["train", "--base", "base", "--data", "train-only", "--out", out, *SHORT]) == 0
    assert "not measured: the dataset has no dev split" in capsys.readouterr().out


def test_train_stopped_by_its_budget_resumes(capsys, tmp_path):
    command = ["train", "--base", "base", "--data", "train-only", "--out", str(tmp_path / "expert"), *SHORT]
    assert run([*command, "--budget", "0"]) == 1
    assert "run the same command again to resume" in capsys.readouterr().err
    assert run(command) == 0
    assert (tmp_path / "expert/expert.json").is_file()


def test_train_refuses_wrong_settings_together(capsys, tmp_path):
    command = ["train", "--base", "base", "--data", "train-only", "--out", str(tmp_path / "expert")]
    assert run([*command, "--steps", "0", "--rank", "0", "--schedule", "cosin"]) == 2
    message = capsys.readouterr().err
    for words in ("training settings: 3 problems", "steps is 0; it has to be at least 1", "rank is 0", "'cosin'"):
        assert words in message
    assert run(["train", "--base", "base", "--data", "nowhere", "--out", str(tmp_path / "expert")]) == 2
    assert "dataset nowhere: no such folder; expected one with corpus.parquet" in capsys.readouterr().err


def test_eval(capsys, expert, tmp_path):
    models = ["--base", "base=base", "--expert", f"red=base+{expert}", "--model", "other=other"]
    report, cache = tmp_path / "pages/report.html", tmp_path / "cache"
    options = [*models, "--report", str(report), "--cache", str(cache), "--device", "cpu"]
    assert run(["eval", "suite", *options]) == 0
    shown = capsys.readouterr()
    assert shown.err.splitlines()[-1] == f"report: {report}"
    first = [line.split()[0] for line in shown.out.splitlines() if line.strip()]
    assert [name for name in first if name in ("base", "red", "uniform", "other", "oracle")] == [
        *("base", "red", "uniform", "other", "oracle"),
        "other",  # the claim
    ]
    assert "┃" not in shown.out and "n = 24 queries" in shown.out
    page = report.read_text()
    assert page.startswith("<!doctype html>") and "<svg" in page and "http" not in page.split("<style")[0]
    assert any(cache.rglob("*"))
    assert run(["eval", "suite", *options, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert list(rows) == ["base", "red", "uniform", "other", "oracle"]
    assert [rows["red"][place]["n"] for place in ("red", "blue", "mean")] == [12, 12, 24]


def test_eval_with_caps_and_another_split(capsys):
    assert run(["eval", "suite", "-m", "base", "--split", "dev", "--queries", "5", "--documents", "20", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert list(rows) == ["base"] and [rows["base"][place]["n"] for place in ("red", "blue", "mean")] == [5, 5, 10]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["suite", "-m", "base", "--base", "nope"], "base: no model is named 'nope'; known: base"),
        (["suite", "-m", "base", "-m", "base=other"], "the name 'base' stands twice"),
        (["suite"], "no model is given; name one with --model"),
        (["suite", "-m", "missing"], "'missing': no such file or folder"),
        (["base", "-m", "base"], "suite base: neither a suite.yml nor a sub-folder with corpus.parquet"),
        (["nowhere", "-m", "base"], "suite nowhere: no such file or folder"),
    ],
)
def test_eval_refuses(capsys, arguments, words):
    assert run(["eval", *arguments]) == 2
    message = capsys.readouterr().err
    assert words in message and "Traceback" not in message


def test_demo(capsys, expert, tmp_path):
    examples, out = tmp_path / "examples", tmp_path / "demo"
    (examples / "recipes").mkdir(parents=True)
    base = expert.parent / "base"
    head = f"version: 1\nbase: {base}\nexperts: {{red: {expert}}}\n"
    (examples / "recipes/linear.yml").write_text(head + "method: linear\n")
    (examples / "recipes/small.yml").write_text(head + "method: ties\noutput: {adapter: {rank: 1}}\n")
    domains = f"{{red: {expert.parent / 'suite/red'}, blue: {expert.parent / 'suite/blue'}}}"
    (examples / "suite.yml").write_text(f"version: 1\ndomains: {domains}\n")
    (examples / "pareto.yml").write_text(
        f"version: 1\nbase: {base}\nexperts: {{red: {expert}, blue: {base}+{expert}}}\nmethod: task_arithmetic\n"
    )
    assert run(["demo", "--examples", str(examples), "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert (out / "report.html").is_file() and f"report: {(out / 'report.html').as_uri()}" in shown.out
    assert "hybrid: words and merged model" in shown.out and "nDCG@10 of all" in shown.out
    assert "merging by " in shown.err and json.loads((out / "evaluation.json").read_text())["table"]
    assert load_encoder(out / "models/linear", device="cpu").encode(TEXTS).shape == (len(TEXTS), 32)
    assert run(["demo", "--examples", str(examples), "--out", str(out), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert list(again) == ["report", "base", "red", "uniform", "linear", "small", "bundle + router", "oracle", "search"]
    assert {"text", "merged", "hybrid"} == set(again["search"]["ways"])
    rows = {row["name"]: row for row in json.loads((out / "evaluation.json").read_text())["rows"]}
    assert rows["bundle + router"]["encoded"] == 0  # its adapters' vectors are those of the experts
    page = (out / "report.html").read_text()
    assert "Trade-offs: red, blue" in page and "bundle with a router" in page


def test_demo_without_examples(capsys, tmp_path):
    assert run(["demo", "--examples", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no recipes, no suite.yml or no pareto.yml there; run from the project's folder" in capsys.readouterr().err
