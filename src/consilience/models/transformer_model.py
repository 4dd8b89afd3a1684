"""What models on transformers' networks share: weights by tensor name, substitutes for them, how they are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from consilience.errors import OutputError, RequestError, did_you_mean

if TYPE_CHECKING:
    from consilience.checkpoints import Checkpoint

__all__ = ["TransformerModel"]


class TransformerModel:
    """A network of transformers with a checkpoint's weights, and its tokenizer; the parent of models that make text.

    >>> import tempfile
    >>> from consilience.models.seq2seq_loading import create_seq2seq, word_tokenizer
    >>> folder = Path(tempfile.mkdtemp())
    >>> model = create_seq2seq(folder / "tiny", {"model_type": "t5", "d_model": 16}, word_tokenizer(["one two"]))
    >>> model.load({name: 2 * value for name, value in model.state().items()})
    >>> model.save(folder / "doubled").name
    'doubled'

    `names` maps parameters of `module` to the checkpoint's tensors; weights that are tied are one parameter.
    """

    def __init__(
        self, checkpoint: Checkpoint, module: Any, tokenizer: Any, names: Mapping[str, str], *, max_tokens: int
    ) -> None:
        self.checkpoint = checkpoint
        self.module = module
        self.tokenizer = tokenizer
        self.names: Mapping[str, str] = dict(names)
        self.max_tokens = max_tokens

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.module.parameters())
        return f"{type(self).__name__}({self.name!r}, {count} parameters, max_tokens={self.max_tokens})"

    @property
    def name(self) -> str:
        """The checkpoint's name."""
        return self.checkpoint.name

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.module.parameters()).device
        return device

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters in use, by tensor name of the checkpoint."""
        own = dict(self.module.named_parameters())
        return {tensor: own[name] for name, tensor in self.names.items()}

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the parameters, by tensor name of the checkpoint: what merges take."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Copy values into the parameters, by tensor name, some or all.

        Raises RequestError for a name or a shape that is not the model's.
        """
        own = dict(self.module.named_parameters())
        with torch.no_grad():
            for name, value in self._own(state).items():
                own[name].copy_(value)

    def _own(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return substitutes by parameter name of the module, after checking names and shapes."""
        back = {tensor: name for name, tensor in self.names.items()}
        known = self.parameters()
        for tensor, value in parameters.items():
            if tensor not in back:
                raise RequestError(f"{self.name}: no parameter is named {tensor!r}{did_you_mean(tensor, back)}")
            if value.shape != known[tensor].shape:
                shapes = f"{list(known[tensor].shape)}, the substitute {list(value.shape)}"
                raise RequestError(f"{self.name}: {tensor} has shape {shapes}")
        return {back[tensor]: value for tensor, value in parameters.items()}

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = self.module.training
        self.module.eval()
        with torch.inference_mode():
            yield
        self.module.train(training)

    @property
    def _pad_id(self) -> int:
        tokenizer = self.tokenizer
        return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0

    def _ends(self) -> list[int]:
        """Return the tokens that end a text."""
        configured = self.module.generation_config.eos_token_id
        listed = configured if isinstance(configured, list) else [configured, self.tokenizer.eos_token_id]
        return sorted({int(token) for token in listed if token is not None})

    def save(self, folder: str | Path, *, dtype: str | None = None) -> Path:
        """Write the model as it stands to a new or empty folder, with its tokenizer and configs, and return the folder.

        dtype: what parameters are rounded to, once (None: the type each has on disk). Raises OutputError when the
        folder holds something, NonFiniteError naming a tensor with NaN or infinity.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"output {folder}: exists and is not an empty folder; choose another place")
        self.write(folder, dtype=dtype)
        return folder

    def write(self, folder: Path, *, dtype: str | None = None) -> None:
        """Write the model's files into `folder`, replacing files of the same name; see `save`."""
        from consilience.models.saving import write_model

        write_model(self.checkpoint, self._written(), folder, dtype=dtype)

    def _written(self) -> dict[str, Tensor]:
        """Return the values of all tensors that are written anew."""
        return {name: parameter.detach().float() for name, parameter in self.parameters().items()}
