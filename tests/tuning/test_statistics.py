"""Gathering as work on disk: resume, passes, records, refusals, and statistics across experts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from consilience import merge_state_dicts
from consilience.core.jobs import Budget
from consilience.core.records import read_record
from consilience.errors import BudgetError, OutputError, RequestError
from consilience.tuning import KINDS, gather_statistics
from tests.tuning.toy import ToyPredictor, token_network, toy, toy_examples

KINDS_OF_ONE = ("fisher", "gram", "activation", "sensitivity")


class Interrupted(Exception):
    """Stands for a kill: nothing is caught or tidied up."""


class Counted(ToyPredictor):
    """Counts forward passes, and stops at one of them."""

    def __init__(self, seed: int, stop_at: int = -1) -> None:
        plain = toy(seed)
        super().__init__(plain.name, plain.module, plain.head)
        self.calls = 0
        self.stop_at = stop_at

    def logits(self, batch: Any, parameters: Any = None) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.stop_at:
            raise Interrupted
        return super().logits(batch, parameters)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.safetensors"))}


def gather(model: Any, out: Path, kinds: tuple[str, ...] = KINDS_OF_ONE, **options: Any) -> dict[str, Any]:
    return gather_statistics(model, toy_examples(0, 6), out, kinds=kinds, batch=2, progress=False, **options)


def test_one_file_per_kind_and_a_record(tmp_path: Path) -> None:
    record = gather(toy(0), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        ["consilience.json", *(f"{kind}.safetensors" for kind in KINDS_OF_ONE)]
    )
    assert record["files"]["gram.safetensors"] == {"tensors": 2, "examples": 6}
    assert record["files"]["fisher.safetensors"]["tensors"] == 4
    assert read_record(tmp_path / "out/consilience.json", "manifest", 1)["files"] == record["files"]
    assert not (tmp_path / "out.partial").exists()
    for file in (tmp_path / "out").glob("*.safetensors"):
        assert all(value.dtype == np.float32 for value in load_file(file).values())


@pytest.mark.parametrize("stop_at", [2, 4, 9, 11, 14, 19])
def test_a_killed_run_goes_on_where_it_was_with_the_same_bytes(tmp_path: Path, stop_at: int) -> None:
    whole = Counted(0)
    gather(whole, tmp_path / "whole")
    killed = Counted(0, stop_at)
    with pytest.raises(Interrupted):
        gather(killed, tmp_path / "out", state_every=0)
    assert not (tmp_path / "out").exists()
    again = Counted(0)
    gather(again, tmp_path / "out", state_every=0)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert killed.calls + again.calls <= whole.calls + 1 + 4  # trying the modules takes one pass for two kinds


def test_a_budget_saves_the_state_of_the_pass(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="run the same command again"):
        gather(Counted(0), tmp_path / "out", budget=Budget(wall_seconds=0))
    again = Counted(0)
    gather(again, tmp_path / "out")
    gather(whole := Counted(0), tmp_path / "whole")
    assert again.calls == whole.calls - 1
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("memory", [1, 200, 400])
def test_little_memory_takes_more_passes_and_gives_the_same_bytes(tmp_path: Path, memory: int) -> None:
    gather(whole := Counted(0), tmp_path / "whole", kinds=("fisher", "gram"))
    gather(small := Counted(0), tmp_path / "small", kinds=("fisher", "gram"), memory=memory)
    assert contents(tmp_path / "small") == contents(tmp_path / "whole")
    assert small.calls > whole.calls


def test_a_damaged_tensor_of_a_partial_run_is_gathered_again(tmp_path: Path) -> None:
    gather(toy(0), tmp_path / "whole")
    with pytest.raises(Interrupted):
        gather(Counted(0, 9), tmp_path / "out")  # Fisher is finished, Grams are not
    file = tmp_path / "out.partial/work/fisher.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    gather(toy(0), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_finished_run_is_returned_and_another_is_refused(tmp_path: Path) -> None:
    first = gather(toy(0), tmp_path / "out")
    again = Counted(0)
    assert gather(again, tmp_path / "out") == first and again.calls == 0
    with pytest.raises(OutputError, match="result of another request"):
        gather(toy(1), tmp_path / "out")
    with pytest.raises(OutputError, match="result of another request"):
        gather(toy(0), tmp_path / "out", kinds=("gram",))


def test_dropout_is_off_and_the_mode_comes_back(tmp_path: Path) -> None:
    model = toy(0)
    dropping = torch.nn.Sequential(torch.nn.Dropout(0.5), model.module)
    wrapped = ToyPredictor("dropping", dropping, model.head)
    dropping.train()
    gather(wrapped, tmp_path / "with", kinds=("gram",))
    gather(model, tmp_path / "without", kinds=("gram",))
    one, other = (load_file(tmp_path / name / "gram.safetensors") for name in ("with", "without"))
    assert (one["1.0.weight"] == other["0.weight"]).all() and dropping.training


def test_all_problems_of_a_request_come_together(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as refused:
        gather_statistics(
            {"a": toy(0)},
            {"b": []},
            tmp_path / "out",
            kinds=("fischer", "sequential_gram"),
            batch=0,
            draws=0,
            reduce_non_diagonal_ratio=2,
            weight={"c": 1},
        )
    for words in (
        *("did you mean 'fisher'", "at least two models", "examples are of ['b']", "'b' has no examples"),
        *("batch is 0", "draws is 0", "ratio is 2", "weight is {'c': 1}", "8 problems"),
    ):
        assert words in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_examples_of_unknown_make_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds a object"):
        gather_statistics(toy(0), [object()], tmp_path / "out")


EXPERTS = {"a": 0, "b": 1, "c": 2}


def experts() -> dict[str, ToyPredictor]:
    return {name: toy(seed) for name, seed in EXPERTS.items()}


def test_experts_get_folders_of_their_own(tmp_path: Path) -> None:
    examples = {name: toy_examples(seed) for name, seed in EXPERTS.items()}
    record = gather_statistics(experts(), examples, tmp_path / "out", kinds=("gram",), progress=False)
    assert sorted(record["files"]) == ["a/gram.safetensors", "b/gram.safetensors", "c/gram.safetensors"]
    gather_statistics(toy(1), examples["b"], tmp_path / "b", kinds=("gram",), progress=False)
    assert contents(tmp_path / "b")["gram.safetensors"] == contents(tmp_path / "out")["b/gram.safetensors"]


def test_logit_distances_are_means_over_the_tasks_examples(tmp_path: Path) -> None:
    examples = {name: toy_examples(seed, 5) for name, seed in EXPERTS.items()}
    models = experts()
    record = gather_statistics(models, examples, tmp_path / "out", kinds=("logit_distance",), progress=False)
    (batch,) = models["b"].batches(examples["b"], 5)
    expected = (models["a"].logits(batch) - models["b"].logits(batch)).norm(dim=1).mean().item()
    assert record["logit_distance"]["b"]["a"] == pytest.approx(expected)
    assert record["distance"]["a"] == pytest.approx(sum(record["logit_distance"][task]["a"] for task in "bc"))
    models["c"] = toy(2, classes=4)
    with pytest.raises(RequestError, match=r"'a' and 'c'.*\[1, 3\] and \[1, 4\]"):
        gather_statistics(models, examples, tmp_path / "other", kinds=("logit_distance",), progress=False)


def sequential(out: Path, models: dict[str, ToyPredictor], examples: Any, **options: Any) -> dict[str, Any]:
    gather_statistics(models, examples, out, kinds=("sequential_gram",), batch=2, progress=False, **options)
    return {name: load_file(out / name / "sequential_gram.safetensors") for name in models}


def test_sequential_grams_come_from_the_merged_layers_before(tmp_path: Path) -> None:
    models = experts()
    examples = {name: toy_examples(seed) for name, seed in EXPERTS.items()}
    found = sequential(tmp_path / "out", models, examples)
    plain = gather_statistics(models, examples, tmp_path / "plain", kinds=("gram",), batch=2, progress=False)
    assert plain["files"].keys() == {f"{name}/gram.safetensors" for name in models}
    states = {name: {n: p.detach().numpy() for n, p in m.module.named_parameters()} for name, m in models.items()}
    merged = merge_state_dicts("regmean_plusplus", None, states, aux={"sequential_gram": found})
    for name, held in found.items():
        first = load_file(tmp_path / "plain" / name / "gram.safetensors")["0.weight"]
        assert (held["0.weight"] == first).all()
        inputs = np.stack([x for x, _ in examples[name]])
        hidden = np.maximum(inputs @ merged["0.weight"].T + merged["0.bias"], 0)
        assert held["2.weight"] == pytest.approx(hidden.T @ hidden / len(hidden), rel=1e-4, abs=1e-6)
        own = load_file(tmp_path / "plain" / name / "gram.safetensors")["2.weight"]
        assert np.abs(held["2.weight"] - own).max() > 1e-3


def test_a_killed_sequential_run_goes_on_with_the_same_bytes(tmp_path: Path) -> None:
    examples = {name: toy_examples(seed, 4) for name, seed in EXPERTS.items()}
    sequential(tmp_path / "whole", experts(), examples)
    killed: dict[str, ToyPredictor] = {name: Counted(seed) for name, seed in EXPERTS.items()}
    killed["c"] = Counted(2, 5)  # in the second layer
    with pytest.raises(Interrupted):
        sequential(tmp_path / "out", killed, examples)
    again: dict[str, ToyPredictor] = {name: Counted(seed) for name, seed in EXPERTS.items()}
    sequential(tmp_path / "out", again, examples)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert all(model.calls < 5 for model in again.values() if isinstance(model, Counted))


def test_sequential_grams_depend_on_the_merge_they_are_for(tmp_path: Path) -> None:
    models = experts()
    examples = {name: toy_examples(seed) for name, seed in EXPERTS.items()}
    usual = sequential(tmp_path / "usual", models, examples)
    for place, options in enumerate(
        ({"weight": {"a": 5, "b": 1, "c": 1}}, {"reduce_non_diagonal_ratio": 0.1}, {"exclude": "0"})
    ):
        other = sequential(tmp_path / str(place), models, examples, **options)
        assert (other["a"]["2.weight"] != usual["a"]["2.weight"]).any()
    assert set(other["a"]) == {"2.weight"}


def test_layers_are_found_in_the_order_of_the_network(tmp_path: Path) -> None:
    def state(seed: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        shapes = {"embeddings.weight": (9, 4)}
        for i in range(11):  # ten comes after nine
            shapes |= {f"layer.{i}.intermediate.weight": (6, 4), f"layer.{i}.intermediate.bias": (6,)}
            shapes |= {f"layer.{i}.output.weight": (4, 6), f"layer.{i}.output.bias": (4,)}
            shapes |= {f"layer.{i}.LayerNorm.weight": (4,), f"layer.{i}.LayerNorm.bias": (4,)}
        return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}

    models = {name: token_network(state(seed)) for name, seed in EXPERTS.items()}
    examples = {name: [(np.arange(5) % 9, 0), (np.arange(3, 8), 1)] for name in models}
    record = gather_statistics(models, examples, tmp_path / "out", kinds=("sequential_gram",), progress=False)
    assert record["layers"] == ["embeddings", *(f"layer.{i}" for i in range(11))]


def test_experts_that_share_nothing_are_refused(tmp_path: Path) -> None:
    other = ToyPredictor("other", torch.nn.Sequential(torch.nn.Linear(6, 4).double()), toy(0).head)
    other.names = {name: f"x.{name}" for name in other.names}
    with pytest.raises(RequestError, match="share no linear layer"):
        gather_statistics(
            {"a": toy(0), "b": other},
            {name: toy_examples(0) for name in "ab"},
            tmp_path / "out",
            kinds=("sequential_gram",),
        )


def test_kinds_are_those_that_methods_ask_for() -> None:
    from consilience import methods

    asked = {kind for entry in methods() for kind in entry["aux"]}
    assert {*KINDS_OF_ONE, "sequential_gram"} <= set(KINDS) and asked & set(KINDS) >= {"fisher", "gram", "activation"}


KILLED = """
import sys
from pathlib import Path
from tests.tuning.toy import toy, toy_examples
from consilience.tuning import gather_statistics
kinds = ("fisher", "gram", "activation", "sensitivity")
gather_statistics(toy(0), toy_examples(0, 400), Path(sys.argv[1]), kinds=kinds, progress=False, state_every=0)
"""


@pytest.mark.slow
def test_real_kills_at_any_time_end_in_the_same_bytes(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]

    def start(out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", KILLED, str(out)], cwd=root)

    assert start(tmp_path / "whole").wait() == 0
    rng, out, kills = np.random.default_rng(0), tmp_path / "out", 0
    for _ in range(60):
        process = start(out)
        began = time.monotonic()
        while not (tmp_path / "out.partial/job.json").exists() and process.poll() is None:
            assert time.monotonic() < began + 120
            time.sleep(0.005)
        time.sleep(float(rng.uniform(0, 0.6)))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        if process.wait() == 0:
            break
    else:
        assert start(out).wait() == 0
    assert contents(out) == contents(tmp_path / "whole") and kills
    assert not os.path.lexists(tmp_path / "out.partial")
