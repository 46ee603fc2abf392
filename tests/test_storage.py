"""The model file: no damage is ever accepted, and none ends in anything but a ValueError."""

import hashlib
import io
import json
import os
import pickle
import random
import tracemalloc
import zipfile
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save

import minimodel as mm
from minimodel import losses, model, qarray, storage
from minimodel.compress.calibration import calibrate
from minimodel.model import Model

NETWORK = mm.Network((2, 3, 2))


def tiny(bits=None, sparse=False):
    """A tiny model, dense or pruned, of floats or integers."""
    rng = np.random.default_rng(0)
    params, masks, quantized = [], [], []
    for shape in NETWORK.shapes:
        weight, bias = (rng.normal(size=size).astype(np.float32) for size in (shape, shape[1:]))
        mask = rng.uniform(size=shape) < 0.5
        if sparse:
            weight = weight * mask
        if bits:
            quantized.append(qarray.quantize(weight, calibrate(weight, bits)))
            weight = qarray.dequantize(quantized[-1])
        params.append(mm.Layer(weight, bias))
        masks.append(mask)
    normalization = mm.Normalization(np.zeros(2, np.float32), np.ones(2, np.float32))
    return Model(
        NETWORK,
        tuple(params),
        losses.softmax_cross_entropy,
        normalization,
        classes=("no", "yes"),
        masks=tuple(masks) if sparse else None,
        quantized=tuple(quantized) if bits else None,
        bits=bits,
    )


DENSE, SMALL = tiny(), tiny(bits=4, sparse=True)


def parts(given):
    """Header and tensors of a model, as ``storage.dumps`` takes them."""
    header, tensors = storage.loads(given.dumps())
    return {key: value for key, value in header.items() if key not in ("sha256", "version")}, tensors


def deflated(raw):
    return np.frombuffer(zlib.compress(raw), np.uint8)


def signed(raw):
    """The bytes with the digest that they ask for: what someone who knows the format can make."""
    start = raw.index(storage.MARK) + len(storage.MARK)
    zeroed = raw[:start] + b"0" * storage.DIGITS + raw[start + storage.DIGITS :]
    return zeroed[:start] + hashlib.sha256(zeroed).hexdigest().encode() + zeroed[start + storage.DIGITS :]


def refused(raw):
    with pytest.raises(ValueError):
        storage.loads(raw)
    with pytest.raises(ValueError):
        model.loads(raw)


@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8),
        st.tuples(st.sampled_from(["f4", "i1", "u1"]), st.lists(st.integers(0, 4), max_size=3), st.integers(0, 2**16)),
        max_size=5,
    ),
    st.dictionaries(st.sampled_from("abc"), st.integers() | st.text() | st.none() | st.lists(st.text())),
)
def test_tensors_and_header_there_and_back(described, header):
    tensors = {}
    for name, (dtype, shape, seed) in described.items():
        tensors[name] = np.random.default_rng(seed).integers(0, 100, size=shape).astype(dtype)
    found_header, found = storage.loads(storage.dumps(header, tensors))
    assert {key: found_header[key] for key in header} == header
    assert found_header["version"] == storage.FORMAT_VERSION
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        np.testing.assert_array_equal(found[name], tensor)


def test_the_order_of_the_tensors_does_not_matter():
    tensors = {name: np.full(3, i, np.float32) for i, name in enumerate("cab")}
    assert storage.dumps({}, tensors) == storage.dumps({}, dict(sorted(tensors.items())))


def test_arrays_that_are_not_contiguous_are_written_in_order():
    tensor = np.arange(12, dtype=np.float32).reshape(3, 4)
    for view in (tensor.T, tensor[:, ::2], tensor[::-1], np.broadcast_to(tensor[0], (3, 4))):
        np.testing.assert_array_equal(storage.loads(storage.dumps({}, {"a": view}))[1]["a"], view)


def test_the_digest_can_be_checked_by_hand():
    raw = DENSE.dumps()
    assert signed(raw) == raw


def test_text_in_a_header_cannot_pass_for_the_digest():
    trap = '"sha256":"' + "f" * 64
    found = model.loads(replace(DENSE, classes=(trap, '\\"sha256\\":\\"')).dumps())
    assert found.classes == (trap, '\\"sha256\\":\\"')


@pytest.mark.parametrize("given_model", [DENSE, SMALL], ids=["dense", "pruned and quantized"])
def test_every_truncation_is_refused(given_model):
    raw = given_model.dumps()
    for length in range(len(raw)):
        refused(raw[:length])


@pytest.mark.parametrize("given_model", [DENSE, SMALL], ids=["dense", "pruned and quantized"])
def test_every_flipped_bit_is_refused(given_model):
    raw = bytearray(given_model.dumps())
    for i in range(len(raw)):
        for bit in range(8):
            raw[i] ^= 1 << bit
            refused(bytes(raw))
            raw[i] ^= 1 << bit
    model.loads(bytes(raw))


def test_random_mutations_are_refused():
    """Bytes replaced, inserted, removed, swapped, repeated: 500 times."""
    draw, raw = random.Random(0), SMALL.dumps()
    tried = 0
    while tried < 500:
        broken = bytearray(raw)
        for _ in range(draw.randint(1, 8)):
            at, size = draw.randrange(len(broken)), draw.randint(1, 20)
            change = draw.randrange(4)
            if change == 0:
                broken[at : at + size] = draw.randbytes(size)
            elif change == 1:
                broken[at:at] = draw.randbytes(size)
            elif change == 2:
                del broken[at : at + size]
            else:
                broken[at:at] = broken[at : at + size]
        if bytes(broken) != raw:
            refused(bytes(broken))
            tried += 1


def test_bytes_after_the_end_are_refused():
    for tail in (b"\0", b"\n", SMALL.dumps()):
        refused(SMALL.dumps() + tail)


def test_damage_behind_a_valid_digest_is_refused():
    """Whatever the bytes after the digest say, the answer is a ValueError or the model of those very bytes."""
    raw, accepted = SMALL.dumps(), 0
    start = raw.index(storage.MARK) + len(storage.MARK) + storage.DIGITS
    for i in [*range(raw.index(storage.MARK)), *range(start, len(raw))]:
        for bit in (0, 5, 7):
            broken = bytearray(raw)
            broken[i] ^= 1 << bit
            try:
                found = model.loads(signed(bytes(broken)))
            except ValueError:
                continue
            accepted += 1
            assert found.network.shapes == tuple(layer.weight.shape for layer in found.params)
            assert all(np.isfinite(layer.weight).all() for layer in found.params)
    assert accepted > 0  # another weight or another name is a valid file


def a_zip():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("weights", "0")
    return file.getvalue()


FOREIGN = {
    "empty": b"",
    "text": b"weights: 1, 2, 3\n",
    "safetensors": save({"weight": np.ones((2, 3), np.float32)}),
    "safetensors with metadata": save({"weight": np.ones(3, np.float32)}, metadata={"format": "np"}),
    "pickle": pickle.dumps({"weight": [1.0, 2.0]}),
    "zip": a_zip(),
    "huge header": b"\xff" * 8 + b'{"__metadata__":{}}',
    "zeros": bytes(1000),
    "random": random.Random(0).randbytes(1000),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_no_minimodel_file(name, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(FOREIGN[name])
    with pytest.raises(ValueError, match="not a minimodel file") as caught:
        mm.load(path)
    assert str(path) in str(caught.value)
    refused(FOREIGN[name])


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        mm.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**62, 2**64 - 1])
def test_a_header_length_that_lies_is_refused(length):
    refused(signed(length.to_bytes(8, "little") + SMALL.dumps()[8:]))


def test_deep_json_is_refused():
    text = '{"sha256":"' + "0" * 64 + '","version":1,"loss":' + "[" * 100_000 + "]" * 100_000 + "}"
    refused(signed(save({}, metadata={"minimodel": text})))


@pytest.mark.parametrize("text", ["[]", "3", "null", "{", '"text"', '{"version":1}'])
def test_a_header_that_is_no_header_is_refused(text):
    """The digest stands in another metadata entry, so only the header itself is wrong."""
    metadata = {"minimodel": text, "other": '{"sha256":"' + "0" * 64 + '"}'}
    with pytest.raises(ValueError):
        model.loads(signed(save({}, metadata=metadata)))


@pytest.mark.parametrize("version", [0, 2, 99, "1", None, [1], 1.5])
def test_another_format_version_is_refused(version):
    header, tensors = parts(SMALL)
    with pytest.raises(ValueError, match="format version"):
        model.loads(storage.dumps({**header, "version": version}, tensors))


HEADERS = {
    "layer_sizes": [[2, 4, 2], [2, 3], [2], [], None, "232", 5, [2, -3, 2], [2, 3.0, 2], [2, "3", 2], [2, 3, 2, 2]],
    "activation": ["softplus", None, 3, ["relu"], {}],
    "initializer": ["zeros", None, 3, ["he"]],
    "loss": [
        "softmax_cross_entropy",
        ["hinge", {}],
        ["huber", {"delta": -1}],
        ["huber", {"delta": "1"}],
        ["huber", {"sigma": 1}],
        ["huber"],
        [["huber"], {}],
        [None, {}],
        [],
        None,
        {},
    ],
    "classes": ["no", "noyes", 5, None, {"no": 0, "yes": 1}, ["no"], ["no", "yes", "maybe"], [["no"], "yes"], []],
    "population": [-1, -8, 1, 2, 2.0, "3", [3], {}, 10**9, 1e400, True],
    "bits": [0, 5, 8, 9, 16, -1, -8, 10**9, 4.0, "4", [4], True],
}


@pytest.mark.parametrize(("name", "wrong"), [(name, wrong) for name, wrongs in HEADERS.items() for wrong in wrongs])
def test_a_header_that_does_not_fit_its_tensors_is_refused(name, wrong):
    header, tensors = parts(SMALL)
    with pytest.raises(ValueError):
        model.loads(storage.dumps({**header, name: wrong}, tensors))


@pytest.mark.parametrize("name", ["layer_sizes", "activation", "initializer", "loss", "bits"])
def test_a_header_that_lacks_an_entry_is_refused(name):
    header, tensors = parts(SMALL)
    del header[name]
    with pytest.raises(ValueError):
        model.loads(storage.dumps(header, tensors))


@pytest.mark.parametrize("bits", [0, 9])
def test_bits_out_of_range_are_refused_even_where_the_values_fit(bits):
    header, tensors = parts(tiny(bits=4))
    tensors |= {f"{i}.values": deflated(bytes(-(-6 * bits // 8))) for i in (0, 1)}
    with pytest.raises(ValueError):
        model.loads(storage.dumps({**header, "bits": bits}, tensors))


@pytest.mark.parametrize(
    "sizes",
    [[2**14, 2**14, 2], [2, 10**12, 2], [10**30, 10**30], [2, *[10**4] * 50, 2]],
    ids=["268 million", "10^12", "10^60", "deep"],
)
@pytest.mark.parametrize("population", [None, "3", [0], -1, 10**6])
def test_huge_layer_sizes_cost_no_memory(sizes, population):
    header, tensors = parts(DENSE)
    header |= {"layer_sizes": sizes} | ({} if population is None else {"population": population})
    raw = storage.dumps(header, tensors)
    tracemalloc.start()
    try:
        refused_by_model(raw)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**22


def refused_by_model(raw):
    with pytest.raises(ValueError):
        model.loads(raw)


@pytest.mark.parametrize(("population", "bits"), [(None, 4), (-1, 4), (None, -1), (-1, None)])
def test_a_zip_bomb_costs_no_memory(population, bits):
    """32 MB of zeros deflate to 32 kB; no header makes them unfold."""
    header, tensors = parts(SMALL)
    bomb = deflated(bytes(2**25))
    for i in (0, 1):
        tensors |= {f"{i}.mask": bomb, f"{i}.values": bomb, f"{i}.bias": np.zeros((1, 2 + (i == 0)), np.float32)}
    header |= {key: value for key, value in (("population", population), ("bits", bits)) if value is not None}
    raw = storage.dumps(header, tensors)
    tracemalloc.start()
    try:
        refused_by_model(raw)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**22


DENSE_TENSORS = parts(DENSE)[1]


@pytest.mark.parametrize("name", sorted(DENSE_TENSORS))
def test_a_missing_tensor_is_refused(name):
    header, tensors = parts(DENSE)
    del tensors[name]
    refused_by_model(storage.dumps(header, tensors))


@pytest.mark.parametrize("name", sorted(parts(SMALL)[1]))
def test_a_missing_tensor_of_a_small_model_is_refused(name):
    header, tensors = parts(SMALL)
    del tensors[name]
    refused_by_model(storage.dumps(header, tensors))


@pytest.mark.parametrize(
    "name", ["weight", "2.weight", "0.junk", "0.values", "0.scale", "junk", "targets", "0", "", "00.weight", "a.b"]
)
def test_an_extra_tensor_is_refused(name):
    header, tensors = parts(DENSE)
    refused_by_model(storage.dumps(header, {**tensors, name: np.ones(1, np.float32)}))


@pytest.mark.parametrize("name", ["targets.shift", "targets.scale"])
def test_half_a_normalization_is_refused(name):
    header, tensors = parts(DENSE)
    refused_by_model(storage.dumps(header, {**tensors, name: np.ones(2, np.float32)}))


@pytest.mark.parametrize("name", ["0.weight", "1.weight", "0.bias", "normalization.shift", "normalization.scale"])
@pytest.mark.parametrize("kind", ["shape", "rank", "dtype", "NaN", "infinity", "integers", "empty"])
def test_a_tensor_that_does_not_fit_is_refused(name, kind):
    header, tensors = parts(DENSE)
    tensor = tensors[name]
    tensors[name] = {
        "shape": np.concatenate([tensor, tensor]),
        "rank": tensor[None],
        "dtype": tensor.astype(np.float64),
        "NaN": np.full_like(tensor, np.nan),
        "infinity": np.full_like(tensor, np.inf),
        "integers": tensor.astype(np.int32),
        "empty": tensor[:0],
    }[kind]
    refused_by_model(storage.dumps(header, tensors))


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_normalization_that_cannot_be_undone_is_refused(scale):
    header, tensors = parts(DENSE)
    tensors["normalization.scale"] = np.full(2, scale, np.float32)
    refused_by_model(storage.dumps(header, tensors))


def test_a_scale_that_gives_infinite_weights_is_refused():
    header, tensors = parts(tiny(bits=4))
    tensors["0.scale"] = np.full_like(tensors["0.scale"], 3e38)
    refused_by_model(storage.dumps(header, tensors))


def test_a_mask_on_one_layer_only_is_refused():
    """Masks are of all layers or of none; half of them must not be dropped in silence."""
    header, tensors = parts(DENSE)
    tensors |= {"0.mask": deflated(b"\xff"), "0.weight": tensors["0.weight"].ravel()}
    refused_by_model(storage.dumps(header, tensors))


@pytest.mark.parametrize(("call", "reason"), [("replace", "no space left"), ("fsync", "input/output error")])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call, reason):
    path = tmp_path / "m.safetensors"
    DENSE.save(path)

    def fail(*_):
        raise OSError(reason)

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match=reason):
        SMALL.save(path)
    assert path.read_bytes() == DENSE.dumps()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_saving_makes_the_folder_and_replaces_a_file(tmp_path):
    path = tmp_path / "deep" / "er" / "m.safetensors"
    DENSE.save(str(path))
    SMALL.save(path)
    assert path.read_bytes() == SMALL.dumps()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_saving_to_a_folder_is_an_os_error(tmp_path):
    with pytest.raises(OSError):
        DENSE.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_any_safetensors_reader_opens_it(tmp_path):
    path = tmp_path / "m.safetensors"
    DENSE.save(path)
    with safe_open(path, framework="numpy") as file:
        metadata = json.loads(file.metadata()["minimodel"])
        assert metadata["layer_sizes"] == [2, 3, 2]
        assert metadata["classes"] == ["no", "yes"]
        assert {"0.weight", "0.bias", "1.weight", "1.bias"} <= set(file.keys())
        np.testing.assert_array_equal(file.get_tensor("0.weight"), DENSE.params[0].weight)
