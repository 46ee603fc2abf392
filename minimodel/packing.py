"""Layers as few bytes: masks at a bit a weight, integers at their bits, only what is kept, all deflated.

And, for hardware that multiplies n of m, its own layout: the values and where in their groups they stand.
"""

import zlib
from math import prod
from typing import NamedTuple

import numpy as np

from minimodel.network import Layer
from minimodel.qarray import MAX_BITS, QArray, dequantize, spread

Tensors = dict[str, np.ndarray]


def pack_layer(layer: Layer, mask: np.ndarray | None, q: QArray | None, bits: int | None) -> Tensors:
    """bias, and of the weights: the mask if there is one, then the kept values as float32 or packed integers."""
    tensors = {"bias": layer.bias}
    if mask is not None:
        tensors["mask"] = _deflate(np.packbits(mask))
    kept = slice(None) if mask is None else np.broadcast_to(mask, layer.weight.shape)
    if q is None or bits is None:
        tensors["weight"] = layer.weight if mask is None else layer.weight[kept]
    else:
        values = q.values[kept]
        signs = bits == 1 and bool((values > 0).any())  # −1 and 1, not −1 and 0
        tensors["values"] = _deflate(pack_integers(values >> 1 if signs else values, bits))
        if q.codebook is None:
            tensors["scale"] = q.scale
        else:
            tensors["codebook"] = q.codebook[..., : 2**bits, :]
        if q.zero_point.any() or (bits == 1 and not signs):
            tensors["zero_point"] = q.zero_point
    return tensors


def unpack_layer(
    tensors: Tensors, shape: tuple[int, ...], bits: int | None
) -> tuple[Layer, np.ndarray | None, QArray | None]:
    """The layer whose weight has ``shape``, its mask, its integers. ValueError where the tensors do not fit."""
    mask = None
    if "mask" in tensors:
        flags = np.unpackbits(_inflate(tensors["mask"], -(-prod(shape) // 8)), count=prod(shape))
        mask = flags.astype(bool).reshape(shape)
    values = {"weight"} if bits is None else {"values", "scale", "zero_point", "codebook"}
    if unexpected := sorted(set(tensors) - {"bias", "mask"} - values):
        raise ValueError(f"unexpected tensors {unexpected}")
    kept = prod(shape) if mask is None else int(mask.sum())
    bias = _expect(tensors, "bias", np.float32, (*shape[:-2], shape[-1]))
    if bits is None:
        weight = _expand(_expect(tensors, "weight", np.float32, shape if mask is None else (kept,)), mask, shape, 0)
        return Layer(weight, bias), mask, None
    scale, zero_point, codebook = _levels(tensors, shape, bits)
    packed = _inflate(tensors["values"], -(-kept * bits // 8))
    filled = np.broadcast_to(spread(zero_point, shape[-2]), shape)  # the integer of a pruned weight
    integers = unpack_integers(packed, bits, kept)
    if bits == 1 and "zero_point" not in tensors:
        integers = 2 * integers + np.int8(1)
    q = QArray(_expand(integers, mask, shape, filled), scale, zero_point, codebook)
    with np.errstate(over="ignore"):
        weight = dequantize(q) if mask is None else dequantize(q) * mask
    if not np.isfinite(weight).all():
        raise ValueError("scale: so large that weights are infinite")
    return Layer(weight, bias), mask, q


def _levels(tensors: Tensors, shape: tuple[int, ...], bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """scale, zero_point and codebook of a layer."""
    codebook = tensors.get("codebook")
    if codebook is None:
        scale = _expect_scale(tensors["scale"], shape)
    else:
        allowed = [(*shape[:-2], 2**bits, outputs) for outputs in (1, shape[-1])]
        if codebook.dtype != np.float32 or codebook.shape not in allowed or not np.isfinite(codebook).all():
            raise ValueError(f"codebook: expected float32 of one of the shapes {allowed}, got {codebook.shape}")
        scale = np.ones((*shape[:-2], 1, 1), np.float32)
    zero_point = tensors.get("zero_point", np.zeros(scale.shape, np.int8))
    if zero_point.shape != scale.shape or zero_point.dtype != np.int8:
        raise ValueError(f"zero_point: expected int8 {scale.shape}, got {zero_point.dtype} {zero_point.shape}")
    return scale, zero_point, codebook


def _expand(values: np.ndarray, mask: np.ndarray | None, shape: tuple[int, ...], fill: int | np.ndarray) -> np.ndarray:
    """The kept values in their places, ``fill`` elsewhere."""
    if mask is None:
        return values.reshape(shape)
    full = np.empty(shape, values.dtype)
    full[...] = fill
    full[mask] = values
    return full


def pack_integers(values: np.ndarray, bits: int) -> np.ndarray:
    """int8 values of ``bits`` bits, most significant first, without gaps."""
    codes = (values.reshape(-1).astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    return np.packbits(np.unpackbits(codes[:, None], axis=1)[:, MAX_BITS - bits :])


def unpack_integers(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The inverse of ``pack_integers``."""
    rows = np.unpackbits(packed, count=count * bits).reshape(count, bits)
    codes = np.packbits(np.pad(rows, ((0, 0), (MAX_BITS - bits, 0))), axis=1)[:, 0]
    return (codes.astype(np.int16) - 2 ** (bits - 1)).astype(np.int8)


class NOfMArray(NamedTuple):
    """A weight (in, out) of which at most n of every m consecutive inputs are not 0.

    values   (groups, n, out), 0 where there are fewer
    places   where in its group each value stands: uint8 of (groups, n, out) numbers of ⌈log₂ m⌉ bits, without gaps
    shape    of the weight; m, the size of a group
    """

    values: np.ndarray
    places: np.ndarray
    shape: tuple[int, int]
    m: int


def pack_n_of_m(weight: np.ndarray, n: int, m: int) -> NOfMArray:
    """What sparse hardware keeps of a weight; ValueError where more than n of a group of m are not 0."""
    if m > 256:
        raise ValueError(f"pack_n_of_m: expected m of at most 256, whose places fit a byte, got {m}")
    inputs, outputs = weight.shape
    groups = np.pad(weight, ((0, -inputs % m), (0, 0))).reshape(-1, m, outputs)
    most = int((groups != 0).sum(axis=1).max())
    if most > n:
        raise ValueError(f"pack_n_of_m: expected at most {n} of {m} weights that are not 0, got {most}")
    order = np.argsort(groups == 0, axis=1, kind="stable")[:, :n]  # those that are not 0 first, in their order
    return NOfMArray(
        np.take_along_axis(groups, order, axis=1),
        np.packbits(np.unpackbits(order.astype(np.uint8).reshape(-1, 1), axis=1)[:, 8 - _place_bits(m) :]),
        (inputs, outputs),
        m,
    )


def unpack_n_of_m(packed: NOfMArray) -> np.ndarray:
    """The weight again."""
    values, places, (inputs, outputs), m = packed
    bits = _place_bits(m)
    rows = np.unpackbits(places, count=values.size * bits).reshape(-1, bits)
    order = np.packbits(np.pad(rows, ((0, 0), (8 - bits, 0))), axis=1).reshape(values.shape)
    groups = np.zeros((len(values), m, outputs), values.dtype)
    np.put_along_axis(groups, order.astype(np.intp), values, axis=1)
    return groups.reshape(-1, outputs)[:inputs]


def _place_bits(m: int) -> int:
    return max(1, (m - 1).bit_length())


def _deflate(raw: np.ndarray) -> np.ndarray:
    return np.frombuffer(zlib.compress(raw.tobytes(), 9), np.uint8)


def _inflate(deflated: np.ndarray, size: int) -> np.ndarray:
    """Exactly ``size`` bytes, never more: a file cannot ask for memory that its shapes do not."""
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(deflated.tobytes(), size + 1)
    except zlib.error as error:
        raise ValueError(f"a packed tensor cannot be unpacked ({error})") from error
    if len(raw) != size or (size > 0 and not inflater.eof):
        raise ValueError(f"a packed tensor holds {len(raw)} bytes or more, expected {size}")
    return np.frombuffer(raw, np.uint8)


def _expect(tensors: Tensors, name: str, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    tensor = tensors[name]
    if tensor.dtype != dtype or tensor.shape != shape or not np.isfinite(tensor).all():
        raise ValueError(f"{name}: expected finite {np.dtype(dtype)} {shape}, got {tensor.dtype} {tensor.shape}")
    return tensor


def _expect_scale(scale: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    *members, inputs, outputs = shape
    groups = scale.shape[-2] if scale.ndim == len(shape) else 0
    fits = scale.dtype == np.float32 and scale.shape in {(*members, 1, 1), (*members, groups, outputs)}
    if not fits or not 1 <= groups <= max(inputs, 1) or not (np.isfinite(scale) & (scale > 0)).all():
        raise ValueError(
            f"scale: expected positive float32 that fits a weight {shape}, got {scale.dtype} {scale.shape}"
        )
    return scale
