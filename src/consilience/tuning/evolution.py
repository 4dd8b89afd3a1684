"""Evolutionary search of coefficients by CMA-ES: the baseline that needs nothing but a loss.

Source: Hansen, Ostermeier 2001, Completely Derandomized Self-Adaptation in Evolution Strategies; as a way to merge:
Akiba et al. 2024, Evolutionary Optimization of Model Merging Recipes (arXiv 2403.13187).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from consilience.core.randomness import stream_key
from consilience.errors import MissingExtraError, Problems, RequestError, WorkError
from consilience.tuning.composition import Composition, Granularity, State, select_tensors
from consilience.tuning.learning import Learned, choice_problems, own_tensors
from consilience.tuning.shelf import scratch

if TYPE_CHECKING:
    from consilience.core.jobs import Job
    from consilience.models.model import Predictor

__all__ = ["evolution"]

_FLAT = 1e-9  # a spread of the losses of a generation below this, relatively, is flat


def evolution(
    base: State,
    experts: Mapping[str, State],
    models: Mapping[str, Predictor],
    examples: Mapping[str, Sequence[Any]],
    *,
    granularity: Granularity = "model",
    start: float = 0.3,
    spread: float = 0.1,
    low: float = 0.0,
    high: float = 1.5,
    budget: int = 60,
    population: int | None = None,
    batch: int = 32,
    exclude: str = "",
    seed: int = 0,
    job: Job | None = None,
) -> Learned:
    """Search for the coefficients with the lowest mean loss of the tasks.

    >>> import numpy as np
    >>> from consilience.models.classifier import Head
    >>> from consilience.models.image import ImageClassifier, ImageEncoder
    >>> from consilience.models.image_network import PerceptronConfig
    >>> encoder = ImageEncoder(PerceptronConfig(image_size=2, hidden_sizes=(3,)))
    >>> model = ImageClassifier(encoder, Head(torch.eye(3)[:2], torch.zeros(2), ("dark", "bright")))
    >>> base = encoder.state()
    >>> experts = {"large": {n: 2 * v for n, v in base.items()}, "small": {n: v / 2 for n, v in base.items()}}
    >>> images = [(np.zeros((2, 2), np.float32), 0), (np.ones((2, 2), np.float32), 1)]
    >>> found = evolution(base, experts, {"shade": model}, {"shade": images}, budget=10)
    >>> found.facts["evaluations"] <= 10, found.facts["end"] <= found.facts["start"]
    (True, True)

    base, experts: states by tensor name. models, examples: by task, a predictor and labelled training examples, all of
    which are used in every evaluation, in batches of `batch`. granularity: one coefficient per expert ("model"), per
    layer, or per tensor. start, spread: of the first generation; low, high: bounds of the coefficients. budget: at
    most so many evaluations, the start among them; only whole generations of `population` (None: 4 + 3 ln n) are run.
    exclude: a regular expression of tensors that stay at the base.

    The coefficients of the lowest loss are returned. Facts: the loss at the start and of the result, and the number of
    evaluations. Stops, with a notice, when a generation is flat. The same seed gives the same coefficients; with a
    job, generations are journalled. Raises RequestError, WorkError where the start's loss is NaN or infinite,
    MissingExtraError without the package cma.
    """
    try:
        import cma
    except ImportError:
        raise MissingExtraError("cma", "fitting") from None
    problems = Problems()
    if not models or set(models) != set(examples):
        problems.add(f"tasks {sorted(models)} with examples of {sorted(examples)}; each task needs both")
    problems.extend(f"task {task!r} has no examples" for task, found in examples.items() if not len(found))
    problems.extend(choice_problems(models, examples, batch))
    if not low <= start <= high or low >= high or not spread > 0 or batch < 1:
        problems.add(
            f"start {start} between low {low} and high {high}, spread {spread} above 0, batch {batch} 1 or more"
        )
    problems.raise_if_any(RequestError, "evolution")
    composition = Composition(
        base, experts, granularity=granularity, tensors=select_tensors(base, exclude=exclude), scratch=scratch(job)
    )
    count = math.prod(composition.shape)
    size = population or 4 + int(3 * math.log(count))
    if size < 2 or budget < 1 + size:
        raise RequestError(f"evolution: budget {budget}; the start and one generation of {size} take {1 + size}")
    batches = {task: list(model.batches(list(examples[task]), batch)) for task, model in models.items()}

    def measure(flat: Sequence[float]) -> float:
        values = torch.tensor(flat, dtype=torch.float64).reshape(composition.shape)
        with torch.no_grad():
            parameters = composition.parameters(values)
            each = [_mean_loss(model, batches[task], parameters) for task, model in models.items()]
        loss = sum(each) / len(each)
        return loss if math.isfinite(loss) else math.inf

    random = np.random.Generator(np.random.Philox(stream_key(seed, "evolution")))
    options = {
        "bounds": [low, high],
        "popsize": size,
        "seed": np.nan,  # the search draws from `randn` alone and leaves NumPy's global generator as it is
        "randn": lambda *shape: random.standard_normal(shape),
        "verbose": -9,
        "CMA_diagonal": count > 100,
    }
    best = [start] * count
    first = lowest = _kept(job, "start", lambda: [measure(best)])[0]
    if not math.isfinite(first):
        with torch.no_grad():
            at = composition.parameters(torch.full(composition.shape, start, dtype=torch.float64))
            wrong = [t for t, model in models.items() if not math.isfinite(_mean_loss(model, batches[t], at))]
        raise WorkError(
            f"evolution: the loss at the start is {first}, of {', '.join(wrong)}; check the examples and the models"
        )
    search = cma.CMAEvolutionStrategy(list(best), spread, options)
    trace: list[dict[str, Any]] = [{"step": 0, "evaluations": 1, "loss": first, "score": -first}]
    notices: list[str] = []
    spent = 1
    while spent + size <= budget:
        asked = [list(map(float, one)) for one in search.ask()]
        losses = _kept(job, f"generation {len(trace)}", lambda asked=asked: [measure(one) for one in asked])
        search.tell(asked, losses)
        spent += size
        place = int(np.argmin(losses))
        if losses[place] < lowest:
            lowest, best = losses[place], asked[place]
        trace.append({"step": len(trace), "evaluations": spent, "loss": min(losses), "score": -lowest})
        if max(losses) - min(losses) <= _FLAT * max(abs(lowest), _FLAT):
            notices.append(f"all models of generation {len(trace) - 1} have the same loss; stopped: it is flat")
            break
    if lowest == first:
        notices.append("no coefficients had a lower loss than the start")
    values = torch.tensor(best, dtype=torch.float64).reshape(composition.shape)
    facts = {"start": first, "end": lowest, "evaluations": spent, "population": size}
    return Learned("evolution", composition, values, tuple(trace), facts, tuple(notices))


def _mean_loss(model: Predictor, batches: Sequence[Any], parameters: Mapping[str, Tensor]) -> float:
    own, total, count = own_tensors(model, parameters), 0.0, 0
    for given in batches:
        losses = model.loss(given, own, reduction="none")
        total += float(losses.sum())
        count += losses.numel()
    return total / count


def _kept(job: Job | None, key: str, make: Any) -> list[float]:
    """Return numbers from the journal, or make and record them."""
    if job is None:
        found: list[float] = make()
        return found
    if key not in job.done:
        job.check()
        job.record(key, losses=make())
    return [float(value) for value in job.done[key]["losses"]]
