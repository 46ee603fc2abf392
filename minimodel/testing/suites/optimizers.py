"""The laws of optimizers."""

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

import minimodel as mm
from minimodel import tree
from minimodel.backends import Backend
from minimodel.network import Network, Params
from minimodel.problem import masked
from minimodel.search.optimizers import Optimizer
from minimodel.search.packed import pack
from minimodel.search.rules import Evaluate
from minimodel.search.schedules import Run
from minimodel.testing import strategies as some
from minimodel.testing.oracles import (
    assert_floats_are,
    assert_same_bits,
    assert_within_step,
    installed,
)
from minimodel.testing.strategies import law
from minimodel.testing.suites.base import Suite
from minimodel.tree import Array, Tree

NETWORK = Network((4, 3, 2))
STEPS, RATE = 4, 0.05


def draw(seed: int, population: int | None = None) -> Params:
    """Parameters in float64."""
    rng, lead = np.random.default_rng(seed), some.lead(population)
    return tuple(
        mm.Layer(rng.normal(size=(*lead, *shape)), rng.normal(size=(*lead, shape[1]))) for shape in NETWORK.shapes
    )


def noise(like: Params, optimizer: Optimizer, seed: int) -> Params:
    """What shakes the gradient of each step, a leaf (STEPS, …) for each; nothing where a rule sees all rows at once."""
    rng, size = np.random.default_rng(seed), 0.0 if optimizer.rule.full_batch else 1.0
    return tree.map(lambda leaf: size * rng.normal(size=(STEPS, *leaf.shape)), like)


def bowl(now: Params, masks: Any, params: Params) -> tuple[Array, Params]:
    """The sum of ½·log(1 + θ²) + ν·θ for each member, ν the noise, and its gradient, masked."""
    xp, axes = tree.namespace(params), params[0].bias.ndim - 1
    loss = xp.zeros_like(params[0].bias[..., 0])
    for leaf, moving in zip(tree.leaves(params), tree.leaves(now), strict=True):
        loss = loss + xp.sum(0.5 * xp.log1p(leaf * leaf) + moving * leaf, axis=tuple(range(axes, leaf.ndim)))
    return loss, masked(tree.map(lambda leaf, v: leaf / (1 + leaf * leaf) + v, params, now), masks)


def direct(function: Callable[[Params], tuple[Array, Params]]) -> Evaluate:
    """``evaluate`` of a function of parameters that nothing rounds."""

    def evaluate(params: Params, away: Params | None = None) -> tuple[Array, Params]:
        return function(params if away is None else tree.map(lambda p, e: p + e, params, away))

    return evaluate


def one_step(optimizer: Optimizer, now: Params, masks: Any, params: Params, state: Tree, rate: float = RATE) -> Tree:
    """Loss, parameters and state after one update in float64; what is given stays as it is."""
    config = tree.map(lambda value: np.asarray(value, np.float64), optimizer.config)
    params, state = tree.map(np.copy, (params, state))
    return optimizer.rule.update(config, np.asarray(rate), direct(lambda at: bowl(now, masks, at)), state, params)


def drive(optimizer: Optimizer, params: Params, draws: Params, masks: Any = None) -> tuple[Array, Params, Tree]:
    """The losses, and parameters and state at the end, after a step for each of the draws."""
    state, losses = optimizer.rule.init(params), []
    for step in range(tree.leaves(draws)[0].shape[0]):
        now = tree.map(lambda leaf, i=step: leaf[i], draws)
        loss, params, state = one_step(optimizer, now, masks, params, state)
        losses.append(loss)
    return np.stack(losses), params, state


def program(params: Params, state: Tree, config: Tree, draws: Params, rate: Any, masks: Any, *, static: Any) -> Tree:
    """``drive`` as a program of a backend."""
    backend, rule = static

    def step(carry: Tree, now: Params) -> tuple[Tree, Array]:
        loss, params, state = rule.update(config, rate, direct(lambda at: bowl(now, masks, at)), carry[1], carry[0])
        return (params, state), loss

    (params, state), losses = backend.scan(step, (params, state), draws)
    return losses, params, state, rule.read(params, state)


class OptimizerSuite(Suite):
    """Fixture ``optimizer``: an ``Optimizer``. All but the backends' check is in NumPy's float64."""

    subject = "optimizer"

    def backends(self) -> tuple[Backend, ...]:
        """Where its steps are compared with float64; NumPy also without its record of the loop, which would cast."""
        return (*installed(), mm.backends.load("numpy", debug=True))

    @law(10, seed=st.integers(0, 99), population=some.populations)
    def test_masked_weights_stay_zero(self, optimizer: Optimizer, seed: int, population: int | None) -> None:
        """A weight that a mask removed is 0 after every step, and so is all that the state keeps of it; others move.

        Why: its gradient is masked, but momentum, moments, decay and averages go on by themselves.
        Source: Han et al., Learning both weights and connections (2015), section 3.1.
        """
        rng = np.random.default_rng(seed)
        masks = tuple(rng.random(shape) < 0.5 for shape in NETWORK.shapes)
        start = masked(draw(seed, population), masks)
        _, params, state = drive(optimizer, start, noise(start, optimizer, seed), masks)
        for found, before, mask in zip(params, start, masks, strict=True):
            assert not found.weight[..., ~mask].any(), "a masked weight moved"
            assert (found.weight[..., mask] != before.weight[..., mask]).all(), "a weight that was kept did not move"
        of_weights = {(*some.lead(population), *shape): mask for shape, mask in zip(NETWORK.shapes, masks, strict=True)}
        for leaf in tree.leaves(state):
            if leaf.shape in of_weights:
                assert not leaf[..., ~of_weights[leaf.shape]].any(), "the state keeps something of a masked weight"

    @law(5, seed=st.integers(0, 99))
    def test_a_population_is_its_members(self, optimizer: Optimizer, seed: int) -> None:
        """P networks take the steps that each takes alone.

        Why: P networks train as one array program, and none may feel another.
        Source: Python array API standard 2024.12, Broadcasting, along the axes in front.
        """
        start = draw(seed, some.MEMBERS)
        draws = noise(start, optimizer, seed)
        found = drive(optimizer, start, draws)[1]
        for i in range(some.MEMBERS):
            own = tree.map(lambda leaf, i=i: leaf[:, i], draws)
            alone = drive(optimizer, tree.map(lambda leaf, i=i: leaf[i], start), own)[1]
            for many, one in zip(tree.leaves(found), tree.leaves(alone), strict=True):
                np.testing.assert_allclose(many[i], one, rtol=1e-10, atol=1e-13)

    @law(5, seed=st.integers(0, 99))
    def test_the_gradient_is_not_consumed(self, optimizer: Optimizer, seed: int) -> None:
        """An update consumes the parameters and the state, never the gradient; nor is its state the parameters.

        Why: on NumPy updates are in place, and what two names share is changed under both.
        Source: minimodel.search.parts.
        """
        params, shown = draw(seed), []
        state = optimizer.rule.init(params)
        for leaf in tree.leaves(state):
            assert not any(np.shares_memory(leaf, p) for p in tree.leaves(params)), (
                "the state is the parameters' memory"
            )

        def evaluate(at: Params) -> tuple[Array, Params]:
            loss, grads = bowl(tree.map(np.zeros_like, at), None, at)
            shown.append((grads, tree.map(np.copy, grads)))
            return loss, grads

        config = tree.map(lambda value: np.asarray(value, np.float64), optimizer.config)
        optimizer.rule.update(config, np.asarray(RATE), direct(evaluate), state, tree.map(np.copy, params))
        for grads, kept in shown:
            assert_same_bits(grads, kept, "the gradient")

    @law(5, seed=st.integers(0, 99))
    def test_the_state_is_all_there_is(self, optimizer: Optimizer, seed: int) -> None:
        """Steps go on from a copied state as if nothing had been between them: the same again gives the same bits.

        Why: runs are saved and resumed, and programs are pure.
        Source: minimodel.search.rules.
        """
        start = draw(seed)
        draws = noise(start, optimizer, seed)
        now = tree.map(lambda leaf: leaf[0], draws)
        _, params, state = one_step(optimizer, now, None, start, optimizer.rule.init(start))
        kept = tree.map(np.copy, (params, state))
        first = one_step(optimizer, now, None, params, state)
        drive(optimizer, draw(seed + 1), draws)
        assert_same_bits(one_step(optimizer, now, None, *kept), first, "the same step again")

    @law(5, seed=st.integers(0, 99))
    def test_a_rate_of_zero_moves_nothing(self, optimizer: Optimizer, seed: int) -> None:
        """θ ← θ − η d with η = 0 is θ, decay included.

        Why: schedules warm up from 0, and end there.
        Source: Loshchilov, Hutter: Decoupled weight decay regularization (2019), algorithm 2.
        """
        start = draw(seed)
        now = tree.map(lambda leaf: leaf[0], noise(start, optimizer, seed))
        assert_same_bits(one_step(optimizer, now, None, start, optimizer.rule.init(start), rate=0.0)[1], start)

    def test_no_gradient_gives_no_nan(self, optimizer: Optimizer) -> None:
        """Where the gradient is 0 the steps are finite.

        Why: there is no length to divide by: moments, clipping and sharpness all divide.
        Source: IEEE 754-2019, section 7.2: 0/0 is an invalid operation.
        """
        start = draw(0)
        zero = tree.map(lambda leaf: np.zeros((STEPS, *leaf.shape)), start)
        params = drive(optimizer, tree.map(np.zeros_like, start), zero)[1]
        assert all(np.isfinite(leaf).all() for leaf in tree.leaves(params)), "a step of NaN or infinity"

    @law(5, seed=st.integers(0, 99))
    def test_it_descends(self, optimizer: Optimizer, seed: int) -> None:
        """After 100 steps of its schedule the loss of a bowl without noise, where it is read, is below the first.

        Why: the sign of the step.
        Source: Cauchy: Méthode générale pour la résolution des systèmes d'équations simultanées (1847).
        """
        params, losses = draw(seed), []
        state, now = optimizer.rule.init(params), tree.map(np.zeros_like, params)
        for rate in np.broadcast_to(optimizer.schedule(np.arange(100), Run(100)), 100):
            loss, params, state = one_step(optimizer, now, None, params, state, float(rate))
            losses.append(float(loss))
        last = float(bowl(now, None, optimizer.rule.read(params, state))[0])
        assert last < losses[0], f"from {losses[0]:.6g} to {last:.6g}"

    def test_numbers_do_not_enter_the_rule(self, optimizer: Optimizer) -> None:
        """The rule is hashable and equal to itself, the config is numbers, the schedule finite rates of at least 0.

        Why: programs are compiled for the rule; a new number must not compile them again.
        Source: JAX documentation, jax.jit, static_argnums: another value is compiled anew.
        """
        assert {optimizer.rule: 1}[optimizer.rule] == 1
        assert all(np.asarray(number).dtype.kind in "iuf" for number in tree.leaves(optimizer.config))
        rates = np.asarray(optimizer.schedule(np.arange(10), Run(10)))
        assert len(rates) == 10 and np.isfinite(rates).all() and (rates >= 0).all()

    @law(5, seed=st.integers(0, 99))
    def test_an_elementwise_rule_sees_no_shapes(self, optimizer: Optimizer, seed: int) -> None:
        """If the rule says it is elementwise, packed parameters take the same steps.

        Why: small networks are trained as one flat array.
        Source: minimodel.search.packed.
        """
        start = draw(seed)
        draws = noise(start, optimizer, seed)
        found = pack(drive(optimizer, start, draws)[1])
        expected = found
        if optimizer.rule.elementwise:
            expected = drive(optimizer, pack(start), pack(draws))[1]
        for ours, theirs in zip(tree.leaves(found), tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-13)

    @law(2, seed=st.integers(0, 99), population=some.populations)
    def test_every_backend_takes_the_same_steps(self, optimizer: Optimizer, seed: int, population: int | None) -> None:
        """Steps in float32, as one program, are those in float64 to the tier "step", float32 throughout; masks hold.

        Why: one source; and one float64 number drags the state to float64.
        Source: the tier "step".
        """
        masks = tuple(np.random.default_rng(seed).random(shape) < 0.7 for shape in NETWORK.shapes)
        start = masked(draw(seed, population), masks)
        draws = noise(start, optimizer, seed)
        losses, params, state = drive(optimizer, start, draws, masks)
        read = optimizer.rule.read(params, state)
        for backend in self.backends():
            moved = tree.map(
                lambda leaf, b=backend: b.asarray(leaf, b.xp.float32), (start, optimizer.config, draws, RATE, masks)
            )
            run = backend.jit(program, static=("static",))
            found = run(moved[0], optimizer.rule.init(moved[0]), *moved[1:], static=(backend, optimizer.rule))
            assert_floats_are("float32", found, backend.name)
            ours = backend.to_numpy(found)
            assert_within_step((ours[0], ours[3]), (losses, read), backend.name)
            for layer, mask in zip(ours[1], masks, strict=True):
                assert not layer.weight[..., ~mask].any(), f"{backend.name}: a masked weight moved"
