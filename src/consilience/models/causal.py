"""Causal language models: next-token log-probabilities, generation, hidden states, as functions of the parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from consilience.errors import RequestError
from consilience.models.batching import Tokens, length_sorted_batches, pad
from consilience.models.transformer_model import TransformerModel

__all__ = ["CausalBatch", "CausalModel", "Generation", "TextExample"]

TextExample = str | tuple[str, str]


@dataclass(frozen=True)
class CausalBatch:
    """Tokenised examples, padded at the right, on the model's device; all of shape (examples, positions).

    `ids` int64; `mask` bool, False on padding; `counted` bool, True where a token enters the loss: it is predicted
    from those before it, so the first one of a text never is.
    """

    ids: Tensor
    mask: Tensor
    counted: Tensor

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Generation:
    """An answer: its text, its length in tokens, and whether the limit cut it off."""

    text: str
    tokens: int
    cut: bool


class CausalModel(TransformerModel):
    """A causal language model: `loss`, `generate`, `hidden_states`, `save`. Made by `load_causal` or `create_causal`.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from consilience.models import create_causal
    >>> folder = Path(tempfile.mkdtemp()) / "tiny"
    >>> config = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1}
    >>> model = create_causal(folder, config, "0123456789+=")
    >>> (batch,) = model.batches(["1+1=2", ("2+2=", "4")], 2)
    >>> model.logits(batch).shape == (*batch.ids.shape, 16)  # 12 characters and 4 special tokens
    True
    >>> [answer.tokens <= 3 for answer in model.generate(["1+2=", "4+4="], new_tokens=3)]
    [True, True]

    An example is a text, all of whose tokens count, or a pair (prompt, completion), where the completion and the end
    of text count. `names` maps parameters of `module` to the checkpoint's tensors.
    """

    def tokenise(self, examples: Sequence[TextExample], *, cut: bool = False) -> tuple[Tokens, NDArray[np.int64]]:
        """Return the tokens of examples, and for each the position of its first token that counts.

        A prompt is tokenised as the tokenizer does it (with its start token), a completion without special tokens,
        followed by the end-of-text token where the tokenizer has one. cut: a text longer than `max_tokens` becomes
        consecutive windows of that length. Raises RequestError for other examples that are longer.
        """
        if isinstance(examples, str):
            raise RequestError("examples is one string; give a list of strings or of (prompt, completion)")
        heads = self._ids([example if isinstance(example, str) else example[0] for example in examples])
        tails = self._ids(["" if isinstance(example, str) else example[1] for example in examples], special=False)
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        ids: list[list[int]] = []
        first: list[int] = []
        for index, (example, head, tail) in enumerate(zip(examples, heads, tails, strict=True)):
            if isinstance(example, str) and cut:
                pieces = [head[start : start + self.max_tokens] for start in range(0, len(head), self.max_tokens)]
                ids, first = ids + pieces, first + [1] * len(pieces)
                continue
            ids.append(head if isinstance(example, str) else head + tail + end)
            first.append(1 if isinstance(example, str) else max(len(head), 1))
            if len(ids[-1]) > self.max_tokens:
                raise RequestError(
                    f"{self.name}: example {index} has {len(ids[-1])} tokens, the model takes {self.max_tokens}"
                )
        return Tokens.from_lists(ids), np.array(first, np.int64)

    def _ids(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        if not texts:
            return []
        found: list[list[int]] = self.tokenizer(
            list(texts), add_special_tokens=special, padding=False, return_attention_mask=False, verbose=False
        )["input_ids"]
        return found

    def batches(self, examples: Sequence[TextExample], size: int) -> Iterator[CausalBatch]:
        """Yield examples as batches of `size`, in their order."""
        if size < 1:
            raise RequestError(f"batches of {size} examples were asked for; use 1 or more")
        tokens, first = self.tokenise(examples)
        for start in range(0, len(tokens), size):
            yield self.batch(tokens, first, np.arange(start, min(start + size, len(tokens))))

    def batch(self, tokens: Tokens, first: NDArray[np.int64], rows: NDArray[np.int64]) -> CausalBatch:
        """Return some examples of what `tokenise` gave as one batch."""
        ids, mask, _ = pad(tokens, rows, pad_id=self._pad_id)
        real = torch.from_numpy(mask).bool()
        counted = real & (torch.arange(real.shape[1])[None, :] >= torch.from_numpy(first[rows])[:, None])
        return CausalBatch(*(array.to(self.device) for array in (torch.from_numpy(ids), real, counted)))

    def logits(self, batch: CausalBatch, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return (examples, positions, vocabulary): the scores of the token that follows each position.

        parameters: tensors by checkpoint name, some or all; the others keep their values; gradients flow to them.
        Raises RequestError for a name or a shape that is not the model's.
        """
        # Padding is at the right, where causal attention never looks from a real token: no mask is needed.
        inputs = {"input_ids": batch.ids, "use_cache": False}
        if parameters is None:
            logits: Tensor = self.module(**inputs).logits
            return logits
        found: Tensor = torch.func.functional_call(self.module, self._own(parameters), (), inputs).logits
        return found

    def loss(
        self,
        batch: CausalBatch,
        parameters: Mapping[str, Tensor] | None = None,
        *,
        reduction: Literal["mean", "none"] = "mean",
    ) -> Tensor:
        """Return the negative log-likelihood of the counted tokens.

        reduction "none": one sum over its tokens per example; "mean": the mean over all counted tokens of the batch.
        """
        logits, wanted, counted = self.logits(batch, parameters)[:, :-1], batch.ids[:, 1:], batch.counted[:, 1:]
        if reduction == "mean":
            return functional.cross_entropy(logits[counted].float(), wanted[counted])
        values = functional.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), reduction="none")
        return (values.view_as(wanted) * counted).sum(dim=1)

    def mean_loss(self, examples: Sequence[TextExample], *, size: int = 64) -> float:
        """Return the mean negative log-likelihood per counted token, over all examples; long texts in windows."""
        sums, counts = self._measured(*self.tokenise(examples, cut=True), size)
        return float(sums.sum() / max(counts.sum(), 1))

    def losses(
        self, examples: Sequence[TextExample], *, size: int = 64
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the negative log-likelihood of each example, and the number of tokens it is the sum of."""
        return self._measured(*self.tokenise(examples), size)

    def _measured(
        self, tokens: Tokens, first: NDArray[np.int64], size: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        sums, counts = np.empty(len(tokens)), np.empty(len(tokens), np.int64)
        order = np.argsort(-tokens.lengths, kind="stable")
        with self._evaluating():
            for start in range(0, len(order), size):
                rows = order[start : start + size]
                batch = self.batch(tokens, first, rows)
                sums[rows] = self.loss(batch, reduction="none").double().cpu().numpy()
                counts[rows] = batch.counted[:, 1:].sum(dim=1).cpu().numpy()
        return sums, counts

    def generate(self, prompts: Sequence[str], *, new_tokens: int, batch_tokens: int = 8192) -> list[Generation]:
        """Return the greedy continuation of each prompt, at most `new_tokens` tokens, without special tokens.

        batch_tokens: tokens of a batch, answers included. An answer that does not end within the limit is `cut`, and
        its length is the limit. Raises RequestError when a prompt leaves no room for `new_tokens` in `max_tokens`.
        """
        from transformers import GenerationConfig

        tokens = Tokens.from_lists(self._ids(prompts))
        longest = int(tokens.lengths.max(initial=0))
        if new_tokens < 1 or longest + new_tokens > self.max_tokens:
            raise RequestError(
                f"{self.name}: {new_tokens} new tokens after a prompt of {longest}; it takes {self.max_tokens} in all"
            )
        ends = self._ends()
        greedy = GenerationConfig(
            do_sample=False, max_new_tokens=new_tokens, pad_token_id=self._pad_id, eos_token_id=ends or None
        )
        answers: list[Generation | None] = [None] * len(tokens)
        with self._evaluating():
            for rows in length_sorted_batches(tokens.lengths + new_tokens, batch_tokens):
                ids, mask, _ = pad(tokens, rows, pad_id=self._pad_id, left=True)
                found = self.module.generate(
                    input_ids=torch.from_numpy(ids).to(self.device),
                    attention_mask=torch.from_numpy(mask).to(self.device),
                    generation_config=greedy,
                )
                for row, new in zip(rows.tolist(), found[:, ids.shape[1] :].tolist(), strict=True):
                    length = next((place for place, token in enumerate(new) if token in ends), new_tokens)
                    text = self.tokenizer.decode(new[:length], skip_special_tokens=True)
                    answers[row] = Generation(text, length, length == new_tokens)
        return [answer for answer in answers if answer is not None]

    def hidden_states(
        self, texts: Sequence[str], *, position: Literal["last", "mean"] = "last", size: int = 16
    ) -> NDArray[np.float32]:
        """Return (layers + 1, texts, width) float32: the input of the first layer, then the output of each.

        position: the last token of each text, or the mean over its tokens. The last layer's output is taken behind the
        final norm, as transformers gives it.
        """
        parts = []
        with self._evaluating():
            for batch in self.batches(list(texts), size):
                found = self.module(input_ids=batch.ids, use_cache=False, output_hidden_states=True).hidden_states
                states = torch.stack(found).float()
                lengths = batch.mask.sum(dim=1)
                if position == "last":
                    picked = states[:, torch.arange(len(batch)), lengths - 1]
                else:
                    picked = (states * batch.mask[None, :, :, None]).sum(dim=2) / lengths[None, :, None]
                parts.append(picked.cpu().numpy())
        return np.concatenate(parts, axis=1)
