"""Number types on disk: names, sizes, and exact conversion to and from working precision.

bfloat16 travels as uint16 and the 8-bit floats as uint8, because NumPy has no such types. Decoding is exact;
encoding rounds once, to nearest even, from the working value.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DTYPES",
    "DType",
    "decode",
    "dtype_from_name",
    "encode",
    "torch_name",
    "working_dtype",
]

Kind = Literal["float", "int", "bool"]


@dataclass(frozen=True, slots=True)
class DType:
    """One number type of the safetensors format."""

    name: str
    itemsize: int
    storage: np.dtype[Any]
    kind: Kind


def _dtype(name: str, storage: str, kind: Kind) -> DType:
    return DType(name, np.dtype(storage).itemsize, np.dtype(storage), kind)


DTYPES: dict[str, DType] = {
    d.name: d
    for d in (
        _dtype("F64", "<f8", "float"),
        _dtype("F32", "<f4", "float"),
        _dtype("F16", "<f2", "float"),
        _dtype("BF16", "<u2", "float"),
        _dtype("F8_E4M3", "u1", "float"),
        _dtype("F8_E5M2", "u1", "float"),
        _dtype("I64", "<i8", "int"),
        _dtype("I32", "<i4", "int"),
        _dtype("I16", "<i2", "int"),
        _dtype("I8", "i1", "int"),
        _dtype("U64", "<u8", "int"),
        _dtype("U32", "<u4", "int"),
        _dtype("U16", "<u2", "int"),
        _dtype("U8", "u1", "int"),
        _dtype("BOOL", "u1", "bool"),
    )
}

_TORCH_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
_ALIASES = {"half": "F16", "float": "F32", "double": "F64", "bf16": "BF16", "fp16": "F16", "fp32": "F32"}


def dtype_from_name(name: str) -> str | None:
    """Return the safetensors name of a type written in any usual way, or None.

    >>> dtype_from_name("torch.bfloat16"), dtype_from_name("F32"), dtype_from_name("nope")
    ('BF16', 'F32', None)
    """
    short = name.removeprefix("torch.")
    if short.upper() in DTYPES:
        return short.upper()
    for ours, theirs in _TORCH_NAMES.items():
        if theirs == short:
            return ours
    return _ALIASES.get(short.lower())


def torch_name(name: str) -> str:
    """Return PyTorch's name of a type.

    >>> torch_name("BF16")
    'bfloat16'
    """
    return _TORCH_NAMES[name]


def working_dtype(names: Iterable[str]) -> type[np.float32] | type[np.float64]:
    """Return the precision to compute in: one width above the widest input.

    >>> working_dtype(["BF16", "F16"]).__name__, working_dtype(["BF16", "F32"]).__name__
    ('float32', 'float64')
    """
    return np.float64 if any(n in ("F32", "F64") for n in names) else np.float32


@lru_cache(maxsize=4)
def _float8_table(name: str) -> NDArray[np.float64]:
    """Return the value of each of the 256 codes."""
    exponent_bits, mantissa_bits, bias = (4, 3, 7) if name == "F8_E4M3" else (5, 2, 15)
    codes = np.arange(256)
    sign = np.where(codes & 0x80, -1.0, 1.0)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    normal = (1.0 + mantissa) * np.exp2(exponent.astype(np.float64) - bias)
    value = sign * np.where(exponent == 0, mantissa * 2.0 ** (1 - bias), normal)
    if name == "F8_E4M3":
        value[(codes & 0x7F) == 0x7F] = np.nan
    else:
        special = exponent == 31
        value[special] = np.where(mantissa[special] == 0, sign[special] * np.inf, np.nan)
    return value


def decode(raw: NDArray[Any], dtype: str, out: NDArray[Any]) -> None:
    """Write the values of stored numbers `raw` (1-D, storage type) to `out` (1-D, float32 or float64), exactly.

    >>> out = np.empty(2, np.float32)
    >>> decode(np.array([0x3F80, 0xC000], np.uint16), "BF16", out)
    >>> out.tolist()
    [1.0, -2.0]
    """
    if dtype == "BF16":
        if out.dtype == np.float32:
            bits = out.view(np.uint32)
            np.left_shift(raw, 16, out=bits, dtype=np.uint32, casting="unsafe")
        else:
            with np.errstate(invalid="ignore"):  # signalling NaNs become quiet ones
                out[:] = np.left_shift(raw, 16, dtype=np.uint32).view(np.float32)
    elif dtype.startswith("F8"):
        out[:] = _float8_table(dtype)[raw]
    else:
        out[:] = raw


def encode(values: NDArray[Any], dtype: str, out: NDArray[Any]) -> None:
    """Write `values` (1-D, float32 or float64) to `out` (1-D, storage type), rounding once to nearest even.

    >>> out = np.empty(1, np.uint16)
    >>> encode(np.array([1.00390625]), "BF16", out)
    >>> hex(out[0])
    '0x3f80'

    NaN stays NaN; values beyond the range become infinite (F8_E4M3, which has none, becomes NaN).
    """
    if dtype == "BF16":
        _encode_bfloat16(values, out)
    elif dtype.startswith("F8"):
        _encode_float8(values, dtype, out)
    elif DTYPES[dtype].kind == "float":
        with np.errstate(over="ignore"):
            out[:] = values
    else:
        raise TypeError(f"integers are copied, never rounded: {dtype}")


def _to_odd_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """Round float64 to float32 so that a later rounding to 16 bits equals a single one (round to odd)."""
    if values.dtype == np.float32:
        return np.asarray(values, np.float32)
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    inexact = (single.astype(np.float64) != values) & np.isfinite(single)
    if inexact.any():
        bits = single.view(np.int32)
        too_large = np.abs(single.astype(np.float64)) > np.abs(values)
        bits[inexact & too_large] -= 1
        bits[inexact] |= 1
    return single


def _encode_bfloat16(values: NDArray[Any], out: NDArray[Any]) -> None:
    single = _to_odd_float32(values)
    bits = single.view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    nan = np.isnan(single)
    if nan.any():
        rounded[nan] = (bits[nan] >> np.uint32(16)) | np.uint32(0x0040)
    out[:] = rounded


def _encode_float8(values: NDArray[Any], dtype: str, out: NDArray[Any]) -> None:
    table = _float8_table(dtype)
    positive = table[:128]
    finite = positive[np.isfinite(positive)]
    top = len(finite) - 1
    step = finite[top] - finite[top - 1]
    middles = (finite[1:] + finite[:-1]) / 2
    magnitude = np.abs(values.astype(np.float64))
    code = np.searchsorted(middles, magnitude, side="left")
    tie = (code < top) & (magnitude == middles[np.minimum(code, top - 1)]) & (code % 2 == 1)
    code = code + tie
    beyond = magnitude >= finite[top] + step / 2
    overflow = 0x7F if dtype == "F8_E4M3" else 0x7C
    code = np.where(beyond, overflow, code)
    code = np.where(np.isnan(values), 0x7F, code)
    out[:] = (code | np.where(np.signbit(values), 0x80, 0)).astype(np.uint8)
