"""Merges on disk: the same bytes as in memory, for any number of threads, chunk size or way of sharding."""

import json
import pickle

import numpy as np
import pytest
import torch

from consilience.core.executor import run_tasks
from consilience.core.jobs import Budget
from consilience.errors import BudgetError, NonFiniteError, OutputError, RecipeError
from consilience.merging import task as task_module
from consilience.merging.engine import run_plan
from consilience.merging.memory import merge_state_dicts
from consilience.merging.method import find_method, method_names
from consilience.merging.recipe import Recipe, load_recipe, parse_recipe
from consilience.merging.task import makes_whole, merge_tensor
from tests.merging.checkpoints import llama_tensors, make_family, read_weights, weight_bytes, write_model
from tests.merging.laws import same_bytes, sample_aux, sample_parameters, write_aux


def recipe_for(method, folders, seed=3):
    experts = {n: str(f) for n, f in folders.items() if n != "base"}
    experts = dict(list(experts.items())[: find_method(method).max_experts or 3])
    values = sample_parameters(method, list(experts), seed)
    keys = {} if find_method(method).base == "none" else {"base": str(folders["base"])}
    aux = sample_aux(method, {name: read_weights(folders[name]) for name in experts}, seed)
    if aux:
        keys["aux"] = write_aux(folders["base"].parent / "aux", aux, method)
        values = {**values, "aux": aux}
    parameters = {name: value for name, value in values.items() if name != "aux"}
    return Recipe(method=method, experts=experts, parameters=parameters, seed=seed, **keys), values, list(experts)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", method_names())
def test_streamed_equals_in_memory_for_any_threads_and_chunks(tmp_path, method, dtype):
    folders = make_family(tmp_path / "in", dtype=dtype, width=24, vocabulary=300)
    recipe, values, experts = recipe_for(method, folders)
    loaded = {name: read_weights(folder) for name, folder in folders.items()}
    base = None if find_method(method).base == "none" else loaded["base"]
    expected = merge_state_dicts(method, base, {e: loaded[e] for e in experts}, seed=3, **values)
    seen = set()
    exact = not any(makes_whole(task) for task in recipe.plan().tasks)
    tolerance = max(task.steps().tolerance for task in recipe.plan().tasks if task.copy is None)
    for workers, chunk in ((1, 4096), (2, 8192), (4, 1 << 20), (3, 1)):
        out = tmp_path / f"out-{workers}-{chunk}"
        run_plan(recipe.plan(out, workers=workers), chunk=chunk)
        if exact:
            assert same_bytes(read_weights(out), expected)
            seen.add(json.dumps({k: hash(v) for k, v in weight_bytes(out).items()}))
        else:  # matrix libraries add in another order with another number of threads
            assert_close(read_weights(out), expected, loaded["base"], tolerance)
    assert not exact or len(seen) == 1


def assert_close(found, expected, base, tolerance):
    """Equal within what the manifest promises of matrix computations, a share of the largest change of a tensor."""
    for name, values in expected.items():
        change = (values.double() - base[name].double()).abs().max()
        step = torch.finfo(values.dtype).eps * values.double().abs().max()
        assert (found[name].double() - values.double()).abs().max() <= tolerance * change + step, name


def test_output_is_a_complete_folder(tmp_path):
    folders = make_family(tmp_path / "in")
    recipe, _, _ = recipe_for("ties", folders)
    result = recipe.run(tmp_path / "out")
    found = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors"} <= found
    assert {"consilience.json", "README.md", "recipe.yml"} <= found
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (folders["base"] / "tokenizer.json").read_bytes()
    assert not (tmp_path / "out.partial").exists()
    manifest = json.loads((tmp_path / "out" / "consilience.json").read_text())
    assert manifest["checksums"].keys() == read_weights(tmp_path / "out").keys()
    assert all(model["content"] for model in manifest["models"].values())
    assert load_recipe(tmp_path / "out" / "recipe.yml").plan().identity == recipe.plan().identity
    assert result.manifest["checksum"] in (tmp_path / "out" / "README.md").read_text()


def test_same_request_returns_what_is_there_and_another_is_not_mistaken_for_it(tmp_path):
    folders = make_family(tmp_path / "in")
    recipe, _, _ = recipe_for("linear", folders)
    recipe.run(tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    assert recipe.run(tmp_path / "out").resumed
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before
    other, _, _ = recipe_for("linear", folders, seed=4)
    assert not other.run(tmp_path / "out").resumed
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns != before


def test_filters_gradients_and_copied_tensors(tmp_path):
    folders = make_family(tmp_path / "in", experts=("a",))
    text = f"""
version: 1
method: task_arithmetic
base: {folders["base"]}
experts: {{a: {folders["a"]}}}
parameters:
  weight:
    - {{filter: "*q_proj*", value: [0.0, 1.0]}}
    - {{value: 0.5}}
tensors: {{copy: "*embed*"}}
"""
    parse_recipe(text).run(tmp_path / "out")
    merged, base, a = (read_weights(f) for f in (tmp_path / "out", folders["base"], folders["a"]))
    assert torch.equal(merged["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    for layer, weight in enumerate((0.0, 1 / 3, 2 / 3, 1.0)):
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        expected = base[name].double() + weight * (a[name].double() - base[name].double())
        assert torch.allclose(merged[name].double(), expected, atol=1e-7), layer
        norm = f"model.layers.{layer}.input_layernorm.weight"
        assert torch.allclose(merged[norm], (base[norm] + a[norm]) / 2, atol=1e-6)


def test_stored_type_follows_the_recipe(tmp_path):
    folders = make_family(tmp_path / "in", experts=("a",))
    Recipe(method="linear", experts={"a": str(folders["a"])}, dtype="bfloat16").run(tmp_path / "out")
    tensors = read_weights(tmp_path / "out")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert torch.equal(tensors["lm_head.weight"], read_weights(folders["a"])["lm_head.weight"].bfloat16())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_mixed_types_are_merged_with_a_notice(tmp_path):
    base = llama_tensors(0)
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "half", llama_tensors(1, around=base, dtype="bfloat16"))
    recipe = Recipe(method="task_arithmetic", base=str(tmp_path / "base"), experts={"half": str(tmp_path / "half")})
    plan = recipe.plan()
    assert any("BF16 and F32" in notice and "F32" in notice for notice in plan.notices)
    recipe.run(tmp_path / "out")
    assert {t.dtype for t in read_weights(tmp_path / "out").values()} == {torch.float32}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_stops_the_job_and_names_tensor_model_and_file(tmp_path, value):
    folders = make_family(tmp_path / "in")
    tensors = read_weights(folders["b"])
    tensors["model.norm.weight"][3] = value
    write_model(tmp_path / "bad", tensors)
    recipe = Recipe(
        method="ties", base=str(folders["base"]), experts={"a": str(folders["a"]), "bad": str(tmp_path / "bad")}
    )
    with pytest.raises(NonFiniteError) as refused:
        recipe.run(tmp_path / "out")
    for word in ("model.norm.weight", "'bad'", "element 3", str(tmp_path / "bad" / "model.safetensors")):
        assert word in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_overflow_of_the_stored_type_is_named(tmp_path):
    folders = make_family(tmp_path / "in", experts=("a",))
    recipe = Recipe(method="linear", experts=[str(folders["a"])], dtype="float16", parameters={"weight": 1.0})
    recipe.run(tmp_path / "fine")
    huge = Recipe(
        method="linear", experts=[str(folders["a"])], dtype="float16", parameters={"weight": 1e9, "normalize": False}
    )
    with pytest.raises(NonFiniteError, match=r"overflows F16.*out_dtype|overflows F16"):
        huge.run(tmp_path / "out")


def test_a_budget_stops_and_the_same_request_resumes(tmp_path):
    folders = make_family(tmp_path / "in")
    recipe, _, _ = recipe_for("ties", folders)
    recipe.run(tmp_path / "whole")
    with pytest.raises(BudgetError, match="run the same command again"):
        recipe.run(tmp_path / "out", budget=Budget(wall_seconds=0.0))
    assert (tmp_path / "out.partial").is_dir() and not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match="another request"):
        recipe_for("linear", folders)[0].run(tmp_path / "out")
    assert recipe.run(tmp_path / "out").resumed
    assert weight_bytes(tmp_path / "out") == weight_bytes(tmp_path / "whole")


def test_resume_heals_bytes_that_do_not_match_the_journal(tmp_path, monkeypatch):
    folders = make_family(tmp_path / "in")
    recipe, _, _ = recipe_for("ties", folders)
    recipe.run(tmp_path / "whole")
    calls = iter(range(10**6))
    real = task_module.merge_tensor

    def fail_late(task, *args, **kwargs):
        if next(calls) == 8:
            raise KeyboardInterrupt
        return real(task, *args, **kwargs)

    monkeypatch.setattr("consilience.merging.engine.merge_tensor", fail_late)
    with pytest.raises(KeyboardInterrupt):
        run_plan(recipe.plan(tmp_path / "out", workers=1))
    monkeypatch.undo()
    shard = tmp_path / "out.partial" / "work" / "model.safetensors"
    journal = [json.loads(line) for line in (tmp_path / "out.partial" / "journal.jsonl").read_text().splitlines()]
    assert 0 < len(journal) < 14
    data = bytearray(shard.read_bytes())
    data[-4:] = b"\xff\xff\xff\x00"
    data[len(data) // 2] ^= 0xFF
    shard.write_bytes(data)
    recipe.run(tmp_path / "out")
    assert weight_bytes(tmp_path / "out") == weight_bytes(tmp_path / "whole")


def test_adapters_merge_in_delta_space(tmp_path):
    base, lora = llama_tensors(0), {}
    write_model(tmp_path / "base", base)
    for seed, name in ((1, "x"), (2, "y")):
        lora[name] = write_adapter(tmp_path / name, base, seed)
    experts = {n: f"{tmp_path / 'base'}+{tmp_path / n}" for n in lora}
    Recipe(method="task_arithmetic", base=str(tmp_path / "base"), experts=experts, parameters={"weight": 0.5}).run(
        tmp_path / "out"
    )
    merged = read_weights(tmp_path / "out")
    for name, value in base.items():
        expected = value.double()
        for pairs in lora.values():
            if name in pairs:
                a, b = pairs[name]
                expected = expected + 0.5 * 2.0 * (b.double() @ a.double())
        assert torch.allclose(merged[name].double(), expected, atol=1e-6), name
    assert not torch.equal(
        merged["model.layers.0.self_attn.q_proj.weight"], base["model.layers.0.self_attn.q_proj.weight"]
    )


def write_adapter(folder, base, seed, rank=2, alpha=4, target="q_proj"):
    """Write a PEFT LoRA folder for the q_proj matrices; return {tensor: (a, b)}."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    pairs, tensors = {}, {}
    for name, value in base.items():
        if target in name:
            a = torch.randn((rank, value.shape[1]), generator=generator)
            b = torch.randn((value.shape[0], rank), generator=generator) * 0.1
            pairs[name] = (a, b)
            prefix = "base_model.model." + name.removesuffix(".weight")
            tensors[f"{prefix}.lora_A.weight"], tensors[f"{prefix}.lora_B.weight"] = a, b
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": [target], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return pairs


def test_adapters_merge_into_an_adapter_with_the_error_reported(tmp_path):
    base = llama_tensors(0)
    write_model(tmp_path / "base", base)
    for seed, name in ((1, "x"), (2, "y")):
        write_adapter(tmp_path / name, base, seed)
    experts = {n: f"{tmp_path / 'base'}+{tmp_path / n}" for n in "xy"}
    keys = {"method": "task_arithmetic", "base": str(tmp_path / "base"), "experts": experts}
    Recipe(**keys).run(tmp_path / "whole")
    exact = Recipe(**keys, output={"adapter": {"rank": 4}}).run(tmp_path / "exact")
    assert exact.error < 1e-6
    rough = Recipe(**keys, output={"adapter": {"rank": 1}}).run(tmp_path / "rough")
    assert 0.05 < rough.error < 1
    from consilience.checkpoints import open_checkpoint

    adapted = open_checkpoint(f"{tmp_path / 'base'}+{tmp_path / 'exact'}")
    for name, value in read_weights(tmp_path / "whole").items():
        out = np.empty(value.numel(), np.float64)
        adapted.tensors[name].read(0, value.numel(), out)
        assert np.allclose(out, value.double().numpy().reshape(-1), atol=1e-5), name


def test_adapter_output_needs_adapters(tmp_path):
    folders = make_family(tmp_path / "in", experts=("a",))
    recipe = Recipe(
        method="task_arithmetic",
        base=str(folders["base"]),
        experts={"a": str(folders["a"])},
        output={"adapter": {"rank": 4}},
    )
    with pytest.raises(RecipeError, match="no expert is an adapter"):
        recipe.plan()


def test_plan_reads_no_weights_and_says_what_it_would_do(tmp_path):
    folders = make_family(tmp_path / "in")
    recipe, _, _ = recipe_for("ties", folders)
    for folder in folders.values():  # zero all numbers: a plan that read them would not notice, one that opened must
        for file in folder.glob("*.safetensors"):
            data = bytearray(file.read_bytes())
            header = 8 + int.from_bytes(data[:8], "little")
            data[header:] = bytes(len(data) - header)
            file.write_bytes(data)
    facts = recipe.plan().to_dict()
    assert facts["tensors"] == {"merged": 15, "copied": 0}
    size = sum(t.numel() * 4 for t in read_weights(folders["a"]).values())
    assert facts["read_bytes"] == 3 * 4 * size
    assert facts["write_bytes"] > size and json.dumps(facts)


def test_what_a_method_warns_of_becomes_a_notice(tmp_path, recwarn):
    base = {"w": torch.zeros(8)}
    for name, value in (("base", base["w"]), ("a", torch.ones(8)), ("b", torch.tensor([-1.0, 1, -1, 0, -1, 0, -1, 0]))):
        write_model(tmp_path / name, {"w": value})
    experts = {n: str(tmp_path / n) for n in "ab"}
    result = Recipe(method="model_stock", base=str(tmp_path / "base"), experts=experts).run(tmp_path / "out")
    assert any("oppose each other" in notice for notice in result.notices)
    assert result.manifest["notices"] == list(result.notices) and not recwarn.list


def checksum_of(data):
    """Make one pickled task in this process and return its checksum."""
    return merge_tensor(pickle.loads(data), lambda start, raw: None)[0]


def test_tasks_of_a_plan_travel_to_other_processes(tmp_path):
    folders = {name: str(folder) for name, folder in make_family(tmp_path / "in", dtype="bfloat16").items()}
    plan = Recipe(method="dare_ties", base=folders.pop("base"), experts=folders, seed=5).plan(tmp_path / "out")
    manifest = run_plan(plan).manifest
    packed = [pickle.dumps(task) for task in plan.tasks]
    made = [result for _, result in run_tasks(checksum_of, packed, workers=2, kind="processes")]
    assert made == [manifest["checksums"][task.name] for task in plan.tasks]
