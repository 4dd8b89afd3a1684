"""Merging, planning and inspecting from the command line."""

import json
from pathlib import Path

import pytest
import torch

from consilience.cli.app import run
from tests.merging.checkpoints import make_family, read_weights, weight_bytes, write_model

RECIPE = "version: 1\nmethod: ties\nbase: base\nexperts: {a: a, b: b}\nparameters: {density: 0.5}\n"


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_family(Path(), experts=("a", "b"), width=8)
    Path("recipe.yml").write_text(RECIPE)


def printed(capsys, *arguments, code=0):
    """Run a command and return what it printed."""
    assert run(list(arguments)) == code
    return capsys.readouterr()


def as_json(capsys, *arguments):
    shown = printed(capsys, *arguments, "--json")
    assert shown.err == ""
    return json.loads(shown.out)


def rows(text):
    """The lines of plain tables: first column to the rest."""
    return {line.split("  ")[0]: line.split("  ", 1)[-1].strip() for line in text.splitlines() if line}


def test_merge_prints_what_it_made(capsys):
    table = rows(printed(capsys, "merge", "recipe.yml", "--out", "out").out)
    manifest = json.loads(Path("out/consilience.json").read_text())
    assert table["method"] == "ties" and table["models"] == "base, a, b" and table["parameters"] == "1,192"
    assert table["checksum"] == manifest["checksum"] and table["written"].endswith("1 file(s), verified")


def test_merge_again_finds_the_result(capsys):
    printed(capsys, "merge", "recipe.yml", "-o", "out")
    before = weight_bytes("out")
    table = rows(printed(capsys, "merge", "recipe.yml", "-o", "out").out)
    assert table["time"] == "none: it is there already, made by an earlier run"
    assert weight_bytes("out") == before


def test_a_budget_stops_and_the_same_command_resumes(capsys):
    shown = printed(capsys, "merge", "recipe.yml", "-o", "out", "--budget", "0", code=1)
    assert "the budget of 0 wall seconds is used up" in shown.err
    assert "kept in out.partial; run the same command again to resume" in shown.err and not Path("out").exists()
    table = rows(printed(capsys, "merge", "recipe.yml", "-o", "out").out)
    assert table["time"].endswith(", resumed") and not Path("out.partial").exists()


def test_merge_as_json_is_the_manifest(capsys):
    made = as_json(capsys, "merge", "recipe.yml", "-o", "out")
    assert made["out"] == "out" and made["resumed"] is False
    assert made["checksums"].keys() == read_weights("out").keys()
    assert as_json(capsys, "merge", "recipe.yml", "-o", "out")["resumed"] is True


def test_an_adapter_prints_its_truncation_error(capsys):
    from tests.merging.test_engine import write_adapter

    for seed in (1, 2):
        write_adapter(Path(f"lora{seed}"), read_weights("base"), seed)
    Path("recipe.yml").write_text(
        "version: 1\nmethod: task_arithmetic\nbase: base\nexperts: [lora1, lora2]\noutput: {adapter: {rank: 1}}\n"
    )
    table = rows(printed(capsys, "merge", "recipe.yml", "-o", "out").out)
    manifest = json.loads(Path("out/consilience.json").read_text())
    assert table["truncation error"] == f"{manifest['truncation_error']:.2%} of the merged task vector"
    assert {p.name for p in Path("out").iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}
    assert not Path("out/model.safetensors").exists()


def test_threads_never_change_a_byte(capsys):
    for threads in ("1", "3"):
        printed(capsys, "merge", "recipe.yml", "-o", f"out{threads}", "--threads", threads)
    assert weight_bytes("out1") == weight_bytes("out3")


def test_progress_is_plain_lines_off_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("consilience.core.progress._LINE_EVERY", 0.0)
    lines = printed(capsys, "merge", "recipe.yml", "-o", "out").err.splitlines()
    assert len(lines) > 2 and all(line.startswith("merging (ties): ") for line in lines)
    assert lines[-1].count(" kB") >= 2 and "/s" in lines[-1] and "s left" in lines[-1]


def test_plan_says_what_it_would_do(capsys):
    shown = printed(capsys, "plan", "recipe.yml", "--out", "out", "--threads", "3")
    table = rows(shown.out)
    assert table["method"] == "ties" and table["tensors"] == "15 merged, 0 copied"
    assert table["writes"].endswith("in 1 file(s)") and table["checked"] == "headers, configs and tokenizers"
    assert "3 threads" in table["private memory"] and not list(Path().glob("out*"))
    listed = printed(capsys, "plan", "recipe.yml", "--tensors").out
    assert "model.layers.3.mlp.down_proj.weight [8, 16] F32 ties" in " ".join(listed.split())
    facts = as_json(capsys, "plan", "recipe.yml", "--tensors")
    assert facts["tensors"] == {"merged": 15, "copied": 0} and facts["models"]["a"]["parameters"] == 1192
    entry = facts["tensor_table"][0]
    assert entry["name"] == "lm_head.weight" and entry["parameters"]["density"] == [0.5, 0.5]
    assert [Path(read["file"]).parent.name for read in entry["reads"]] == ["a", "b", "base"]


def test_plan_with_a_scan_finds_nan(capsys):
    assert rows(printed(capsys, "plan", "recipe.yml", "--scan").out)["checked"] == "values, all finite"
    tensors = read_weights("b")
    tensors["model.embed_tokens.weight"][2, 1] = float("inf")
    write_model("b2", tensors)
    Path("recipe.yml").write_text(RECIPE.replace("b: b}", "b: b2}"))
    assert printed(capsys, "plan", "recipe.yml").err == ""
    message = printed(capsys, "plan", "recipe.yml", "--scan", code=2).err
    assert "tensor 'model.embed_tokens.weight': model 'b' holds inf at element 17" in message


def test_notices_go_to_the_person_not_into_the_result(capsys):
    write_model("half", {name: tensor.bfloat16() for name, tensor in read_weights("a").items()})
    Path("recipe.yml").write_text(RECIPE.replace("a: a", "a: half"))
    for command in (["plan", "recipe.yml"], ["merge", "recipe.yml", "-o", "out"]):
        shown = printed(capsys, *command)
        assert shown.err.startswith("note: inputs mix BF16 and F32; the merge is stored as F32")
        assert "BF16" not in shown.out
    assert read_weights("out")["lm_head.weight"].dtype == torch.float32


def test_inspect_one(capsys):
    table = rows(printed(capsys, "inspect", "b").out)
    assert table["parameters"] == "1,192" and table["layers"] == "model.layers. 4"
    assert table["dtypes"] == "F32 tensors 15, parameters 1,192, bytes 4.8 kB"
    assert table["files"].startswith("model-00001-of-00002.safetensors ") and "adapters" not in table
    (model,) = as_json(capsys, "inspect", "b")["models"]
    assert model["tensors"] == 15 and model["bytes"] == 4768 and len(model["files"]) == 2


def test_inspect_several(capsys):
    compared = as_json(capsys, "inspect", "a", "b")["comparison"]
    assert compared["against"] is None and compared["cosine"][0][1] > 0.99
    against = as_json(capsys, "inspect", "a", "b", "--base", "base", "--layers")["comparison"]
    a, b, base = (read_weights(name) for name in ("a", "b", "base"))
    deltas = [torch.cat([(m[n] - base[n]).double().flatten() for n in base]) for m in (a, b)]
    assert against["norms"]["a"] == pytest.approx(float(deltas[0].norm()))
    assert against["cosine"][1][0] == pytest.approx(float(torch.cosine_similarity(deltas[0], deltas[1], dim=0)))
    assert against["sign_conflict"] == pytest.approx(float((deltas[0] * deltas[1] < 0).double().mean()))
    assert against["changed"] == {"a": 1.0, "b": 1.0}
    assert list(against["layers"]) == ["outside the layers", *(f"layer {i}" for i in range(4))]
    text = printed(capsys, "inspect", "a", "b", "--base", "base", "--layers").out
    assert "task vectors: norm, changed, cosine (sign conflict" in text and "\nlayer 3 " in text
    assert "by layer" not in printed(capsys, "inspect", "a", "b", "--base", "base").out


def test_inspect_shows_what_differs(capsys):
    other = {**read_weights("a"), "model.norm.weight": torch.zeros(9)}
    del other["lm_head.weight"]
    write_model("other", other)
    compared = as_json(capsys, "inspect", "a", "other")["comparison"]
    assert compared["shapes"] == {"model.norm.weight": [[8], [9]]} and compared["only_in"] == {"a": ["lm_head.weight"]}
    text = printed(capsys, "inspect", "a", "other").out
    assert "tensors of different shapes (left out)" in text and "tensors that not all have (left out)" in text


def test_inspect_a_model_with_an_adapter(capsys):
    from tests.merging.test_engine import write_adapter

    write_adapter(Path("lora"), read_weights("base"), 1)
    table = rows(printed(capsys, "inspect", "base+lora").out)
    assert table["name"] == "lora" and "ranks 2" in table["adapters"] and "modules 4" in table["adapters"]
