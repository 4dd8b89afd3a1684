"""Writes the generated blocks of README and docs: run `python docs/generate.py` after changing a method or measuring.

A block stands between `<!-- NAME -->` and `<!-- /NAME -->`; a test compares `methods` with what this would write. The
results of `make demo` and `make bench` are taken where they are in `build/`; the picture needs Chromium.
"""

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from consilience import methods
from consilience.bench.bootstrap import paired_bootstrap

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "build/bench/merge_speed.json"
DEMO = ROOT / "build/demo"
COMPARED = ROOT / "build/methods"
COMPOSED = ROOT / "build/composition"
REPRODUCED = ROOT / "build/reproductions"
SEARCHED = ROOT / "build/bench/retrieval_quality"


def methods_block() -> str:
    """Return the table of methods from their own signatures and documentation."""
    head = "| method | base | data | statistics | reads | how | use it for | not for |"
    lines = [head, "|" + "---|" * 8]
    for entry in methods():
        data = ", ".join(f"`{kind}`" for kind in entry["aux"]) or "none"
        how = "whole matrices" if entry["matrix"] else "element by element"
        scope = {"none": "none", "tensor": "of the tensor", "global": "of the model"}[entry["scope"]]
        name = entry["name"]
        lines.append(
            f"| [`{name}`](#{name}) | {entry['base']} | {data} | {scope} | {entry['passes']} | {how} | "
            f"{entry['use']} | {entry['avoid']} |"
        )
    return "\n".join(lines)


def details_block() -> str:
    """Return one section per method: its documentation, its parameters, what it promises."""
    parts = []
    star = "\\*"
    for entry in methods():
        text = re.sub(r"\n(Use|Avoid): ", r"\n\n**\1**: ", entry["documentation"])
        text = re.sub(r"\nSource: ", "\n**Source**: ", text)
        text = re.sub(r"(?m)^    (?=\S)", "      ", text)  # formulas stay in code blocks
        rows = [
            f"| `{name}`{star if p['per_expert'] else ''} | {p['type']} | "
            f"{'required' if p['required'] else _shown(p['default'])} |"
            for name, p in entry["parameters"].items()
        ]
        table = "\n".join(["| parameter | value | default |", "|---|---|---|", *rows]) if rows else "No parameters."
        laws = ", ".join(entry["laws"]) or "none"
        parts.append(f"### {entry['name']}\n\n{text}\n\n{table}\n\nLaws: {laws}.")
    return "\n\n".join(parts)


def _shown(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default) if default != "" else "none"


def demo_block(evaluation: dict) -> str:
    """Return the means of the demo: base, best expert, uniform average, candidates, oracle."""
    table = evaluation["table"]
    by_value = sorted(table, key=lambda name: -table[name]["mean"]["value"])
    best = next(name for name in by_value if table[name]["kind"] == "expert")
    lines = ["| model | mean nDCG@10 x 100 | difference to the base, 95 % interval |", "|---|---|---|"]
    for name in [n for n in table if table[n]["kind"] != "expert" or n == best]:
        mean = table[name]["mean"]
        label = f"best single expert ({name})" if name == best else name
        gain = f"{mean['difference_to_base']:+.1f} ({mean['low']:+.1f} to {mean['high']:+.1f})"
        lines.append(f"| {label} | {mean['value']:.1f} | {'' if table[name]['kind'] == 'base' else gain} |")
    domains = len(evaluation["documents"])
    size = f"{next(iter(table.values()))['mean']['n']} test queries in {domains} domains"
    choice = evaluation["oracle_chosen_on"]
    return (
        "\n".join(lines)
        + f"\n\n{size}, each searching {max(evaluation['documents'].values())} documents. `oracle` takes the "
        f"best of base and experts in every domain, chosen on the {choice} split."
    )


def take_picture() -> None:
    """Photograph the head of the demo's report."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        return
    target = ROOT / "docs/images/report.png"
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1180,1230"]
        place = [f"--user-data-dir={profile}", f"--screenshot={target}", (DEMO / "report.html").as_uri()]
        subprocess.run([browser, *options, *place], check=True, capture_output=True)


def speed_block(measured: dict) -> str:
    """Return the table of `make bench`; what is measured and how stands in benchmarks/merge_speed.py."""
    by = {(row["recipe"], row["tool"]): row for row in measured["rows"]}
    lines = ["| recipe | tool | CPU s | wall s | private memory, MB | CPU / floor |", "|---|---|---|---|---|---|"]
    for (recipe, tool), row in by.items():
        memory = f"{row['private'] / 1e6:.0f}"
        lines.append(
            f"| {recipe} | {tool} | {row['cpu']:.2f} | {row['wall']:.2f} | {memory} | {row['over_floor']:.1f} |"
        )
    start, machine = measured["start_up"], measured["machine"]
    compiling = max(measured["compile_cpu"].values())
    setting = (
        f"{measured['parameters'] / 1e9:.1f} billion parameters in bfloat16, base and three experts, on "
        f"{machine['processors']} processors ({machine['processor']}); medians of whole processes "
        "(one run where it takes over 60 CPU s) with "
        f"warm kernels (compiling them costs up to {compiling:.0f} CPU s once). `--help` takes {start['--help']:.2f}, "
        f"`import consilience` {start['import']:.2f} CPU s. Compare CPU seconds: other work ran on the machine "
        f"(load {machine['load'][0]:.1f}). `dare_ties` rescales as mergekit does, `inverse` as the paper."
    )
    return "\n".join([setting, "", *lines])


def replace_block(text: str, name: str, content: str) -> str:
    """Return the text with the block `name` replaced."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"no block {name!r}")
    return pattern.sub(lambda found: found[1] + content + "\n" + found[2], text)


def block_of(text: str, name: str) -> str:
    """Return what stands in the block `name`."""
    return text.partition(f"<!-- {name} -->\n")[2].partition(f"<!-- /{name} -->")[0]


def compared_block(found: dict) -> str:
    """Return the measured comparison: one line per method, one column per set of experts."""
    lines, skipped = [], []
    by = {name: {row["method"]: row for row in record["rows"]} for name, record in found.items()}
    first = next(iter(by.values()))
    order = sorted(first, key=lambda method: -first[method].get("score", -1))
    for name, record in found.items():
        n = next(row["n"] for row in record["rows"] if "n" in row)
        lines.append(f"- {name}: {record['metric']} x 100 on {record['setting']} ({n} test examples in all)")
    head = " | ".join(f"{name} | against uniform, 95 % | chosen on dev | merge, s" for name in found)
    lines += ["", f"| method | {head} |", "|---|" + "---|---|---|---|" * len(found)]
    for method in order:
        cells = [_cells(by[name].get(method)) for name in found]
        if all(cell is None for cell in cells):
            skipped.append(f"`{method}` ({first[method]['reason']})")
            continue
        shown = method if first[method].get("reference") else f"`{method}`"
        lines.append(f"| {shown} | " + " | ".join(cell or "not measured | | |" for cell in cells) + " |")
    if skipped:
        lines += ["", f"Not in the table: {', '.join(skipped)}."]
    return "\n".join(lines)


def composed_block(record: dict) -> str:
    """Return everything that was made of one set of experts: one line per model."""
    rows = sorted(record["rows"], key=lambda row: -row["with_expert"])
    others = "without_expert" in rows[0]
    n = rows[0]["against_base"]["n"]
    caps = record["caps"]["test"]
    head = (
        "| model | domains with an expert | against the base | against tuned task arithmetic | of the oracle's gain |"
    )
    head += " domains without | against the base |" if others else ""
    lines = [
        f"{len(record['experts'])} domains with an expert, {n} test queries, at most {caps['queries']} a domain, each "
        f"searching {caps['documents']} documents or more; nDCG@10 x 100; paired 95 % intervals in brackets.",
        "",
        f"{head} CPU s | memory, MB | chosen |",
        "|---|---|---|---|---|" + ("---|---|" if others else "") + "---|---|---|",
    ]
    for row in rows:
        cells = [row["name"], f"{100 * row['with_expert']:.1f}", _gain(row["against_base"])]
        cells += [_gain(row["against_reference"]), f"{row['share']:.0%}"]
        if others:
            cells += [f"{100 * row['without_expert']:.1f}", _gain(row["without_against_base"])]
        peak = row["peak_bytes"]
        chosen = {key: value for key, value in row["chosen"].items() if key not in ("dev", "picks")}
        cells += [
            "" if row["seconds"] is None else f"{row['seconds']:.0f}",
            "" if peak is None else f"{peak / 1e6:.0f}",
        ]
        cells.append(", ".join(f"{key} {value}" for key, value in chosen.items()))
        lines.append("| " + " | ".join(cells) + " |")
    for router in record["routers"]:
        facts = "; ".join(f"{name}: {value}" for name, value in router["rows"])
        lines += ["", f"Router `{router['router']}` on the test queries of all domains: {facts}."]
    for row in rows:
        lines += ["", *(f"{row['name']}: {notice}." for notice in row["notices"])] if row["notices"] else []
    return "\n".join(lines)


def _gain(found: dict) -> str:
    return f"{100 * found['difference']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"


def searched_block(found: dict) -> str:
    """Return how well every way of searching finds: means over the sets, then every set."""
    ways = list(next(iter(found.values()))["ways"])
    main = {name: "recall@2" if name.startswith("limit") else "nDCG@10" for name in found}
    means = {way: sum(one["ways"][way][main[name]] for name, one in found.items()) / len(found) for way in ways}
    usual = {name: one for name, one in found.items() if main[name] == "nDCG@10"}
    strata = [name for name, one in usual.items() for _ in one["values"][ways[0]]]

    def against(way: str, other: str) -> str:
        first, second = ([v for one in usual.values() for v in one["values"][name]] for name in (way, other))
        gain = paired_bootstrap(first, second, strata=strata)
        return "" if way == other else f"{100 * gain[0]:+.1f} [{100 * gain[1]:+.1f}, {100 * gain[2]:+.1f}]"

    def worst(way: str) -> str:
        parts = ("text", "minilm")
        gaps = {
            name: one["ways"][way][main[name]] - max(one["ways"][part][main[name]] for part in parts)
            for name, one in found.items()
        }
        name = min(gaps, key=gaps.__getitem__)
        return f"{100 * gaps[name]:+.1f} ({name})"

    count = sum(one["queries"] for one in found.values())
    lines = [
        f"{len(found)} sets, {count} queries; mean over the sets, x 100; intervals: 95 %, paired, without LIMIT.",
        "",
    ]
    lines += ["| way | mean | against minilm | against text | worst set against the better of text and minilm |"]
    lines += ["|---|---|---|---|---|"]
    for way in sorted(ways, key=lambda way: -means[way]):
        row = (way, f"{100 * means[way]:.1f}", against(way, "minilm"), against(way, "text"), worst(way))
        lines.append("| " + " | ".join(row) + " |")
    lines += ["", "| set | queries | documents | measure | " + " | ".join(ways) + " |", "|---" * (len(ways) + 4) + "|"]
    for name, one in found.items():
        shown = f"{name}, judged by people" if one["judged by people"] else name
        cells = [f"{100 * one['ways'][way][main[name]]:.1f}" for way in ways]
        head = (shown, str(one["queries"]), str(one["documents"]), main[name])
        lines.append("| " + " | ".join([*head, *cells]) + " |")
    people = [name for name, one in found.items() if one["judged by people"]]
    if people:
        lines += ["", "Judged by people, hybrid against minilm, each with its interval:", ""]
        for name in people:
            gain = found[name]["ways"]["hybrid"]["difference"]
            shown = f"{100 * gain[0]:+.1f} [{100 * gain[1]:+.1f}, {100 * gain[2]:+.1f}]"
            lines.append(f"- {name}: {shown}, n = {found[name]['queries']}")
    return "\n".join(lines)


def verdicts_block(reports: list[dict], before: str = "") -> str:
    """Return every claim of every reproduction with its verdict, and which have not been run in full.

    before: the block as it was; what has not been run again on this machine stays as it is there.
    """
    files = sorted(path.stem for path in (ROOT / "reproductions").glob("*.py") if path.stem != "__init__")
    slugs = [name.replace("_", "-") for name in files]
    parts = {
        found[1]: found[0].strip() for found in re.finditer(r"^### (\S+)\n(?:(?!^### |^Written, ).*\n)*", before, re.M)
    }
    for report in reports:
        cost = f"{len(report['seeds'])} seeds, {report['cpu_seconds'] / 60:.0f} CPU minutes"
        lines = [f"### {report['slug']}", "", f"{report['title']} ({report['source']}); {cost}.", ""]
        lines += ["| claim | verdict | numbers |", "|---|---|---|"]
        lines += [f"| {c['text']} | {c['verdict']} | {c['detail'].replace('|', '/')} |" for c in report["claims"]]
        parts[report["slug"]] = "\n".join(lines)
    written = [parts[slug] for slug in slugs if slug in parts]
    if missing := [slug for slug in slugs if slug not in parts]:
        written.append(f"Written, and not yet run in full: {', '.join(missing)}.")
    return "\n\n".join(written)


def _cells(row: dict | None) -> str | None:
    if row is None or "score" not in row:
        return None
    gain, low, high = (100 * row[key] for key in ("difference", "low", "high"))
    chosen = ", ".join(f"{key} {value}" for key, value in row["parameters"].items())
    seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
    return f"{100 * row['score']:.1f} | {gain:+.1f} ({low:+.1f} to {high:+.1f}) | {chosen} | {seconds}"


def generated(text: str) -> str:
    """Return the page of methods with what follows from their files."""
    return replace_block(replace_block(text, "methods", methods_block()), "details", details_block())


def main() -> None:
    """Rewrite the blocks in place."""
    page = ROOT / "docs/methods.md"
    text = generated(page.read_text())
    results = {path.stem: json.loads(path.read_text()) for path in sorted(COMPARED.glob("*.json"), reverse=True)}
    if results:
        text = replace_block(text, "compared", compared_block(results))
    page.write_text(text)
    page = ROOT / "docs/composition.md"
    for path in sorted(COMPOSED.glob("*.json")):
        record = json.loads(path.read_text())
        if not record["quick"]:
            page.write_text(replace_block(page.read_text(), path.stem, composed_block(record)))
    reports = [json.loads(path.read_text()) for path in sorted(REPRODUCED.glob("*/report.json"))]
    if reports := [report for report in reports if not report["quick"]]:
        page = ROOT / "docs/reproductions.md"
        text = page.read_text()
        page.write_text(replace_block(text, "verdicts", verdicts_block(reports, block_of(text, "verdicts"))))
    page = ROOT / "docs/retrieval-quality.md"
    for block, folder in (("searched", SEARCHED), ("searched-large", SEARCHED.with_name(f"{SEARCHED.name}_large"))):
        if found := {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}:
            page.write_text(replace_block(page.read_text(), block, searched_block(found)))
    readme = ROOT / "README.md"
    if (DEMO / "evaluation.json").is_file():
        evaluation = json.loads((DEMO / "evaluation.json").read_text())
        readme.write_text(replace_block(readme.read_text(), "demo", demo_block(evaluation)))
        take_picture()
    if MEASURED.is_file():
        readme.write_text(replace_block(readme.read_text(), "speed", speed_block(json.loads(MEASURED.read_text()))))


if __name__ == "__main__":
    main()
