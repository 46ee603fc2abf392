"""Quantization: q = clip(round(w/s) + z), ŵ = s·(q − z), then retrain through the rounding."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

import numpy as np

from minimodel import activations, qarray, random
from minimodel.backends import Backend, load
from minimodel.compress import adaround, budget, calibration, codebooks, gptq, ranges
from minimodel.compress.ranges import Range
from minimodel.compress.rounding import Levels, Rounding
from minimodel.compress.samples import picked, sample
from minimodel.compress.surgeon import with_bias
from minimodel.datasets import Splits
from minimodel.gradients import forward
from minimodel.model import Model, bits_of_layer
from minimodel.network import Layer, Network, Params
from minimodel.problem import Masks, check_params, prepare, run_keys, to_backend
from minimodel.search import optimizers, schedules
from minimodel.search.options import Training, check_training
from minimodel.search.training import finished, fit
from minimodel.streams import Stream
from minimodel.teacher import Teacher

SCHEMES = (*qarray.SCHEMES, "codebook")
FITTED = {"gptq": gptq.rounded, "adaround": adaround.rounded}
ROUNDINGS = (*qarray.ROUNDINGS, *FITTED)
DIRECTED = ("floor", "ceil", "toward_zero")
DRAWS = 3  # what the run's key is folded with for stochastic rounding, where ``training`` has 0 to 2


def quantize(
    model: Model,
    data: Splits | Stream,
    *,
    seed: int,
    bits: int | Sequence[Any] = 8,
    scheme: str = "symmetric",
    granularity: str | int = "channel",
    range_of: Range | None = None,
    power_of_two: bool = False,
    rounding: str = "half_even",
    correct_bias: bool = False,
    learn_levels: bool = False,
    gradual: Any = (),
    activation_bits: int | None = None,
    activation_range: Range | None = None,
    budget_bytes: Any = None,
    budget_sparsities: Sequence[float] | None = None,
    backend: str | Backend = "numpy",
    sample_weight: Any = None,
    class_weight: Any = None,
    teacher: Teacher | None = None,
    **training: Unpack[Training],
) -> Model:
    """Turn the weights into integers of 1 to 8 bits and retrain them through the rounding; biases stay float32.

    The scales are set once, from the weights as they are. Then the network computes with ŵ while the gradient by ŵ
    is applied to w, as if rounding were the identity (zero where q is clipped). Weights that a mask removed stay 0.

    bits          one number, or one for each layer, or for each member of a population one of these
    scheme        "symmetric": z = 0 and q from −(2ᵇ⁻¹ − 1), at 2 bits three levels, at 1 bit the sign;
                  "symmetric_full": from −2ᵇ⁻¹; "asymmetric": z is the integer that stands for 0; "codebook": 2ᵇ centres
                  of k-means, anywhere
    granularity   what shares a scale: "tensor", "channel" (an output), or so many inputs of each output
    range_of      what the integers reach, by default ``ranges.least_error``; min_max, percentile(…), moving_average(…)
    power_of_two  round scales up to powers of two
    rounding      "half_even", "half_away", "floor", "ceil", "toward_zero", "stochastic" (drawn once for each weight);
                  or once, before any retraining, "gptq" (the weights to come make up for those that were rounded) or
                  "adaround" (each goes up or down as the layer's outputs want it), which both correct the biases. At
                  1 bit what counts is the side of 0, so it takes no "floor", "ceil" or "toward_zero"
    correct_bias  the biases take up the mean that rounding moved, on training rows
    learn_levels  train the scales, or a codebook's centres, as well: learned step size quantization
    gradual       a sequence: train with these numbers of bits first, of weights and, with ``activation_bits``, of
                  activations, one after the other and for as many epochs each; the weights go on as they were before
                  rounding, which is to even until the last stage
    activation_bits   turn relu into relu of 1 to 8 bits as well: the ``activation_range`` of each layer, on training
                  rows, becomes [0, 4], and the weights on either side take up the scale; the range is by default
                  ``ranges.least_error``
    budget_bytes  the coded file is to be no larger: choose for each layer the bits, ``bits`` at most, and what to
                  prune, of ``budget_sparsities``, that cost least on training rows; one number, or one for each member.
                  Trained anew with less room, up to 7 times, while a file is too large
    teacher       learn from a model's outputs as well as from the targets
    training      through the rounding, as in ``gradient_descent``, by default 5 epochs of ``adam(cosine(1e-4))``;
                  epochs=0 only rounds

    Returns a model whose ``params`` are ŵ and whose ``quantized`` holds the integers. Raises ValueError for input
    that does not fit.
    """
    check_training(training)
    check_params(model.network, model.params, model.population, "model")
    backend, widths = load(backend), check_bits(bits, model)
    way = check_rounding(scheme, rounding, learn_levels, power_of_two, widths)
    for name, value, needed in (
        ("budget_sparsities", budget_sparsities, budget_bytes is not None),
        ("activation_range", activation_range, activation_bits is not None),
        ("range_of", range_of, not way.codebook),
    ):
        if value is not None and not needed:
            raise ValueError(f"{name}: it has no effect here; leave it out, got {value!r}")
    if isinstance(gradual, str) or not np.iterable(gradual):
        raise ValueError(f"gradual: expected numbers of bits, one after the other, got {gradual!r}")
    range_of, activation_range = range_of or ranges.least_error, activation_range or ranges.least_error
    weights: dict[str, Any] = {"sample_weight": sample_weight, "class_weight": class_weight}
    how: dict[str, Any] = {
        "scheme": scheme, "granularity": granularity, "range_of": range_of, "power_of_two": power_of_two
    }  # fmt: skip
    further: dict[str, Any] = {"rounding": rounding, "correct_bias": correct_bias, "learn_levels": learn_levels}
    own = {name: value for name, value in how.items() if name != "range_of" or not way.codebook}
    again: Callable[..., Model] = partial(
        quantize, data=data, seed=seed, backend=backend, teacher=teacher, **weights, **own, **further
    )
    for width in [qarray.check_bits(width, 1, "gradual") for width in gradual]:
        stage: dict[str, Any] = {"bits": width, "rounding": "half_even", "correct_bias": False}
        if activation_bits is not None:
            least = qarray.check_bits(activation_bits, 1, "activation_bits")
            stage |= {"activation_bits": max(least, width), "activation_range": activation_range}
        model = again(model, **stage, **training)
        model = replace(model, params=model.state.best[: len(model.params)], quantized=None, bits=None)
    if activation_bits is not None:
        model = stepped(model, data, activation_bits, activation_range)
    if budget_bytes is not None:
        parts = (0.0,) if budget_sparsities is None else budget_sparsities
        return budget.within(model, data, budget_bytes, bits, parts, again, how, **training)
    problem = prepare(model.network, data, model.loss, backend, fitted=model, teacher=teacher, **weights)
    training.setdefault("epochs", 5)
    training["optimizer"] = training.get("optimizer") or optimizers.adam(schedules.cosine(1e-4))
    keys = run_keys(seed, model.population)
    levels = levels_of(model, widths, way, keys, **how)
    start = model.params
    if correct_bias or rounding in FITTED:
        program = backend.jit(layer_by_layer, static=("network", "fitted", "way", "backend"))
        given = to_backend(backend, (model.params, levels, model.masks))
        fitted = FITTED.get(rounding)
        start = backend.to_numpy(
            program(*given, sample(problem).x, network=model.network, fitted=fitted, way=way, backend=backend)
        )
    run = fit(
        problem,
        keys=keys,
        params=way.extended(levels, start),
        masks=way.masks(model.masks),
        through=way,
        values=to_backend(backend, levels),
        **training,
    )

    def rounded(params: Params) -> Model:
        integers = way.integers(levels, params)
        found = way.forward(levels, params)
        return replace(model, params=found, quantized=integers, bits=widths)

    return finished("quantize", run._replace(masks=model.masks), rounded)


def check_bits(bits: Any, model: Model) -> Any:
    """An integer, or a tuple: of one for each layer of a network, of one of these for each member of a population."""

    def of_network(bits: Any) -> Any:
        if isinstance(bits, str) or not np.iterable(bits):
            return qarray.check_bits(bits)
        found = tuple(map(qarray.check_bits, bits))
        if len(found) != len(model.params):
            raise ValueError(f"bits: expected an integer or {len(model.params)}, one for each layer, got {len(found)}")
        return found[0] if len(set(found)) == 1 else found

    if model.population is None or isinstance(bits, str) or not np.iterable(bits):
        return of_network(bits)
    each = tuple(map(of_network, bits))
    if len(each) != model.population:
        raise ValueError(f"bits: expected an integer or {model.population}, one for each member, got {len(each)}")
    return each


def check_rounding(scheme: str, rounding: str, learned: bool, power_of_two: bool, widths: Any) -> Rounding:
    """How weights pass through what these names stand for."""
    for name, value, allowed in (("scheme", scheme, SCHEMES), ("rounding", rounding, ROUNDINGS)):
        if value not in allowed:
            raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
    if scheme == "codebook" and (rounding != "half_even" or power_of_two):
        raise ValueError("scheme: a codebook has its own nearest centre; leave out rounding and power_of_two")
    if fewest(widths) == 1 and scheme in ("symmetric", "symmetric_full") and rounding in DIRECTED:
        raise ValueError(f"rounding: at 1 bit there is the sign alone, which takes no {rounding!r}; leave it out")
    if learned and (power_of_two or rounding not in ("half_even", *FITTED)):
        raise ValueError("learn_levels: learned scales are no powers of two, and are learned with half_even only")
    return Rounding(scheme == "codebook", "half_even" if rounding in FITTED else rounding, learned)


def fewest(widths: Any) -> int:
    """The least number of bits there is."""
    return min(map(fewest, widths)) if isinstance(widths, tuple) else widths


def levels_of(model: Model, widths: Any, way: Rounding, keys: np.ndarray, **how: Any) -> Levels:
    """The levels of every layer, each member's by its own bits, from the weights as they are."""
    each = [bits_of_layer(widths, i, model.population) for i in range(len(model.params))]
    found = [
        calibrated(layer.weight, bits, way.codebook, **how) for layer, bits in zip(model.params, each, strict=True)
    ]
    lacking, masks = way.codebook or fewest(widths) == 1, None
    if lacking and model.masks is not None:  # with the members' axis, as all levels have it
        masks = tuple(np.broadcast_to(m, p.weight.shape) for m, p in zip(model.masks, model.params, strict=True))
    draws = None
    if way.name == "stochastic":
        own = random.fold_in(keys, DRAWS)
        draws = tuple(
            random.uniform(random.fold_in(own, i), layer.weight.shape[-2:]) for i, layer in enumerate(model.params)
        )
    return Levels(tuple(found), masks, draws)


def calibrated(weight: np.ndarray, bits: int | tuple[int, ...], codebook: bool, **how: Any) -> Any:
    """The levels of a layer, each member at its own bits where there are several."""
    calibrate: Callable[..., Any] = partial(calibration.calibrate, **how)
    if codebook:
        room = bits if isinstance(bits, int) else max(bits)
        calibrate = partial(codebooks.calibrate, granularity=how["granularity"], room=room)
    if isinstance(bits, int):
        return calibrate(weight, bits)
    parts = [calibrate(w, one) for w, one in zip(weight, bits, strict=True)]
    return type(parts[0])(*(np.stack(leaves) for leaves in zip(*parts, strict=True)))


def layer_by_layer(
    params: Params,
    levels: Levels,
    masks: Masks | None,
    x: Any,
    *,
    network: Network,
    fitted: Callable[..., Layer] | None,
    way: Rounding,
    backend: Backend,
) -> Params:
    """Every layer rounded, or only its bias corrected, for the inputs that the layers before it now give."""
    used = params if fitted else way.forward(levels, way.extended(levels, params))
    done: list[Layer] = []
    for i, quantizer in enumerate(levels.quantizers):
        a = forward(network, (*done, *params[i:]), x)[i].a
        if fitted is None:
            done.append(with_bias(params[i], used[i].weight, backend.xp.mean(a, axis=-2)))
        else:
            done.append(fitted(params[i], quantizer, None if masks is None else masks[i], a, backend))
    return tuple(done) if fitted else tuple(Layer(w, b) for (w, _), (_, b) in zip(params, done, strict=True))


def stepped(model: Model, data: Splits | Stream, bits: int, range_of: Range = ranges.least_error) -> Model:
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
    values = forward(model.network, model.params, model.prepared(rows))
    for (weight, bias), step in zip(model.params, [*values[1:], None], strict=True):
        most = np.ones_like(before) if step is None else calibration.of_activations(step.f, bits, range_of)[1]
        most = most / (1 if step is None else activations.TOP)
        after = np.where(most > 0, np.broadcast_to(most, before.shape), 1).astype(np.float32)
        params.append(Layer(weight * (before / after)[..., None, None], bias / after[..., None]))
        before = after
    return replace(model, network=network, params=tuple(params), quantized=None, bits=None, state=None)
