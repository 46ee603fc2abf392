"""The model file: one safetensors file with a versioned header and a SHA-256 over every byte.

Any safetensors reader opens it. The header is one JSON text under the metadata key "minimodel"; its field "sha256"
is the digest of the whole file with that field's 64 digits written as zeros.
"""

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np

FORMAT_VERSION = 1
DIGITS = 64
MARK = rb"\"sha256\":\""  # as it stands in a file: JSON within JSON


def dumps(header: dict[str, Any], tensors: dict[str, np.ndarray]) -> bytes:
    """The bytes of a file. The same header and tensors give the same bytes."""
    from safetensors.numpy import save

    text = json.dumps({"sha256": "0" * DIGITS, "version": FORMAT_VERSION, **header}, separators=(",", ":"))
    # safetensors writes arrays as they lie in memory: only C order is right
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    raw = bytearray(save(contiguous, metadata={"minimodel": text}))
    start = raw.index(MARK) + len(MARK)
    raw[start : start + DIGITS] = hashlib.sha256(raw).hexdigest().encode()
    return bytes(raw)


def loads(raw: bytes, name: str = "model") -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the tensors. ValueError unless every byte is as it was written."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    start = raw.find(MARK) + len(MARK)
    if start < len(MARK):
        raise ValueError(f"{name}: not a minimodel file, or damaged at its start")
    digest = raw[start : start + DIGITS]
    zeroed = raw[:start] + b"0" * DIGITS + raw[start + DIGITS :]
    if len(digest) < DIGITS or hashlib.sha256(zeroed).hexdigest().encode() != digest:
        raise ValueError(f"{name}: damaged: its SHA-256 does not match its content; copy or save it again")
    try:
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(json.loads(raw[8 : 8 + length])["__metadata__"]["minimodel"])
        version = header["version"]
        tensors = load(raw)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{name}: not a valid minimodel file ({error})") from error
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise ValueError(f"{name}: format version {version}, but this minimodel reads {FORMAT_VERSION}; update it")
    return header, tensors


def write(path: str | Path, raw: bytes) -> None:
    """All of the file or nothing: written beside it, synced, then renamed over it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
