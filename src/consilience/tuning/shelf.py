"""Tensors that are put aside on disk and mapped back: they take page cache, not private memory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from consilience.core.atomic import storage_error

if TYPE_CHECKING:
    from consilience.core.jobs import Job

__all__ = ["Shelf", "scratch"]


def scratch(job: Job | None) -> Path | None:
    """Return the folder for what a job holds only while it runs; None without a job."""
    return None if job is None else job.partial


class Shelf:
    """Keeps tensors in a file without a name, which is gone with the last of them, even after a kill.

    >>> shelf = Shelf(Path(tempfile.gettempdir()))
    >>> shelf.put(torch.tensor([[1.0, 2.0]])).tolist()
    [[1.0, 2.0]]

    folder: where the file is; None keeps tensors in memory as they are. What is put is float32 or float64 and must not
    be changed in place. Raises StorageError where the disk is full.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder, self._file, self._end = folder, None, 0
        if folder is not None:
            self._file = tempfile.TemporaryFile(dir=folder, prefix="vectors-")  # noqa: SIM115  (lives as we do)

    def put(self, tensor: Tensor) -> Tensor:
        """Write a tensor and return it mapped, with the same values."""
        if self._file is None or self.folder is None or not tensor.numel():
            return tensor
        values = tensor.detach().contiguous().numpy()
        try:
            self._file.seek(self._end)
            self._file.write(values.data)
            self._file.flush()
        except OSError as error:
            raise storage_error(self.folder, error) from error
        mapped = np.memmap(self._file, values.dtype, "c", self._end, values.shape)
        self._end += values.nbytes
        return torch.from_numpy(mapped)
