"""Coded files: the same model again, to the bit, in about as many bytes as its numbers carry information."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minimodel as mm
from minimodel import losses, qarray, tree
from minimodel.compress import coded
from minimodel.compress.calibration import calibrate
from minimodel.model import Model

pytestmark = pytest.mark.usefixtures("library")


@pytest.fixture(scope="module")
def library(oracle):
    oracle("constriction")


def make_model(sizes, bits, density, seed, granularity="tensor", scheme="symmetric", **fields):
    """A quantized model, its weights kept at random but for the strongest of each layer."""
    rng = np.random.default_rng(seed)
    network = mm.Network(sizes)
    layers, masks = [], []
    for inputs, outputs in network.shapes:
        mask = rng.random((inputs, outputs)) < density
        mask[rng.integers(inputs), rng.integers(outputs)] = True
        layers.append(mm.Layer(rng.normal(size=mask.shape) * mask, rng.normal(size=outputs)))
        masks.append(mask)
    params = tree.map(lambda leaf: leaf.astype(np.float32), tuple(layers))
    model = Model(network, params, losses.softmax_cross_entropy, masks=tuple(masks), **fields)
    how = {"scheme": scheme, "granularity": granularity}
    q = tuple(qarray.quantize(p.weight, calibrate(p.weight, bits, **how)) for p in params)
    q = tuple(i._replace(values=i.values * mask) for i, mask in zip(q, masks, strict=True))  # at 1 bit 0 has no sign
    values = tuple(mm.Layer(qarray.dequantize(i), p.bias) for i, p in zip(q, params, strict=True))
    return replace(model, params=values, quantized=q, bits=bits)


def assert_same(found, expected):
    for one, other in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@given(
    sizes=st.sampled_from([(1, 1), (5, 3), (30, 12, 4), (17, 9, 9, 2), (200, 70, 3)]),
    bits=st.integers(1, 8),
    density=st.sampled_from([0.02, 0.3, 1.0]),
    granularity=st.sampled_from(["tensor", "channel"]),
    scheme=st.sampled_from(["symmetric", "symmetric_full"]),
    seed=st.integers(0, 99),
)
def test_integers_and_positions_come_back_to_the_bit(sizes, bits, density, granularity, scheme, seed):
    model = make_model(sizes, bits, density, seed, granularity, scheme, split_seed=seed)
    raw, small = coded.encode(model), mm.shrink(model)
    found = coded.decode(raw)
    assert (found.network, found.bits, found.split_seed) == (small.network, bits, seed)
    assert_same(found.quantized, small.quantized)
    assert_same(found.masks, tuple(q.values != 0 for q in small.quantized))
    for layer, before, q in zip(found.params, small.params, small.quantized, strict=True):
        np.testing.assert_array_equal(layer.weight, qarray.dequantize(q))
        assert np.abs(layer.bias - before.bias).max() <= np.abs(before.bias).max() * (0.5 / 127 + 1e-6)
    assert coded.encode(found) == raw


def test_everything_else_of_a_model_comes_back(tmp_path):
    rng = np.random.default_rng(0)
    normalization = mm.Normalization(*(rng.random(6).astype(np.float32) + 1 for _ in range(2)))
    fields = {"normalization": normalization, "classes": ("a", "é"), "split_seed": 2**40}
    model = make_model((6, 4, 2), 3, 0.4, 0, **fields)
    coded.save(model, tmp_path / "model.mmc")
    found = mm.load(tmp_path / "model.mmc")
    x = rng.normal(size=(9, 6))
    assert (found.classes, found.split_seed, found.features) == (("a", "é"), 2**40, 6)
    rounded = replace(mm.shrink(model), params=found.params)
    np.testing.assert_array_equal(found.outputs(x), rounded.outputs(x))
    regression = replace(
        make_model((6, 4, 2), 3, 0.4, 0), loss=losses.huber(0.5), targets=mm.Normalization(*np.ones((2, 1), np.float32))
    )
    found = coded.decode(coded.encode(regression))
    assert found.loss is losses.huber(0.5)
    assert_same(found.targets, regression.targets)


def test_bytes_are_about_the_information():
    """Independent inputs, positions and values cost their entropy, within a tenth and a head of 60 bytes."""
    model = mm.shrink(make_model((400, 150, 10), 4, 0.03, 1))
    information = 0.0
    for q in model.quantized:
        counts = np.bincount(q.values.reshape(-1).astype(int) + 8)
        p = counts[counts > 0] / q.values.size
        information -= q.values.size * (p * np.log2(p)).sum()
    information += len(model.inputs)  # a bit each
    biases = sum(8 * layer.bias.size for layer in model.params)
    assert len(coded.encode(model)) <= 1.1 * (information + biases) / 8 + 60


def test_rows_and_columns_that_differ_cost_less():
    """Positions that gather in some columns and rows are foretold."""
    rng = np.random.default_rng(0)
    likely = rng.beta(0.3, 3, size=100) * np.repeat(rng.beta(0.3, 3, size=20), 20)[:, None]
    mask = rng.random(likely.shape) < likely
    p = mask.mean()
    plain = -mask.size * (p * np.log2(p) + (1 - p) * np.log2(1 - p))
    coder = coded.Coder()
    coded.positions(coder, mask.shape, int(mask.sum()), mask)
    words = coder.encoder.get_compressed()
    assert 32 * len(words) < 0.85 * plain
    np.testing.assert_array_equal(coded.positions(coded.Coder(words), mask.shape, int(mask.sum()), None), mask)


@given(st.binary(max_size=40), st.integers(0, 10**6))
def test_a_damaged_file_is_refused(junk, place):
    raw = bytearray(coded.encode(make_model((12, 6, 3), 4, 0.3, 0)))
    for damaged in (junk, coded.MAGIC + junk, bytes(raw[: place % len(raw)])):
        with pytest.raises(ValueError, match="not a coded model"):
            coded.decode(damaged)
    raw[place % len(raw)] ^= 1 << place % 8
    with pytest.raises(ValueError, match="not a coded model, or damaged"):
        coded.decode(bytes(raw))


def test_a_file_that_was_made_to_mislead_is_refused():
    """With the right checksum, but a head that asks for too much or ends too early."""
    for head in (b"", b"\x02\x04", b"\x02" + b"\xff\xff\xff\xff\x0f" * 2 + b"\x00" * 20, b"\x03\x04\x04\x04\x00\x63"):
        raw = coded.MAGIC + coded.struct.pack("<I", coded.zlib.crc32(head)) + head
        with pytest.raises(ValueError, match="not a valid coded model"):
            coded.decode(raw)


def test_what_cannot_be_coded_is_refused():
    model = make_model((6, 4, 2), 4, 0.5, 0)
    asymmetric = model.quantized[0]._replace(zero_point=np.ones((1, 1), np.int8))
    grouped = model.quantized[0]._replace(scale=np.ones((2, 4), np.float32), zero_point=np.zeros((2, 4), np.int8))
    codebook = model.quantized[0]._replace(codebook=np.zeros((16, 1), np.float32))
    for wrong in (
        replace(model, quantized=None, bits=None),
        *(replace(model, quantized=(first, model.quantized[1])) for first in (asymmetric, grouped, codebook)),
        model.members([0, 0]),
    ):
        with pytest.raises(
            ValueError,
            match=r"^encode: (expected one quantized network|a coded file takes integers)",
        ):
            coded.encode(wrong)
