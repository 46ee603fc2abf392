"""Files of data: .npz, .csv and IDX, read as they are. What cannot be read is a ValueError that names the file."""

import csv
import gzip
import tokenize
import zipfile
import zlib
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
DAMAGE = (  # what zipfile and NumPy raise at one place or another of a damaged archive
    zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, AttributeError, TypeError, SyntaxError,
    OverflowError, MemoryError, tokenize.TokenError,
)  # fmt: skip


def read_npz(path: Path) -> tuple[np.ndarray, Any]:
    with path.open("rb") as file:  # opened here: NumPy leaves a broken archive open
        try:
            with np.load(file, allow_pickle=False) as archive:
                if "x" not in archive:
                    raise ValueError(f"it has no array x, only {', '.join(archive) or 'none'}")
                return archive["x"], archive.get("y")
        except DAMAGE as error:
            raise ValueError(f"{path}: not a readable .npz of plain arrays x and y ({error})") from error


def read_csv(path: Path, features: int | None = None, text: bool = False) -> tuple[np.ndarray, Any]:
    """Features and the last column, as ``text`` or as what it holds; a first line that names the columns is skipped."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [(i, [cell.strip() for cell in row]) for i, row in enumerate(csv.reader(file), 1) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a readable CSV file ({error})") from error
    lines = lines[1:] if _is_header([cells for _, cells in lines]) else lines
    if not lines:
        raise ValueError(f"{path}: expected lines of features and a target, got none")
    width = len(lines[0][1])
    if width == 1 and features != 1:
        raise ValueError(f"{path}: only one column; are the cells separated by commas?")
    inputs = features if width == features else width - 1
    table = np.empty((len(lines), inputs), np.float64)
    for row, (number, cells) in enumerate(lines):
        values = [_number(cell) for cell in cells[:inputs]]
        if len(cells) != width:
            raise ValueError(f"{path}, line {number}: {len(cells)} cells, expected {width}")
        if None in values or not cells[-1]:
            fault = "an empty target" if None not in values else "a feature that is no number"
            raise ValueError(f"{path}, line {number}: {fault}")
        table[row] = values
    if inputs == width:
        return table, None
    column = [cells[-1] for _, cells in lines]
    return table, np.asarray(column) if text else _target_column(column)


def _is_header(rows: list[list[str]]) -> bool:
    """No cell of the first row is a number, or its last cell alone is none among those of its column."""
    if not rows or all(_number(cell) is None for cell in rows[0]):
        return bool(rows)
    return len(rows) > 1 and _number(rows[0][-1]) is None and all(_number(row[-1]) is not None for row in rows[1:])


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _target_column(cells: list[str]) -> np.ndarray:
    """Whole numbers as integers, other numbers as floats, anything else as text."""
    numbers = [_number(cell) for cell in cells]
    if None in numbers:
        return np.asarray(cells)
    if not all(cell.lstrip("+-").isdigit() for cell in cells):
        return np.asarray(numbers, np.float64)
    whole = [int(cell) for cell in cells]
    return np.asarray(whole, np.int64 if max(map(abs, whole)) < 2**31 else np.float64)  # larger ones are no labels


def read_idx(path: Path) -> np.ndarray:
    """Two zero bytes, the type, the number of axes, their lengths as big-endian int32, the values."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged or truncated gzip file ({error})") from error
    start = 4 + 4 * raw[3] if len(raw) > 3 else 4
    if len(raw) < start or raw[:2] != b"\0\0" or raw[2] not in IDX_TYPES or raw[3] == 0:
        raise ValueError(f"{path}: not an IDX file")
    shape = tuple(int(n) for n in np.frombuffer(raw[4:start], ">u4"))
    dtype = np.dtype(IDX_TYPES[raw[2]])
    size = prod(shape) * dtype.itemsize
    if len(raw) - start != size:
        raise ValueError(f"{path}: truncated or damaged: {shape} needs {size} bytes, got {len(raw) - start}")
    return np.frombuffer(raw, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))
