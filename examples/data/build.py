"""Rebuild the example retrieval domains: `python examples/data/build.py --out examples/data [--domain NAME]`.

Every documented thing becomes one document (name, signature, details). The short description of the thing, which
its document does not repeat, becomes the query. Dev and test take things that no training query asks for.

Sources (nothing is downloaded, and a missing or different version is refused), to read with Python 3.11 or later:

- the packages of `requirements.txt` beside this file, at exactly those versions (their source text is read);
- WordNet 3.0, Debian package `wordnet-base` (`--wordnet`);
- the Python 3.11.2 manual, Debian package `python3.11-doc` (`--python-doc`).

A query is dropped when it occurs twice, in one domain or in two, and when its hash is on the list of reserved
queries (`--reserved FILE`, or the variable CONSILIENCE_DATA: that file or a folder with `reserved_queries.txt`).
The committed files were built with such a list; without it a few more queries are kept.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, util
from itertools import chain
from pathlib import Path

import pandas as pd

SEED = 20
TEST, DEV = 400, 150  # queries; the rest is train
MOST_DOCUMENTS = 5000  # of a domain
QUERY_WORDS = range(4, 33)
DOCUMENT_WORDS = 80

PACKAGES = {  # domain -> the packages and subpackages it reads
    "symbolic": ("sympy",),
    "graphs": ("networkx", "rustworkx", "xgi", "osmnx", "pgmpy"),
    "astronomy": ("astropy", "sunpy"),
    "statistics": ("statsmodels", "scipy.stats"),
}
DOMAINS = ("words", "python", *PACKAGES)


@dataclass(frozen=True)
class Entry:
    """One documented thing: the document (title and text) and the query it answers."""

    key: str
    title: str
    text: str
    query: str


# --- text -----------------------------------------------------------------------------------------------------


def fold(text: str) -> str:
    """Lower case, single spaces: the form in which reserved queries are hashed."""
    return " ".join(text.lower().split())


def identity(text: str) -> str:
    """The form in which two queries count as the same: folded, without final punctuation."""
    return fold(text).rstrip(".!?:; ")


def digest(text: str) -> str:
    """A hash, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def plain(rst: str) -> str:
    """Text without reStructuredText markup."""
    rst = re.sub(r":[\w:+-]+:`([^`]*)`", lambda role: re.sub(r"^[~!]|\s*<[^>]*>$", "", role[1]), rst)
    rst = re.sub(r"`([^`<]*?)\s*<[^`>]*>`__?", r"\1", rst)  # links
    rst = re.sub(r"\s*\[[\w*#-]+\]_|\.\. [\w-]+::", "", rst)  # references, directives
    rst = re.sub(r"(?<!\w)\*{1,2}(\w[^*]*)\*{1,2}", r"\1", rst)  # emphasis
    return " ".join(re.sub(r"[`|\\]", "", rst).split()).removesuffix("::").strip()


def sentences(text: str) -> list[str]:
    """Split plain text into sentences."""
    abbreviations = "".join(rf"(?<!{re.escape(short)})" for short in ("e.g.", "i.e.", "etc.", "cf.", "vs."))
    return re.split(rf"(?<=[.!?]){abbreviations}\s+(?=[A-Z(\"'])", text)


def askable(query: str, name: str) -> bool:
    """Whether a person could type this: a short phrase in words, without the name it looks for."""
    letters = sum(char.isalpha() or char == " " for char in query)
    return (
        len(query.split()) in QUERY_WORDS
        and letters > 0.85 * len(query)
        and not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", query, re.IGNORECASE)
        and not re.search(r">>>|::|\.\. |https?:|[=<>{}|_]{2}|todo\b|deprecated", query, re.IGNORECASE)
    )


# --- WordNet --------------------------------------------------------------------------------------------------

WORD_KINDS = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
PEOPLE_AND_BODY = {"18", "08"}  # semantic fields left out
USAGE_POINTER = ";u"  # slang, insults, trade names: left out


def wordnet_entries(folder: Path) -> Iterator[Entry]:
    """Read synsets: the definition is the query, the words are the document (a reverse dictionary)."""
    for part, kind in WORD_KINDS.items():
        for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):  # the licence
                continue
            head, gloss = line.split(" | ", 1)
            offset, field, _, count, *rest = head.split()
            split = 2 * int(count, 16)
            words = [re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in rest[:split:2]]
            definition = gloss.split('; "')[0].strip().rstrip(";")
            if field in PEOPLE_AND_BODY or USAGE_POINTER in rest[split:]:
                continue
            if all(askable(definition, word) for word in words):
                yield Entry(f"{part}-{offset}", ", ".join(words), f"({kind})", definition)


# --- the Python manual ----------------------------------------------------------------------------------------

DIRECTIVE = re.compile(
    r"^(?P<indent> *)\.\. (?P<kind>function|class|method|classmethod|staticmethod|abstractmethod|attribute|data"
    r"|exception|decorator|decoratormethod|coroutinefunction|coroutinemethod|opcode|envvar|pdbcommand|module"
    r"|currentmodule):: (?P<name>.+)$"
)


def manual_entries(folder: Path) -> Iterator[Entry]:
    """Read the library reference: the first sentence of a thing is the query, its name and the rest the document."""
    for path in sorted(folder.glob("*.rst.txt")):
        lines = path.read_text(encoding="utf-8").splitlines()
        module, owner, owner_indent = "", "", 0
        for number, line in enumerate(lines, start=1):
            found = DIRECTIVE.match(line)
            if not found:
                continue
            indent, kind, signature = len(found["indent"]), found["kind"], found["name"].strip()
            if kind in ("module", "currentmodule"):
                module = signature
                continue
            if indent <= owner_indent:
                owner = ""
            name = re.split(r"[(\[ ]", signature)[0]
            if kind == "class":
                owner, owner_indent = name, indent
            elif owner and "." not in name:
                signature, name = f"{owner}.{signature}", f"{owner}.{name}"
            prefix = f"{module}." if module and not name.startswith(f"{module}.") else ""
            first, *rest = sentences(directive_text(lines[number:], indent))
            if askable(first, name.split(".")[-1]):
                yield Entry(prefix + name, plain(prefix + signature), " ".join(rest), first)


def directive_text(lines: list[str], indent: int) -> str:
    """The first two paragraphs of a directive, as plain text."""
    body: list[str] = []
    for line in lines:
        if line.strip() and len(line) - len(line.lstrip()) <= indent:
            break
        body.append(line.strip())
    while body and body[0]:  # further signatures and options
        body.pop(0)
    text = ""
    for paragraph in "\n".join(body).strip().split("\n\n")[:2]:
        if paragraph.startswith(("..", ">>>", "*", "-", "+", "|", "=")):
            break
        text += " " + plain(paragraph)
    return text.strip()


# --- docstrings of packages -----------------------------------------------------------------------------------

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
SECTION = re.compile(r"^([A-Z][\w ]+)\n[-=~]{3,}$", re.MULTILINE)
DETAILS = ("Parameters", "Returns", "Attributes", "Notes", "Explanation")
SKIPPED = re.compile(r"tests?|test_.*|testing|conftest|examples|benchmarks|extern|external|externals|_lib|_vendor")


def package_entries(package: str) -> Iterator[Entry]:
    """Read the public functions, classes and methods of a package, without importing it."""
    top, *below = package.split(".")
    spec = util.find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"package {top} is not installed: see {Path(__file__).parent / 'requirements.txt'}")
    root = Path(spec.submodule_search_locations[0], *below)
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if any(SKIPPED.fullmatch(part) for part in parts):
            continue
        module = ".".join([package, *(part for part in parts if not part.startswith("_"))])
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, Definition):
                yield from definition_entries(node, module)


def definition_entries(node: Definition, parent: str) -> Iterator[Entry]:
    """The entry of one definition and, for a class, those of its methods."""
    if node.name.startswith("_"):
        return
    name = f"{parent}.{node.name}"
    entry = docstring_entry(node, name, ast.get_docstring(node) or "")
    if askable(entry.query, node.name):
        yield entry
    if isinstance(node, ast.ClassDef):
        for child in node.body:
            if isinstance(child, Definition):
                yield from definition_entries(child, name)


def docstring_entry(node: Definition, name: str, docstring: str) -> Entry:
    """The first sentence is the query; name, arguments, and what follows (numpy style) are the document."""
    head, *rest = SECTION.split(docstring)
    sections = {title.strip(): body for title, body in zip(rest[::2], rest[1::2], strict=True)}
    paragraphs = [plain(p) for p in head.split("\n\n") if not p.lstrip().startswith((">>>", "..", "=", ":"))]
    first, *more = sentences(paragraphs[0] if paragraphs else "")
    text = [*more, *paragraphs[1:2], *(plain(sections.get(title, "")) for title in DETAILS)]
    arguments: list[str] = []
    if not isinstance(node, ast.ClassDef):
        every = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        arguments = [arg.arg for arg in every if arg.arg not in ("self", "cls")]
    return Entry(name, f"{name}({', '.join(arguments)})", " ".join(text), first)


# --- assembly -------------------------------------------------------------------------------------------------


def check_versions(wordnet: Path, manual: Path) -> None:
    """Stop with a clear message unless every source is there in the version the data was built with."""
    requirements = Path(__file__).parent / "requirements.txt"
    for distribution, wanted in re.findall(r"^([\w-]+)==(\S+)$", requirements.read_text(), re.MULTILINE):
        try:
            found = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            found = "nothing"
        if found != wanted:
            raise SystemExit(f"{distribution} {wanted} is needed, {found} is installed: see {requirements}")
    nouns, options = wordnet / "data.noun", manual / "_static" / "documentation_options.js"
    if not nouns.is_file() or "WordNet 3.0 Copyright" not in nouns.read_text(encoding="utf-8")[:4000]:
        raise SystemExit(f"no WordNet 3.0 in {wordnet}: install Debian's wordnet-base or pass --wordnet")
    if not options.is_file() or "VERSION: '3.11.2'" not in options.read_text(encoding="utf-8"):
        raise SystemExit(f"no Python 3.11.2 manual in {manual}: install python3.11-doc or pass --python-doc")


def forms(text: str) -> set[str]:
    """The forms of a query that are looked up on the reserved list."""
    return {fold(text), identity(text), identity(text) + "."}


def read_reserved(place: str | None) -> set[str]:
    """The hashes of reserved queries; none where no list is named."""
    if not place:
        return set()
    path = Path(place)
    return set((path / "reserved_queries.txt" if path.is_dir() else path).read_text().split())


def select(entries: Iterator[Entry]) -> list[Entry]:
    """One entry per key and per document, in a seeded order that does not depend on the other entries."""
    seen: set[str] = set()
    kept: list[Entry] = []
    for entry in sorted(entries, key=lambda e: (digest(f"{SEED}:{e.key}"), e.title, e.text, e.query)):
        marks = {entry.key, fold(f"{entry.title} {entry.text}")}
        if seen.isdisjoint(marks):
            kept.append(entry)
            seen |= marks
    return kept[:MOST_DOCUMENTS]


def tables(name: str, entries: list[Entry], allowed: set[str]) -> dict[str, pd.DataFrame]:
    """The corpus, queries and judgements of a domain; entries whose query is not allowed are documents only."""
    corpus: list[dict[str, str]] = []
    queries: list[dict[str, str]] = []
    qrels: list[dict[str, str | int]] = []
    for number, entry in enumerate(entries):
        document, query = f"{name}-{number}", f"{name}-q{number}"
        text = " ".join(entry.text.split()[:DOCUMENT_WORDS])
        corpus.append({"_id": document, "title": entry.title, "text": text})
        if identity(entry.query) in allowed:
            split = "test" if len(queries) < TEST else "dev" if len(queries) < TEST + DEV else "train"
            queries.append({"_id": query, "text": entry.query, "split": split})
            qrels.append({"query_id": query, "corpus_id": document, "score": 1, "split": split})
    return {"corpus": pd.DataFrame(corpus), "queries": pd.DataFrame(queries), "qrels": pd.DataFrame(qrels)}


def main() -> None:
    """Build the domains that were asked for (all are read: no query may occur in two of them)."""
    parser = argparse.ArgumentParser(description="Rebuild the example retrieval domains.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write <domain>/*.parquet into")
    parser.add_argument("--domain", choices=DOMAINS, help="write this one only")
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--python-doc", type=Path, default=Path("/usr/share/doc/python3.11/html"))
    parser.add_argument("--reserved", default=os.environ.get("CONSILIENCE_DATA"))
    args = parser.parse_args()
    check_versions(args.wordnet, args.python_doc)
    reserved = read_reserved(args.reserved)

    sources = {
        "words": wordnet_entries(args.wordnet),
        "python": manual_entries(args.python_doc / "_sources" / "library"),
        **{name: chain.from_iterable(map(package_entries, packages)) for name, packages in PACKAGES.items()},
    }
    domains = {name: select(source) for name, source in sources.items()}
    counts = Counter(identity(entry.query) for entries in domains.values() for entry in entries)
    for name in [args.domain] if args.domain else DOMAINS:
        texts = {entry.query for entry in domains[name] if identity(entry.query) not in fold(entry.text)}
        held = {text for text in texts if any(digest(form)[:16] in reserved for form in forms(text))}
        allowed = {identity(text) for text in texts - held if counts[identity(text)] == 1}
        folder = args.out / name
        folder.mkdir(parents=True, exist_ok=True)
        for table, frame in tables(name, domains[name], allowed).items():
            frame.to_parquet(folder / f"{table}.parquet", compression="zstd", index=False)
            if table == "queries":
                splits = ", ".join(f"{split} {n}" for split, n in frame["split"].value_counts().items())
                print(f"{name}: {len(domains[name])} documents; queries: {splits}; {len(held)} reserved dropped")


if __name__ == "__main__":
    main()
