"""Where matrix methods compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from consilience.errors import MissingExtraError, RequestError

__all__ = ["check_device", "torch_threads"]


def check_device(device: str) -> None:
    """Raise where PyTorch is missing or has no such device."""
    try:
        import torch
    except ImportError:
        raise MissingExtraError("torch", "torch") from None
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise RequestError(f"device {device!r} is unknown; use cpu, cuda or cuda:N") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise RequestError(f"device {device!r}: PyTorch {torch.__version__} sees no GPU; use cpu")


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Give PyTorch this many threads for a while."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
