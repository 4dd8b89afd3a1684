"""A suite: several domains measured the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilience.core.hashing import fingerprint
from consilience.data.layout import SPLITS
from consilience.data.metrics import Metric
from consilience.data.retrieval import RetrievalData
from consilience.data.sampling import EvaluationSet, evaluation_set
from consilience.errors import DataError, Problems, did_you_mean

if TYPE_CHECKING:
    from consilience.data.pairs import TrainingPairs
    from consilience.data.reserved import ReservedQueries

__all__ = ["Domain", "Suite"]

_KEYS = (
    *("version", "name", "domains", "queries", "documents", "max_tokens"),
    *("metric", "also", "similarity", "split", "prompts"),
)
SIMILARITIES = ("cosine", "dot")
_DOMAIN_KEYS = ("folder", "queries", "documents")
_PROMPTS = ("query", "document")
_VERSION = 1


@dataclass(frozen=True)
class Domain:
    """One domain of a suite: its data and, where they differ from the suite's, its caps."""

    data: RetrievalData
    queries: int | None = None
    documents: int | None = None


@dataclass(frozen=True)
class Suite:
    """Domains, a metric, caps, a token limit and prompts: everything that defines a measurement except the models.

    >>> data = RetrievalData.of(
    ...     "tiny", documents={"d": "sorted(x)"}, queries={"q": ("sort", "test")}, judgements=[("q", "d", 1)]
    ... )
    >>> suite = Suite("demo", {"tiny": Domain(data)}, queries=100, documents=200)
    >>> suite.evaluation_sets()["tiny"].queries
    ('sort',)

    `queries` and `documents` cap every domain (None: all; see sampling), `max_tokens` includes special tokens
    (None: the model's own limit), `metric` is compared and `also` is reported beside it, `prompts` (keys query and
    document) are put before every text instead of the model's own.
    """

    name: str
    domains: Mapping[str, Domain]
    queries: int | None = None
    documents: int | None = None
    max_tokens: int | None = None
    metric: str = "nDCG@10"
    also: tuple[str, ...] = ("recall@10", "MRR@10")
    similarity: str = "cosine"
    split: str = "test"
    prompts: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def open(path: str | Path, **changes: Any) -> Suite:
        """Open a `suite.yml`, or a folder whose sub-folders are datasets; keywords replace fields of the result.

        A cap given as keyword also replaces the domains' own.

        The file is a mapping; folders are relative to it, a domain may have caps of its own:

            version: 1
            domains: {python: python, law: {folder: ../law, documents: 500}}
            queries: 100
            documents: 200
            max_tokens: 64
            metric: nDCG@10
            split: test

        Raises DataError with every problem of the file and of the datasets.
        """
        path = Path(path)
        if path.is_dir() and not (path / "suite.yml").is_file():
            content: dict[str, Any] = {"domains": {folder.name: folder.name for folder in _dataset_folders(path)}}
            base, name = path, path.resolve().name
        else:
            path = path / "suite.yml" if path.is_dir() else path
            content, base, name = _read_yaml(path), path.parent, path.stem
        suite = _build(content, base, name, str(path))
        domains = {
            key: Domain(
                entry.data,
                None if "queries" in changes else entry.queries,
                None if "documents" in changes else entry.documents,
            )
            for key, entry in suite.domains.items()
        }
        return replace(suite, **{"domains": domains, **changes})

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The compared metric, then those reported beside it."""
        return tuple(dict.fromkeys(Metric.parse(text) for text in (self.metric, *self.also)))

    def evaluation_set(self, domain: str, *, split: str | None = None) -> EvaluationSet:
        """Draw the queries and documents of one domain (see sampling.evaluation_set)."""
        entry = self._domain(domain)
        return evaluation_set(
            entry.data,
            split or self.split,
            queries=entry.queries or self.queries,
            documents=entry.documents or self.documents,
        )

    def evaluation_sets(self, *, split: str | None = None) -> dict[str, EvaluationSet]:
        """Draw every domain; raises DataError naming each domain that has nothing to measure in the split."""
        problems, drawn = Problems(), dict[str, EvaluationSet]()
        for name in self.domains:
            try:
                drawn[name] = self.evaluation_set(name, split=split)
            except DataError as error:
                problems.add(str(error))
        problems.raise_if_any(DataError, f"suite {self.name}")
        return drawn

    def has_split(self, split: str) -> bool:
        """Return whether every domain has queries of a split."""
        return all(split in entry.data.splits for entry in self.domains.values())

    def training_pairs(self, domain: str, *, reserved: ReservedQueries | None = None) -> TrainingPairs:
        """Return the training pairs of one domain without held-out queries of any domain of the suite."""
        others = [entry.data for entry in self.domains.values()]
        return self._domain(domain).data.training_pairs(against=others, reserved=reserved)

    def describe(self) -> dict[str, Any]:
        """Return everything that defines the measurement as plain data."""
        return {
            "name": self.name,
            "metric": str(self.metrics[0]),
            "also": [str(metric) for metric in self.metrics[1:]],
            "similarity": self.similarity,
            "split": self.split,
            "queries": self.queries,
            "documents": self.documents,
            "max_tokens": self.max_tokens,
            "prompts": dict(self.prompts),
            "domains": {
                name: {
                    "content_hash": entry.data.content_hash,
                    "queries": entry.queries or self.queries,
                    "documents": entry.documents or self.documents,
                    "notes": list(entry.data.notes),
                }
                for name, entry in self.domains.items()
            },
        }

    @cached_property
    def content_hash(self) -> str:
        """The identity of the measurement: data, caps, metric, prompts (not the name of the suite)."""
        return fingerprint({key: value for key, value in self.describe().items() if key != "name"})

    def _domain(self, name: str) -> Domain:
        if name not in self.domains:
            raise DataError(f"suite {self.name}: unknown domain {name!r}{did_you_mean(name, self.domains)}")
        return self.domains[name]


def _dataset_folders(path: Path) -> list[Path]:
    folders = sorted(folder for folder in path.iterdir() if (folder / "corpus.parquet").is_file())
    if not folders:
        raise DataError(
            f"suite {path}: neither a suite.yml nor a sub-folder with corpus.parquet, queries.parquet, qrels.parquet"
        )
    return folders


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"suite {path}: no such file or folder") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"suite {path}: not a readable YAML file ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"suite {path}: a mapping with the key 'domains' is expected, found {type(content).__name__}")
    return content


def _build(content: dict[str, Any], base: Path, name: str, subject: str) -> Suite:
    problems = Problems()
    _check_keys(content, _KEYS, "", problems)
    if content.get("version", _VERSION) != _VERSION:
        problems.add(f"version: {content['version']!r}; this program reads version {_VERSION}")
    caps = {key: _whole(content.get(key), key, problems) for key in ("queries", "documents", "max_tokens")}
    metric = str(content.get("metric", Suite.metric))
    also = content.get("also", list(Suite.also)) or []
    also = [str(entry) for entry in also] if isinstance(also, list) else [str(also)]
    for text in (metric, *also):
        try:
            Metric.parse(text)
        except DataError as error:
            problems.add(str(error))
    similarity = str(content.get("similarity", Suite.similarity))
    if similarity not in SIMILARITIES:
        problems.add(f"similarity: {similarity!r} is unknown{did_you_mean(similarity, SIMILARITIES)}")
    split = str(content.get("split", Suite.split))
    if split not in SPLITS:
        problems.add(f"split: {split!r} is unknown{did_you_mean(split, SPLITS)}")
    prompts = content.get("prompts") or {}
    if isinstance(prompts, dict):
        _check_keys(prompts, _PROMPTS, "prompts.", problems)
    else:
        problems.add(f"prompts: a mapping of {' and '.join(_PROMPTS)} to text is expected")
        prompts = {}
    entries = content.get("domains")
    domains: dict[str, Domain] = {}
    if not isinstance(entries, dict) or not entries:
        problems.add("domains: a mapping of names to dataset folders is expected, with at least one")
    else:
        for key, value in entries.items():
            _add_domain(domains, str(key), value, base, problems)
    problems.raise_if_any(DataError, f"suite {subject}")
    return Suite(
        str(content.get("name", name)),
        domains,
        metric=metric,
        also=tuple(also),
        similarity=similarity,
        split=split,
        prompts={str(key): str(value) for key, value in prompts.items()},
        **caps,
    )


def _add_domain(domains: dict[str, Domain], name: str, value: Any, base: Path, problems: Problems) -> None:
    entry = {"folder": value} if isinstance(value, str) else value
    if not isinstance(entry, dict) or not isinstance(entry.get("folder"), str):
        problems.add(f"domains.{name}: a folder, or a mapping with the key 'folder', is expected; found {value!r}")
        return
    _check_keys(entry, _DOMAIN_KEYS, f"domains.{name}.", problems)
    queries, documents = (_whole(entry.get(key), f"domains.{name}.{key}", problems) for key in _DOMAIN_KEYS[1:])
    try:
        data = RetrievalData.open(base / entry["folder"], name=name)
    except DataError as error:
        problems.add(str(error))
    else:
        domains[name] = Domain(data, queries, documents)


def _check_keys(content: Mapping[Any, Any], known: tuple[str, ...], where: str, problems: Problems) -> None:
    for key in content:
        if key not in known:
            problems.add(f"unknown key '{where}{key}'{did_you_mean(str(key), known)}")


def _whole(value: Any, where: str, problems: Problems) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    problems.add(f"{where}: {value!r}; a whole number above 0 is expected, or nothing for all")
    return None
