"""Bad input at the command line: exit code 2, a message that says what and where, no traceback, nothing written."""

import json
import os
import shutil
import struct
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from consilience.checkpoints.sources import Stored
from consilience.cli.app import run
from tests.merging.checkpoints import llama_tensors, make_family, read_weights, write_model
from tests.merging.test_engine import write_adapter

NOBODY = 65534


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A base and two experts in the working folder."""
    monkeypatch.chdir(tmp_path)
    return make_family(Path(), experts=("a", "b"), width=8)


def recipe(experts, method="task_arithmetic", base="base", more=""):
    listed = ", ".join(f"{name}: {place}" for name, place in experts.items())
    return f"version: 1\nmethod: {method}\n" + (f"base: {base}\n" if base else "") + f"experts: {{{listed}}}\n{more}\n"


def refused(capsys, text=None, *options, verb="merge", code=2):
    """Run a recipe that must be refused and return the message."""
    if text is not None:
        Path("recipe.yml").write_text(text)
    before = sorted(Path().rglob("*"))
    out = [] if "--out" in options or verb == "plan" else ["--out", "out"]
    assert run([verb, "recipe.yml", *out, *options]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("consilience: ") and "Traceback" not in captured.err
    assert captured.out == "" and sorted(Path().rglob("*")) == before
    return captured.err.replace(f"{Path.cwd()}/", "")


def says(message, *words):
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"


# damaged and missing files


def damage(change):
    """Write the model "bad" like "a" and change the bytes of its weights."""
    folder = write_model("bad", read_weights("a"))
    file = folder / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))


def with_header(data, edit):
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def overlap(header):
    first, second = (f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1))
    header[second]["data_offsets"] = header[first]["data_offsets"]


def foreign_number(header):
    header["model.norm.weight"]["dtype"] = "Q4_0"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:100], ["truncated: its header claims", "the whole file has 100", "copy it again"]),
        (lambda data: struct.pack("<Q", 1 << 40) + data[8:], ["claims 1099511627776 bytes", "format allows"]),
        (lambda data: data[:-100], ["model.norm.weight", "run past the end of the data", "the file is truncated"]),
        (
            lambda data: with_header(data, overlap),
            ["layers.1.self_attn.q_proj.weight", "overlap those of", "layers.0.self_attn.q_proj"],
        ),
        (lambda data: with_header(data, foreign_number), ["'Q4_0' is not supported", "known: F64, F32"]),
    ],
    ids=["truncated header", "oversize header", "truncated data", "overlapping offsets", "unknown number type"],
)
def test_damaged_weights(models, capsys, change, words):
    damage(change)
    message = refused(capsys, recipe({"a": "a", "bad": "bad"}))
    says(message, "recipe.yml: model 'bad': bad: bad/model.safetensors", *words)


def test_an_index_that_names_a_missing_shard(models, capsys):
    write_model("bad", read_weights("a"), shards=3)
    Path("bad/model-00002-of-00003.safetensors").unlink()
    message = refused(capsys, recipe({"bad": "bad"}))
    says(
        message, "model 'bad'", "names the shard 'model-00002-of-00003.safetensors'", "which is missing; fetch or copy"
    )


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("aa", ["'aa': no such file or folder (looked at "]),
        ("models/aa", ["'models/aa': no such file or folder", "did you mean 'a'?"]),
        ("far/away/model", ["no such file or folder", "a reference is a folder, a .safetensors file, package:"]),
        ("org/model@v2", ["is not in the local cache of the hub", "HF_HUB_OFFLINE is set", "hf download org/model"]),
        ("package:no_such_package/model", ["'no_such_package' is not installed; pip install no-such-package"]),
    ],
)
def test_missing_paths(models, capsys, monkeypatch, tmp_path, place, words):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no-cache"))
    Path("models").mkdir()
    shutil.copytree("a", "models/a")
    says(refused(capsys, recipe({"b": "b", "x": place})), "model 'x'", *words)


def test_a_missing_recipe(models, capsys):
    says(refused(capsys), "recipe recipe.yml: no such file")


# models that do not fit each other


def test_missing_and_extra_tensors(models, capsys):
    tensors = read_weights("a")
    del tensors["model.layers.2.mlp.down_proj.weight"]
    write_model("short", tensors)
    write_model("long", {**read_weights("b"), "model.layers.0.extra.weight": torch.zeros(3)})
    message = refused(capsys, recipe({"short": "short", "long": "long"}))
    says(message, "2 problems", "model 'short' lacks 1 tensor(s) (model.layers.2.mlp.down_proj.weight) that 'base' has")
    says(message, "model 'long' has 1 tensor(s) (model.layers.0.extra.weight) that 'base' lacks", "one architecture")


def test_shapes_that_differ(models, capsys):
    changed = {"model.norm.weight": torch.zeros(9), "model.layers.1.mlp.down_proj.weight": torch.zeros(8, 20)}
    write_model("bad", {**read_weights("a"), **changed})
    message = refused(capsys, recipe({"a": "a", "bad": "bad"}))
    says(
        message, "2 problems", "tensor 'model.norm.weight': shape [9] in 'bad', [8] in 'base'; merge models of one size"
    )
    says(message, "tensor 'model.layers.1.mlp.down_proj.weight': shape [8, 20] in 'bad', [8, 16] in 'base'")


@pytest.mark.parametrize(("base", "expert"), [("base", "tied"), ("tied", "a")])
def test_tied_and_untied_inputs_mixed(models, capsys, base, expert):
    tensors = read_weights("a")
    del tensors["lm_head.weight"]
    write_model("tied", tensors)
    message = refused(capsys, recipe({expert: expert}, base=base))
    says(message, "ties 'lm_head.weight' to 'model.embed_tokens.weight' while", "stores it; untie it in")


def test_different_vocabularies_without_a_tokenizer_rule(models, capsys):
    write_model("moved", read_weights("a"), words=["w0", "w2", "w1", *[f"w{i}" for i in range(3, 24)]])
    write_model("larger", llama_tensors(5, width=8, vocabulary=30))
    message = refused(capsys, recipe({"moved": "moved", "larger": "larger"}))
    says(
        message,
        "models 'base' and 'moved' have different vocabularies",
        "2 at another id",
        "tokenizer: {source: union}",
    )
    says(message, "models 'base' and 'larger'", "tokenizers of 24 and 30 tokens", "has 24 and 30 rows")


# adapters


def test_an_adapter_for_another_base(models, capsys):
    write_adapter(Path("lora"), llama_tensors(5, width=12), 1)
    message = refused(capsys, recipe({"x": "lora"}))
    says(message, "adapter lora does not fit base", "'model.layers.0.self_attn.q_proj'")
    says(message, "has shape (12, 12), the model's weight has (8, 8); the adapter belongs to another base")


def test_an_adapter_tensor_that_matches_nothing(models, capsys):
    write_adapter(Path("lora"), read_weights("base"), 1)
    file = Path("lora/adapter_model.safetensors")
    tensors = load_file(file)
    renamed = {name.replace("layers.3.self_attn.q_proj", "layers.3.w_pack"): value for name, value in tensors.items()}
    save_file(renamed, file)
    message = refused(capsys, recipe({"x": "lora"}))
    says(message, "adapter lora does not fit base: 'model.layers.3.w_pack.weight' matches no tensor of the model")


def test_an_adapter_without_its_base(models, capsys):
    write_adapter(Path("lora"), read_weights("base"), 1)
    message = refused(capsys, recipe({"x": "lora", "a": "a"}, method="linear", base=None))
    says(message, "model 'x'", "is an adapter (adapter_config.json), not a whole model", "MODEL+ADAPTER")


def test_a_rank_pattern_is_honoured(models, capsys):
    base = read_weights("base")
    pairs = write_adapter(Path("lora"), base, 1)
    file, odd = Path("lora/adapter_model.safetensors"), "model.layers.1.self_attn.q_proj"
    tensors = load_file(file)
    wide = (torch.ones(5, 8) / 8, torch.ones(8, 5) / 8)
    for side, value in zip("AB", wide, strict=True):
        tensors[f"base_model.model.{odd}.lora_{side}.weight"] = value
    save_file(tensors, file)
    config = json.loads(Path("lora/adapter_config.json").read_text())
    pattern = {"rank_pattern": {"layers.1.self_attn.q_proj": 5}, "alpha_pattern": {"layers.1.self_attn.q_proj": 20}}
    Path("lora/adapter_config.json").write_text(json.dumps({**config, **pattern}))
    Path("recipe.yml").write_text(recipe({"x": "lora"}))
    assert run(["merge", "recipe.yml", "--out", "out"]) == 0
    merged = read_weights("out")
    for name, (a, b) in pairs.items():
        factors = (4.0, wide[1] @ wide[0]) if name.startswith(odd) else (2.0, b @ a)
        assert torch.allclose(merged[name], base[name] + factors[0] * factors[1], atol=1e-6), name


# recipes


EMPTY = "version: 1\nmethod: linear\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (recipe({"a": "a"}, "tiess"), ["method: 'tiess' is unknown; did you mean 'ties'?"]),
        (
            recipe({"a": "a"}, "ties", more="parameters: {densty: 0.2}"),
            ["parameters.densty: method 'ties' has no such parameter; did you mean 'density'?"],
        ),
        (recipe({"a": "a"}, more="paramters: {}"), ["paramters: unknown key; did you mean 'parameters'?"]),
        (recipe({"a": "a"}, more="tensors: {merged: x}"), ["tensors.merged: unknown key; did you mean 'merge'?"]),
        (
            recipe({"a": "a"}, "ties", more="parameters: {density: -0.2}"),
            ["recipe.yml: parameters.density: -0.2 is not a number between 0 and 1"],
        ),
        (
            recipe({"a": "a"}, "ties", more="parameters: {density: {a: 1.5}}"),
            ["parameters.density of 'a': 1.5 is not a number between 0 and 1"],
        ),
        (
            recipe({"a": "a", "b": "b"}, more="parameters: {weight: {a: 1, bb: 2}}"),
            ["parameters.weight: unknown expert 'bb'; did you mean 'b'?", "no value for expert(s) b"],
        ),
        ("version: 1\nmethod: linear\nexperts: [a, ./a]", ["the name 'a' stands twice; write {name: model}"]),
        (
            "version: 1\nmethod: linear\nexperts:\n  a: a\n  a: b\n",
            ["line 5: the key 'a' stands twice in one mapping, first in line 4; remove one"],
        ),
        (EMPTY, ["experts: expected {name: model} or a list of models, none are given"]),
        (EMPTY + "experts: []", ["experts: the list is empty; name at least one expert"]),
        (EMPTY + "experts: {}", ["experts: the list is empty; name at least one expert"]),
        (
            recipe({"a": "a", "b": "b"}, "linear", more="parameters: {weight: {a: 1, b: -1}}"),
            ["weights [1.0, -1.0] sum to 0 and cannot be normalised; change them or set normalize: false"],
        ),
        (
            recipe({"a": "a", "b": "b"}, more="parameters: {normalize: true, weight: {a: 1, b: -1}}"),
            ["weights [1.0, -1.0] sum to 0 and cannot be normalised; change them or set normalize: false"],
        ),
        (recipe({"a": "a"}, "ties", base=None), ["method 'ties' works on task vectors and needs a base model"]),
        (recipe({"a": "a", "b": "b"}, "slerp", more="parameters: {t: 0.5}"), ["takes at most 1 expert(s), found 2"]),
        (recipe({"a": "a"}, "slerp"), ["parameters.t: method 'slerp' requires it (a number between 0 and 1); none"]),
        (recipe({"a": "a"}, more="tensors: {copy: '*.encoder.*'}"), ["pattern '*.encoder.*' matches no tensor"]),
        (recipe({"a": "a"}, more="dtype: int8"), ["dtype: 'int8' is not a float type; use float32, float16, bfloat16"]),
        (
            recipe({"a": "a"}, more="chat_template: chatlm"),
            ["'chatlm' is neither Jinja", "did you mean 'chatml'?"],
        ),
        (
            recipe({"a": "a"}, more="tokenizer: aa"),
            ["tokenizer.source: 'aa' is no model of", "did you mean 'a'?"],
        ),
        (
            recipe({"a": "a"}, more="tokenizer: {tokens: {w1: {model: bse}}}"),
            ["tokenizer.tokens.w1: 'bse' is no model of this merge; did you mean 'base'?"],
        ),
        ("version: [1", ["not valid YAML"]),
        ("- a", ["expected a mapping with `method:` (native) or `merge_method:` (mergekit)"]),
        ("", ["expected a mapping with `method:` (native) or `merge_method:` (mergekit)"]),
    ],
)
def test_recipes_that_are_wrong(models, capsys, text, words):
    says(refused(capsys, text), "recipe.yml: ", *words)


def test_a_misspelt_key_of_a_mergekit_recipe_is_a_warning_with_its_line(models, capsys):
    text = "merge_method: ties\nbase_model: base\nmodels:\n- model: a\n  parameters: {weight: 1, densty: 0.3}\n"
    Path("recipe.yml").write_text(text)
    assert run(["plan", "recipe.yml"]) == 0
    warning = (
        "models[0].parameters.densty (line 5): method 'ties' has no such parameter; ignored; did you mean 'density'?"
    )
    says(capsys.readouterr().err, warning)
    says(refused(capsys, None, "--strict", verb="plan"), warning)


def test_problems_of_a_recipe_come_together(models, capsys):
    message = refused(capsys, "version: 2\nmethod: tis\nexperts: {a: 3}\nsead: 3\ndtype: int8\n")
    says(message, "recipe.yml: 5 problems", "\n  - sead: ", "\n  - version: 2; this program reads version 1")
    says(message, "\n  - method: 'tis'", "\n  - experts.a: 3 is not a model", "\n  - dtype: 'int8'")


def test_problems_of_models_and_output_come_together(models, capsys):
    damage(lambda data: data[:-100])
    Path("full").mkdir()
    Path("full/precious.txt").write_text("x")
    message = refused(capsys, recipe({"a": "nowhere", "bad": "bad"}), "--out", "full")
    says(message, "recipe.yml: 3 problems", "\n  - output full: ", "\n  - model 'a': 'nowhere'", "\n  - model 'bad': ")
    assert "\n    - tensor 'model.norm.weight'" in message, "nested problems are indented"


# the output


def test_an_output_that_is_not_ours(models, capsys):
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    Path("file").write_text("x")
    says(refused(capsys, recipe({"a": "a"}), "--out", "mine"), "not empty and was not made by consilience", "choose")
    says(refused(capsys, None, "--out", "file"), "output file: exists and is not a folder; choose another place")
    says(refused(capsys, None, "--out", "file/out"), "output file/out: file")
    says(refused(capsys, None, "--out", "."), "output .: cannot be replaced as a whole; name a folder in it")
    assert Path("mine/thesis.txt").read_text() == "years of work"


def test_an_output_that_is_an_input(models, capsys):
    Path("recipe.yml").write_text(recipe({"a": "a"}))
    assert run(["merge", "recipe.yml", "--out", "first"]) == 0
    capsys.readouterr()
    message = refused(capsys, recipe({"first": "first"}), "--out", "first")
    says(message, "output first: model 'first' is read from there; choose another place")


def test_json_carries_the_error(models, capsys):
    Path("recipe.yml").write_text(recipe({"a": "a"}, "tiess"))
    assert run(["merge", "recipe.yml", "--out", "out", "--json"]) == 2
    record = json.loads(capsys.readouterr().out)
    assert record["kind"] == "RecipeError" and record["exit_code"] == 2 and "'ties'" in record["error"]


# permissions: root may do everything, so tests that run as root act as nobody meanwhile


@contextmanager
def unprivileged():
    if os.getuid() != 0:
        yield
        return
    os.setresgid(NOBODY, NOBODY, 0)
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)


@pytest.fixture
def open_folder(monkeypatch):
    """A folder with a base and an expert that everybody may read, and one place that nobody may enter."""
    folder = Path(tempfile.mkdtemp())
    monkeypatch.chdir(folder)
    make_family(Path(), experts=("a",), width=8)
    Path("recipe.yml").write_text(recipe({"a": "a"}))
    assert run(["plan", "recipe.yml"]) == 0  # imports what is needed while that is allowed
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    Path("locked").mkdir()
    shutil.copytree("a", "locked/a")
    yield folder
    for name in ("locked", "kept"):
        if Path(name).is_dir():
            Path(name).chmod(0o755)
    monkeypatch.chdir("/")
    shutil.rmtree(folder)


def test_no_permission(open_folder, capsys):
    capsys.readouterr()
    Path("kept").mkdir()
    Path("kept").chmod(0o555)
    Path("locked").chmod(0)
    recipes = {"locked.yml": recipe({"a": "a", "x": "locked/a"}), "unreadable.yml": recipe({"a": "b"})}
    shutil.copytree("a", "b")
    Path("b/model.safetensors").chmod(0)
    for name, text in recipes.items():
        Path(name).write_text(text)
        Path(name).chmod(0o644)
    commands = {
        ("merge", "recipe.yml", "--out", "kept/out"): "output kept/out: no permission to write in kept",
        ("merge", "recipe.yml", "--out", "locked/out"): "output locked/out: locked/out cannot be looked at (Permission",
        ("plan", "locked.yml"): "model 'x': locked/a: there is no permission to look into its folder",
        ("plan", "unreadable.yml"): "model 'a': b: b/model.safetensors: cannot be read (Permission denied)",
        ("inspect", "locked/a"): "locked/a: there is no permission to look into its folder",
    }
    for command, words in commands.items():
        with unprivileged():
            code = run(list(command))
        message = capsys.readouterr().err.replace(f"{open_folder}/", "")
        assert code == 2 and "Traceback" not in message
        says(message, words)
    assert list(Path("kept").iterdir()) == []


# nothing is read too early


def test_a_plan_is_refused_before_any_weight_is_read(models, capsys, monkeypatch):
    def read(*arguments):
        raise AssertionError("a weight was read")

    for name in ("read", "read_raw", "read_raw_into"):
        monkeypatch.setattr(Stored, name, read)
    write_adapter(Path("lora"), read_weights("base"), 1)
    Path("recipe.yml").write_text(recipe({"a": "a", "x": "lora"}))
    assert run(["plan", "recipe.yml"]) == 0
    capsys.readouterr()
    write_model("bad", {**read_weights("a"), "model.norm.weight": torch.zeros(9)})
    refused(capsys, recipe({"bad": "bad", "x": "lora"}))


def test_nan_is_named_and_nothing_is_published(models, capsys):
    tensors = read_weights("a")
    tensors["model.norm.weight"][3] = float("nan")
    write_model("bad", tensors)
    message = refused(capsys, recipe({"bad": "bad"}), "--scan", verb="plan")
    says(message, "tensor 'model.norm.weight': model 'bad' holds nan at element 3", "bad/model.safetensors")
    assert run(["merge", "recipe.yml", "--out", "out"]) == 1
    message = capsys.readouterr().err
    says(message, "tensor 'model.norm.weight': model 'bad' holds nan at element 3", "nothing was published")
    assert not Path("out").exists()
