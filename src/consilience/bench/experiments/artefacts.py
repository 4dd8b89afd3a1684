"""Statistics of the experts of a workbench, as the artefacts that merging methods take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from consilience.core.hashing import fingerprint
from consilience.errors import RequestError

if TYPE_CHECKING:
    from consilience.bench.experiments.family import State
    from consilience.bench.experiments.workbench import Workbench
    from consilience.models.model import Predictor

__all__ = ["Artefacts", "Runnable", "gather_artefacts"]


@runtime_checkable
class Runnable(Protocol):
    """What a family offers beside scores when statistics can be gathered of its models."""

    def model(self, state: State, task: str) -> Predictor:
        """Return a predictor with these weights for a task; several may be alive at once."""
        ...

    def examples(self, task: str, count: int) -> Sequence[Any]:
        """Return training examples of a task, as the predictor takes them."""
        ...


@dataclass(frozen=True)
class Artefacts:
    """`aux`: what `Workbench.merge(..., aux=...)` takes. `distance`: of each expert, where it was asked for.

    `seconds`: what gathering took, when it was done.
    """

    aux: Mapping[str, Mapping[str, Any]] = field(repr=False)
    distance: Mapping[str, float] | None = None
    seconds: float = 0.0


def gather_artefacts(
    workbench: Workbench,
    kinds: Sequence[str],
    *,
    examples: int = 256,
    tasks: Sequence[str] | None = None,
    **settings: Any,
) -> Artefacts:
    """Gather statistics of each expert on training examples of its own task; once, then they are read from the cache.

    >>> import tempfile
    >>> from consilience.bench.experiments import Workbench
    >>> from consilience.bench.experiments.images import DigitViews
    >>> bench = Workbench(DigitViews("mild"), cache=tempfile.mkdtemp(), tasks=["upright", "inverted"])
    >>> found = gather_artefacts(bench, ["gram"], examples=32)
    >>> merged = bench.merge("regmean", aux=found.aux)

    kinds: as in `gather_statistics`, and so are `settings`; "activation" is the base's on the examples of all tasks.
    examples: of each task. Raises RequestError for a family whose models cannot be run (see `Runnable`).
    """
    family, chosen = workbench.family, tuple(workbench.tasks if tasks is None else tasks)
    if not isinstance(family, Runnable):
        raise RequestError(
            f"{family.name}: its models cannot be run one by one (no `model` and `examples`), so there are no "
            f"statistics of them: {', '.join(kinds)}"
        )
    given = {task: list(family.examples(task, examples)) for task in chosen}
    place = workbench.folder / f"seed-{workbench.seed}"
    of_experts = [kind for kind in kinds if kind != "activation"]
    aux: dict[str, Mapping[str, Any]] = {}
    distance, seconds = None, 0.0
    if of_experts:
        models = {task: family.model(workbench.experts[task], task) for task in chosen}
        name = fingerprint([sorted(of_experts), chosen, examples, settings])
        found, record = _gathered(models, given, place / f"statistics-{name}", of_experts, settings)
        aux |= {kind: {task: found[task][kind] for task in chosen} for kind in of_experts if kind in found[chosen[0]]}
        distance = record.get("distance")
        seconds += float(record["seconds"])
    if "activation" in kinds:
        name = fingerprint(["base", chosen, examples])
        base = {"base": family.model(workbench.base, chosen[0])}
        together = {"base": [example for task in chosen for example in given[task]]}
        found, record = _gathered(base, together, place / f"statistics-{name}", ["activation"], {})
        aux["activation"] = found["base"]["activation"]
        seconds += float(record["seconds"])
    return Artefacts(aux, distance, seconds)


def _gathered(
    models: Mapping[str, Any],
    examples: Mapping[str, Sequence[Any]],
    out: Any,
    kinds: Sequence[str],
    settings: Mapping[str, Any],
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return model -> kind -> tensor -> values, and the record of the run."""
    from safetensors.torch import load_file

    from consilience.tuning import gather_statistics

    record = gather_statistics(models, examples, out, kinds=kinds, progress=False, **settings)
    found = {
        name: {path.stem: load_file(path) for path in sorted((out / name).glob("*.safetensors"))} for name in models
    }
    return found, record
