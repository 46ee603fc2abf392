"""Packed layers: the same arrays and dtypes after the way there and back, whatever the shape, mask and bits."""

import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimodel import packing, qarray
from minimodel.compress.calibration import calibrate
from minimodel.network import Layer

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9)) | st.tuples(
    st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)
)
DENSITY = st.sampled_from([None, 0.0, 0.1, 0.5, 1.0])
SEED = st.integers(0, 2**16)
GRANULARITY = st.sampled_from(["channel", "tensor", 1, 2, 3])


def deflated(raw):
    return np.frombuffer(zlib.compress(raw), np.uint8)


def make_layer(shape, density, seed):
    """A layer and its mask, or None."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=shape).astype(np.float32)
    mask = None if density is None else rng.uniform(size=shape) < density
    if mask is not None:
        weight = weight * mask
    return Layer(weight, rng.normal(size=(*shape[:-2], shape[-1])).astype(np.float32)), mask


def assert_same(found, expected):
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


@given(SHAPES, DENSITY, SEED)
def test_floats_there_and_back(shape, density, seed):
    layer, mask = make_layer(shape, density, seed)
    found, found_mask, q = packing.unpack_layer(packing.pack_layer(layer, mask, None, None), shape, None)
    assert q is None
    for one, other in zip(found, layer, strict=True):
        assert_same(one, other)
    assert (found_mask is None) == (mask is None)
    if mask is not None:
        assert_same(found_mask, mask)


@given(SHAPES, DENSITY, SEED, st.integers(1, 8), st.sampled_from(qarray.SCHEMES), GRANULARITY)
def test_integers_there_and_back(shape, density, seed, bits, scheme, granularity):
    layer, mask = make_layer(shape, density, seed)
    q = qarray.quantize(layer.weight, calibrate(layer.weight, bits, scheme=scheme, granularity=granularity))
    if mask is not None:  # at 1 bit 0 has no sign
        q = q._replace(values=np.where(mask, q.values, qarray.spread(q.zero_point, shape[-2])))
    layer = Layer(qarray.dequantize(q), layer.bias)
    found, found_mask, found_q = packing.unpack_layer(packing.pack_layer(layer, mask, q, bits), shape, bits)
    assert found_q.codebook is None
    for one, other in zip((*found, *found_q[:3]), (*layer, *q[:3]), strict=True):
        assert_same(one, other)
    if mask is not None:
        assert_same(found_mask, mask)


@given(st.integers(1, 8), st.integers(0, 60), SEED)
def test_integers_take_exactly_their_bits(bits, count, seed):
    """−2ᵇ⁻¹ … 2ᵇ⁻¹ − 1 as unsigned numbers, most significant bit first, without gaps."""
    values = np.random.default_rng(seed).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), size=count).astype(np.int8)
    packed = packing.pack_integers(values, bits)
    assert packed.dtype == np.uint8
    assert packed.size == -(-count * bits // 8)
    text = "".join(f"{int(value) + 2 ** (bits - 1):0{bits}b}" for value in values)
    text += "0" * (-len(text) % 8)
    assert packed.tobytes() == bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    assert_same(packing.unpack_integers(packed, bits, count), values)


def test_the_extreme_integers_of_every_width():
    for bits in range(1, 9):
        values = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)).astype(np.int8)
        assert_same(packing.unpack_integers(packing.pack_integers(values, bits), bits, len(values)), values)


def test_what_is_pruned_takes_no_room():
    layer, mask = make_layer((50, 40), 0.25, 0)
    packed = packing.pack_layer(layer, mask, None, None)
    assert set(packed) == {"bias", "mask", "weight"}
    assert packed["weight"].tolist() == layer.weight[mask].tolist()
    assert packed["mask"].nbytes <= 50 * 40 / 8 + 20
    q = qarray.quantize(layer.weight, calibrate(layer.weight, 4))
    packed = packing.pack_layer(layer, mask, q, 4)
    assert set(packed) == {"bias", "mask", "values", "scale"}
    assert packed["values"].nbytes <= mask.sum() / 2 + 20


def packed_layer(bits=4, shape=(4, 3), density=0.5):
    layer, mask = make_layer(shape, density, 0)
    q = qarray.quantize(layer.weight, calibrate(layer.weight, bits or 4, scheme="asymmetric"))
    return packing.pack_layer(layer, mask, q, bits), shape, bits


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("bias", np.zeros(4, np.float32)),
        ("bias", np.zeros(3, np.float64)),
        ("bias", np.full(3, np.nan, np.float32)),
        ("bias", np.full(3, np.inf, np.float32)),
        ("mask", deflated(b"\xff")),
        ("mask", deflated(b"\xff" * 3)),
        ("mask", deflated(b"")),
        ("mask", deflated(b"\xff\xff")[:-5]),
        ("mask", np.zeros(0, np.uint8)),
        ("mask", np.arange(9, dtype=np.uint8)),
        ("mask", deflated(b"\xff\xff")),  # valid, but then more weights are kept than values are there
        ("values", deflated(b"\0" * 40)),
        ("values", deflated(b"")),
        ("values", np.zeros(3, np.uint8)),
        ("scale", np.ones((4, 3), np.float32)),
        ("scale", np.ones(3, np.float32)),
        ("scale", np.ones((1, 3), np.float64)),
        ("scale", np.zeros((1, 3), np.float32)),
        ("scale", -np.ones((1, 3), np.float32)),
        ("scale", np.full((1, 3), np.nan, np.float32)),
        ("scale", np.full((1, 3), np.inf, np.float32)),
        ("zero_point", np.zeros((1, 1), np.int8)),
        ("zero_point", np.zeros((1, 3), np.int16)),
    ],
)
def test_tensors_that_do_not_fit_are_refused(name, wrong):
    tensors, shape, bits = packed_layer()
    with pytest.raises(ValueError):
        packing.unpack_layer({**tensors, name: wrong}, shape, bits)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros(5, np.float32),
        np.zeros((4, 3), np.float32),
        np.zeros(6, np.float16),
        np.full(6, np.nan, np.float32),
    ],
)
def test_weights_that_do_not_fit_are_refused(wrong):
    tensors, shape, bits = packed_layer(bits=None)
    with pytest.raises(ValueError, match="weight: expected finite float32"):
        packing.unpack_layer({**tensors, "weight": wrong}, shape, bits)


@pytest.mark.parametrize("name", ["mask", "values"])
def test_a_small_tensor_cannot_ask_for_much_memory(name):
    """100 MB of zeros deflate to 100 kB; they are never unpacked."""
    tensors, shape, bits = packed_layer()
    bomb = zlib.compressobj(9)
    raw = b"".join(bomb.compress(bytes(2**20)) for _ in range(100)) + bomb.flush()
    tensors = {**tensors, name: np.frombuffer(raw, np.uint8)}
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="a packed tensor holds"):
            packing.unpack_layer(tensors, shape, bits)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20
