"""The machinery of experiments: caching, merging, tuning, intervals, verdicts; and the text family on tiny data."""

import json

import numpy as np
import pytest
import torch

from consilience.bench.experiments import (
    Options,
    Report,
    Scores,
    Workbench,
    compare,
    measure_cost,
    run,
)
from consilience.bench.experiments.store import read_state, write_state
from consilience.bench.experiments.tune import grid_points, local_search
from consilience.errors import DataError, LeakageError, RequestError, WorkError


class Toy:
    """Linear models on random points: the expert of a task is the task's own direction, found by a few steps."""

    name = "toy"
    tasks = ("a", "b", "c")

    def __init__(self, strength=1.0):
        self.settings = {"version": 1, "strength": strength}
        self.strength = strength
        self.made = []

    def base(self, seed):
        self.made.append(("base", seed))
        return {"w": torch.zeros(12), "steps": torch.tensor(3)}

    def expert(self, task, seed):
        self.made.append((task, seed))
        noise = torch.randn(12, generator=torch.Generator().manual_seed(seed)) * 0.05
        return {"w": self.strength * self._direction(task) + noise, "steps": torch.tensor(9)}

    def multitask(self, tasks, seed):
        return {"w": sum(self._direction(task) for task in tasks), "steps": torch.tensor(9)}

    def _direction(self, task):
        found = torch.zeros(12)
        found[4 * self.tasks.index(task) : 4 * self.tasks.index(task) + 4] = 1.0
        return found

    def scores(self, state, task, split):
        points = np.random.default_rng([self.tasks.index(task), split == "test"]).standard_normal((80, 12))
        right = points @ self._direction(task).numpy() > 0
        return ((points @ state["w"].numpy() > 0) == right).astype(np.float64)


@pytest.fixture
def bench(tmp_path):
    return Workbench(Toy(), seed=1, cache=tmp_path)


def test_experts_are_made_once_and_loaded_later(tmp_path):
    first, second = Toy(), Toy()
    made = Workbench(first, seed=1, cache=tmp_path)
    experts, base = made.experts, made.base
    assert sorted(first.made) == [("a", 1), ("b", 1), ("base", 1), ("c", 1)]
    again = Workbench(second, seed=1, cache=tmp_path)
    for task in Toy.tasks:
        assert torch.equal(again.experts[task]["w"], experts[task]["w"])
    assert again.base["steps"].dtype == torch.int64 and torch.equal(again.base["steps"], base["steps"])
    assert second.made == []


def test_other_settings_and_seeds_have_states_of_their_own(tmp_path):
    Workbench(Toy(), seed=1, cache=tmp_path).experts  # noqa: B018
    for other, seed in ((Toy(2.0), 1), (Toy(), 2)):
        Workbench(other, seed=seed, cache=tmp_path, tasks=["a"]).experts  # noqa: B018
        assert other.made == [("a", seed)]


def test_a_state_with_nan_is_not_kept(tmp_path):
    with pytest.raises(WorkError, match="w: "):
        write_state(tmp_path, {"w": torch.tensor([1.0, float("nan")])})
    write_state(tmp_path, {"w": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor([1, 2])})
    assert read_state(tmp_path)["w"].dtype == torch.bfloat16


def test_merge_is_the_librarys_merge(bench):
    merged = bench.merge("task_arithmetic", weight=0.5)
    expected = bench.base["w"] + 0.5 * sum(bench.task_vectors()[task]["w"] for task in Toy.tasks)
    assert torch.allclose(merged["w"], expected, atol=1e-6)
    assert torch.allclose(bench.shifted({"w": torch.ones(12)}, 2.0)["w"], torch.full((12,), 2.0))
    alone = bench.merge("task_arithmetic", tasks=["b"])
    assert torch.allclose(alone["w"], bench.experts["b"]["w"], atol=1e-6)
    assert alone["steps"] == 3  # integer buffers are the base's


def test_unknown_and_repeated_tasks_are_refused(tmp_path):
    with pytest.raises(RequestError, match="'aa'"):
        Workbench(Toy(), cache=tmp_path, tasks=["aa"])
    with pytest.raises(RequestError, match="each once"):
        Workbench(Toy(), cache=tmp_path, tasks=["a", "a"])


def test_scores_of_tasks_and_their_normalised_values(bench):
    merged = bench.scores(bench.merge("linear"))
    assert set(merged.by_task) == set(Toy.tasks) and merged.n == 240
    own = bench.expert_scores()
    normal = bench.normalised(merged)
    assert normal["a"] == pytest.approx(merged.by_task["a"] / own.by_task["a"])
    assert bench.relative(merged).by_task == pytest.approx(normal)
    assert bench.normalised(own) == dict.fromkeys(Toy.tasks, 1.0)
    assert own.mean > 0.9 > merged.mean > bench.base_scores().mean
    with pytest.raises(DataError, match="paired"):
        _ = merged - merged.only(["a"])


def test_tuning_keeps_the_first_maximum_and_counts_every_trial(bench):
    found = bench.tune("task_arithmetic", {"lambda_": [0.0, 1.0, 2.0]})
    assert [dict(trial.parameters) for trial in found.trials] == [{"lambda_": 0.0}, {"lambda_": 1.0}, {"lambda_": 2.0}]
    assert found.parameters == {"lambda_": 1.0}  # 2.0 gives the same signs, so the same score
    assert found.score == bench.scores(found.state, split="dev").mean
    worst = bench.tune("task_arithmetic", {"lambda_": [0.0, 1.0]}, objective=lambda scores: -scores.mean)
    assert worst.parameters == {"lambda_": 0.0}
    own = bench.tune(lambda scale: bench.shifted({"w": torch.ones(12)}, scale), {"scale": [1.0, -1.0]})
    assert own.parameters == {"scale": 1.0} and len(own.trials) == 2
    single = bench.tune(
        "task_arithmetic", {"weight": [{"a": 0.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "b": 0, "c": 0}]}, on=["a"]
    )
    assert single.parameters["weight"]["a"] == 1.0 and single.score == bench.expert_scores(split="dev").by_task["a"]


def test_nothing_is_tuned_on_test(bench):
    with pytest.raises(LeakageError, match="dev"):
        bench.tune("task_arithmetic", {"lambda_": [1.0]}, split="test")
    with pytest.raises(RequestError, match="no values for lambda_"):
        bench.tune("task_arithmetic", {"lambda_": []})


def test_search_starts_where_it_is_told_and_never_ends_below(bench):
    start = {"a": 1.0, "b": 0.2, "c": 0.2}
    found = bench.search("task_arithmetic", "weight", start, low=0.1, high=2.0, budget=12)
    assert found.trials[0].parameters == {"weight": start} and len(found.trials) == 12
    assert found.score >= found.trials[0].score
    values = [value for trial in found.trials for value in trial.parameters["weight"].values()]
    assert min(values) >= 0.1 and max(values) <= 2.0
    again = bench.search("task_arithmetic", "weight", start, low=0.1, high=2.0, budget=12)
    assert again.trials == found.trials


def test_local_search_finds_a_simple_optimum():
    tried = []

    def attempt(point):
        tried.append(-sum((value - 0.7) ** 2 for value in point))
        return tried[-1]

    local_search(attempt, [0.0, 1.0], low=0.0, high=1.0, budget=60, seed=3)
    assert len(tried) == 60 and max(tried) > -1e-2 > tried[0]
    assert grid_points({"a": [1, 2], "b": [3, 4]})[1] == {"a": 1, "b": 4}


def test_paired_intervals_over_examples_and_seeds():
    random = np.random.default_rng(0)
    good = [Scores({"t": (random.random(200) < 0.9).astype(float), "u": np.ones(50)}) for _ in range(3)]
    bad = [Scores({"t": (random.random(200) < 0.6).astype(float), "u": np.zeros(50)}) for _ in range(3)]
    found = compare(good, bad)
    assert found.difference == pytest.approx(np.mean(found.by_seed)) and (found.n, found.seeds) == (250, 3)
    assert 0.5 < found.low < found.difference < found.high < 0.8
    assert compare(good, good)[:3] == (0.0, 0.0, 0.0)
    assert compare(good, bad) == found  # the same draws every time
    alone = compare(good[0])
    assert alone.difference == good[0].mean and alone.seeds == 1
    # differences that every seed shares leave the interval to the examples; seeds that disagree widen it
    shift = [Scores({"t": np.full(100, value)}) for value in (-0.5, 0.0, 0.5)]
    wide = compare(shift, [Scores({"t": np.zeros(100)})] * 3)
    assert wide.low <= -0.3 and wide.high >= 0.3
    with pytest.raises(DataError, match="2 seeds and of 1"):
        compare(good[:2], bad[:1])


def test_verdicts_follow_intervals_and_means(tmp_path):
    report = Report("x", "X", out=tmp_path)
    ones, zeros = Scores({"t": np.ones(40)}), Scores({"t": np.zeros(40)})
    coin = Scores({"t": np.arange(40) % 2.0})
    assert report.difference("better", ones, coin).verdict == "holds"
    assert report.difference("better", zeros, coin).verdict == "does not hold"
    other = Scores({"t": np.roll(coin.by_example["t"], 1)})
    assert report.difference("equal", coin, other).verdict == "undecided"
    assert report.difference("not lower by 0.1", coin, other, margin=-0.1, decide="mean").verdict == "holds"
    assert report.difference("higher", coin, coin, decide="mean").verdict == "does not hold"


def test_report_writes_tables_verdicts_and_plain_data(tmp_path, capsys):
    report = Report("demo", "A title", source="arXiv 0000.00000", out=tmp_path / "demo", seeds=(0, 1))
    report.table([["one", 0.5, None], ["two", float("nan"), compare(Scores({"t": np.ones(3)}))]], ["m", "x", "y"], "T")
    report.note("A note.")
    report.claim("it fails", False, "because")
    report.finish()
    text = (tmp_path / "demo" / "report.md").read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    assert "| it fails | **does not hold** | because |" in text and "A note." in text and "| 0.5000 | –" in text
    record = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert record["claims"][0]["verdict"] == "does not hold" and record["seeds"] == [0, 1]
    assert record["tables"][0]["rows"][1][1] is None and record["tables"][0]["rows"][1][2]["n"] == 3
    with pytest.raises(RequestError, match="3 columns"):
        report.table([["one"]], ["m", "x", "y"])


def test_run_reads_the_command_line_and_a_failed_claim_is_no_error(tmp_path):
    seen = []

    def main(options: Options) -> None:
        seen.append((options.quick, options.seeds, options.pick(100, 5)))
        report = options.report("demo", "Demo")
        assert [bench.seed for bench in options.workbenches(Toy())] == list(options.seeds)
        report.claim("never", False)
        report.finish(show=False)

    assert run(main, seeds=(0, 1), arguments=["--out", str(tmp_path)]) == 0
    assert run(main, seeds=(0, 1), arguments=["--quick", "--out", str(tmp_path)]) == 0
    assert run(main, arguments=["--seeds", "5,7", "--out", str(tmp_path)]) == 0
    assert seen == [(False, (0, 1), 100), (True, (0,), 5), (False, (5, 7), 100)]

    def broken(options: Options) -> None:
        raise DataError("no data here")

    assert run(broken, arguments=[]) == 2
    with pytest.raises(SystemExit):
        run(main, arguments=["--seeds", "1,1"])


def test_cost_counts_time_and_memory():
    cost = measure_cost(lambda: np.ones(8_000_000).sum(), repeats=2)
    assert cost.result == 8_000_000 and len(cost.wall) == len(cost.cpu) == 2 and cost.seconds > 0 and cost.spread >= 0
    assert cost.peak_bytes is None or cost.peak_bytes > 40_000_000


WORDS = {"animals": ("dog", "cat", "horse", "bird"), "law": ("court", "tax", "judge", "contract")}


def _write_set(folder, labels, flipped=False):
    import pyarrow as pa
    from pyarrow import parquet

    rows = []
    for index in range(120):
        label = index % 2
        word = WORDS[("animals", "law")[label != flipped]][index // 2 % 4]
        rows.append((f"{word} number {index} of {labels[0]}", label, ("train", "dev", "test")[min(index // 40, 2)]))
    folder.mkdir(parents=True)
    texts, numbers, splits = zip(*rows, strict=True)
    parquet.write_table(
        pa.table({"text": list(texts), "label": pa.array(numbers, pa.int16()), "split": list(splits)}),
        folder / "data.parquet",
    )
    (folder / "labels.json").write_text(json.dumps(labels))


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    from consilience.bench.experiments.text import TextFamily

    place = tmp_path_factory.mktemp("text")
    _write_set(place / "sets" / "topic", ["animal", "law"])
    _write_set(place / "sets" / "reverse", ["court", "beast"], flipped=True)
    return TextFamily(
        data=place / "sets",
        tasks=("topic", "reverse"),
        layers=1,
        max_tokens=10,
        head_examples=8,
        train_examples=32,
        steps=4,
        batch=8,
        cache=place / "cache",
    )


def test_text_experts_gain_through_their_frozen_heads(family):
    bench = Workbench(family, seed=0, cache=family.cache)
    before, after = bench.base_scores(), bench.expert_scores()
    assert set(after.by_task) == {"topic", "reverse"} and after.n == 80
    assert after.mean >= before.mean and after.mean > 0.8
    assert not any("word_embeddings" in name for name in bench.base)
    moved = [task for task, vector in bench.task_vectors().items() if sum(v.abs().sum() for v in vector.values()) > 0]
    assert moved == ["topic", "reverse"]
    assert bench.scores(bench.base).by_task == before.by_task  # experts leave no trace in the shared encoder
    name = "encoder.layer.0.output.dense.bias"
    assert not torch.equal(family.expert("topic", 1)[name], bench.experts["topic"][name])  # another seed
    assert torch.equal(family.expert("topic", 0)[name], bench.experts["topic"][name])  # the same again


def test_text_training_never_sees_held_out_texts(family):
    held_out = {
        text for held in family.sets.values() for split in ("dev", "test") for text in held.examples(split).texts
    }
    for task in family.tasks:
        texts = family.training_texts(task, 0)
        assert len(texts) == 32 and not held_out & set(texts.texts)


def test_text_multitask_and_missing_data(family, tmp_path):
    from consilience.bench.experiments.text import TextFamily

    state = family.multitask(("topic", "reverse"), 0)
    assert set(state) == set(family.base(0))
    with pytest.raises(DataError, match="CONSILIENCE_DATA"):
        TextFamily(data=tmp_path, tasks=("topic",))
    with pytest.raises(RequestError, match="topik"):
        family.head("topik")


def test_text_models_give_statistics_of_the_tuned_weights(family):
    from consilience.bench.experiments.artefacts import gather_artefacts

    bench = Workbench(family, seed=0, cache=family.cache)
    found = gather_artefacts(bench, ["fisher", "gram"], examples=4, draws=1)
    for task in bench.tasks:
        assert set(found.aux["fisher"][task]) == set(bench.base)
    merged = bench.merge("regmean", aux={"gram": found.aux["gram"]})
    assert bench.scores(merged).n == 80
    merged = bench.merge("fisher", aux={"fisher": found.aux["fisher"]})
    assert bench.scores(merged).n == 80
