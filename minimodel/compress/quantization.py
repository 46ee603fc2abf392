"""Quantization: q = clip(round(w/s) + z), ŵ = s·(q − z), then retrain through the rounding."""

from dataclasses import replace
from typing import Any, Unpack

from minimodel import qarray
from minimodel.backends import Backend, load
from minimodel.datasets import Splits
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


def quantize(
    model: Model,
    data: Splits | Stream,
    *,
    seed: int,
    bits: int = 8,
    symmetric: bool = True,
    per_channel: bool = True,
    clip: bool = True,
    backend: str | Backend = "numpy",
    sample_weight: Any = None,
    class_weight: Any = None,
    teacher: Teacher | None = None,
    **training: Unpack[Training],
) -> Model:
    """Turn the weights into integers of 2 to 8 bits and retrain them through the rounding; biases stay float32.

    The scales are set once, from the weights as they are. Then the network computes with ŵ while the gradient by ŵ
    is applied to w, as if rounding were the identity (zero where q is clipped). Weights that a mask removed stay 0.

    symmetric     z = 0 and q from −(2ᵇ⁻¹ − 1); otherwise z is the integer that stands for 0, and q from −2ᵇ⁻¹
    per_channel   one scale for each output, otherwise one for the whole weight
    clip          let the scale leave out the largest weights where that lowers Σ(w − ŵ)²
    teacher       learn from a model's outputs as well as from the targets
    training      through the rounding, as in ``gradient_descent``, by default 5 epochs of ``adam(cosine(1e-4))``;
                  epochs=0 only rounds

    Returns a model whose ``params`` are ŵ and whose ``quantized`` holds the integers. Raises ValueError for input
    that does not fit.
    """
    check_training(training)
    backend = load(backend)
    weights = {"sample_weight": sample_weight, "class_weight": class_weight}
    problem = prepare(model.network, data, model.loss, backend, fitted=model, teacher=teacher, **weights)
    training.setdefault("epochs", 5)
    training["optimizer"] = training.get("optimizer") or optimizers.adam(schedules.cosine(1e-4))
    quantizers = tuple(
        qarray.calibrate(layer.weight, bits, symmetric=symmetric, per_channel=per_channel, clip=clip)
        for layer in model.params
    )
    run = fit(
        problem,
        keys=run_keys(seed, model.population),
        params=model.params,
        masks=model.masks,
        through=ROUNDING,
        values=to_backend(backend, quantizers),
        **training,
    )

    def rounded(params: Params) -> Model:
        integers = tuple(qarray.quantize(layer.weight, q) for layer, q in zip(params, quantizers, strict=True))
        values = tuple(Layer(qarray.dequantize(q), layer.bias) for q, layer in zip(integers, params, strict=True))
        return replace(model, params=values, quantized=integers, bits=int(bits))

    return finished("quantize", run, rounded)


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
