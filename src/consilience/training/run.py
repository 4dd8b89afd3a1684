"""What training runs share: the identity of a base, the record of a finished run, the threads of torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilience.core.hashing import file_xxh3, fingerprint
from consilience.core.jobs import MANIFEST
from consilience.core.records import read_record
from consilience.errors import RequestError

if TYPE_CHECKING:
    from consilience.checkpoints import Checkpoint

__all__ = ["finished_record", "torch_threads", "weight_checksums"]


def weight_checksums(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the checksum of every file of weights, by its path in the model's or adapter's folder."""
    opened = [(checkpoint.folder, checkpoint.files), *((one.folder, one.files) for one in checkpoint.adapters)]
    return {
        file.path.relative_to(folder).as_posix(): file_xxh3(file.path) for folder, files in opened for file in files
    }


def finished_record(out: Path, request: Mapping[str, Any], name: str, version: int) -> dict[str, Any] | None:
    """Return the record of a finished run of the same request in `out`; None where there is none."""
    if not (out / MANIFEST).is_file() or not (out / name).is_file():
        return None
    done = read_record(out / MANIFEST, "manifest", 1).get("request")
    return read_record(out / name, "expert", version) if fingerprint(done) == fingerprint(request) else None


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let torch use `count` threads on a CPU for as long as the context lasts; None leaves it as it is."""
    import torch

    if count is not None and count < 1:
        raise RequestError(f"threads is {count}; it has to be at least 1")
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
