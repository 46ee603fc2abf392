"""The laws of quantizers, and of files that hold models."""

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

import minimodel as mm
from minimodel import losses, qarray, ranges, tree
from minimodel.compress.calibration import calibrate
from minimodel.network import Network
from minimodel.qarray import QArray
from minimodel.testing import strategies as some
from minimodel.testing.oracles import (
    assert_dtype,
    assert_same_bits,
    installed,
    positive_zeros,
    refuses,
)
from minimodel.testing.strategies import law
from minimodel.testing.suites.base import Suite
from minimodel.testing.suites.scores import NETWORK, Case
from minimodel.tree import Array


class Quantization(NamedTuple):
    """What a quantizer of weights (*population, in, out) does, as functions of arrays.

    low, high          the least and the greatest integer
    levels             w -> whatever the others need of scales and the like; on the host
    quantize           (w, levels) -> QArray
    fake_quantize      (w, levels) -> ŵ
    straight_through   (w, levels, gradient by ŵ) -> gradient by w
    """

    low: int
    high: int
    levels: Callable[[np.ndarray], Any]
    quantize: Callable[[Array, Any], QArray]
    fake_quantize: Callable[[Array, Any], Array]
    straight_through: Callable[[Array, Any, Array], Array]


def quantization(bits: int, scheme: str = "symmetric", rounding: str = "half_even", **calibration: Any) -> Quantization:
    """Ours, of whatever ``mm.quantize`` takes; its range by default is all there is."""
    calibration.setdefault("range_of", ranges.min_max)
    return Quantization(
        *qarray.levels(bits, scheme),
        partial(calibrate, bits=bits, scheme=scheme, **calibration),
        partial(qarray.quantize, rounding=rounding),
        partial(qarray.fake_quantize, rounding=rounding),
        partial(qarray.straight_through, rounding=rounding),
    )


weights = some.arrays((6, 3), np.float32)


class QuantizerSuite(Suite):
    """Fixture ``quantizer``: a ``Quantization``."""

    subject = "quantizer"

    @law(w=weights)
    def test_integers_saturate(self, quantizer: Quantization, w: np.ndarray) -> None:
        """Weights far beyond the range become its ends, of their own sign; all integers are within it, as int8.

        Why: weights move in training; a cast before the clip wraps around, and differently on each backend.
        Source: Python array API standard 2024.12, astype: out of range it is unspecified. 300 is 44 or 127.
        """
        levels = quantizer.levels(w)
        for far in (1.0, 2.0, 300.0, 1e6):
            q = quantizer.quantize(w * np.float32(far), levels)
            assert_dtype(q.values, "int8")
            assert q.values.min() >= quantizer.low and q.values.max() <= quantizer.high, "out of range"
        ends = np.where(w > 0, quantizer.high, quantizer.low)[np.abs(w) >= 0.25]
        assert (q.values[np.abs(w) >= 0.25] == ends).all(), "a weight far out is not at the end of the range"

    @law(w=weights)
    def test_fake_quantization_is_that_of_the_integers(self, quantizer: Quantization, w: np.ndarray) -> None:
        """ŵ = s·(q − z) to the bit, float32.

        Why: the network that was trained is the network that is stored.
        Source: Jacob et al., Quantization and training (2018), equation 1.
        """
        levels = quantizer.levels(w)
        found = quantizer.fake_quantize(w, levels)
        assert_same_bits(found + 0, qarray.dequantize(quantizer.quantize(w, levels)) + 0, "ŵ")  # −0 + 0 is 0

    @law(w=weights)
    def test_zero_is_exact(self, quantizer: Quantization, w: np.ndarray) -> None:
        """ŵ of 0 is 0.

        Why: a pruned weight stays 0.
        Source: Jacob et al. (2018), section 2.1.
        """
        assert not quantizer.fake_quantize(np.zeros_like(w), quantizer.levels(w)).any(), "0 does not stay 0"

    @law(w=weights)
    def test_rounding_is_to_the_nearest(self, quantizer: Quantization, w: np.ndarray) -> None:
        """Within the range |w − ŵ| is at most half a step.

        Why: the error of quantization is what accuracy is lost by.
        Source: Gersho, Gray, Vector quantization and signal compression (1992), section 5.4.
        """
        levels = quantizer.levels(w)
        q = quantizer.quantize(w, levels)
        inside = (q.values > quantizer.low) & (q.values < quantizer.high)
        step = np.broadcast_to(qarray.spread(q.scale, w.shape[-2]), w.shape)
        error = np.abs(w - quantizer.fake_quantize(w, levels))
        assert (error[inside] <= 0.5 * step[inside] * (1 + 1e-5)).all(), "further than half a step away"

    def test_halves_go_to_even(self, quantizer: Quantization) -> None:
        """Half-way between two integers the even one is taken. (Where the integers themselves have the scale 1.)

        Why: half up adds a bias to every layer; and integers must agree everywhere.
        Source: IEEE 754-2019, section 4.3.1, roundTiesToEven; the tier "exact".
        """
        low, high = quantizer.low, quantizer.high
        halves = np.arange(low, high, dtype=np.float32) + np.float32(0.5)
        w = np.stack([np.full_like(halves, low), np.full_like(halves, high), halves], axis=1).reshape(-1, 1)
        levels = quantizer.levels(w)
        scale = quantizer.quantize(w, levels).scale
        assert (scale == 1).all(), f"the integers {low} to {high} got the scale {scale.ravel()}"
        assert_same_bits(quantizer.fake_quantize(w, levels)[2::3, 0] + 0, np.round(halves) + 0, "halves")

    @law(w=weights)
    def test_quantizing_again_changes_nothing(self, quantizer: Quantization, w: np.ndarray) -> None:
        """ŵ of ŵ is ŵ, to the bit.

        Why: a model that is loaded and quantized alike is the same model.
        Source: Gersho, Gray (1992), section 5.1: a level of a regular quantizer lies in its own cell.
        """
        levels = quantizer.levels(w)
        once = quantizer.fake_quantize(w, levels)
        assert_same_bits(quantizer.fake_quantize(once, levels) + 0, once + 0, "ŵ of ŵ")

    @law(w=weights, more=st.integers(1, 8))
    def test_order_is_kept(self, quantizer: Quantization, w: np.ndarray, more: int) -> None:
        """w ≤ v gives ŵ ≤ v̂; and where the integers are symmetric, ŵ of −w is −ŵ.

        Why: what is ranked by magnitude stays ranked.
        Source: Gersho, Gray (1992), section 5.1: a regular quantizer's cells are intervals in order.
        """
        levels = quantizer.levels(w)
        found, above = (quantizer.fake_quantize(v, levels) for v in (w, w + np.float32(more / 8)))
        assert (found <= above).all(), "a larger weight became a smaller one"
        if quantizer.low == -quantizer.high:
            assert_same_bits(0 - quantizer.fake_quantize(-w, levels), found + 0, "ŵ of −w")

    @law(w=weights)
    def test_gradient_passes_where_nothing_is_clipped(self, quantizer: Quantization, w: np.ndarray) -> None:
        """∂J/∂w is ∂J/∂ŵ within the range and 0 far beyond it.

        Why: a clipped weight has no effect, and would drift.
        Source: Bengio, Léonard, Courville, Estimating or propagating gradients through stochastic neurons (2013).
        """
        levels, gradient = quantizer.levels(w), np.linspace(1, 2, w.size, dtype=np.float32).reshape(w.shape)
        kept = gradient.copy()
        assert_same_bits(quantizer.straight_through(0.9 * w, levels, gradient), kept, "the gradient within the range")
        far = quantizer.straight_through(np.where(w > 0, 1e6, -1e6).astype(np.float32), levels, gradient)
        assert not far.any(), "a gradient where the weight was clipped"

    @law(10, w=weights, scale=st.sampled_from((0.0, 1e-38, 1e-20, 1e20, 1e37)))
    def test_scales_are_finite(self, quantizer: Quantization, w: np.ndarray, scale: float) -> None:
        """Weights that are all 0, tiny or huge give finite positive scales and finite ŵ.

        Why: a layer may be empty, and 1/0 is no scale.
        Source: IEEE 754-2019, section 7.3, division by zero.
        """
        w = w * np.float32(scale)
        levels = quantizer.levels(w)
        q = quantizer.quantize(w, levels)
        assert np.isfinite(q.scale).all() and (q.scale > 0).all(), f"scales {q.scale.ravel()}"
        assert np.isfinite(quantizer.fake_quantize(w, levels)).all()

    @law(10, w=some.arrays((some.MEMBERS, 6, 3), np.float32))
    def test_a_population_is_its_members(self, quantizer: Quantization, w: np.ndarray) -> None:
        """Weights (*population, in, out) give each member its own integers, scales and zero points.

        Why: P networks are quantized as one array program.
        Source: Python array API standard 2024.12, Broadcasting, along the axes in front.
        """
        found = quantizer.quantize(w, quantizer.levels(w))
        for i in range(some.MEMBERS):
            alone = quantizer.quantize(w[i], quantizer.levels(w[i]))
            assert_same_bits(tree.map(lambda leaf, i=i: leaf[i], found), alone, f"member {i}")

    @law(5, w=weights)
    def test_nothing_given_is_consumed(self, quantizer: Quantization, w: np.ndarray) -> None:
        """The weights, the levels and the gradient are as they were.

        Why: they are trained on, behind the rounding.
        Source: NumPy user guide, Copies and views: what is written in place is seen by all who share the memory.
        """
        before, levels, gradient = w.copy(), quantizer.levels(w), np.linspace(1, 2, w.size, dtype=np.float32)
        gradient = gradient.reshape(w.shape)
        assert_same_bits(w, before, "the weights")
        kept = tree.map(np.copy, (w, levels, gradient))
        quantizer.quantize(w, levels), quantizer.fake_quantize(w, levels)
        quantizer.straight_through(w, levels, gradient)
        assert_same_bits((w, levels, gradient), kept, "weights, levels and gradient")

    @law(5, w=weights)
    def test_every_backend_gives_the_same_integers(self, quantizer: Quantization, w: np.ndarray) -> None:
        """Integers, scales and ŵ from equal weights and levels are NumPy's to the bit, eagerly and compiled.

        Why: integers are promised bit for bit, and so must not be made by dividing, nor by a fused multiply-add.
        Source: the tier "exact"; IEEE 754-2019, section 4.3: one product is rounded once, a/s by 1/s twice.
        """
        w = w * np.float32(1 / 3)
        levels = quantizer.levels(w)
        expected = positive_zeros(rounded(w, levels, quantizer=quantizer))
        for backend in installed():
            given = backend.asarray(w), tree.map(backend.asarray, levels)
            for run in (rounded, backend.jit(rounded, static=("quantizer",))):
                found = positive_zeros(backend.to_numpy(run(*given, quantizer=quantizer)))
                assert_same_bits(found, expected, backend.name)


def rounded(w: Array, levels: Any, *, quantizer: Quantization) -> tuple[QArray, Array]:
    return quantizer.quantize(w, levels), quantizer.fake_quantize(w, levels)


class FileSuite(Suite):
    """Fixture ``files``: an object with ``dumps(model) -> bytes`` and ``loads(bytes) -> Model``."""

    subject = "files"
    odd = st.sampled_from((0.0, -0.0, 1.0, -1.0, 1e-40, -1e-45, 3e38, 1 / 3, -2.5))

    def model(self, seed: int, population: int | None = None) -> mm.Model:
        """A model with a mask that keeps half."""
        case, rng = Case.of(seed, population), np.random.default_rng(seed)
        masks = tuple(rng.random(layer.weight.shape) < 0.5 for layer in case.params)
        params = tuple(layer._replace(weight=layer.weight * m) for layer, m in zip(case.params, masks, strict=True))
        return mm.Model(NETWORK, params, losses.softmax_cross_entropy, masks=masks)

    def full(self, seed: int, population: int | None, labels: bool) -> mm.Model:
        """A model that holds all that there is: also integers, a selection of inputs, and what its data were like."""
        model, rng = self.model(seed, population), np.random.default_rng(seed)
        way = quantization(5, "asymmetric")
        integers = [way.quantize(layer.weight, way.levels(layer.weight)) for layer in model.params]
        integers = [
            q._replace(values=np.where(mask, q.values, q.zero_point))
            for q, mask in zip(integers, model.masks or (), strict=True)
        ]
        params = [layer._replace(weight=qarray.dequantize(q)) for layer, q in zip(model.params, integers, strict=True)]

        def fitted(size: int) -> mm.Normalization:
            return mm.Normalization(rng.normal(size=size).astype(np.float32), 1 + rng.random(size, np.float32))

        return replace(
            model,
            network=Network(NETWORK.layer_sizes, ("silu", "relu")[seed % 2], "glorot"),
            params=tuple(params),
            loss=losses.softmax_cross_entropy if labels else losses.huber(0.5 + seed % 3),
            normalization=fitted(4),
            targets=None if labels else fitted(3),
            classes=("one", "two", "δ") if labels else None,
            split_seed=seed,
            quantized=tuple(integers),
            bits=5,
            inputs=rng.permutation(np.arange(6) < 4),
        )

    def again(self, files: Any, model: mm.Model) -> mm.Model:
        """What comes back."""
        return files.loads(files.dumps(model))

    @law(20, weight=some.arrays((4, 3), np.float32, odd), bias=some.arrays((3,), np.float32, odd))
    def test_parameters_come_back_to_the_bit(self, files: Any, weight: np.ndarray, bias: np.ndarray) -> None:
        """Any finite float32, −0 and subnormal numbers too, in any layout.

        Why: a model that is saved is the model that was evaluated.
        Source: minimodel.model; huggingface/safetensors writes arrays as they lie in memory.
        """
        for layout in some.LAYOUTS.values():
            params = (mm.Layer(layout(weight), layout(bias)),)
            model = mm.Model(Network((4, 3)), params, losses.mean_squared_error)
            assert_same_bits(self.again(files, model).params, params, "parameters")

    @law(10, seed=some.seeds, population=some.populations)
    def test_masks_come_back(self, files: Any, seed: int, population: int | None) -> None:
        """What is kept is kept, and what is 0 is 0, of every member.

        Why: retraining would fill a mask that lost a bit.
        Source: minimodel.packing.
        """
        model = self.model(seed, population)
        found = self.again(files, model)
        assert_same_bits(found.masks, model.masks, "masks")
        assert_same_bits(positive_zeros(found.params), positive_zeros(model.params), "weights")

    @law(10, seed=some.seeds, bits=st.integers(1, 8), scheme=st.sampled_from(qarray.SCHEMES), masked=st.booleans())
    def test_integers_come_back(self, files: Any, seed: int, bits: int, scheme: str, masked: bool) -> None:
        """Integers of 1 to 8 bits, their scales and zero points, and the weights that they stand for.

        Why: they are packed at their bits, across the edges of bytes.
        Source: minimodel.packing.
        """
        model = self.model(seed)
        way = quantization(bits, scheme)
        integers = []
        for layer, mask in zip(model.params, model.masks or (), strict=True):
            q = way.quantize(layer.weight, way.levels(layer.weight))
            kept = q._replace(values=np.where(mask, q.values, q.zero_point)) if masked else q
            integers.append(kept)
        params = tuple(
            mm.Layer(qarray.dequantize(q), layer.bias) for q, layer in zip(integers, model.params, strict=True)
        )
        masks = model.masks if masked else None
        model = replace(model, params=params, masks=masks, quantized=tuple(integers), bits=bits)
        found = self.again(files, model)
        assert found.bits == bits
        assert_same_bits(found.quantized, model.quantized, "integers")
        assert_same_bits(positive_zeros(found.params), positive_zeros(model.params), "weights")

    @law(10, seed=some.seeds, population=some.populations, labels=st.booleans())
    def test_everything_a_model_holds_comes_back(
        self, files: Any, seed: int, population: int | None, labels: bool
    ) -> None:
        """Network, loss with its numbers, normalizations, classes, seed of the split, inputs, integers; of all members.

        Why: weights alone are no model: without what its data were like nobody can use it on others.
        Source: minimodel.model.Model, whose history and state are not saved.
        """
        model = self.full(seed, population, labels)
        found = self.again(files, model)
        assert found.population == model.population, f"population {found.population}, not {model.population}"
        for name in (field.name for field in fields(model) if field.name not in ("history", "state")):
            ours, theirs = getattr(found, name), getattr(model, name)
            if name in ("params", "masks", "quantized", "normalization", "targets", "inputs"):
                ours, theirs = map(positive_zeros, (ours, theirs))
                assert_same_bits(ours, theirs, name)
            else:
                assert ours == theirs, f"{name}: {ours!r} came back, not {theirs!r}"

    @law(10, seed=some.seeds, population=some.populations, labels=st.booleans())
    def test_outputs_are_the_same(self, files: Any, seed: int, population: int | None, labels: bool) -> None:
        """Of raw inputs the model from the file gives the same outputs, to the bit, and decides the same.

        Why: this is what it was saved for.
        Source: minimodel.model.Model, outputs and predict.
        """
        model = self.full(seed, population, labels)
        found, x = self.again(files, model), np.random.default_rng(seed).normal(size=(7, 6)).astype(np.float32)
        assert_same_bits(found.outputs(x) + 0, model.outputs(x) + 0, "outputs")  # −0 + 0 is 0
        assert found.predict(x).tolist() == model.predict(x).tolist(), "the predictions are others"

    @law(5, seed=some.seeds)
    def test_the_same_model_gives_the_same_bytes(self, files: Any, seed: int) -> None:
        """Saved twice, or loaded and saved again, it is the same file.

        Why: files are compared by their hash.
        Source: minimodel.storage.
        """
        model = self.model(seed)
        raw = files.dumps(model)
        assert files.dumps(model) == raw and files.dumps(files.loads(raw)) == raw

    @law(30, seed=st.integers(0, 3), place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
    def test_a_damaged_file_is_refused(self, files: Any, seed: int, place: float, flip: int) -> None:
        """Any byte changed, and any end cut off, is a ValueError.

        Why: a wrong weight looks like any other.
        Source: minimodel.storage, SHA-256.
        """
        raw = bytearray(files.dumps(self.model(seed)))
        at = int(place * len(raw))
        cut = bytes(raw[:at])
        raw[at] ^= flip
        for damaged in (bytes(raw), cut):
            with refuses(ValueError):
                files.loads(damaged)
