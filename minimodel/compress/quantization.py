"""Quantization: q = clip(round(w/s) + z), ŵ = s·(q − z), then retrain through the rounding."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np

from minimodel import activations, qarray
from minimodel.backends import Backend, load
from minimodel.compress import gptq, ranges
from minimodel.compress.samples import picked, sample
from minimodel.datasets import Splits
from minimodel.gradients import forward
from minimodel.model import Model
from minimodel.network import Layer, Params
from minimodel.problem import prepare, run_keys, to_backend
from minimodel.qarray import Quantizer
from minimodel.search import optimizers, schedules
from minimodel.search.options import Training, check_training
from minimodel.search.programs import Through
from minimodel.search.training import finished, fit
from minimodel.streams import Stream
from minimodel.teacher import Teacher

ROUNDINGS = ("nearest", "gptq")


def quantize(
    model: Model,
    data: Splits | Stream,
    *,
    seed: int,
    bits: int | Sequence[int] = 8,
    symmetric: bool = True,
    per_channel: bool = True,
    clip: bool = True,
    activation_bits: int | None = None,
    rounding: str = "nearest",
    backend: str | Backend = "numpy",
    sample_weight: Any = None,
    class_weight: Any = None,
    teacher: Teacher | None = None,
    **training: Unpack[Training],
) -> Model:
    """Turn the weights into integers of 2 to 8 bits and retrain them through the rounding; biases stay float32.

    ``bits`` may be a list with a number for each member of a population.

    The scales are set once, from the weights as they are. Then the network computes with ŵ while the gradient by ŵ
    is applied to w, as if rounding were the identity (zero where q is clipped). Weights that a mask removed stay 0.

    symmetric     z = 0 and q from −(2ᵇ⁻¹ − 1); otherwise z is the integer that stands for 0, and q from −2ᵇ⁻¹
    per_channel   one scale for each output, otherwise one for the whole weight
    clip          let the scale leave out the largest weights where that lowers Σ(w − ŵ)²
    activation_bits   turn relu into relu of 1 to 8 bits as well: the ranges that miss the values of each layer least,
                  on training rows, become [0, 4], and the weights on either side take up the scale
    rounding      "nearest", or "gptq": before any retraining the weights to come make up for those that were rounded,
                  and the biases for what is still missing
    teacher       learn from a model's outputs as well as from the targets
    training      through the rounding, as in ``gradient_descent``, by default 5 epochs of ``adam(cosine(1e-4))``;
                  epochs=0 only rounds

    Returns a model whose ``params`` are ŵ and whose ``quantized`` holds the integers. Raises ValueError for input
    that does not fit.
    """
    check_training(training)
    backend = load(backend)
    if activation_bits is not None:
        model = stepped(model, data, activation_bits)
    weights = {"sample_weight": sample_weight, "class_weight": class_weight}
    problem = prepare(model.network, data, model.loss, backend, fitted=model, teacher=teacher, **weights)
    training.setdefault("epochs", 5)
    training["optimizer"] = training.get("optimizer") or optimizers.adam(schedules.cosine(1e-4))
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding: expected one of {', '.join(ROUNDINGS)}, got {rounding!r}")
    widths = check_bits(bits, model.population)
    how: dict[str, Any] = {"symmetric": symmetric, "per_channel": per_channel, "clip": clip}
    quantizers = tuple(calibrated(layer.weight, widths, **how) for layer in model.params)
    start = model.params
    if rounding == "gptq":
        given = to_backend(backend, (model.params, quantizers, model.masks))
        program = backend.jit(gptq.fitted, static=("network", "backend"))
        start = backend.to_numpy(program(*given, sample(problem).x, network=model.network, backend=backend))
    run = fit(
        problem,
        keys=run_keys(seed, model.population),
        params=start,
        masks=model.masks,
        through=ROUNDING,
        values=to_backend(backend, quantizers),
        **training,
    )

    def rounded(params: Params) -> Model:
        integers = tuple(qarray.quantize(layer.weight, q) for layer, q in zip(params, quantizers, strict=True))
        values = tuple(Layer(qarray.dequantize(q), layer.bias) for q, layer in zip(integers, params, strict=True))
        return replace(model, params=values, quantized=integers, bits=widths)

    return finished("quantize", run, rounded)


def check_bits(bits: Any, population: int | None) -> int | tuple[int, ...]:
    """An integer, or one for each member of the population."""
    if population is None or not np.iterable(bits) or isinstance(bits, str):
        qarray.levels(bits, True)
        return int(bits)
    found = tuple(bits)
    if len(found) != population:
        raise ValueError(f"bits: expected an integer or {population}, one for each member, got {len(found)}")
    for one in found:
        qarray.levels(one, True)
    return tuple(map(int, found))


def calibrated(weight: np.ndarray, bits: int | tuple[int, ...], **how: Any) -> Quantizer:
    """The quantizer of a layer, each member at its own bits where there are several."""
    if isinstance(bits, int):
        return qarray.calibrate(weight, bits, **how)
    parts = [qarray.calibrate(w, one, **how) for w, one in zip(weight, bits, strict=True)]
    return Quantizer(*(np.stack(leaves) for leaves in zip(*parts, strict=True)))


def stepped(model: Model, data: Splits | Stream, bits: int) -> Model:
    """The model with activations of so many bits, its layers scaled so that they lie in [0, 4]."""
    name = f"relu_{qarray.check_bits(bits, 1, 'activation_bits')}bit"
    network = replace(model.network, activation=name)
    if model.network.activation in activations.STEPPED:
        return replace(model, network=network, state=None)
    if model.network.activation != "relu" or not isinstance(data, Splits):
        found = f"{model.network.activation} and {type(data).__name__}"
        raise ValueError(f"activation_bits: expected a model of relu and Splits, got {found}")
    rows = data.train.x[picked(len(data.train.x))]
    params, before = [], np.ones(model.params[0].bias.shape[:-1], np.float32)
    steps = forward(model.network, model.params, model.prepared(rows))
    for (weight, bias), step in zip(model.params, [*steps[1:], None], strict=True):
        most = np.ones_like(before) if step is None else ranges.least_error(bits)(step.f)[1] / activations.TOP
        after = np.where(most > 0, np.broadcast_to(most, before.shape), 1).astype(np.float32)
        params.append(Layer(weight * (before / after)[..., None, None], bias / after[..., None]))
        before = after
    return replace(model, network=network, params=tuple(params), quantized=None, bits=None, state=None)


def _round(quantizers: tuple[Quantizer, ...], params: Params) -> Params:
    """ŵ in place of w."""
    return tuple(
        Layer(qarray.fake_quantize(layer.weight, q), layer.bias) for q, layer in zip(quantizers, params, strict=True)
    )


def _pass_straight(quantizers: tuple[Quantizer, ...], params: Params, grads: Params) -> Params:
    """The gradient by w from that by ŵ."""
    return tuple(
        Layer(qarray.straight_through(layer.weight, q, grad.weight), grad.bias)
        for q, layer, grad in zip(quantizers, params, grads, strict=True)
    )


ROUNDING = Through(_round, _pass_straight)
