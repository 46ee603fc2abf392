"""The smallest file of a pruned and quantized model: positions, integers and biases entropy-coded, every byte counted.

    header     magic, CRC-32, the network, loss, normalisation and scales, in as few bytes as they need
    inputs     one bit for each raw feature that the network looks at
    positions  of each weight whether it is 0, row by row: as likely as its column and the rows before say
    integers   of the others, by the counts of those before; biases as integers of 8 bits

The library is constriction (the extra ``coded``), a range coder: a symbol of probability p takes −log₂ p bits. The
likelihoods are made of counts and single IEEE operations, so that every machine decodes the same.
"""

import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from minimodel import activations, losses, storage
from minimodel import model as files
from minimodel.compress.shrinking import shrink
from minimodel.datasets import Normalization
from minimodel.model import MAX_PARAMETERS, Model, bits_of_layer
from minimodel.network import INITIALIZERS, Layer, Network
from minimodel.qarray import QArray, check_bits, dequantize, is_plain

MAGIC = b"mmc1"
BIAS_LEVELS = 127
COLUMN, ROW = 4.0, 2.0  # rows' and columns' worth of belief in the whole layer's density before anything was seen
BEFORE = 8  # rows that a row's density is foretold from
MOST_TEXT = 2**20  # bytes of the names of classes
BLOCK = 64  # integers coded by the same counts
RARE = 2.0**-12  # no likelihood is below it


class Coder:
    """A range coder of bits and integers: it encodes, or decodes, by the same calls.

    Encoding, the symbols are given; decoding, they are None and are returned.
    """

    def __init__(self, words: np.ndarray | None = None) -> None:
        from constriction import stream

        self.bernoulli, self.categorical = stream.model.Bernoulli(perfect=False), stream.model.Categorical
        self.encoder: Any = stream.queue.RangeEncoder()
        self.decoder: Any = stream.queue.RangeDecoder(np.zeros(0, np.uint32) if words is None else words)

    def bits(self, p: np.ndarray, found: np.ndarray | None) -> np.ndarray:
        """Bits of these likelihoods of 1."""
        p = np.clip(np.round(p / RARE), 1, 1 / RARE - 1) * RARE
        if found is None:
            return self.decoder.decode(self.bernoulli, p).astype(bool)
        self.encoder.encode(found.astype(np.int32), self.bernoulli, p)
        return found

    def integers(self, count: int, alphabet: int, found: np.ndarray | None) -> np.ndarray:
        """Symbols from 0 to alphabet − 1, by the counts of the blocks before."""
        seen, out = np.full(alphabet, 0.5), np.empty(count, np.int32)
        for start in range(0, count, BLOCK):
            block = slice(start, min(start + BLOCK, count))
            likelihood = self.categorical((seen / seen.sum()).astype(np.float32), perfect=False)
            if found is None:
                out[block] = self.decoder.decode(likelihood, block.stop - start)
            else:
                out[block] = found[block]
                self.encoder.encode(out[block], likelihood)
            seen += np.bincount(out[block], minlength=alphabet)
        return out


def positions(coder: Coder, shape: tuple[int, int], count: int, found: np.ndarray | None) -> np.ndarray:
    """Which of the weights are not 0, ``count`` of them: in each row a likelihood for every column."""
    inputs, outputs = shape
    density = max(count / (inputs * outputs), RARE)
    columns, rows = np.zeros(outputs), [0] * BEFORE
    mask = np.empty(shape, bool)
    for i in range(inputs):
        column = (columns + COLUMN * density) / (i + COLUMN)
        row = (sum(rows) / outputs + ROW * density) / (min(i, BEFORE) + ROW)
        mask[i] = coder.bits(column * (row / density), None if found is None else found[i])
        columns += mask[i]
        rows = [*rows[1:], int(mask[i].sum())]
    return mask


def inputs_of(coder: Coder, features: int, found: np.ndarray | None) -> np.ndarray:
    """Which features the network looks at: a bit after the one before and the one a row of a square above it."""
    width = max(1, round(features**0.5))
    seen, out = np.full((2, 2, 2), 0.5), np.zeros(features + width, bool)
    for i in range(features):
        own = seen[int(out[i + width - 1]), int(out[i])]
        bit = coder.bits(np.array([own[1] / own.sum()]), None if found is None else found[i : i + 1])[0]
        out[i + width] = bit
        own[int(bit)] += 1
    return out[width:]


def takes(scheme: str, granularity: Any) -> bool:
    """Whether integers quantized so can be coded."""
    return scheme in ("symmetric", "symmetric_full") and granularity in ("tensor", "channel")


def encode(model: Model) -> bytes:
    """The bytes of the file: of the model shrunk, its biases rounded to 8 bits of the largest of their layer.

    ``decode`` gives the same integers, scales and outputs back. Raises ValueError for a model that is not quantized
    symmetrically.
    """
    if model.population is not None or model.quantized is None:
        raise ValueError("encode: expected one quantized network; quantize it, and take .member(i) of a population")
    if not all(map(is_plain, model.quantized)):
        raise ValueError(
            'encode: a coded file takes integers of scheme="symmetric" or "symmetric_full", granularity="tensor" or '
            '"channel"; quantize the model of floats so'
        )
    small = shrink(model)
    head, coder = Writer(), Coder()
    write_head(head, small)
    if small.inputs is not None:
        inputs_of(coder, len(small.inputs), small.inputs)
    for i, (layer, q) in enumerate(zip(small.params, small.quantized or (), strict=True)):
        code_layer(coder, q, layer.bias, width_of(q, bits_of_layer(model.bits, i, None)))
    body = head.raw + coder.encoder.get_compressed().astype("<u4").tobytes()
    return MAGIC + struct.pack("<I", zlib.crc32(body)) + body


def code_layer(coder: Coder, q: QArray, bias: np.ndarray, width: int) -> None:
    """Positions, integers and biases."""
    weights, top = q.values != 0, greatest(width)
    count = positions(coder, q.values.shape, int(weights.sum()), weights).sum()
    coder.integers(int(count), 2 * top, symbols(q.values[weights], top))
    coder.integers(len(bias), 2 * BIAS_LEVELS + 1, bias_integers(bias)[0] + BIAS_LEVELS)


def layer_bytes(q: QArray, bias: np.ndarray, bits: int) -> int:
    """What a layer takes of the file."""
    head, coder = Writer(), Coder()
    write_layer_head(head, q, bias, width_of(q, bits))
    code_layer(coder, q, bias, width_of(q, bits))
    return len(head.raw) + 4 * len(coder.encoder.get_compressed())


def decode(raw: bytes, name: str = "model") -> Model:
    """The model in the bytes of a file. ValueError for one that is damaged."""
    if raw[:4] != MAGIC or len(raw) < 8 or zlib.crc32(raw[8:]) != struct.unpack("<I", raw[4:8])[0]:
        raise ValueError(f"{name}: not a coded model, or damaged: its CRC-32 does not match; copy or encode it again")
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            found = _decode(Reader(raw[8:]))
            files.loads(found.dumps())  # what a model file refuses is refused here as well
        return found
    except (
        ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, AssertionError, RecursionError,
        struct.error, zlib.error,
    ) as error:  # fmt: skip
        raise ValueError(f"{name}: not a valid coded model: {error}") from error


def _decode(head: "Reader") -> Model:
    model, counts, widths, scales, bias_scales, features = read_head(head)
    words = head.rest()
    coder = Coder(np.frombuffer(words[: len(words) // 4 * 4], "<u4").astype(np.uint32))
    inputs = inputs_of(coder, features, None) if features else None
    layers, integers = [], []
    for shape, count, width, scale, unit in zip(model.network.shapes, counts, widths, scales, bias_scales, strict=True):
        top = greatest(width)
        kept = positions(coder, shape, count, None)
        values = np.zeros(shape, np.int8)
        values[kept] = integers_of(coder.integers(int(kept.sum()), 2 * top, None), top)
        bias = (coder.integers(shape[1], 2 * BIAS_LEVELS + 1, None) - BIAS_LEVELS).astype(np.float32) * unit
        q = QArray(values, scale, np.zeros(scale.shape, np.int8))
        layers.append(Layer(dequantize(q), bias))
        integers.append(q)
    masks = tuple(q.values != 0 for q in integers)
    return replace(model, params=tuple(layers), quantized=tuple(integers), masks=masks, inputs=inputs)


def width_of(q: QArray, bits: int) -> int:
    """2b, and 1 more where −2ᵇ⁻¹ may be among the integers of b bits."""
    return 2 * bits + int(bits == 1 or q.values.min(initial=0) == -(2 ** (bits - 1)))


def greatest(width: int) -> int:
    """The greatest |q| there may be."""
    bits, full = divmod(width, 2)
    return 2 ** (check_bits(bits) - 1) - 1 + full


def symbols(values: np.ndarray, top: int) -> np.ndarray:
    """Integers other than 0, from −top to top, as 0 to 2·top − 1."""
    return values.astype(np.int32) + top - (values > 0)


def integers_of(found: np.ndarray, top: int) -> np.ndarray:
    """The inverse of ``symbols``."""
    values = found - top
    return (values + (values >= 0)).astype(np.int8)


def bias_integers(bias: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """Integers from −127 to 127, and the scale they are multiplied with."""
    scale = np.float32(np.abs(bias).max() / BIAS_LEVELS)
    unit = scale if scale > 0 else np.float32(1)
    return np.clip(np.round(bias / unit), -BIAS_LEVELS, BIAS_LEVELS).astype(np.int32), unit


class Writer:
    """Numbers as bytes: whole ones with seven bits to a byte, the last byte below 128."""

    def __init__(self) -> None:
        self.raw = b""

    def whole(self, *values: int) -> None:
        for value in values:
            while value > 127:
                self.raw += bytes([value & 127 | 128])
                value >>= 7
            self.raw += bytes([value])

    def floats(self, values: Any) -> None:
        self.raw += np.asarray(values, "<f4").tobytes()

    def text(self, value: bytes) -> None:
        self.whole(len(value))
        self.raw += value


class Reader:
    """What a ``Writer`` wrote, in the same order."""

    def __init__(self, raw: bytes) -> None:
        self.raw, self.at = raw, 0

    def whole(self) -> int:
        value, shift = 0, 0
        while True:
            byte = self.raw[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def floats(self, count: int) -> np.ndarray:
        found = np.frombuffer(self.take(4 * count), "<f4").astype(np.float32)
        if not np.isfinite(found).all():
            raise ValueError("a number is not finite")
        return found

    def text(self) -> bytes:
        return self.take(self.whole())

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.raw):
            raise ValueError("it ends too early")
        self.at += count
        return self.raw[self.at - count : self.at]

    def rest(self) -> bytes:
        return self.take(len(self.raw) - self.at)


def write_head(head: Writer, model: Model) -> None:
    """All that is not entropy-coded."""
    network, config = model.network, dict(model.loss.config)
    head.whole(len(network.layer_sizes), *network.layer_sizes, 0 if model.inputs is None else len(model.inputs))
    head.whole(activations.NAMES.index(network.activation), INITIALIZERS.index(network.initializer))
    head.whole(losses.NAMES.index(model.loss.name))
    head.floats(list(config.values()))
    head.whole(0 if model.split_seed is None else model.split_seed + 1)
    head.text(b"" if model.classes is None else zlib.compress(json.dumps(model.classes).encode(), 9))
    for fitted in (model.normalization, model.targets):
        head.whole(0 if fitted is None else len(fitted.shift))
        if fitted is not None:
            head.floats(np.concatenate([np.broadcast_to(part, fitted.shift.shape) for part in fitted]))
    for i, (layer, q) in enumerate(zip(model.params, model.quantized or (), strict=True)):
        write_layer_head(head, q, layer.bias, width_of(q, bits_of_layer(model.bits, i, None)))


def write_layer_head(head: Writer, q: QArray, bias: np.ndarray, width: int) -> None:
    """How many integers are not 0, of what width, and the scales."""
    head.whole(int(np.count_nonzero(q.values)), width, q.scale.size)
    head.floats(q.scale.reshape(-1))
    head.floats([bias_integers(bias)[1]])


def read_head(head: Reader) -> tuple[Model, list[int], list[int], list[np.ndarray], list[np.ndarray], int]:
    """A model without its layers; of each layer the weights that are not 0, their bits (``width_of``), scales, scale of
    biases; and the raw features."""
    sizes = tuple(head.whole() for _ in range(head.whole()))
    features = head.whole()
    network = Network(sizes, activations.NAMES[head.whole()], INITIALIZERS[head.whole()])
    name = losses.NAMES[head.whole()]
    if network.parameters > MAX_PARAMETERS or features > MAX_PARAMETERS:
        raise ValueError(f"{network.parameters} parameters; at most {MAX_PARAMETERS} are read")
    loss = losses.get(name, **({"delta": float(head.floats(1)[0])} if name == "huber" else {}))
    seed, names = head.whole(), head.text()
    classes = tuple(json.loads(inflated(names))) if names else None
    normalization, targets = read_normalization(head), read_normalization(head)
    counts, widths, scales, units = [], [], [], []
    for shape in network.shapes:
        counts.append(head.whole())
        widths.append(head.whole())
        size = head.whole()
        if size not in (1, shape[1]) or counts[-1] > shape[0] * shape[1]:
            raise ValueError("a layer's numbers do not fit its shape")
        scales.append(head.floats(size).reshape(1, size))
        units.append(head.floats(1))
    each = tuple(check_bits(width // 2) for width in widths)
    bits = each[0] if len(set(each)) == 1 else each
    model = Model(network, (), loss, normalization, targets, classes, seed - 1 if seed else None, bits=bits)
    return model, counts, widths, scales, units, features


def inflated(raw: bytes) -> bytes:
    """At most ``MOST_TEXT`` bytes: a file cannot ask for more memory than that."""
    inflater = zlib.decompressobj()
    found = inflater.decompress(raw, MOST_TEXT)
    if not inflater.eof:
        raise ValueError("names of classes do not end")
    return found


def read_normalization(head: Reader) -> Normalization | None:
    """None where there is none."""
    size = head.whole()
    shift, scale = np.split(head.floats(2 * size), 2)
    if size and not (scale > 0).all():
        raise ValueError("a scale is not above 0")
    return Normalization(shift, scale) if size else None


def save(model: Model, path: str | Path) -> None:
    """Write ``encode(model)`` to a file; ``minimodel.load`` reads it."""
    storage.write(path, encode(model))


files.READERS[MAGIC] = decode
