"""What a snippet of ``docs/frameworks.md`` came to, in one number, whatever framework it uses."""

from __future__ import annotations

import hashlib
from typing import Any


def digest(value: Any) -> str:
    """The same for equal values of equal types and shapes. Raises ``TypeError`` for what it
    does not know, and for what is empty: that would be equal without saying anything.
    """
    if hasattr(value, "__len__") and len(value) == 0:
        raise TypeError("nothing was read")
    total = hashlib.sha256()
    _feed(total, value)
    return total.hexdigest()


def _feed(total: Any, value: Any) -> None:
    total.update(type(value).__name__.encode())
    if isinstance(value, dict):
        for key in sorted(value):
            _feed(total, key)
            _feed(total, value[key])
    elif isinstance(value, (list, tuple)):
        total.update(str(len(value)).encode())
        for item in value:
            _feed(total, item)
    elif value is None or isinstance(value, (bytes, str, int, float)):
        total.update(repr(value).encode())
    else:
        total.update(_bytes_of(value))


def _bytes_of(value: Any) -> bytes:
    if hasattr(value, "write_csv"):  # polars
        return str(value.write_csv()).encode()
    if hasattr(value, "to_csv"):  # pandas
        return str(value.to_csv()).encode()
    if hasattr(value, "detach"):  # torch
        value = value.detach().numpy()
    elif hasattr(value, "addressable_shards"):  # jax
        import numpy

        value = numpy.asarray(value)
    if hasattr(value, "dtype"):  # numpy
        return f"{value.dtype} {value.shape} ".encode() + bytes(value.tobytes())
    if hasattr(value, "getpixel"):  # PIL
        return f"{value.mode} {value.size} ".encode() + bytes(value.tobytes())
    raise TypeError(f"a snippet returned a {type(value)}, which digest.py does not know")
