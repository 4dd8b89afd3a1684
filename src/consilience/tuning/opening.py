"""Models with their data, from references and folders: what the kind of data says about the kind of model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from consilience.core.randomness import stream_key, uniform_bits
from consilience.errors import Problems, RequestError
from consilience.tuning.statistics import kind_problems

if TYPE_CHECKING:
    from consilience.models.model import Predictor

__all__ = ["Tasks", "open_task", "open_tasks"]

_Opened = tuple["Predictor", list[Any]]


def open_task(
    reference: str | Path,
    data: str | Path,
    *,
    examples: int = 256,
    max_tokens: int | None = None,
    device: str | None = None,
    seed: int = 0,
) -> _Opened:
    """Open a model as a predictor, and up to `examples` examples of the train split of a data folder, drawn by `seed`.

    >>> import tempfile
    >>> from consilience.models import create_causal
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = create_causal(folder / "model", {"model_type": "llama", "hidden_size": 16}, "0123456789+=")
    >>> _ = (folder / "train.jsonl").write_text('{"prompt": "1+1=", "completion": "2"}')
    >>> open_task(folder / "model", folder)[1]
    [('1+1=', '2')]

    A folder with corpus.parquet is a retrieval dataset: the model is a dense encoder, examples are (query, document).
    One with data.parquet or data.npz holds labelled texts or images: the model is a classifier with its head in the
    (adapter's) folder. One with train.jsonl holds texts: the model is a causal language model, and texts are cut into
    pieces of `max_tokens` tokens. Examples that are held out never get through. Raises RequestError, CheckpointError or
    DataError.
    """
    if examples < 1:
        raise RequestError(f"examples is {examples}; it has to be 1 or more")
    folder = Path(data)
    if file := _known_by(folder):
        model, found = _OPENED[file](reference, folder, max_tokens, device)
        order = np.argsort(uniform_bits(stream_key(seed, "examples"), 0, len(found)), kind="stable")
        return model, [found[place] for place in order[:examples].tolist()]
    raise RequestError(_unknown_data(folder))


def _known_by(folder: Path) -> str | None:
    return next((file for file in _OPENED if (folder / file).is_file()), None)


def _unknown_data(folder: Path) -> str:
    what = "no data is known by its files" if folder.is_dir() else "no such folder"
    return f"{folder}: {what}; a data folder holds {' or '.join(_OPENED)}"


def _retrieval(reference: str | Path, folder: Path, max_tokens: int | None, device: str | None) -> _Opened:
    from consilience.data import RetrievalData
    from consilience.models import load_encoder
    from consilience.models.retrieval import RetrievalPredictor

    pairs = RetrievalData.open(folder).training_pairs().pairs()
    encoder = load_encoder(reference, device=device, max_tokens=max_tokens)
    return RetrievalPredictor(encoder), pairs


def _labelled_texts(reference: str | Path, folder: Path, max_tokens: int | None, device: str | None) -> _Opened:
    from consilience.data.labelled import LabelledData
    from consilience.models.classifier import load_classifier

    model = load_classifier(reference, head=_last(reference), device=device, max_tokens=max_tokens)
    return model, LabelledData.open(folder).training().pairs()


def _labelled_images(reference: str | Path, folder: Path, max_tokens: int | None, device: str | None) -> _Opened:
    from consilience.data.images import ImageData
    from consilience.models.image import load_image_classifier

    model = load_image_classifier(reference, head=_last(reference), device=device or "cpu")
    return model, ImageData.open(folder, size=model.encoder.config.image_size).view("train").pairs()


def _last(reference: str | Path) -> Path:
    """Return the folder of the adapter, or of the model where there is none: a head is beside what was trained."""
    return Path(str(reference).split("+")[-1])


def _texts(reference: str | Path, folder: Path, max_tokens: int | None, device: str | None) -> _Opened:
    from consilience.data.language import LanguageData
    from consilience.models import load_causal

    model = load_causal(reference, device=device, max_tokens=max_tokens)
    held = LanguageData.open(folder).training().examples
    room = model.max_tokens - model.tokenizer.num_special_tokens_to_add()
    found: list[Any] = []
    for example in held:
        found.extend(_windows(model.tokenizer, example, room) if isinstance(example, str) else [example])
    return model, found


def _windows(tokenizer: Any, text: str, room: int) -> Iterator[str]:
    """Cut a text into consecutive pieces of at most `room` tokens."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) <= room or len(text) < 2:
        yield text
        return
    size = min(room, len(ids) // 2)  # a piece can have more tokens on its own than in its text: cut it again
    for start in range(0, len(ids), size):
        yield from _windows(tokenizer, tokenizer.decode(ids[start : start + size]), room)


_Opener = Callable[["str | Path", Path, "int | None", "str | None"], _Opened]
_OPENED: Mapping[str, _Opener] = {
    "corpus.parquet": _retrieval,
    "data.parquet": _labelled_texts,
    "data.npz": _labelled_images,
    "train.jsonl": _texts,
}


@dataclass(frozen=True)
class Tasks:
    """Models with their examples, by name; one model without a name is named ""."""

    models: Mapping[str, Predictor]
    examples: Mapping[str, list[Any]]
    references: Mapping[str, str]


def open_tasks(models: Sequence[str], data: Sequence[str], *, kinds: Sequence[str] = (), **options: Any) -> Tasks:
    """Open what is written as MODEL and FOLDER, or as NAME=MODEL and NAME=FOLDER for several; see `open_task`.

    kinds: of the statistics that are wanted, to be checked with the rest. Raises RequestError listing every model
    without data, every folder without a model or without data, and every wrong kind.
    """
    problems = Problems()
    problems.extend(kind_problems(kinds, len(models)) if kinds else ())
    references, folders = _named(models, "model", problems), _named(data, "--data", problems)
    problems.extend(
        f"model {name!r} has no data; add --data {name}=FOLDER" for name in references if name not in folders
    )
    problems.extend(f"--data {name!r} belongs to no model" for name in folders if name not in references)
    problems.extend(_unknown_data(Path(folder)) for folder in folders.values() if not _known_by(Path(folder)))
    problems.raise_if_any(RequestError, "statistics")
    opened = {name: open_task(reference, folders[name], **options) for name, reference in references.items()}
    return Tasks(
        {name: model for name, (model, _) in opened.items()},
        {name: found for name, (_, found) in opened.items()},
        {name: reference for name, reference in references.items() if name},
    )


def _named(written: Sequence[str], what: str, problems: Problems) -> dict[str, str]:
    """Return name -> text of NAME=TEXT; a single text may be without a name."""
    found: dict[str, str] = {}
    for text in written:
        name, mark, rest = text.partition("=")
        name, rest = (name, rest) if mark else ("", text)
        if not name and len(written) > 1:
            problems.add(f"{what} {text!r} needs a name, because there are several: NAME={rest}")
        elif name in found:
            problems.add(f"{what}: the name {name!r} stands twice")
        found[name] = rest
    return found
