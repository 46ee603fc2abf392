"""Integer-only inference: int8 activations and weights, int32 sums, and the same bits on every backend.

With a ≈ s_a(q_a − z_a) and W ≈ s_w·q_w a layer's outputs are z ≈ s_a s_w·acc,

    acc = q_a·q_w + c,    c = round(b/(s_a s_w)) − z_a Σ q_w     (int32)

and the next activations, for the same integers as ONNX's QLinearMatMul,

    q = clip(round(acc·m) + z, low, high),    m = s_a s_w/s     (one float32 product, halves to even)

or, where all scales are powers of two, m = 2⁻ᵏ and acc·m is a shift of bits that rounds halves to even, with no float.
relu, and relu of few bits, is the clipping itself; of another function the 256 values are looked up. Jacob et al.,
Quantization and training of neural networks for efficient integer-arithmetic-only inference (2018).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from minimodel import activations, qarray, tree
from minimodel.backends import Backend, load
from minimodel.compress import calibration, ranges
from minimodel.compress.ranges import Range
from minimodel.compress.samples import picked
from minimodel.datasets import Dataset, Splits
from minimodel.gradients import forward
from minimodel.model import Evaluation, Model, evaluation
from minimodel.network import Layer, Network
from minimodel.problem import check_data
from minimodel.qarray import QArray
from minimodel.tree import Array, namespace

MOST_SHIFT = 30  # bits


class Scale(NamedTuple):
    """a ≈ scale·(q − zero_point), both (*population,); q from low to high."""

    scale: np.ndarray
    zero_point: np.ndarray
    low: int
    high: int


class IntegerLayer(NamedTuple):
    """One layer: acc = q·weight + bias, then the rescaled integers of its outputs.

    weight       int8 (*population, in, out)
    bias         int32 (*population, out): c above
    multiplier   m, float32 (*population, out), or k, int32, where acc is shifted; of no use in the last layer
    zero_point   z, int32 (*population, 1); low and high: int32, where q is clipped
    table        f for each of the 256 integers, int8 (*population, 256), or None
    """

    weight: Array
    bias: Array
    multiplier: Array
    zero_point: Array
    low: Array
    high: Array
    table: Array | None


def rescaled(acc: Array, layer: IntegerLayer) -> Array:
    """The int8 integers of the layer's outputs, clipped before they are cast."""
    xp, m = namespace(acc), layer.multiplier[..., None, :]
    low, high, z = (value[..., None, :] for value in (layer.low, layer.high, layer.zero_point))
    if m.dtype == xp.int32:  # clipped before z is added, which could leave int32
        return xp.astype(xp.minimum(xp.maximum(shifted(acc, m), low - z), high - z) + z, xp.int8)
    low, high, z = (xp.astype(value, m.dtype) for value in (low, high, z))
    q = xp.astype(acc, m.dtype)
    q *= m
    q = xp.round(q)
    q += z
    return xp.astype(xp.clip(q, low, high), xp.int8)


def shifted(acc: Array, k: Array) -> Array:
    """round(acc/2ᵏ), halves to even, for 0 ≤ k < 31."""
    xp = namespace(acc)
    one = xp.ones_like(k)
    whole = xp.bitwise_right_shift(acc, k)
    rest, half = acc - xp.bitwise_left_shift(whole, k), xp.bitwise_right_shift(xp.bitwise_left_shift(one, k), one)
    odd = xp.bitwise_and(whole, one) == one
    up = (k > 0) & ((rest > half) | ((rest == half) & odd))
    return whole + xp.astype(up, whole.dtype)


def run(layers: tuple[IntegerLayer, ...], q: Array, *, backend: Backend) -> Array:
    """The int32 sums (*population, rows, out) of the last layer, from integers (*population, rows, in)."""
    xp = backend.xp
    for i, layer in enumerate(layers):
        acc = backend.integer_matmul(q, layer.weight)
        acc += layer.bias[..., None, :]
        if i + 1 < len(layers):
            q = rescaled(acc, layer)
            if layer.table is not None:  # of all members side by side
                members = xp.reshape(layer.table, (-1,))
                start = xp.arange(members.shape[0] // 256, dtype=xp.int32) * 256 + 128
                start = xp.reshape(start, (*layer.table.shape[:-1], 1, 1))
                q = backend.take(members, xp.astype(q, xp.int32) + start)
    return acc


@dataclass(frozen=True, eq=False)
class IntegerModel:
    """What ``to_integers`` returns.

    model    what it stands for
    scales   of the inputs and of every hidden layer's activations
    units    s_a s_w of each layer, float32 (*population, out)
    layers   the integers
    """

    model: Model
    scales: tuple[Scale, ...]
    units: tuple[np.ndarray, ...]
    layers: tuple[IntegerLayer, ...]

    def quantized(self, x: Any) -> np.ndarray:
        """The int8 integers (*population, n, in) of raw inputs (n, features)."""
        rows, scale = self.model.prepared(x), self.scales[0]
        inverse, zero_point = (np.float32(1) / scale.scale)[..., None, None], scale.zero_point[..., None, None]
        q = rows * inverse
        np.round(q, out=q)
        q += zero_point.astype(np.float32)
        return np.clip(q, scale.low, scale.high, out=q).astype(np.int8)

    def integers(self, x: Any, *, backend: str | Backend = "numpy") -> np.ndarray:
        """The int32 sums of the last layer: the same bits on every backend."""
        backend = load(backend)
        given = (self.layers, self.quantized(x))  # which nobody writes to
        given = tree.map(partial(backend.asarray, copy=False), given)
        program = backend.jit(run, static=("backend",))
        return backend.to_numpy(program(*given, backend=backend))

    def outputs(self, x: Any, *, backend: str | Backend = "numpy") -> np.ndarray:
        """As ``Model.outputs``: s_a s_w·acc, one float32 product."""
        z = self.integers(x, backend=backend).astype(np.float32) * self.units[-1][..., None, :]
        return self.model.targets.inverse(z) if self.model.targets else z

    def predict(self, x: Any, *, backend: str | Backend = "numpy") -> np.ndarray:
        """As ``Model.predict``."""
        return self.model.decide(self.outputs(x, backend=backend))

    def evaluate(self, data: Dataset, *, backend: str | Backend = "numpy") -> Evaluation:
        """As ``Model.evaluate``."""
        _, y = check_data(self.model.network, self.model.loss, data, inputs=self.model.inputs)
        return evaluation(self.model.loss, self.outputs(data.x, backend=backend), y)


def to_integers(
    model: Model, data: Splits, *, bits: int = 8, range_of: Range = ranges.min_max, shift: bool = False
) -> IntegerModel:
    """The model with inputs and activations of 2 to 8 bits too, computed with integers alone.

    Activations that are integers already, as those of relu_4bit, stay what they are.

    Weights are the model's own integers, or where it has none, 8 bits for each output without retraining. Ranges of the
    activations are taken from up to 4,096 training rows.

    range_of   ``ranges.min_max``, least_error, moving_average(), percentile(0.999), or a function of your own
    shift      all scales become powers of two, and every rescaling a shift of bits

    Raises ValueError for asymmetric weights, and with ``shift`` for weights whose scales are no powers of two.
    """
    qarray.check_bits(bits, 2)
    if shift and activations.steps(model.network.activation):
        raise ValueError(f"shift: the scale of {model.network.activation} is no power of two; take shift=False")
    if not isinstance(data, Splits):
        raise TypeError(f"data: expected Splits, got {type(data).__name__}")
    weights = tuple(map(_with_scales, model.quantized or tuple(_plain(layer.weight, shift) for layer in model.params)))
    if not all(map(qarray.is_plain, weights)):
        raise ValueError(
            "model: integer-only inference takes symmetric weights with a scale for each tensor or output; quantize "
            'with scheme="symmetric" and granularity="channel"'
        )
    if shift and any((np.frexp(q.scale)[0] != 0.5).any() for q in weights):
        raise ValueError("shift: the scales of these weights are no powers of two; take a model of floats")
    used = tuple(Layer(qarray.dequantize(q), layer.bias) for q, layer in zip(weights, model.params, strict=True))
    forwarded = forward(model.network, used, model.prepared(data.train.x[picked(len(data.train.x))]))
    lead = used[0].bias.shape[:-1]

    def scale_of(values: np.ndarray) -> Scale:
        least, most = calibration.of_activations(values, bits, range_of)
        if model.network.activation == "relu" and values is not forwarded[0].f:
            least = np.maximum(least, 0)  # clipping at the integer of 0 is the function
        return scale_for(np.broadcast_to(least, lead), np.broadcast_to(most, lead), bits, shift)

    stepped = activations.steps(model.network.activation)
    scales = [stepped_scale(stepped, lead) if stepped and i else scale_of(s.f) for i, s in enumerate(forwarded)]
    layers, units = [], []
    clipping = stepped is not None or model.network.activation in ("relu", "identity")
    for i, (q, layer) in enumerate(zip(weights, used, strict=True)):
        units.append(
            scales[i].scale.astype(np.float64)[..., None] * np.broadcast_to(q.scale[..., 0, :], layer.bias.shape)
        )
        after = scales[i + 1] if i + 1 < len(used) else None
        between = after if after is None or clipping else scale_of(forwarded[i].z)
        layers.append(integer_layer(q, layer.bias, units[i], scales[i], between, shift))
        if after is not None and between is not None and not clipping:
            layers[i] = layers[i]._replace(table=table(model.network, between, after))
    return IntegerModel(model, tuple(scales), tuple(unit.astype(np.float32) for unit in units), tuple(layers))


def _with_scales(q: QArray) -> QArray:
    """A channel of zeros has no scale of its own: the least of the others is as right, and loses less of its bias."""
    used = (q.values != 0).any(axis=-2, keepdims=True)
    if q.scale.shape[-1] == 1 or used.all():
        return q
    least = np.where(used, q.scale, np.inf).min(axis=-1, keepdims=True)
    return q._replace(scale=np.where(used, q.scale, np.where(np.isfinite(least), least, 1)).astype(np.float32))


def _plain(weight: np.ndarray, shift: bool) -> QArray:
    return qarray.quantize(weight, calibration.calibrate(weight, 8, range_of=ranges.min_max, power_of_two=shift))


def stepped_scale(n: int, lead: tuple[int, ...]) -> Scale:
    """That of activations 0, 4/n, …, 4: the integers from 0 to n, or for 255 of them from −128."""
    low = 0 if n < 128 else -128
    return Scale(np.full(lead, activations.TOP / n, np.float32), np.full(lead, low, np.int32), low, low + n)


def scale_for(least: np.ndarray, most: np.ndarray, bits: int, shift: bool) -> Scale:
    """s = (most − least)/(2ᵇ − 1) and the integer of the real 0; with ``shift`` the power of two from there on."""
    low, high = qarray.levels(bits, "asymmetric")
    width = (most.astype(np.float64) - least) / (high - low)
    scale = np.where(width > qarray.SMALLEST, width, 1.0)
    scale = (np.exp2(np.ceil(np.log2(scale))) if shift else scale).astype(np.float32)
    return Scale(scale, np.clip(np.round(low - least / scale), low, high).astype(np.int32), low, high)


def integer_layer(
    q: QArray, bias: np.ndarray, unit: np.ndarray, before: Scale, after: Scale | None, shift: bool
) -> IntegerLayer:
    """The layer with sums in ``unit`` s_a s_w, from activations of one scale to those of another; the last to none."""
    sums, sizes = (values.astype(np.int64).sum(axis=-2) for values in (q.values, np.abs(q.values.astype(np.int16))))
    c = np.round(bias / unit) - before.zero_point[..., None] * sums
    most = float((np.abs(c) + 128.0 * sizes).max())
    if most >= 2**31:
        raise ValueError(f"model: sums of up to {most:.3g} do not fit int32; the bias is too large for its weights")
    after = before if after is None else after
    multiplier: np.ndarray = (unit / after.scale[..., None]).astype(np.float32)
    if shift:
        k = -np.log2(multiplier)
        if (k < 0).any() or (k > MOST_SHIFT).any():
            raise ValueError(f"shift: expected shifts by 0 to {MOST_SHIFT} bits, got {k.min():g} to {k.max():g}")
        multiplier = k.astype(np.int32)
    zero = after.zero_point[..., None].astype(np.int32)
    low, high = (np.full_like(zero, limit) for limit in (after.low, after.high))
    return IntegerLayer(q.values, c.astype(np.int32), multiplier, zero, low, high, None)


def table(network: Network, before: Scale, after: Scale) -> np.ndarray:
    """The integer of f(a) for every integer of a."""
    q = np.arange(-128, 128)
    a = (q - before.zero_point[..., None]).astype(np.float32) * before.scale[..., None]
    found = np.round(network.functions.value(a) / after.scale[..., None]) + after.zero_point[..., None]
    return np.clip(found, after.low, after.high).astype(np.int8)
