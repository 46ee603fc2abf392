"""The laws of what is differentiated by hand: activations, losses, and the gradients of a network."""

from typing import Any, ClassVar

import numpy as np
from hypothesis import strategies as st

import minimodel as mm
from minimodel import tree
from minimodel.activations import ACTIVATIONS, Activation
from minimodel.losses import NAMES, Loss
from minimodel.network import Network, Params
from minimodel.testing import strategies as some
from minimodel.testing.oracles import (
    assert_dtype,
    assert_same_bits,
    assert_same_structure,
    assert_within_step,
    check_gradient,
    check_hvp,
    installed,
)
from minimodel.testing.strategies import OFFSET, law
from minimodel.testing.suites.base import Suite

FAR = np.array([-1e30, -1e4, -90.0, 90.0, 1e4, 1e30])
wide = some.arrays((2, 3), np.float64)
OUT = 3
KINK = 1e-3  # nearer to one than this no difference is taken
ROOM = 5.0  # times the tier "step", for what a function makes of its argument's rounding to float32


def all_of(f: Activation, z: Any) -> tuple[Any, Any, Any]:
    """f, f′ and f″ at z."""
    a = f.value(z)
    return a, f.slope(z, a), f.curvature(z, a)


class ActivationSuite(Suite):
    """Fixture ``activation``: an ``Activation``."""

    subject = "activation"

    @law(z=wide)
    def test_slope_is_the_derivative_of_the_value(self, activation: Activation, z: np.ndarray) -> None:
        """f′(z, f(z)) is the central difference of f.

        Why: it is what the backward pass multiplies with.
        Source: minimodel.testing.oracles.check_gradient.
        """
        z = z + OFFSET
        check_gradient(activation.value, activation.slope(z, activation.value(z)), z)

    @law(z=wide)
    def test_curvature_is_the_derivative_of_the_slope(self, activation: Activation, z: np.ndarray) -> None:
        """f″(z, f(z)) is the central difference of f′.

        Why: products with the Hessian need it.
        Source: Pearlmutter, Fast exact multiplication by the Hessian (1994).
        """
        z = z + OFFSET
        found = activation.curvature(z, activation.value(z))
        check_gradient(lambda at: activation.slope(at, activation.value(at)), found, z)

    @law(z=some.layouts(np.float64))
    def test_every_element_is_by_itself(self, activation: Activation, z: np.ndarray) -> None:
        """Arrays of any shape and layout give what their elements give one by one, in the same shape.

        Why: activations meet arrays with the axes of a population and without.
        Source: activations.Activation, elementwise.
        """
        for part, one in zip(all_of(activation, z), (0, 1, 2), strict=True):
            assert part.shape == z.shape
            alone = [np.asarray(all_of(activation, value.reshape(1))[one])[0] for value in z.ravel()]
            np.testing.assert_allclose(np.ravel(part), alone, rtol=1e-12, atol=1e-15)

    @law(z=wide)
    def test_the_argument_is_not_consumed(self, activation: Activation, z: np.ndarray) -> None:
        """z and f(z) are as they were after f, f′ and f″.

        Why: the backward pass reads them again.
        Source: NumPy user guide, Copies and views: what is written in place is seen by all who share the memory.
        """
        kept, a = z.copy(), activation.value(z)
        value = a.copy()
        activation.slope(z, a), activation.curvature(z, a)
        assert_same_bits((z, a), (kept, value), "z and f(z)")

    def test_float32_stays_float32(self, activation: Activation) -> None:
        """f, f′ and f″ of float32 are float32, on every backend.

        Why: one float64 number drags all that follows to float64, at half the speed and with other bits.
        Source: Python array API standard 2024.12, Type promotion rules: of float32 and float64 comes float64.
        """
        for backend in installed():
            z = backend.asarray(np.linspace(-4, 4, 9), backend.xp.float32)
            assert_dtype(all_of(activation, z), "float32", backend.name)

    def test_far_out_nothing_overflows(self, activation: Activation) -> None:
        """At ±90, ±10⁴ and ±10³⁰ the derivatives are finite and the value is no NaN, without a warning, in float32.

        Why: a single NaN ends a training.
        Source: IEEE 754-2019, sections 7.2 and 7.4: overflow, and ∞ − ∞, are no numbers to go on with.
        """
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            value, slope, curvature = all_of(activation, FAR.astype(np.float32))
        assert not np.isnan(value).any() and np.isfinite(slope).all() and np.isfinite(curvature).all()

    @law(5, z=some.arrays((2, 3)))
    def test_every_backend_agrees(self, activation: Activation, z: np.ndarray) -> None:
        """Every backend, eagerly and compiled, gives the values of float64 to the tier "step".

        Why: only functions of the Array API standard run everywhere.
        Source: the tier "step".
        """
        expected = all_of(activation, z.astype(np.float64) + OFFSET)
        for backend in installed():
            at = backend.asarray(z + np.float32(OFFSET))
            for run in (all_of, backend.jit(all_of, static=("f",))):
                assert_within_step(backend.to_numpy(run(f=activation, z=at)), expected, backend.name, room=ROOM)


class LossSuite(Suite):
    """Fixture ``loss``: a ``Loss``. Targets are labels where it takes them, any numbers where it is scaled, else from 0
    to 1; a loss with other needs overrides ``targets``."""

    subject = "loss"

    def targets(self, loss: Loss, seed: int, *shape: int) -> np.ndarray:
        """Targets t (…, out) as ``Loss.rows`` takes them."""
        rng = np.random.default_rng(seed)
        if loss.labels:
            return np.eye(shape[-1])[rng.integers(0, shape[-1], shape[:-1])]
        return rng.normal(size=shape) if loss.scaled else rng.random(shape)

    @law(z=some.arrays((some.ROWS, OUT), np.float64), seed=some.seeds)
    def test_gradient_is_the_derivative_of_the_value(self, loss: Loss, z: np.ndarray, seed: int) -> None:
        """∂ℓ/∂z of every row is the central difference of that row's ℓ, in every output.

        Why: it is where the backward pass begins.
        Source: minimodel.testing.oracles.check_gradient.
        """
        z, t = z + OFFSET, self.targets(loss, seed, some.ROWS, OUT)
        check_gradient(lambda at: loss.rows(at, t)[0], loss.rows(z, t)[1], z)

    @law(z=some.arrays((some.ROWS, OUT), np.float64), seed=some.seeds)
    def test_curvature_is_the_derivative_of_the_gradient(self, loss: Loss, z: np.ndarray, seed: int) -> None:
        """(∂²ℓ/∂z²)·v is the change of ∂ℓ/∂z along v.

        Why: products with the Hessian and the Gauss–Newton matrix need it.
        Source: Pearlmutter (1994); Schraudolph (2002).
        """
        z, t = z + OFFSET, self.targets(loss, seed, some.ROWS, OUT)
        v = np.random.default_rng(seed + 1).normal(size=z.shape)
        check_hvp(lambda at: (loss.rows(at[0], t)[1],), (loss.row_curvature(z, t, v),), (z,), (v,))

    @law(z=some.arrays((some.ROWS, OUT), np.float64), seed=some.seeds)
    def test_rows_are_independent(self, loss: Loss, z: np.ndarray, seed: int) -> None:
        """Every row's ℓ and ∂ℓ/∂z are what that row alone gives; J and its derivatives are their means.

        Why: batches are any rows in any order.
        Source: losses.Loss.
        """
        t = self.targets(loss, seed, some.ROWS, OUT)
        values, slopes = loss.rows(z, t)
        assert values.shape == z.shape[:-1] and slopes.shape == z.shape
        for i in range(some.ROWS):
            one, slope = loss.rows(z[i : i + 1], t[i : i + 1])
            np.testing.assert_allclose((values[i], *slopes[i]), (one[0], *slope[0]), rtol=1e-12, atol=1e-14)
        found, bent = whole(loss, z, t), loss.row_curvature(z, t, np.ones_like(z))
        for part, mean in zip(found, (values.mean(), slopes / some.ROWS, bent / some.ROWS), strict=True):
            np.testing.assert_allclose(part, mean, rtol=1e-12, atol=1e-14)

    @law(z=some.arrays((some.MEMBERS, some.ROWS, OUT), np.float64), seed=some.seeds, shared=st.booleans())
    def test_a_population_is_its_members(self, loss: Loss, z: np.ndarray, seed: int, shared: bool) -> None:
        """Outputs (*population, batch, out) give each member what it gives alone, its targets its own or shared.

        Why: P networks train as one array program.
        Source: Python array API standard 2024.12, Broadcasting, along the axes in front.
        """
        t = self.targets(loss, seed, *(() if shared else (some.MEMBERS,)), some.ROWS, OUT)
        found = *parts_of(z, t, loss=loss), *whole(loss, z, t)
        for i in range(some.MEMBERS):
            own = t if shared else t[i]
            alone = *parts_of(z[i], own, loss=loss), *whole(loss, z[i], own)
            for many, one in zip(found, alone, strict=True):
                np.testing.assert_allclose(many[i], one, rtol=1e-12, atol=1e-14)

    @law(z=some.arrays((some.ROWS, OUT), np.float64), seed=some.seeds)
    def test_nothing_given_is_consumed(self, loss: Loss, z: np.ndarray, seed: int) -> None:
        """z, t and v are as they were; what ``rows`` returns is its own, so that writing to it changes none of them.

        Why: training weighs rows and gradients in place.
        Source: losses.Loss, rows.
        """
        t, v = self.targets(loss, seed, some.ROWS, OUT), np.ones_like(z)
        kept = z.copy(), t.copy(), v.copy()
        found = loss.rows(z, t)
        loss.row_curvature(z, t, v), loss.decide(z), whole(loss, z, t)
        for part in found:
            part *= 0
        assert_same_bits((z, t, v), kept, "z, t and v")

    def test_float32_stays_float32(self, loss: Loss) -> None:
        """ℓ, ∂ℓ/∂z and the curvature of float32 are float32, on every backend.

        Why: one float64 number drags all that follows to float64.
        Source: Python array API standard 2024.12, Type promotion rules: of float32 and float64 comes float64.
        """
        z, t = np.zeros((some.ROWS, OUT), np.float32), self.targets(loss, 0, some.ROWS, OUT).astype(np.float32)
        for backend in installed():
            given = backend.asarray(z), backend.asarray(t)
            assert_dtype((*loss.rows(*given), loss.row_curvature(*given, given[0])), "float32", backend.name)

    def test_far_out_nothing_overflows(self, loss: Loss) -> None:
        """With outputs of ±10⁴, right and wrong, ℓ, ∂ℓ/∂z and the curvature are finite, without a warning, in float32.

        Why: a network that is certain is no reason for a NaN.
        Source: Blanchard, Higham, Higham: Accurately computing the log-sum-exp and softmax functions (2021).
        """
        z = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 0], [0, 0, 1e4], [-1e4, -1e4, -1e4]], np.float32)
        for seed in range(8):
            t = self.targets(loss, seed, *z.shape).astype(np.float32)
            with np.errstate(over="raise", invalid="raise", divide="raise"):
                found = *loss.rows(z, t), loss.row_curvature(z, t, np.ones_like(z))
            assert all(np.isfinite(part).all() for part in found)

    @law(5, z=some.arrays((some.ROWS, OUT)), seed=some.seeds)
    def test_every_backend_agrees(self, loss: Loss, z: np.ndarray, seed: int) -> None:
        """Every backend, eagerly and compiled, gives the values of float64 to the tier "step".

        Why: only functions of the Array API standard run everywhere.
        Source: the tier "step".
        """
        t = self.targets(loss, seed, some.ROWS, OUT).astype(np.float32)
        expected = parts_of(z.astype(np.float64), t.astype(np.float64), loss=loss)
        for backend in installed():
            given = backend.asarray(z), backend.asarray(t)
            for run in (parts_of, backend.jit(parts_of, static=("loss",))):
                assert_within_step(backend.to_numpy(run(*given, loss=loss)), expected, backend.name, room=ROOM)


def whole(loss: Loss, z: np.ndarray, t: np.ndarray) -> tuple[Any, Any, Any]:
    """J, ∂J/∂z and (∂²J/∂z²)·1, from the targets as a user gives them."""
    y = t.argmax(axis=-1).astype(np.int32) if loss.labels else t
    return loss.value(z, y), loss.gradient(z, y), loss.curvature(z, y, np.ones_like(z))


def parts_of(z: Any, t: Any, *, loss: Loss) -> Any:
    return (*loss.rows(z, t), loss.row_curvature(z, t, z))


class GradientSuite(Suite):
    """Fixture ``gradients``: an object with ``value_and_grad``, ``input_gradient``, ``jvp``, ``vjp``, ``hvp`` and
    ``gnvp``, called as ``minimodel.gradients`` are."""

    subject = "gradients"

    def case(self, seed: int, activation: str, loss: str, population: int | None = None) -> tuple[Any, ...]:
        """A network, its parameters, inputs and targets in float64, all in general position: off every kink."""
        network, rng = Network((3, 4, OUT), activation), np.random.default_rng(seed)
        lead, kind = some.lead(population), mm.losses.get(loss)
        while True:
            params = tuple(
                mm.Layer(0.7 * rng.normal(size=(*lead, *shape)), 0.3 * rng.normal(size=(*lead, shape[1])))
                for shape in network.shapes
            )
            x = rng.normal(size=(some.ROWS, 3))
            y = rng.integers(0, OUT, some.ROWS).astype(np.int32) if kind.labels else rng.random((some.ROWS, OUT))
            hidden, outputs = Network((3, 4)).apply(params[:1], x), network.apply(params, x)
            bend = np.abs(outputs - y) - 1 if loss == "huber" else outputs
            if min(np.abs(hidden).min(), np.abs(bend).min()) > KINK:
                return network, loss, params, x, y

    def differences(self, gradients: Any, case: tuple[Any, ...], kind: str) -> None:
        """The gradient of all weights, or all biases, against differences."""
        network, loss, params, x, y = case
        found = gradients.value_and_grad(*case)[1]
        for i, (layer, grads) in enumerate(zip(params, found, strict=True)):

            def value(at: np.ndarray, i: int = i, layer: Any = layer) -> Any:
                moved = (*params[:i], layer._replace(**{kind: at}), *params[i + 1 :])
                return gradients.value_and_grad(network, loss, moved, x, y)[0]

            check_gradient(value, getattr(grads, kind), getattr(layer, kind))

    drawn: ClassVar = {
        "seed": some.seeds,
        "activation": st.sampled_from(tuple(ACTIVATIONS)),
        "loss": st.sampled_from(NAMES),
    }

    @law(20, **drawn)
    def test_weight_gradient_is_the_derivative_of_the_loss(
        self, gradients: Any, seed: int, activation: str, loss: str
    ) -> None:
        """∂J/∂W is the central difference of J in every weight.

        Why: aᵀδ with an index out of place still trains, only worse.
        Source: minimodel.testing.oracles.check_gradient.
        """
        self.differences(gradients, self.case(seed, activation, loss), "weight")

    @law(20, **drawn)
    def test_bias_gradient_is_the_derivative_of_the_loss(
        self, gradients: Any, seed: int, activation: str, loss: str
    ) -> None:
        """∂J/∂b is the central difference of J in every bias.

        Why: a sum over the wrong axis may have the right shape.
        Source: minimodel.testing.oracles.check_gradient.
        """
        self.differences(gradients, self.case(seed, activation, loss), "bias")

    @law(20, **drawn)
    def test_hvp_is_the_derivative_of_the_gradient(self, gradients: Any, seed: int, activation: str, loss: str) -> None:
        """H·v is the change of ∂J/∂θ along v.

        Why: second-order pruning and search go by it.
        Source: Pearlmutter, Fast exact multiplication by the Hessian (1994).
        """
        network, loss, params, x, y = self.case(seed, activation, loss)
        tangent = self.case(seed + 1, activation, loss)[2]

        def gradient(at: Params) -> Any:
            return gradients.value_and_grad(network, loss, at, x, y)[1]

        check_hvp(gradient, gradients.hvp(network, loss, params, tangent, x, y), params, tangent)

    @law(10, **drawn)
    def test_input_gradient_is_the_derivative_of_the_loss(
        self, gradients: Any, seed: int, activation: str, loss: str
    ) -> None:
        """∂J/∂x is the central difference of J in every input.

        Why: what an input matters to the loss is read off it.
        Source: minimodel.testing.oracles.check_gradient.
        """
        network, loss, params, x, y = self.case(seed, activation, loss)
        found = gradients.input_gradient(network, loss, params, x, y)
        check_gradient(lambda at: gradients.value_and_grad(network, loss, params, at, y)[0], found, x)

    @law(10, **drawn)
    def test_jvp_is_the_change_of_the_outputs(self, gradients: Any, seed: int, activation: str, loss: str) -> None:
        """uᵀJv is the central difference of uᵀz along v, for random u; z are the outputs.

        Why: products with the Hessian and the Gauss–Newton matrix begin with it.
        Source: Pearlmutter, Fast exact multiplication by the Hessian (1994).
        """
        network, _, params, x, _ = self.case(seed, activation, loss)
        tangent = self.case(seed + 1, activation, loss)[2]
        z, found = gradients.jvp(network, params, tangent, x)
        u = np.random.default_rng(seed).normal(size=z.shape)
        np.testing.assert_allclose(z, network.apply(params, x), rtol=1e-12, atol=1e-14)

        def along(t: np.ndarray) -> Any:
            return u * network.apply(tree.map(lambda p, v: p + t * v, params, tangent), x)

        check_gradient(along, np.asarray([np.sum(u * found)]), np.zeros(1))

    @law(10, **drawn)
    def test_vjp_is_the_transpose_of_jvp(self, gradients: Any, seed: int, activation: str, loss: str) -> None:
        """⟨u, Jv⟩ = ⟨Jᵀu, v⟩

        Why: a backward pass is the transpose of a forward one.
        Source: Griewank, Walther: Evaluating derivatives (2008), section 3.2.
        """
        network, _, params, x, _ = self.case(seed, activation, loss)
        tangent = self.case(seed + 1, activation, loss)[2]
        z, change = gradients.jvp(network, params, tangent, x)
        u = np.random.default_rng(seed).normal(size=z.shape)
        back = gradients.vjp(network, params, x, u)
        assert_same_structure(back, params, "Jᵀu")
        pairs = zip(tree.leaves(back), tree.leaves(tangent), strict=True)
        sizes = [leaf * v for leaf, v in pairs]
        scale = 1e-12 * sum(float(np.abs(part).sum()) for part in sizes)
        np.testing.assert_allclose(sum(part.sum() for part in sizes), np.sum(u * change), rtol=1e-10, atol=scale)

    @law(10, **drawn)
    def test_gnvp_is_made_of_its_three_parts(self, gradients: Any, seed: int, activation: str, loss: str) -> None:
        """G·v = Jᵀ((∂²J/∂z²)(Jv))

        Why: it is the curvature that cannot be negative, which second-order steps need.
        Source: Schraudolph, Fast curvature matrix-vector products (2002).
        """
        network, loss, params, x, y = self.case(seed, activation, loss)
        tangent = self.case(seed + 1, activation, loss)[2]
        z, change = gradients.jvp(network, params, tangent, x)
        expected = gradients.vjp(network, params, x, mm.losses.get(loss).curvature(z, y, change))
        found = gradients.gnvp(network, loss, params, tangent, x, y)
        assert_same_structure(found, expected, "G·v")
        for ours, theirs in zip(tree.leaves(found), tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-13)

    @law(20, **drawn)
    def test_a_population_is_its_members(self, gradients: Any, seed: int, activation: str, loss: str) -> None:
        """Parameters of P networks give to each what it gives alone.

        Why: P networks train as one array program.
        Source: Python array API standard 2024.12, Broadcasting, along the axes in front.
        """
        network, loss, params, x, y = self.case(seed, activation, loss, some.MEMBERS)
        found = gradients.value_and_grad(network, loss, params, x, y)
        for i in range(some.MEMBERS):
            alone = gradients.value_and_grad(network, loss, tree.map(lambda leaf, i=i: leaf[i], params), x, y)
            for many, one in zip(tree.leaves(found), tree.leaves(alone), strict=True):
                np.testing.assert_allclose(many[i], one, rtol=1e-10, atol=1e-13)

    @law(20, **drawn)
    def test_nothing_given_is_consumed(self, gradients: Any, seed: int, activation: str, loss: str) -> None:
        """Parameters, inputs and targets are as they were.

        Why: the next step begins with them.
        Source: NumPy user guide, Copies and views: what is written in place is seen by all who share the memory.
        """
        case = self.case(seed, activation, loss)
        gradients.value_and_grad(*case), gradients.hvp(*case[:3], case[2], *case[3:])
        assert_same_bits(case[2:], self.case(seed, activation, loss)[2:], "arguments")

    @law(3, seed=some.seeds)
    def test_float32_stays_float32_on_every_backend(self, gradients: Any, seed: int) -> None:
        """J, ∂J/∂θ and H·v of float32 are float32, and those of float64 to the tier "step".

        Why: the same source runs everywhere.
        Source: the tier "step".
        """
        network, loss, *arrays = self.case(seed, "tanh", "mean_squared_error")
        expected = gradients.value_and_grad(network, loss, *arrays), gradients.hvp(network, loss, arrays[0], *arrays)
        for backend in installed():
            params, x, y = tree.map(lambda leaf, b=backend: b.asarray(leaf, b.xp.float32), tuple(arrays))
            found = (
                gradients.value_and_grad(network, loss, params, x, y),
                gradients.hvp(network, loss, params, params, x, y),
            )
            assert_dtype(found, "float32", backend.name)
            assert_within_step(backend.to_numpy(found), expected, backend.name)
