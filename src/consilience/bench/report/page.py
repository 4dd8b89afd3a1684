"""Put the page together: claim, tiles, table, pictures, recipes, timings, provenance."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files

from consilience.bench.bootstrap import Difference
from consilience.bench.evaluation import MEAN, Evaluation, Row
from consilience.bench.report.bars import gain_bars, gain_range
from consilience.bench.report.colours import theme_css
from consilience.bench.report.front import front_picture
from consilience.bench.report.heatmap import heat_map, legend
from consilience.bench.table import PARTIAL_WORDS, oracle_label, partial_mark, signed
from consilience.tuning.pareto import ParetoFront

__all__ = ["render"]


def render(
    evaluation: Evaluation, *, title: str = "Consilience: evaluation", fronts: Sequence[ParetoFront] = ()
) -> str:
    """Return the whole page as one string of HTML; texts of users are escaped, nothing external is referenced.

    fronts: trade-offs to show beside the table.
    """
    style = files(__package__).joinpath("style.css").read_text(encoding="utf-8") + theme_css()
    sections = [
        _head(evaluation, title),
        _tiles(evaluation),
        _section(
            "Every model in every domain", _heat_text(evaluation), _scroll(heat_map(evaluation)), _scroll(legend())
        ),
        _section("What each model gains and loses", _bars_text(evaluation), _panels(evaluation)),
        _section("The numbers", _table_text(evaluation), _scroll(_table(evaluation)), _also(evaluation)),
        *(_front(front, evaluation.metric) for front in fronts),
        _recipes(evaluation),
        _section(
            "Cost", "Seconds are spent encoding; texts found in the cache or seen before cost none.", _cost(evaluation)
        ),
        _section("Where the numbers come from", "", _protocol(evaluation), _provenance(evaluation)),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}\n</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in sections if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(heading: str, words: str, *content: str) -> str:
    lead = f'<p class="lead">{words}</p>' if words else ""
    return f"<section>\n<h2>{escape(heading)}</h2>\n{lead}{''.join(content)}\n</section>"


def _front(front: ParetoFront, metric: str) -> str:
    spent = front.evaluations
    words = (
        f"{spent['search']} evaluations on dev queries to find it, {spent['front']} to measure its points there; what "
        f"is shown was measured on held-out queries ({escape(metric)}, 95 % intervals). Squares: the base and each "
        "expert alone. No point of the front is better for all tasks on dev; held-out values may order them otherwise."
    )
    head = f"<thead><tr>{_cells([f'weight of {escape(name)}' for name in front.experts], 'th')}"
    head += f"{_cells([escape(task) for task in front.tasks], 'th')}</tr></thead>"
    lines = []
    for point in front.points:
        values = [f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]" for value, low, high in point.held_out or ()]
        lines.append(f"<tr>{_cells([*(f'{weight:.2f}' for weight in point.coefficients), *values])}</tr>")
    table = f'<table class="scores">{head}<tbody>{"".join(lines)}</tbody></table>'
    data = b64encode(front_picture(front, metric=metric).encode()).decode()  # an image: its style stays its own
    what = f"Pareto front of {', '.join(front.experts)} on {', '.join(front.tasks)}"
    picture = f'<img class="front" src="data:image/svg+xml;base64,{data}" alt="{escape(what)}">'
    return _section(f"Trade-offs: {', '.join(front.tasks)}", words, _scroll(picture), _scroll(table))


def _scroll(content: str) -> str:
    return f'<div class="scroll" tabindex="0">{content}</div>'


def _cells(values: Iterable[str], tag: str = "td") -> str:
    return "".join(f"<{tag}>{value}</{tag}>" for value in values)


def _head(evaluation: Evaluation, title: str) -> str:
    failures = [
        f"<li><strong>{escape(row.name)}</strong>, {escape(domain)}: {escape(why)}</li>"
        for row in evaluation.rows
        for domain, why in row.failures.items()
    ]
    many = "1 measurement" if len(failures) == 1 else f"{len(failures)} measurements"
    failed = f'<div class="warning"><p>{many} failed:</p><ul>{"".join(failures)}</ul></div>'
    notes = "".join(f'<p class="warning">{escape(note)}</p>' for note in evaluation.notes)
    facts = (
        f"{len(evaluation.domains)} domains · {evaluation.n()} queries · split {escape(evaluation.split)} · "
        f"{escape(evaluation.metric)}"
    )
    return (
        f'<header>\n<p class="facts">{facts}</p>\n<h1>{escape(title)}</h1>\n'
        f'<p class="claim">{escape(evaluation.claim())}</p>\n{failed if failures else ""}{notes}</header>'
    )


def _tiles(evaluation: Evaluation) -> str:
    chosen = [
        (evaluation.base, "base"),
        (evaluation.best(("expert",)), "best single expert"),
        (evaluation.best(("baseline",)), "uniform average"),
        (evaluation.best(("candidate",)), "best candidate"),
        (evaluation.best(("bundle",)), "bundle with a router"),
        (evaluation.best(("oracle",)), "oracle, best per domain"),
    ]
    best = evaluation.best(("base", "expert", "baseline", "candidate", "bundle"))
    tiles = []
    for name, words in chosen:
        if name is None:
            continue
        gain = evaluation.difference(name)
        change = "" if name == evaluation.base else f'<p class="change">{_gain_words(gain)}</p>'
        kind = "tile winner" if name == best else "tile"
        tiles.append(
            f'<div class="{kind}"><p class="what">{escape(words)}</p>'
            f'<p class="number">{evaluation.value(name):.1f}</p><p class="who">{escape(name)}</p>{change}</div>'
        )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _gain_words(gain: Difference) -> str:
    return f"{signed(gain.difference)} [{signed(gain.low)}, {signed(gain.high)}]"


def _heat_text(evaluation: Evaluation) -> str:
    return (
        f"{escape(evaluation.metric)} × 100; below it the difference to {escape(evaluation.base)}, which sets the "
        "colour (blue gains, orange loses). ● marks a paired 95 % interval that excludes 0."
    )


def _bars_text(evaluation: Evaluation) -> str:
    return (
        f"Paired difference to {escape(evaluation.base)} in points, with 95 % bootstrap intervals over queries "
        f"({evaluation.resamples:,} resamples, stratified by domain for the mean). Hollow: the interval includes 0."
    )


def _table_text(evaluation: Evaluation) -> str:
    text = (
        "Each cell: value, difference to the base with its 95 % interval. n is the number of queries behind every "
        "number of a column."
    )
    if any(row.failures for row in evaluation.rows):
        text += f" {PARTIAL_WORDS}"
    if evaluation.oracle_chosen_on:
        text += f" Oracle: {escape(oracle_label(evaluation.oracle_chosen_on, evaluation.split))}."
    return text


def _panels(evaluation: Evaluation) -> str:
    merged = [row.name for kind in ("candidate", "bundle", "baseline") for row in evaluation.rows if row.kind == kind]
    experts = [row.name for row in evaluation.rows if row.kind == "expert"]
    if not merged and not experts:
        return "<p>Only the base was measured.</p>"
    scale = gain_range(evaluation, merged + experts)
    shown = _figures(evaluation, merged, scale)
    folded = "" if merged else " open"
    if experts:
        figures = _figures(evaluation, experts, scale)
        shown += f"<details{folded}><summary>The experts alone ({len(experts)})</summary>{figures}</details>"
    return shown


def _figures(evaluation: Evaluation, names: list[str], scale: tuple[float, float]) -> str:
    figures = [
        f"<figure><figcaption>{_name(evaluation.row(name))}</figcaption>{gain_bars(evaluation, name, scale)}</figure>"
        for name in names
    ]
    return f'<div class="panels">{"".join(figures)}</div>'


def _name(row: Row) -> str:
    stamps = "".join(f' <span class="stamp">{escape(stamp)}</span>' for stamp in row.stamps)
    kind = f' <span class="kind">{row.kind}</span>' if row.kind != row.name else ""
    return f"{escape(row.name)}{kind}{stamps}"


def _table(evaluation: Evaluation) -> str:
    heads = [
        f'<th scope="col">{escape(domain)}<br><span class="n">n = {evaluation.n(domain)}</span></th>'
        for domain in evaluation.domains
    ]
    heads.append(f'<th scope="col">{MEAN}<br><span class="n">n = {evaluation.n()}</span></th>')
    lines = []
    for row in evaluation.rows:
        cells = [_table_cell(evaluation, row.name, domain) for domain in (*evaluation.domains, None)]
        lines.append(
            f'<tr class="{row.kind}"><th scope="row">{_name(row)}</th>{"".join(cells)}<td>{len(row.failures)}</td></tr>'
        )
    head = f'<thead><tr><th scope="col">model</th>{"".join(heads)}<th scope="col">failed</th></tr></thead>'
    return f'<table class="scores">{head}<tbody>{"".join(lines)}</tbody></table>'


def _table_cell(evaluation: Evaluation, name: str, domain: str | None) -> str:
    value = evaluation.value(name, domain)
    if math.isnan(value):
        return "<td>failed</td>"
    gain = evaluation.difference(name, domain)
    chosen = evaluation.row(name).chosen.get(domain or "")
    below = f'<br><span class="n">{escape(chosen)}</span>' if chosen else ""
    if name == evaluation.base:
        return f"<td><b>{value:.1f}</b></td>"
    mark = partial_mark(evaluation, name, domain)
    if mark:
        mark += f' <span class="n">n = {evaluation.n(domain, name)}</span>'
    words = _gain_words(gain).replace(" [", "<br>[", 1)
    sure = ' class="sure"' if gain.excludes_zero else ""
    return f'<td{sure}><b>{value:.1f}{mark}</b><br><span class="gain">{words}</span>{below}</td>'


def _also(evaluation: Evaluation) -> str:
    """Return the further metrics (their means over domains) as a folded table."""
    metrics = list(dict.fromkeys(metric for row in evaluation.rows for metric in row.also))
    if not metrics:
        return ""
    lines = []
    for row in evaluation.rows:
        cells = []
        for metric in metrics:
            values = row.also.get(metric, {}).values()
            cells.append(f"{100 * sum(values) / len(values):.1f}" if values else "–")
        lines.append(
            f'<tr><th scope="row">{escape(row.name)}{partial_mark(evaluation, row.name, None)}</th>{_cells(cells)}</tr>'
        )
    head = (
        f'<tr><th scope="col">mean over domains</th>{"".join(f"<th scope=col>{escape(m)}</th>" for m in metrics)}</tr>'
    )
    table = f'<table class="plain"><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table>'
    return f"<details><summary>Other metrics ({escape(', '.join(metrics))})</summary>{table}</details>"


def _recipes(evaluation: Evaluation) -> str:
    shown = [
        f"<details{' open' if index == 0 else ''}><summary>{_name(row)}</summary>"
        f"<pre><code>{escape(row.recipe)}</code></pre></details>"
        for index, row in enumerate(row for row in evaluation.rows if row.recipe)
        if row.recipe
    ]
    return _section("Recipes", "Run one with <code>consilience merge</code>.", *shown) if shown else ""


def _cost(evaluation: Evaluation) -> str:
    lines = [
        f'<tr><th scope="row">{_name(row)}</th>'
        + _cells(
            [
                f"{row.seconds:.1f}",
                f"{row.encoded:,}",
                f"{row.encoded / row.seconds:.0f}" if row.seconds else "–",
                f"{row.reused:,}",
            ]
        )
        + "</tr>"
        for row in evaluation.rows
        if row.kind != "oracle"
    ]
    head = "".join(
        f'<th scope="col">{word}</th>' for word in ("model", "seconds", "texts encoded", "texts/s", "reused")
    )
    table = f'<table class="plain"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    spent = evaluation.provenance.get("timings", {})
    words = ", ".join(f"{escape(str(key).replace('_', ' '))} {float(value):.1f}" for key, value in spent.items())
    return _scroll(table) + (f"<p>In all: {words}.</p>" if words else "")


def _protocol(evaluation: Evaluation) -> str:
    suite = evaluation.suite
    prompts = suite.get("prompts") or {}
    facts = {
        "suite": suite.get("name", ""),
        "metric": ", ".join([evaluation.metric, *suite.get("also", [])]),
        "split": evaluation.split,
        "most queries per domain": suite.get("queries") or "all",
        "documents per domain": ", ".join(f"{domain} {count}" for domain, count in evaluation.documents.items()),
        "longest input": f"{suite['max_tokens']} tokens" if suite.get("max_tokens") else "the model's own limit",
        "prompts": ", ".join(f"{key}: {value!r}" for key, value in prompts.items()) or "the model's own, if any",
        "similarity": f"{suite.get('similarity', 'cosine')}, exact search in float32; ties keep document order",
        "intervals": f"paired bootstrap, {evaluation.resamples} resamples, percentile 95 %, seed {evaluation.seed}",
        "oracle": oracle_label(evaluation.oracle_chosen_on, evaluation.split)
        if evaluation.oracle_chosen_on
        else "none",
        "transductive models": ", ".join(row.name for row in evaluation.rows if "transductive" in row.stamps) or "none",
        "leakage": "consilience train leaves out dev, test and reserved queries; unknown for models trained elsewhere",
    }
    notes = [
        f"{domain}: {note}" for domain, entry in suite.get("domains", {}).items() for note in entry.get("notes", [])
    ]
    if notes:
        facts["data notes"] = "; ".join(notes)
    return _facts(facts)


def _provenance(evaluation: Evaluation) -> str:
    found = evaluation.provenance
    facts: dict[str, object] = {key: found[key] for key in ("created", "suite_hash", "machine") if key in found}
    for key, value in found.get("versions", {}).items():
        facts[f"{key} version"] = value
    for domain, entry in evaluation.suite.get("domains", {}).items():
        facts[f"data {domain}"] = f"{entry['content_hash']}, drawn {found.get('drawn', {}).get(domain, '')}"
    for row in evaluation.rows:
        if row.fingerprint:
            facts[f"model {row.name}"] = f"{row.fingerprint} {row.reference}"
    return f"<details><summary>Versions and hashes</summary>{_facts(facts)}</details>"


def _facts(facts: Mapping[str, object]) -> str:
    lines = "".join(
        f"<dt>{escape(key.replace('_', ' '))}</dt><dd>{escape(str(value))}</dd>" for key, value in facts.items()
    )
    return f'<dl class="facts-list">{lines}</dl>'
