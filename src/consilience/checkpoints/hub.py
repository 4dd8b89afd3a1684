"""Models of the Hugging Face hub: the local cache first, then the network, then an error that says what to do."""

from __future__ import annotations

from pathlib import Path

from consilience.errors import CheckpointError

__all__ = ["fetch_snapshot"]

_NOT_WANTED = [
    f"*{suffix}"
    for suffix in (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".onnx", ".onnx_data", ".gguf", ".pkl")
] + ["onnx/*", "openvino/*", "original/*", "coreml/*"]


def fetch_snapshot(repository: str, revision: str | None = None) -> Path:
    """Return the local folder of a hub repository ("org/name") at a revision, downloading it when it is not cached.

    Pickle, ONNX and GGUF files are not downloaded. Raises CheckpointError when it is neither cached nor reachable.
    """
    import huggingface_hub
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    wanted = f"{repository}@{revision}" if revision else repository
    try:
        cached = Path(huggingface_hub.snapshot_download(repository, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        cached = None
    except HFValidationError as error:
        raise CheckpointError(f"{wanted!r}: no such local path, and not a hub id ({_first_line(error)})") from error
    if cached is not None and any(cached.rglob("*.safetensors")):
        return cached
    try:
        return Path(huggingface_hub.snapshot_download(repository, revision=revision, ignore_patterns=_NOT_WANTED))
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        reason = "HF_HUB_OFFLINE is set" if huggingface_hub.constants.HF_HUB_OFFLINE else _first_line(error)
        state = "is not in the local cache of the hub" if cached is None else f"is cached without weights in {cached}"
        raise CheckpointError(
            f"{wanted!r}: no such local path; as a hub id, it {state} and cannot be fetched ({reason}); "
            f"on a machine with a network run: hf download {repository}"
            f"{f' --revision {revision}' if revision else ''} --local-dir FOLDER, then name that FOLDER"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
