"""Everything that can be made of retrieval experts, in one table: `python benchmarks/composition.py shared demo`.

shared: six public adapters of all-MiniLM-L6-v2 (`CONSILIENCE_DATA/../experts`) on their domains and five without an
expert. demo: the bundled adapters on their own six domains. Rows: base, experts, uniform average, task arithmetic tuned
on dev, the static merge that is best on dev, learners, a bundle with routers, the oracle. Every choice is made on dev
or training queries; test is measured once per row. Results go to build/composition/NAME.json (a run that was stopped
goes on); `python docs/generate.py` writes them into docs/composition.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from _experts import BASE, EXPERTS

from consilience.bench.experiments import Scores, Workbench
from consilience.bench.experiments.artefacts import gather_artefacts
from consilience.bench.experiments.composition import (
    CompositionRow,
    KeptScores,
    oracle_scores,
    routed_scores,
    summarise,
)
from consilience.bench.experiments.cost import measure_once
from consilience.bench.experiments.store import load_or_make
from consilience.bench.routing import fit_router, measure_router, routing_data
from consilience.data import Suite
from consilience.data.reserved import default_data_folder
from consilience.data.retrieval import RetrievalData
from consilience.data.suite import Domain
from consilience.merging.method import find_method
from consilience.models import load_encoder
from consilience.tuning.adamerging import adamerging
from consilience.tuning.atlas import atlas
from consilience.tuning.evolution import evolution
from consilience.tuning.expert_merging import expert_merging
from consilience.tuning.frank_wolfe import frank_wolfe
from consilience.tuning.self_positioning import self_positioning

ROOT = Path(__file__).parents[1]
OTHERS = ("software_debian", "ml_pmlr", "community_newsgroups", "news_agnews", "reason_arc")
CAPS = {"test": {"queries": 500, "documents": 600}, "dev": {"queries": 100, "documents": 200}}
QUICK = {"test": {"queries": 4, "documents": 8}, "dev": {"queries": 4, "documents": 8}}
SUM = (0.2, 0.3, 0.4, 0.5, 0.7, 1.0)  # scales of sums of task vectors
STATIC: dict[str, dict[str, tuple[float, ...]]] = {  # those that did best on the bundled experts (docs/methods.md)
    "regmean": {},
    "ties": {"lambda": (0.5, 0.7, 1.0)},
    "consensus": {"alpha": (0.3, 0.5)},
    "sce": {},
    "fisher": {},
    "breadcrumbs": {"lambda": (0.3, 0.4, 0.5)},
    "tsv": {"alpha": (0.5, 0.7, 1.0)},
}
PAIRS = 64  # training pairs of each domain for learners and statistics
ROUTED = 1000  # training queries of each domain for routers


def family(name: str, quick: bool, folder: Path) -> KeptScores:
    """Return the experts of a setting."""
    if name == "demo":
        domains = dict(Suite.open(ROOT / "examples/suite.yml").domains)
        experts = {domain: ROOT / "examples/experts" / domain for domain in domains}
        others: tuple[str, ...] = ()
    else:
        data = default_data_folder()
        experts = {domain: data.parent / "experts" / place for domain, place in EXPERTS.items()}
        others = OTHERS
        domains = {domain: Domain(RetrievalData.open(data / "retrieval" / domain)) for domain in (*experts, *others)}
    if quick:
        experts, others = dict(list(experts.items())[:2]), others[:1]
    kept = {domain: domains[domain] for domain in (*experts, *others)}
    caps = QUICK if quick else CAPS
    suite, dev = (
        Suite(
            f"{name} experts",
            {d: one for d, one in kept.items() if split in one.data.splits},
            max_tokens=64,
            **caps[split],
        )
        for split in ("test", "dev")
    )
    return KeptScores(suite, BASE, experts, dev=dev, folder=folder / "scores")


class Table:
    """The rows of one setting, written after each."""

    def __init__(self, name: str, quick: bool, out: Path) -> None:
        self.name, self.quick, self.out = name, quick, out
        self.family = family(name, quick, out / name)
        self.bench = Workbench(self.family, seed=0)
        self.rows: list[CompositionRow] = []
        self.routers: list[dict[str, Any]] = []
        self.started = time.time()

    def measure(self, state: Mapping[str, Any]) -> Scores:
        return self.bench.scores(dict(state), tasks=self.family.domains)

    def add(self, row: CompositionRow) -> None:
        """Keep a row and write what there is."""
        self.rows.append(row)
        print(f"{self.name}: {row.name}: {row.scores.only(self.bench.tasks).mean:.4f} {dict(row.chosen)}", flush=True)
        known = {row.name for row in self.rows}
        if not {"base", "oracle", "task_arithmetic"} <= known:
            return
        record = {"setting": self.name, "quick": self.quick, "caps": self.caps, "experts": [*self.bench.tasks]}
        record |= {"rows": summarise(self.rows, self.bench.tasks, reference="task_arithmetic")}
        record |= {"routers": self.routers, "n": self.rows[0].scores.n}
        (self.out / f"{self.name}.json").write_text(json.dumps(record, indent=1))

    @property
    def caps(self) -> Any:
        return QUICK if self.quick else CAPS

    def singles(self) -> None:
        """Base, experts and the oracle that knows the domain."""
        base = self.measure(self.bench.base)
        self.experts = {task: self.measure(self.bench.experts[task]) for task in self.bench.tasks}
        self.base = base
        self.add(CompositionRow("base", "base", base))
        for task, scores in self.experts.items():
            self.add(CompositionRow(task, "expert", scores))
        self.add(CompositionRow("oracle", "oracle", oracle_scores(self.experts, base)))

    def merges(self) -> None:
        """The uniform average, tuned task arithmetic, and the static merge that is best on dev."""
        self.add(CompositionRow("uniform", "merge", self.measure(self.bench.merge("linear"))))
        tuned = self.bench.tune("task_arithmetic", {"lambda": SUM[:2] if self.quick else SUM})
        chosen, trials = tuned.parameters, len(tuned.trials)
        scores = self.measure(tuned.state)
        self.add(CompositionRow("task_arithmetic", "merge", scores, tuned.merge_seconds / trials, None, chosen, trials))
        kinds = ["gram", "fisher"]
        gathered = gather_artefacts(self.bench, kinds, examples=PAIRS // 8 if self.quick else PAIRS, draws=1)
        best, tried = None, {}
        for method, grid in STATIC.items():
            given = {kind: gathered.aux[kind] for kind in find_method(method).aux}
            fixed = {"aux": given} if given else {}
            found = self.bench.tune(
                method, {key: values[:1] if self.quick else values for key, values in grid.items()}, **fixed
            )
            tried[method] = found.score
            print(f"{self.name}: dev {method} {found.score:.4f} {found.parameters}", flush=True)
            if best is None or found.score > best[1].score:
                best = method, found
        assert best is not None
        method, found = best
        facts = {"method": method, **{key: found.parameters[key] for key in STATIC[method]}}
        facts |= {"dev": {name: round(100 * score, 1) for name, score in tried.items()}}
        made = found.merge_seconds / len(found.trials)
        row = CompositionRow("best static", "merge", self.measure(found.state), made, None, facts, len(tried))
        self.add(row)

    def learners(self, only: list[str] | None) -> None:
        """Learn from training pairs of the experts' domains; none sees dev or test."""
        tasks, base = self.bench.tasks, self.bench.base
        count = 8 if self.quick else PAIRS
        examples = {task: self.family.examples(task, count) for task in tasks}
        models = {task: self.family.model(base, task) for task in tasks}
        experts, steps = self.bench.experts, 2 if self.quick else None
        batch = 4 if self.quick else 16

        def soft() -> Any:
            found = frank_wolfe(
                base, experts, models, examples, variant="soft", granularity="layer", iterations=1, batch=batch,
                learning_steps=steps or 40, learning_rate=0.01, learning_batch=batch, learning_loss="cross_entropy",
                scale=0.3,
            )  # fmt: skip
            return found.state, {"picks": found.picks()[:6]}, found.notices

        def hard() -> Any:
            found = frank_wolfe(base, experts, models, examples, iterations=steps or 10, batch=2 * batch)
            return found.state, {}, found.notices

        def placed() -> Any:
            found = self_positioning(base, experts, models, examples, steps=steps or 100, batch=2 * batch)
            return found.state, {"norm": round(found.norm, 3)}, found.notices

        def imitating() -> Any:
            found = expert_merging(
                base, experts, models, examples, start=0.3, batch=batch, accumulation=len(tasks), steps=steps or 40
            )
            return found.state(), {}, found.notices

        def certain() -> Any:
            found = adamerging(
                base, experts, models, examples, steps=steps or 40, learning_rate=0.01, batch=batch, batches=1,
                monitored=32,
            )  # fmt: skip
            return found.state(), {}, found.notices

        def scaled() -> Any:
            found = atlas(
                base, experts, models, examples, steps=steps or 60, batch=batch * len(tasks), learning_rate=0.01
            )
            return found.state(), {}, found.notices

        def evolved() -> Any:
            found = evolution(base, experts, models, examples, budget=12 if self.quick else 60, batch=2 * batch)
            weights = dict(zip(found.composition.names, found.values[:, 0].tolist(), strict=True))
            return found.state(), {name: round(value, 2) for name, value in weights.items()}, found.notices

        made: dict[str, Callable[[], Any]] = {
            "atlas": scaled,
            "evolution": evolved,
            "self-positioning": placed,
            "frank-wolfe, hard": hard,
            "frank-wolfe, soft": soft,
            "expert-merging": imitating,
            "adamerging": certain,
        }
        for name, learn in made.items():
            if only is None or name in only:
                self.learner(name, learn)

    def learner(self, name: str, learn: Callable[[], Any]) -> None:
        """Learn once and keep the state and its cost."""
        place = self.out / self.name / "learned" / name.replace(", ", "-").replace(" ", "-")
        facts = place.with_suffix(".json")

        def make() -> Any:
            spent = measure_once(learn)
            state, chosen, notices = spent.result
            cost = {"seconds": spent.cpu[0], "peak": spent.peak_bytes, "chosen": chosen, "notices": list(notices)}
            facts.write_text(json.dumps(cost))  # before the state is kept: a run that is stopped then makes both again
            return state

        state = load_or_make(place, {"learner": name, "quick": self.quick, "settings": self.bench.settings}, make)
        cost = json.loads(facts.read_text())
        scores = self.measure(state)
        row = (cost["seconds"], cost["peak"], cost["chosen"], 0, tuple(cost["notices"]))
        self.add(CompositionRow(name, "learner", scores, *row))

    def bundles(self) -> None:
        """Route every query to an expert, in whose space documents are, or to the base."""
        from consilience.bundles.creation import create_bundle

        names = (*self.bench.tasks, "base")
        encoder = load_encoder(BASE, max_tokens=64)
        place = self.out / self.name / "bundle"
        references = {task: str(self.family.folders[task]) for task in self.bench.tasks}
        bundle = create_bundle(place, BASE, references, residual="adapter", encodes="both")
        queries: dict[str, Any] = {split: self.family.queries(split) for split in ("dev", "test")}
        count = 8 if self.quick else ROUTED
        queries["train"] = {  # reason_arc has test queries alone: nothing is ever fitted to it
            name: [query for query, _ in self.family.examples(name, count)]
            for name, one in self.family.suite.domains.items()
            if "train" in one.data.splits
        }
        models = {**self.bench.experts, "base": self.bench.base}
        dev = {
            name: self.bench.scores(state, split="dev", tasks=list(queries["dev"])) for name, state in models.items()
        }
        test = {**self.experts, "base": self.base}
        seen = routing_data(encoder, queries["train"], "train", names)
        held, data = (
            routing_data(encoder, queries[split], split, names, {name: one.by_example for name, one in found.items()})
            for split, found in (("dev", dev), ("test", test))
        )
        known = self.bench.tasks
        made = {
            "centroid": fit_router(bundle, "centroid", seen.take(known), held),
            "logistic": fit_router(bundle, "logistic", seen, held),
            "perceptron": fit_router(bundle, "perceptron", seen, held),
        }
        for kind, router in made.items():
            report = measure_router(router, data)
            self.routers.append({"router": kind, "rows": report.rows()})
            self.add(CompositionRow(f"bundle, {kind} router", "bundle", routed_scores(router, data)))
        others = [name for name in self.family.domains if name not in known]
        if others:
            self.unseen(bundle, seen, held, data, known, others)

    def unseen(self, bundle: Any, seen: Any, held: Any, data: Any, known: Any, others: list[str]) -> None:
        """Every domain without an expert is new to the router that serves it: it learns the base from the others."""
        found: dict[str, Any] = {}
        for left in others:
            rest = [name for name in dict.fromkeys(seen.domains) if name != left]
            router = fit_router(bundle, "logistic", seen.take(rest), held.take(rest))
            found[left] = routed_scores(router, data).by_example[left]
        full = fit_router(bundle, "logistic", seen, held)
        found = {**routed_scores(full, data).only(known).by_example, **found}
        scores = Scores({name: found[name] for name in self.family.domains})
        self.add(CompositionRow("bundle, logistic router, domain unseen", "bundle", scores))


def main() -> None:
    """Measure the settings named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="*", default=["shared", "demo"], choices=["shared", "demo"])
    parser.add_argument("--quick", action="store_true", help="two experts and a few queries, for a smoke test")
    parser.add_argument("--learners", nargs="*", help="only these")
    parser.add_argument("--out", type=Path, default=ROOT / "build/composition")
    chosen = parser.parse_args()
    for name in chosen.settings:
        table = Table(name, chosen.quick, chosen.out)
        table.singles()
        table.merges()
        table.bundles()
        table.learners(chosen.learners)


if __name__ == "__main__":
    main()
