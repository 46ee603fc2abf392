"""Planted bugs: small changes of the real code, and the check of a suite that must name each of them.

``BUGS`` maps what is wrong to the suite, the check that catches it, what is broken, and the same unbroken.
"""

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import sqrt
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

import minimodel as mm
from minimodel import activations, gradients, losses, model, optimizers, qarray, random, storage, strategies, tree
from minimodel.backends.threefry import counter_words
from minimodel.compress import scores
from minimodel.search.parts import Velocity, norm, zeros
from minimodel.search.rules import Chain
from minimodel.search.strategies import Asked
from minimodel.testing import suites
from minimodel.testing.suites import quantization


class Bug(NamedTuple):
    """``own`` is the suite that the broken one is run by, where the bug is in what a user overrides."""

    suite: type[suites.Suite]
    check: str
    broken: Any
    original: Any
    own: type[suites.Suite]


BUGS: dict[str, Bug] = {}


def plant(what: str, suite: type[suites.Suite], check: str, broken: Any, original: Any, own: Any = None) -> None:
    assert what not in BUGS, what
    BUGS[what] = Bug(suite, check, broken, original, own or suite)


# Backends. Those over NumPy are eager; the strict namespace tells NumPy's arrays from its own.

EAGER = mm.backends.load("numpy", debug=True)
STRICT = mm.backends.load("array_api:array_api_strict")


def backend(what: str, check: str, base: Any = EAGER, **members: Any) -> None:
    plant(what, suites.BackendSuite, check, replace(base, **members), base)


def without_jit(fn: Any, static: Any = (), donate: Any = ()) -> Any:
    return fn


def first_static(fn: Any, static: Any = (), donate: Any = ()) -> Any:
    """A cache of programs that forgets the values of static arguments."""
    kept: dict[str, Any] = {}

    def call(*args: Any, **kwargs: Any) -> Any:
        named = {name: kept.setdefault(name, value) if name in static else value for name, value in kwargs.items()}
        return fn(*args, **named)

    return call


def donate_all(fn: Any, static: Any = (), donate: Any = ()) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        found = fn(*tree.map(np.copy, args), **kwargs)
        for leaf in tree.leaves(args):
            leaf[...] = 0
        return found

    return call


def sixteen_bits(fn: Any, static: Any = (), donate: Any = ()) -> Any:
    """Arguments with 8 bits of mantissa, as an accelerator's products have by default."""

    def rounded(leaf: Any) -> Any:
        if not isinstance(leaf, np.ndarray) or leaf.dtype != np.float32:
            return leaf
        return (leaf.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)

    return lambda *args, **kwargs: fn(*tree.map(rounded, args), **kwargs)


def scan_less_one(step: Any, carry: Any, xs: Any) -> Any:
    carry, ys = EAGER.scan(step, carry, xs)
    before, _ = EAGER.scan(step, carry, tree.map(lambda leaf: leaf[:-1], xs)) if len(tree.leaves(xs)[0]) > 1 else (0, 0)
    return before, ys


def scan_backward(step: Any, carry: Any, xs: Any) -> Any:
    carry, ys = EAGER.scan(step, carry, xs)
    return carry, tree.map(lambda leaf: leaf[::-1], ys)


def scan_anything(step: Any, carry: Any, xs: Any) -> Any:
    return (carry, None) if 0 in {len(leaf) for leaf in tree.leaves(xs)} else EAGER.scan(step, carry, xs)


def wide_scan(step: Any, carry: Any, xs: Any) -> Any:
    carry, ys = EAGER.scan(step, carry, xs)
    return carry, tree.map(lambda leaf: leaf.astype(np.float64) if leaf.dtype.kind == "f" else leaf, ys)


def column_major(key: Any, shape: Any) -> Any:
    words = EAGER.random_bits(key, (*shape[:-2], *shape[-2:][::-1]))
    return words.mT if len(shape) > 1 else words


def second_word(key: Any, shape: Any) -> Any:
    """Only one of the two words, not their sum modulo 2."""
    low = np.arange(np.prod(shape, dtype=int), dtype=np.uint32)
    pair = random.fold_in(key, low)
    return pair[..., 1].reshape((*key.shape[:-1], *shape))


def counts_from_one(key: Any, shape: Any) -> Any:
    size = int(np.prod(shape, dtype=int))
    return counter_words(np, key, 1, size + 1).reshape((*key.shape[:-1], *shape))


def first_key(key: Any, shape: Any) -> Any:
    one = EAGER.random_bits(key.reshape(-1, 2)[0], shape)
    return np.broadcast_to(one, (*key.shape[:-1], *shape)).copy()


def all_ties(arrays: Any, k: Any) -> Any:
    """Everything from the k-th largest number on."""
    whole = np.sort(np.concatenate(arrays, axis=-1), axis=-1)[..., ::-1]
    k = np.broadcast_to(k, whole.shape[:-1])
    bar = np.take_along_axis(whole, np.maximum(k - 1, 0)[..., None], axis=-1)
    return tuple((x >= bar) & (k > 0)[..., None] for x in arrays)


def last_ties(arrays: Any, k: Any) -> Any:
    found = EAGER.largest(tuple(x[..., ::-1] for x in arrays[::-1]), k)
    return tuple(mask[..., ::-1] for mask in found[::-1])


def in_float32(a: Any, b: Any) -> Any:
    mm.backends.interface.check_integer_matmul(a, b)
    return (a.astype(np.float32) @ b.astype(np.float32)).astype(np.int32)


def one_less_under_ties(arrays: Any, k: Any) -> Any:
    """Right where the k-th number is alone; where others equal it, one too few."""
    found, whole = EAGER.largest(arrays, k), np.sort(np.concatenate(arrays, axis=-1), axis=-1)[..., ::-1]
    counts = np.broadcast_to(k, whole.shape[:-1])
    bar = np.take_along_axis(whole, np.maximum(counts - 1, 0)[..., None], axis=-1)
    tied = ((whole == bar).sum(axis=-1) > 1) & (counts > 0)
    return EAGER.largest(arrays, counts - tied) if tied.any() else found


def donated_first(fn: Any, static: Any = (), donate: Any = ()) -> Any:
    """What is donated is overwritten before the function has read it."""
    return lambda x, *rest, **named: fn(x * 0 if donate else x, *rest, **named)


def scan_of_nothing(step: Any, carry: Any, xs: Any) -> Any:
    carry, ys = EAGER.scan(step, carry, xs)
    return carry, () if ys is None else ys


def scan_in_vain(step: Any, carry: Any, xs: Any) -> Any:
    kept = tree.map(np.copy, carry)
    return kept, EAGER.scan(step, carry, xs)[1]


def swapped(x: Any) -> Any:
    return x[..., ::-1].copy() if x.dtype == np.uint32 and x.shape[-1:] == (2,) else x


def short(leaf: Any) -> Any:
    return (leaf.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32) if leaf.dtype == np.float32 else leaf


def short_results(fn: Any, static: Any = (), donate: Any = ()) -> Any:
    return lambda *args, **named: tree.map(lambda leaf: short(np.asarray(leaf)), fn(*args, **named))


def wide_results(fn: Any, static: Any = (), donate: Any = ()) -> Any:
    return lambda *args, **named: tree.map(
        lambda leaf: leaf.astype(np.float64) if leaf.dtype.kind == "f" else leaf, fn(*args, **named)
    )


class Namespace:
    """NumPy with another function or two."""

    def __init__(self, **others: Any) -> None:
        self.others = others

    def __getattr__(self, name: str) -> Any:
        return self.others[name] if name in self.others else getattr(np, name)


class Remembering:
    """Random bits of a key that is moved on with every draw."""

    draws = 0

    def __call__(self, key: Any, shape: Any) -> Any:
        self.draws += 1
        return EAGER.random_bits(key + np.uint32(self.draws), shape)


class Later(np.ndarray):
    """An array that is computed once somebody waits for it."""

    done = False

    def is_ready(self) -> bool:
        return self.done


def later(fn: Any, static: Any = (), donate: Any = ()) -> Any:
    return lambda *args, **named: tree.map(lambda leaf: leaf.view(Later), fn(*args, **named))


def wait(values: Any) -> Any:
    for leaf in tree.leaves(values):
        if isinstance(leaf, Later):
            leaf.done = True
    return values


def as_list(values: Any) -> Any:
    return tuple(map(as_list, values)) if isinstance(values, tuple) else values


backend(
    "asarray aliases host memory",
    "asarray_never_aliases_host_memory",
    asarray=lambda x, dtype=None, copy=True: np.asarray(x, dtype),
)
if "jax" in mm.backends.available():
    import jax

    JAX = mm.backends.load("jax")
    backend(
        "device_put aliases host memory where it lies at a multiple of 64 bytes",
        "asarray_never_aliases_host_memory",
        JAX,
        asarray=lambda x, dtype=None, copy=True: (
            JAX.asarray(x, dtype) if isinstance(x, jax.Array) else jax.device_put(np.asarray(x, dtype))
        ),
    )
backend(
    "asarray gives back an array of its own as it is",
    "asarray_copies_an_array_of_its_own",
    STRICT,
    asarray=lambda x, dtype=None, copy=True: (
        x if hasattr(x, "__array_namespace__") and x.__array_namespace__() is STRICT.xp else STRICT.asarray(x, dtype)
    ),
)
backend(
    "asarray forgets the dtype asked for",
    "asarray_converts_to_the_dtype_asked_for",
    asarray=lambda x, dtype=None, copy=True: np.array(x),
)
backend(
    "asarray makes every float a float64",
    "asarray_keeps_values_shape_and_dtype",
    asarray=lambda x, dtype=None, copy=True: np.array(x, np.float64 if np.asarray(x).dtype.kind == "f" else dtype),
)
backend(
    "asarray reads memory as it lies, whatever the strides",
    "asarray_keeps_values_shape_and_dtype",
    asarray=lambda x, dtype=None, copy=True: np.array(x, dtype).ravel("K").reshape(np.shape(x)),
)
backend("to_numpy makes plain tuples of NamedTuples", "to_numpy_keeps_the_tree", to_numpy=as_list)
backend("jit forgets new values of static arguments", "jit_takes_static_arguments_by_name", jit=first_static)
backend("jit consumes arguments that are not donated", "jit_computes_what_the_function_does", jit=donate_all)
backend("jit leaves NumPy's arrays on the host", "jit_takes_numpy_arrays", STRICT, jit=without_jit)
backend("products have 8 bits of mantissa", "products_are_of_full_precision", jit=sixteen_bits)
backend("scan gives the carry of one step too few", "scan_is_a_loop", scan=scan_less_one)
backend("scan stacks results backward", "scan_is_a_loop", scan=scan_backward)
backend("scan stacks results as float64", "scan_is_a_loop", scan=wide_scan)
backend("scan takes no steps at all", "scan_refuses_no_steps_and_unequal_lengths", scan=scan_anything)
backend("take sorts the rows", "take_gives_rows", take=lambda x, rows: x[np.sort(rows, axis=None).reshape(rows.shape)])
backend(
    "spread moves members to their neighbours' places",
    "spread_changes_no_value",
    spread=lambda values, axis: tree.map(lambda leaf: np.roll(leaf, 1, axis), values),
)
backend("random bits are one word of two", "random_bits_are_threefry", random_bits=second_word)
backend("random bits count from one", "random_bits_are_threefry", random_bits=counts_from_one)
backend("random bits fill columns first", "random_bits_count_in_row_major_order", random_bits=column_major)
backend("all members draw under the first key", "random_bits_of_many_keys_are_those_of_each", random_bits=first_key)
backend(
    "sorting is not stable",
    "order_is_stable",
    order=lambda words: (words.shape[-1] - 1 - np.argsort(words[..., ::-1], axis=-1, kind="stable")).astype(np.int32),
)
backend("int8 products are added in float32", "integer_matmul_is_exact", integer_matmul=in_float32)
backend(
    "int8 products take any dtype",
    "integer_matmul_refuses_what_is_not_exact",
    integer_matmul=lambda a, b: np.matmul(a.astype(np.int32), b.astype(np.int32)),
)
backend("a mask keeps every tie", "largest_breaks_ties_by_index", largest=all_ties)
backend("a mask keeps the last of equal weights", "largest_breaks_ties_by_index", largest=last_ties)
WAITING = replace(EAGER, jit=later, synchronize=wait)
backend("nothing waits for the result", "synchronize_waits_for_the_result", WAITING, synchronize=lambda values: values)
if "jax" in mm.backends.available():
    backend(
        "nothing waits for what XLA computes",
        "synchronize_waits_for_the_result",
        JAX,
        synchronize=lambda values: values,
    )
backend(
    "a mask is off by one",
    "masks_from_equal_weights_are_those_of_numpy",
    largest=lambda arrays, k: EAGER.largest(arrays, np.asarray(k) - 1),
)
backend("a mask is off by one under ties", "largest_breaks_ties_by_index", largest=one_less_under_ties)
backend("a backend does not name its devices", "the_record_is_frozen_and_hashable", devices=())
backend("donated arguments are consumed too early", "jit_with_donated_arguments_computes_the_same", jit=donated_first)
backend("a scan gives an empty tree for nothing", "scan_within_a_program", scan=scan_of_nothing)
backend(
    "the words of keys are swapped on their way",
    "folded_keys_are_words_of_threefry",
    asarray=lambda x, dtype=None, copy=True: swapped(EAGER.asarray(x, dtype)),
)
backend("programs keep 8 bits of what they give", "uniforms_are_the_high_bits", jit=short_results)
backend(
    "the logarithm has 4 digits",
    "normals_have_the_inverse_error_function",
    xp=Namespace(log=lambda x: np.log(x) * np.float32(1.0001)),
)
backend(
    "rows are ordered by falling words",
    "permutations_are_those_of_numpy",
    order=lambda words: np.argsort(~words, axis=-1, kind="stable").astype(np.int32),
)
backend(
    "all members are multiplied by the first one's integers",
    "integer_matmul_broadcasts",
    integer_matmul=lambda a, b: EAGER.integer_matmul(a, np.broadcast_to(b[(0,) * (b.ndim - 2)], b.shape)),
)
backend("programs give float64", "gradients_agree_with_float64", jit=wide_results)
backend("a scan forgets its carry", "one_step_of_training_agrees_with_numpy", scan=scan_in_vain)
backend("draws depend on those before", "training_repeats_to_the_bit", random_bits=Remembering())
backend(
    "programs round their weights to 8 bits of mantissa",
    "integers_from_equal_weights_are_those_of_numpy",
    jit=sixteen_bits,
)


# Derivatives.


def derivatives(what: str, check: str, **members: Any) -> None:
    names = ("value_and_grad", "input_gradient", "jvp", "vjp", "hvp", "gnvp")
    ours = {name: getattr(gradients, name) for name in names}
    plant(what, suites.GradientSuite, check, SimpleNamespace(**{**ours, **members}), gradients)


def changed(fn: Callable[..., Any]) -> Callable[..., Any]:
    """value_and_grad whose gradient of every layer passes through ``fn(layer, grads, params)``."""

    def value_and_grad(network: Any, loss: Any, params: Any, x: Any, y: Any) -> Any:
        value, grads = mm.value_and_grad(network, loss, params, x, y)
        return value, tuple(fn(grad, layer) for grad, layer in zip(grads, params, strict=True))

    return value_and_grad


def transposed(grad: Any, layer: Any) -> Any:
    return grad._replace(weight=grad.weight.mT.reshape(grad.weight.shape))


def no_slope(network: Any, loss: Any, params: Any, x: Any, y: Any) -> Any:
    """The backward pass of a linear network."""
    value = mm.value_and_grad(network, loss, params, x, y)[0]
    steps = gradients.forward(network, params, x)
    linear = replace(network, activation="identity")
    loss = losses.get(loss)
    return value, gradients._backward(linear, params, steps, loss.gradient(steps[-1].z, y))[0]


def bias_over_outputs(network: Any, loss: Any, params: Any, x: Any, y: Any) -> Any:
    value, grads = mm.value_and_grad(network, loss, params, x, y)
    steps = gradients.forward(network, params, x)
    delta = losses.get(loss).gradient(steps[-1].z, y)
    return value, (*grads[:-1], grads[-1]._replace(bias=delta.sum(axis=-1)[..., : delta.shape[-1]]))


def centring(network: Any, loss: Any, params: Any, x: Any, y: Any) -> Any:
    x -= x.mean(axis=0)
    return mm.value_and_grad(network, loss, params, x, y)


derivatives(
    "the gradient of weights is transposed",
    "weight_gradient_is_the_derivative_of_the_loss",
    value_and_grad=changed(transposed),
)
derivatives(
    "the slope of the activation is left out",
    "weight_gradient_is_the_derivative_of_the_loss",
    value_and_grad=no_slope,
)
derivatives(
    "the gradient of biases is summed over the wrong axis",
    "bias_gradient_is_the_derivative_of_the_loss",
    value_and_grad=bias_over_outputs,
)
derivatives(
    "the gradient of inputs is spread evenly over them",
    "input_gradient_is_the_derivative_of_the_loss",
    input_gradient=lambda *case: mm.input_gradient(*case) * 0 + mm.input_gradient(*case).mean(axis=-1, keepdims=True),
)
derivatives(
    "the change of the biases is left out",
    "jvp_is_the_change_of_the_outputs",
    jvp=lambda network, params, tangent, x: mm.jvp(
        network, params, tuple(v._replace(bias=v.bias * 0) for v in tangent), x
    ),
)
derivatives(
    "the backward pass takes the cotangent as its mean",
    "vjp_is_the_transpose_of_jvp",
    vjp=lambda network, params, x, u: mm.vjp(network, params, x, u * 0 + u.mean()),
)
derivatives("the Hessian's product passes for the Gauss–Newton's", "gnvp_is_made_of_its_three_parts", gnvp=mm.hvp)
derivatives("the Gauss–Newton product passes for the Hessian's", "hvp_is_the_derivative_of_the_gradient", hvp=mm.gnvp)
derivatives(
    "members of a population share their gradient",
    "a_population_is_its_members",
    value_and_grad=changed(
        lambda grad, layer: tree.map(lambda g: g * 0 + g.mean(axis=0) if layer.bias.ndim > 1 else g, grad)
    ),
)
derivatives("the inputs are centred in place", "nothing_given_is_consumed", value_and_grad=centring)
derivatives(
    "a NumPy scalar makes gradients float64",
    "float32_stays_float32_on_every_backend",
    value_and_grad=changed(lambda grad, layer: grad._replace(bias=np.float64(1) * grad.bias)),
)


# Activations.


def activation(what: str, check: str, base: str, **members: Any) -> None:
    ours = activations.get(base)
    plant(what, suites.ActivationSuite, check, ours._replace(**members), ours)


def relu_in_place(z: Any) -> Any:
    z *= z > 0
    return z


activation("the slope of tanh is 1 − a", "slope_is_the_derivative_of_the_value", "tanh", slope=lambda z, a: 1 - a)
activation(
    "the curvature of tanh has the other sign",
    "curvature_is_the_derivative_of_the_slope",
    "tanh",
    curvature=lambda z, a: 2 * a * (1 - a * a),
)
activation(
    "a sigmoid overflows",
    "far_out_nothing_overflows",
    "sigmoid",
    value=lambda z: 1 / (1 + tree.namespace(z).exp(-z)),
)
activation("relu is applied in place", "the_argument_is_not_consumed", "relu", value=relu_in_place)
activation(
    "a NumPy scalar makes activations float64",
    "float32_stays_float32",
    "tanh",
    value=lambda z: np.float64(1) * tree.namespace(z).tanh(z),
)
activation(
    "an activation looks at its neighbours",
    "every_element_is_by_itself",
    "identity",
    value=lambda z: z - tree.namespace(z).mean(z),
)


activation("the function is NumPy's, whatever the array", "every_backend_agrees", "tanh", value=np.tanh)


# Losses.


def loss(what: str, check: str, base: Any, rows: Any = None, row_curvature: Any = None) -> None:
    broken = replace(base, rows=rows or base.rows, row_curvature=row_curvature or base.row_curvature)
    plant(what, suites.LossSuite, check, broken, base)


def unshifted(z: Any, t: Any) -> Any:
    xp = tree.namespace(z)
    p = xp.exp(z)
    whole = xp.sum(p, axis=-1)
    return xp.log(whole) - xp.sum(z * t, axis=-1), p / whole[..., None] - t


def whole_batch(z: Any, t: Any) -> Any:
    values, slopes = losses.mean_squared_error.rows(z, t)
    return values * 0 + values.mean(), slopes


def weighed_in_place(z: Any, t: Any) -> Any:
    z -= t
    return losses.mean(z * z), 2 * z / z.shape[-1]


def over_members(z: Any, t: Any) -> Any:
    values, slopes = losses.mean_squared_error.rows(z, t)
    return (values * 0 + values.mean(axis=0) if values.ndim > 1 else values), slopes


loss(
    "the gradient of the squared error lacks its 2",
    "gradient_is_the_derivative_of_the_value",
    losses.mean_squared_error,
    rows=lambda z, t: (losses.mean((z - t) * (z - t)), (z - t) / z.shape[-1]),
)
loss(
    "the curvature of softmax is that of a sigmoid",
    "curvature_is_the_derivative_of_the_gradient",
    losses.softmax_cross_entropy,
    row_curvature=lambda z, t, v: losses.softmax(z) * (1 - losses.softmax(z)) * v,
)
loss("softmax is not shifted", "far_out_nothing_overflows", losses.softmax_cross_entropy, rows=unshifted)
loss("every row gets the loss of the batch", "rows_are_independent", losses.mean_squared_error, rows=whole_batch)
loss("the error is taken in place", "nothing_given_is_consumed", losses.mean_squared_error, rows=weighed_in_place)
loss(
    "a NumPy scalar makes losses float64",
    "float32_stays_float32",
    losses.mean_squared_error,
    rows=lambda z, t: tuple(np.float64(1) * part for part in losses.mean_squared_error.rows(z, t)),
)
loss(
    "the squares are NumPy's, whatever the array",
    "every_backend_agrees",
    losses.mean_squared_error,
    rows=lambda z, t: (losses.mean(np.square(z - t)), losses.mean_squared_error.rows(z, t)[1]),
)
loss("members share their loss", "a_population_is_its_members", losses.mean_squared_error, rows=over_members)


# Optimizers: rules made of a broken part.


@dataclass(frozen=True)
class Part:
    """A part from functions; ``elementwise`` as it says."""

    step: Callable[..., Any]
    start: Callable[..., Any] = lambda params: None
    elementwise: bool = True

    def init(self, params: Any) -> Any:
        return self.start(params)

    def update(self, numbers: Any, d: Any, state: Any, params: Any) -> Any:
        return self.step(d, state, params)


class Counter:
    """A count that is kept in the object."""

    steps = 0

    def __call__(self, d: Any, state: Any, params: Any) -> Any:
        self.steps += 1
        return tree.map(lambda leaf: leaf / self.steps, d), state


@dataclass(frozen=True)
class DecayedApart(Chain):
    """θ ← θ − ηd − λθ, the decay without the rate."""

    def step(self, numbers: Any, rate: Any, d: Any, state: Any, params: Any) -> Any:
        params, state = super().step(numbers, rate, d, state, params)
        return tree.map(lambda p: p * 0.99, params), state


class Unmasked(Velocity):
    """Momentum that starts at 1 everywhere, and so goes on where a mask is."""

    def init(self, params: Any) -> Any:
        return tree.map(lambda leaf: leaf + 1, zeros(params))


def optimizer(what: str, check: str, part: Any, numbers: Any = ()) -> None:
    broken = optimizers.sgd(0.05)._replace(rule=Chain((part,)), config=(np.asarray(numbers),))
    plant(what, suites.OptimizerSuite, check, broken, optimizers.momentum(0.05))


def in_place(d: Any, state: Any, params: Any) -> Any:
    for leaf in tree.leaves(d):
        leaf *= 0.5
    return d, state


def wide_state(d: Any, state: Any, params: Any) -> Any:
    one = np.float64(1) if tree.namespace(d) is np else 1.0
    return d, tree.map(lambda old, new: one * old + new, state, d)


def by_row(d: Any, state: Any, params: Any) -> Any:
    return tree.map(lambda leaf: leaf / (1 + abs(leaf).max(axis=-1, keepdims=True)), d), state


def smoothed(d: Any, state: Any, params: Any) -> Any:
    """v ← μv + g with a tenth of the neighbours' g, so that what is masked has a velocity, and is moved by it."""
    state = tree.map(lambda v, g: 0.9 * v + g + 0.1 * g.mean(axis=-1, keepdims=True), state, d)
    return state, tree.map(np.copy, state)


@dataclass(frozen=True)
class Numbered(Part):
    """A part that holds its number, an array, itself."""

    step: Any = 1.0

    def update(self, numbers: Any, d: Any, state: Any, params: Any) -> Any:
        return tree.map(lambda leaf: leaf * self.step, d), state


def decay_everything(d: Any, state: Any, params: Any) -> Any:
    return tree.map(lambda leaf, p: leaf + 0.01 * (p - 1), d, params), state


optimizer("momentum starts at 1, also where a mask is", "masked_weights_stay_zero", Unmasked(), 0.9)
optimizer("momentum is applied to masked weights", "masked_weights_stay_zero", Part(smoothed, zeros))
optimizer("a number is part of the rule", "numbers_do_not_enter_the_rule", Numbered(np.asarray(0.9)))
optimizer("decay pulls toward 1, also what is masked", "masked_weights_stay_zero", Part(decay_everything))
optimizer("steps go uphill", "it_descends", Part(lambda d, state, params: (tree.map(lambda leaf: -leaf, d), state)))
optimizer(
    "the length of the gradient is that of all members",
    "a_population_is_its_members",
    Part(lambda d, s, p: (tree.map(lambda leaf: leaf / sqrt(sum((x * x).sum() for x in tree.leaves(d))), d), s)),
)
optimizer("the count of steps is kept in the object", "the_state_is_all_there_is", Part(Counter()))
optimizer("the gradient is halved in place", "the_gradient_is_not_consumed", Part(in_place))
optimizer(
    "a NumPy scalar makes the state float64",
    "every_backend_takes_the_same_steps",
    Part(wide_state, zeros),
)
optimizer(
    "a gradient of 0 is divided by its length",
    "no_gradient_gives_no_nan",
    Part(lambda d, s, p: (tree.map(lambda leaf: leaf / norm(d, p[0].bias[..., 0])[..., None], d), s)),
)
optimizer("a rule says it is elementwise, and looks at rows", "an_elementwise_rule_sees_no_shapes", Part(by_row))
plant(
    "decay does not obey the rate",
    suites.OptimizerSuite,
    "a_rate_of_zero_moves_nothing",
    optimizers.sgd(0.05)._replace(rule=DecayedApart(())),
    optimizers.sgd(0.05, weight_decay=0.01),
)


# Strategies: those of a wrapper that breaks one of ask and tell.


class Wrapped:
    """A strategy with something else for ``ask`` or ``tell``, which are given the real one."""

    def __init__(self, real: Any, **broken: Any) -> None:
        self.real, self.broken = real, broken

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.real, name)
        broken = self.broken.get(name)
        return (lambda *args, **kwargs: broken(self.real, *args, **kwargs)) if broken else found


def strategy(what: str, check: str, real: Any = None, **broken: Any) -> None:
    real = strategies.snes(0.3) if real is None else real
    plant(what, suites.StrategySuite, check, Wrapped(real, **broken), real)


def drawn_and_split(real: Any, state: Any, key: Any, population: int, *, backend: Any = "numpy") -> Any:
    """A shift for the whole generation under the very key that the candidates' keys are folded from."""
    asked = real.ask(state, key, population, backend=backend)
    shift = random.normal(key, (1,), backend=backend)
    return Asked(asked.draws, tree.map(lambda leaf: leaf + shift * 0.01, asked.params))


def drawn_and_split_far(real: Any, state: Any, key: Any, population: int, *, backend: Any = "numpy") -> Any:
    """A draw under the key of child 100, and one under the key itself."""
    asked = real.ask(state, random.fold_in(key, 100), population, backend=backend)
    shift = random.normal(key, (1,), backend=backend)
    return Asked(asked.draws, tree.map(lambda leaf: leaf + shift * 0.01, asked.params))


def on_numpy(real: Any, state: Any, key: Any, population: int, *, backend: Any = "numpy") -> Any:
    return real.ask(state, key, population)


def same_key(real: Any, state: Any, key: Any, population: int, *, backend: Any = "numpy") -> Any:
    return real.ask(state, random.key(0), population, backend=backend)


def halves(real: Any, state: Any, key: Any, population: int, *, backend: Any = "numpy") -> Any:
    """Twins in two halves: which is whose twin depends on how many there are."""
    asked = real.ask(state, key, population // 2, backend=backend)
    draws = np.concatenate([asked.draws, -asked.draws])
    return Asked(draws, real.plan.place(real._numbers(state.best, EAGER), state, draws))


def newest(real: Any, state: Any, asked: Any, fitness: Any, **options: Any) -> Any:
    return real.tell(state._replace(fitness=np.float32(np.inf)), asked, fitness, **options)


def no_nan(real: Any, state: Any, asked: Any, fitness: Any, **options: Any) -> Any:
    """NaN counts as 0."""
    return real.tell(state, asked, np.nan_to_num(fitness, posinf=np.inf), **options)


def standardised(real: Any, state: Any, asked: Any, fitness: Any, **options: Any) -> Any:
    told = real.tell(state, asked, fitness, **options)
    scale = np.float32(np.std(fitness))
    return told._replace(own=tree.map(lambda leaf: leaf + scale, told.own))


def in_place_tell(real: Any, state: Any, asked: Any, fitness: Any, **options: Any) -> Any:
    told = real.tell(state, asked, fitness, **options)
    for leaf, new in zip(tree.leaves(state.best), tree.leaves(told.best), strict=True):
        leaf[...] = new
    return told


def upward(real: Any, state: Any, asked: Any, fitness: Any, **options: Any) -> Any:
    told = real.tell(state, asked, -np.asarray(fitness), **options)
    return told._replace(best=state.best, fitness=state.fitness)


def half_file(real: Any, state: Any, path: Any) -> None:
    real.save(tree.map(lambda leaf: np.asarray(leaf, np.float16).astype(np.float32), state), path)


strategy("candidates are made on NumPy, whatever the backend", "every_backend_asks_and_tells_the_same", ask=on_numpy)
strategy("a key is drawn from and split, far away", "no_key_is_drawn_and_split", ask=drawn_and_split_far)
strategy("a key is drawn from and split", "no_key_is_drawn_and_split", ask=drawn_and_split)
strategy("every generation has the same key", "candidates_and_generations_differ", ask=same_key)
strategy("twins are drawn in two halves", "a_candidate_depends_on_its_key_alone", ask=halves)
strategy("the best is that of the last generation", "the_best_is_the_least_so_far", tell=newest)
strategy("NaN counts as 0", "a_nan_does_not_spread", tell=no_nan)
strategy("the scale of the fitness is taken over", "only_the_order_of_the_fitness_counts", tell=standardised)
strategy("the best is written over in place", "ask_and_tell_are_pure", tell=in_place_tell)
strategy("the highest fitness is sought", "it_finds_something_better", tell=upward)
strategy("a state is saved in half precision", "a_search_goes_on_from_its_file", save=half_file)


# Scores.


def score(what: str, check: str, broken: Any, original: str = "magnitude") -> None:
    plant(what, suites.ScoreSuite, check, broken, original)


def one_key(e: Any) -> Any:
    return tuple(random.uniform(e.key, layer.weight.shape[-2:], backend=e.backend) for layer in e.params)


def shared_magnitude(e: Any) -> Any:
    found = scores.magnitude(e)
    return tuple(s if s.ndim < 3 else s * 0 + e.backend.xp.mean(s, axis=0) for s in found)


def normalised(e: Any) -> Any:
    return tuple(s / e.backend.xp.max(s, axis=(-2, -1), keepdims=True) for s in scores.magnitude(e))


def abs_in_place(e: Any) -> Any:
    for layer in e.params:
        layer.weight[...] = e.backend.xp.abs(layer.weight)
    return tuple(layer.weight for layer in e.params)


def first_row(e: Any) -> Any:
    return scores.taylor(e._replace(rows=tree.map(lambda leaf: leaf[:1, ...], e.rows)))


def by_neuron(e: Any) -> Any:
    return tuple(layer.bias for layer in e.params)


class KeepsTies(suites.ScoreSuite):
    """A pruner that keeps whatever is no less than the k-th largest score."""

    def masks(self, scores: Any, kept: int) -> Any:
        bar = np.sort(np.concatenate([part.ravel() for part in scores]))[::-1][max(kept, 1) - 1]
        return tuple((part >= bar) & (kept > 0) for part in scores)


plant("a pruner keeps every tie", suites.ScoreSuite, "its_masks_are_exact", "magnitude", "magnitude", KeepsTies)
score(
    "the size of weights is NumPy's, whatever the array",
    "every_backend_gives_the_same_scores",
    lambda e: tuple(np.abs(layer.weight) for layer in e.params),
)
score("all layers draw under one key", "no_key_is_drawn_and_split", one_key, "random")
score("members share their scores", "a_population_is_its_members", shared_magnitude)
score("an empty layer is divided by 0", "nothing_left_gives_finite_scores", normalised)
score("weights are made positive in place", "it_repeats_and_consumes_nothing", abs_in_place)
score("only the first row is looked at", "the_order_of_the_rows_does_not_count", first_row, "taylor")
score("a population's biases do not broadcast to the weights", "every_weight_has_a_number", by_neuron)


# Quantizers.


def quantizer(what: str, check: str, **members: Any) -> None:
    ours = quantization(8)
    plant(what, suites.QuantizerSuite, check, ours._replace(**members), ours)


def integers(c: Any, q: Any) -> qarray.QArray:
    return qarray.QArray(c.astype(np.int8), q.scale, q.zero_point.astype(np.int8))


def half_up(w: Any, q: Any) -> Any:
    return np.clip(np.floor(w * q.inverse + np.float32(0.5)), q.low, q.high) * q.scale


def cast_first(w: Any, q: Any) -> Any:
    with np.errstate(invalid="ignore"):
        wrapped = np.round(w * q.inverse).astype(np.int64).astype(np.int8)
    return qarray.QArray(np.clip(wrapped, -127, 127), q.scale, q.zero_point.astype(np.int8))


def no_guard(w: Any) -> Any:
    most = np.abs(w).max(axis=-2, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        q = ours_at(w)
        return q._replace(scale=most / np.float32(127), inverse=np.float32(127) / most)


def ours_at(w: Any) -> Any:
    return quantization(8).levels(w)


def one_scale(w: Any) -> Any:
    q = ours_at(w)
    widest = q.scale.max(axis=0, keepdims=True) + 0 * q.scale if w.ndim > 2 else q.scale
    return q._replace(scale=widest, inverse=1 / widest)


def off_centre(w: Any, q: Any) -> Any:
    return qarray.fake_quantize(w, q) + np.float32(0.3) * q.scale


def scaled_in_place(w: Any, q: Any) -> Any:
    w *= q.inverse
    return integers(np.clip(np.round(w), q.low, q.high), q)


def wrapped(w: Any, q: Any) -> Any:
    return ((np.round(w * q.inverse) + 127) % 255 - 127) * q.scale


def by_numpy(w: Any, q: Any) -> Any:
    return integers(np.clip(np.round(w * q.inverse), q.low, q.high), q)


def moved_zero(w: Any, q: Any) -> Any:
    found = qarray.quantize(w, q)
    if w.ndim < 3:
        return found
    shift = np.arange(len(w), dtype=np.int8).reshape(-1, 1, 1)
    return found._replace(zero_point=found.zero_point + shift)


def levels_in_place(w: Any, q: Any) -> Any:
    found = qarray.fake_quantize(w, q)
    q.zero_point[...] = 1
    return found


def gradient_in_place(w: Any, q: Any, gradient: Any) -> Any:
    gradient *= np.abs(w * q.inverse) <= q.high - 1
    return gradient


quantizer("halves are rounded up", "halves_go_to_even", fake_quantize=half_up)
quantizer("integers are cast before they are clipped", "integers_saturate", quantize=cast_first)
quantizer("0 lies between two levels", "zero_is_exact", fake_quantize=off_centre)
quantizer(
    "weights are rounded down",
    "rounding_is_to_the_nearest",
    fake_quantize=lambda w, q: qarray.fake_quantize(w, q, "floor"),
)
quantizer(
    "what is trained is not clipped",
    "fake_quantization_is_that_of_the_integers",
    levels=lambda w: ours_at(0.5 * w),
    fake_quantize=lambda w, q: np.round(w * q.inverse) * q.scale,
)
quantizer(
    "the gradient passes where weights are clipped",
    "gradient_passes_where_nothing_is_clipped",
    straight_through=lambda w, q, gradient: gradient,
)
quantizer(
    "weights are cut off, and lose a level each time",
    "quantizing_again_changes_nothing",
    fake_quantize=lambda w, q: qarray.fake_quantize(w, q, "toward_zero"),
)
quantizer("what is too large comes in at the other end", "order_is_kept", fake_quantize=wrapped)
quantizer("integers are NumPy's, whatever the array", "every_backend_gives_the_same_integers", quantize=by_numpy)
quantizer("members have zero points that none has alone", "a_population_is_its_members", quantize=moved_zero)
quantizer("levels are moved in place", "nothing_given_is_consumed", fake_quantize=levels_in_place)
quantizer("the gradient is cut in place", "nothing_given_is_consumed", straight_through=gradient_in_place)
quantizer("an empty layer has the scale 0", "scales_are_finite", levels=no_guard)
quantizer("members share a scale", "a_population_is_its_members", levels=one_scale)
quantizer("weights are scaled in place", "nothing_given_is_consumed", quantize=scaled_in_place)


# Files.


def files(what: str, check: str, dumps: Any = mm.Model.dumps, loads: Any = model.loads) -> None:
    ours = SimpleNamespace(dumps=mm.Model.dumps, loads=model.loads)
    plant(what, suites.FileSuite, check, SimpleNamespace(dumps=dumps, loads=loads), ours)


def halved(given: mm.Model) -> bytes:
    return replace(given, params=tree.map(lambda leaf: leaf + np.float32(0), given.params)).dumps()


def as_it_lies(given: mm.Model) -> bytes:
    """Arrays written in the order of memory."""
    lying = tree.map(lambda leaf: np.ravel(leaf, "K").reshape(leaf.shape), given.params)
    return replace(given, params=lying).dumps()


def seven_bits(given: mm.Model) -> bytes:
    if given.quantized is None:
        return given.dumps()
    cut = tuple(q._replace(values=np.clip(q.values, -(2 ** (given.bits - 1)) + 1, None)) for q in given.quantized)
    return replace(given, quantized=cut).dumps()


def unchecked(raw: bytes) -> mm.Model:
    """Whatever the SHA-256 says."""
    start = raw.find(storage.MARK) + len(storage.MARK)
    zeroed = raw[:start] + b"0" * storage.DIGITS + raw[start + storage.DIGITS :]
    signed = hashlib.sha256(zeroed).hexdigest().encode()
    return model.loads(raw[:start] + signed + raw[start + storage.DIGITS :])


CLOCK = itertools.count()

files("−0 is saved as 0", "parameters_come_back_to_the_bit", dumps=halved)
files("arrays are written as they lie in memory", "parameters_come_back_to_the_bit", dumps=as_it_lies)
files("masks are not saved", "masks_come_back", dumps=lambda given: replace(given, masks=None).dumps())
files("the least integer does not fit its bits", "integers_come_back", dumps=seven_bits)
files("damage is not looked for", "a_damaged_file_is_refused", loads=unchecked)
files(
    "the normalization is not saved",
    "everything_a_model_holds_comes_back",
    dumps=lambda given: replace(given, normalization=None).dumps(),
)
files(
    "the units of the targets are forgotten",
    "outputs_are_the_same",
    loads=lambda raw: replace(model.loads(raw), targets=None),
)
files(
    "when it was saved stands in the file",
    "the_same_model_gives_the_same_bytes",
    dumps=lambda given: replace(given, split_seed=next(CLOCK)).dumps(),
)
