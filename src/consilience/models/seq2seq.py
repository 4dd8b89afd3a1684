"""Sequence-to-sequence models: a text in, a text out; losses and answers as functions of the parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from consilience.errors import RequestError
from consilience.models.batching import Tokens, length_sorted_batches, pad
from consilience.models.causal import Generation
from consilience.models.transformer_model import TransformerModel

if TYPE_CHECKING:
    from consilience.checkpoints import Checkpoint

__all__ = ["Seq2SeqBatch", "Seq2SeqModel", "Seq2SeqTokens"]

TextPair = tuple[str, str]


@dataclass(frozen=True)
class Seq2SeqTokens:
    """The tokens of inputs and of their targets, one of each per example."""

    inputs: Tokens
    targets: Tokens

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example, input and target together."""
        return self.inputs.lengths + self.targets.lengths


@dataclass(frozen=True)
class Seq2SeqBatch:
    """Inputs and targets, padded at the right, on the model's device.

    `ids` int64 and `mask` bool are (examples, input positions), `targets` int64 and `counted` bool are (examples,
    target positions); every real target token counts, the end of text included.
    """

    ids: Tensor
    mask: Tensor
    targets: Tensor
    counted: Tensor

    def __len__(self) -> int:
        return len(self.ids)


class Seq2SeqModel(TransformerModel):
    """An encoder-decoder: `loss`, `generate`, `save`. Made by `load_seq2seq` or `create_seq2seq`.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from consilience.models.seq2seq_loading import create_seq2seq, word_tokenizer
    >>> tokenizer = word_tokenizer(["one two three"])
    >>> model = create_seq2seq(Path(tempfile.mkdtemp()) / "tiny", {"model_type": "bart", "d_model": 16}, tokenizer)
    >>> (batch,) = model.batches([("one two", "two"), ("three", "three one")], 2)
    >>> model.logits(batch).shape == (*batch.targets.shape, 7)  # three words and 4 special tokens
    True
    >>> [answer.tokens <= 3 for answer in model.generate(["one two", "three"], new_tokens=3)]
    [True, True]

    An example is a pair (input, target). `names` maps parameters of `module` to the checkpoint's tensors; weights that
    are tied (the embeddings of encoder and decoder and the output layer, as a rule) are one parameter. `copies` are
    further tensors of the files that hold such a parameter again: they are written with its values.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        module: Any,
        tokenizer: Any,
        names: Mapping[str, str],
        *,
        max_tokens: int,
        copies: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(checkpoint, module, tokenizer, names, max_tokens=max_tokens)
        self.copies: Mapping[str, str] = dict(copies or {})

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each input, special tokens included."""
        return [len(ids) for ids in self._ids(texts)]

    def tokenise(self, examples: Sequence[TextPair]) -> Seq2SeqTokens:
        """Return the tokens of examples; a target ends with the end-of-text token.

        Raises RequestError naming the first input or target that is longer than `max_tokens`.
        """
        if isinstance(examples, str):
            raise RequestError("examples is one string; give a list of (input, target)")
        inputs = self._ids([source for source, _ in examples])
        end = self.tokenizer.eos_token_id
        targets = self._ids([target for _, target in examples], target=True)
        targets = [ids if end is None or (ids and ids[-1] == end) else [*ids, end] for ids in targets]
        for what, lists in (("input", inputs), ("target", targets)):
            for index, ids in enumerate(lists):
                if len(ids) > self.max_tokens:
                    raise RequestError(
                        f"{self.name}: the {what} of example {index} has {len(ids)} tokens, it takes {self.max_tokens}"
                    )
        return Seq2SeqTokens(Tokens.from_lists(inputs), Tokens.from_lists(targets))

    def _ids(self, texts: Sequence[str], *, target: bool = False) -> list[list[int]]:
        if not texts:
            return []
        given = {"text_target": list(texts)} if target else {"text": list(texts)}
        found: list[list[int]] = self.tokenizer(**given, padding=False, truncation=False, verbose=False)["input_ids"]
        return found

    def batches(self, examples: Sequence[TextPair], size: int) -> Iterator[Seq2SeqBatch]:
        """Yield examples as batches of `size`, in their order."""
        if size < 1:
            raise RequestError(f"batches of {size} examples were asked for; use 1 or more")
        tokens = self.tokenise(examples)
        for start in range(0, len(tokens), size):
            yield self.batch(tokens, np.arange(start, min(start + size, len(tokens))))

    def batch(self, tokens: Seq2SeqTokens, rows: NDArray[np.int64]) -> Seq2SeqBatch:
        """Return some examples of what `tokenise` gave as one batch."""
        ids, mask, _ = pad(tokens.inputs, rows, pad_id=self._pad_id)
        targets, counted, _ = pad(tokens.targets, rows, pad_id=self._pad_id)
        arrays = (ids, mask.astype(bool), targets, counted.astype(bool))
        return Seq2SeqBatch(*(torch.from_numpy(array).to(self.device) for array in arrays))

    def logits(self, batch: Seq2SeqBatch, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return (examples, target positions, vocabulary): the scores of the token at each place of the target.

        parameters: tensors by checkpoint name, some or all; the others keep their values; gradients flow to them.
        Raises RequestError for a name or a shape that is not the model's.
        """
        # The decoder reads the start token and then the targets before each place, as transformers shifts labels.
        start = torch.full_like(batch.targets[:, :1], int(self.module.config.decoder_start_token_id))
        inputs = {
            "input_ids": batch.ids,
            "attention_mask": batch.mask.long(),
            "decoder_input_ids": torch.cat([start, batch.targets[:, :-1]], dim=1),
            "use_cache": False,
        }
        if parameters is None:
            logits: Tensor = self.module(**inputs).logits
            return logits
        found: Tensor = torch.func.functional_call(self.module, self._own(parameters), (), inputs).logits
        return found

    def loss(
        self,
        batch: Seq2SeqBatch,
        parameters: Mapping[str, Tensor] | None = None,
        *,
        reduction: Literal["mean", "none"] = "mean",
    ) -> Tensor:
        """Return the negative log-likelihood of the target tokens.

        reduction "none": one sum over its tokens per example; "mean": the mean over all target tokens of the batch.
        """
        logits = self.logits(batch, parameters)
        if reduction == "mean":
            return functional.cross_entropy(logits[batch.counted].float(), batch.targets[batch.counted])
        values = functional.cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten(), reduction="none")
        return (values.view_as(batch.targets) * batch.counted).sum(dim=1)

    def losses(self, examples: Sequence[TextPair], *, size: int = 64) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the negative log-likelihood of each example's target, and the number of tokens it is the sum of."""
        tokens = self.tokenise(examples)
        sums = np.empty(len(tokens))
        order = np.argsort(-tokens.lengths, kind="stable")
        with self._evaluating():
            for start in range(0, len(order), size):
                rows = order[start : start + size]
                sums[rows] = self.loss(self.batch(tokens, rows), reduction="none").double().cpu().numpy()
        return sums, tokens.targets.lengths

    def mean_loss(self, examples: Sequence[TextPair], *, size: int = 64) -> float:
        """Return the mean negative log-likelihood per target token, over all examples."""
        sums, counts = self.losses(examples, size=size)
        return float(sums.sum() / max(counts.sum(), 1))

    def generate(
        self, inputs: Sequence[str], *, new_tokens: int, beams: int = 1, batch_tokens: int = 8192
    ) -> list[Generation]:
        """Return the answer to each input, at most `new_tokens` tokens, without special tokens.

        beams: 1 is greedy, more is beam search of that width. batch_tokens: tokens of a batch, answers of all beams
        included. An answer that does not end within the limit is `cut`, and its length is the limit. Raises
        RequestError for an input longer than `max_tokens` and for limits below 1.
        """
        from transformers import GenerationConfig

        tokens = Tokens.from_lists(self._ids(inputs))
        longest = int(tokens.lengths.max(initial=0))
        if new_tokens < 1 or beams < 1 or max(longest, new_tokens) > self.max_tokens:
            raise RequestError(
                f"{self.name}: {new_tokens} new tokens by {beams} beams for an input of {longest}; it takes inputs and "
                f"answers of 1 to {self.max_tokens} tokens, and 1 beam or more"
            )
        ends = self._ends()
        search = GenerationConfig(
            do_sample=False,
            num_beams=beams,
            max_new_tokens=new_tokens,
            pad_token_id=self._pad_id,
            eos_token_id=ends or None,
            decoder_start_token_id=self.module.config.decoder_start_token_id,
        )
        answers: list[Generation | None] = [None] * len(tokens)
        with self._evaluating():
            for rows in length_sorted_batches(beams * (tokens.lengths + new_tokens), batch_tokens):
                ids, mask, _ = pad(tokens, rows, pad_id=self._pad_id)
                found = self.module.generate(
                    input_ids=torch.from_numpy(ids).to(self.device),
                    attention_mask=torch.from_numpy(mask).to(self.device),
                    generation_config=search,
                )
                for row, new in zip(rows.tolist(), found[:, 1:].tolist(), strict=True):
                    length = next((place for place, token in enumerate(new) if token in ends), len(new))
                    text = self.tokenizer.decode(new[:length], skip_special_tokens=True)
                    answers[row] = Generation(text, length, length == new_tokens)
        return [answer for answer in answers if answer is not None]

    def _written(self) -> dict[str, Tensor]:
        values = super()._written()
        return values | {copy: values[tensor] for copy, tensor in self.copies.items()}
