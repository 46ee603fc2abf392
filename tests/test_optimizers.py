"""Optimizers against torch.optim and optax over whole trajectories, over a population, and under masks."""

import contextlib

import numpy as np
import pytest

import minimodel as mm
from minimodel import optimizers, tree
from minimodel.problem import masked

NETWORK = mm.Network((3, 4, 2))
STEPS = 100
RATE = 0.05
OPTIMIZERS = {
    "sgd": optimizers.sgd(RATE),
    "sgd decayed": optimizers.sgd(RATE, weight_decay=0.1),
    "momentum": optimizers.momentum(RATE, momentum=0.8),
    "momentum decayed": optimizers.momentum(RATE, weight_decay=0.1),
    "nesterov": optimizers.nesterov(RATE, momentum=0.8),
    "nesterov decayed": optimizers.nesterov(RATE, weight_decay=0.1),
    "adam": optimizers.adam(RATE, b1=0.8, b2=0.99, eps=1e-6),
    "adam decayed": optimizers.adam(RATE, weight_decay=0.1),
    "adamw": optimizers.adamw(RATE, weight_decay=0.1),
    "adamw default": optimizers.adamw(RATE),
}
NAMES = list(OPTIMIZERS)


def draw(seed, population=None):
    rng = np.random.default_rng(seed)
    lead = () if population is None else (population,)
    return tuple(
        mm.Layer(rng.normal(size=(*lead, *shape)), rng.normal(size=(*lead, shape[1]))) for shape in NETWORK.shapes
    )


def noise(leaf_number, shape):
    """The part of every step's gradient that does not depend on the parameters."""
    return np.random.default_rng(leaf_number).normal(size=(STEPS, *shape))


def gradient(leaf, noise_now):
    """Of the bowl ½·log(1 + θ²), shaken; the same line serves every library."""
    return leaf / (1 + leaf * leaf) + noise_now


def numbers(optimizer, dtype=np.float64):
    return tree.map(lambda value: np.asarray(value, dtype), optimizer.config)


def trajectory(optimizer, params, steps=STEPS, rate=RATE):
    """The parameters after every step, flat, from driving the rule by hand in float64."""
    config, state, found = numbers(optimizer), optimizer.rule.init(params), []
    draws = [noise(i, leaf.shape) for i, leaf in enumerate(tree.leaves(params))]
    for step in range(steps):
        moving = iter(draws)
        grads = tree.map(lambda leaf, moving=moving, step=step: gradient(leaf, next(moving)[step]), params)
        params, state = optimizer.rule.update(config, np.asarray(rate), grads, state, params)
        found.append(np.concatenate([leaf.ravel() for leaf in tree.leaves(params)]))
    return np.stack(found)


def in_torch(torch, name, leaves):
    """The same optimizer from torch.optim."""
    decay = 0.1 if "decayed" in name else 0.0
    sgd, mu = torch.optim.SGD, 0.9 if decay else 0.8
    adam = {"betas": (0.9, 0.999), "eps": 1e-8} if decay else {"betas": (0.8, 0.99), "eps": 1e-6}
    return {
        "sgd": lambda: sgd(leaves, RATE, weight_decay=decay),
        "momentum": lambda: sgd(leaves, RATE, momentum=mu, weight_decay=decay),
        "nesterov": lambda: sgd(leaves, RATE, momentum=mu, weight_decay=decay, nesterov=True),
        "adam": lambda: torch.optim.Adam(leaves, RATE, weight_decay=decay, **adam),
        "adamw": lambda: torch.optim.AdamW(leaves, RATE, weight_decay=0.01 if "default" in name else 0.1),
    }[name.split()[0]]()


@contextlib.contextmanager
def x64(jax):
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable(True):
        yield


@pytest.mark.parametrize("name", NAMES)
def test_torch_takes_the_same_hundred_steps(name, oracle):
    torch = oracle("torch")
    leaves = [torch.tensor(leaf) for leaf in tree.leaves(draw(0))]
    draws = [torch.tensor(noise(i, tuple(leaf.shape))) for i, leaf in enumerate(leaves)]
    peer, theirs = in_torch(torch, name, leaves), []
    for step in range(STEPS):
        for leaf, moving in zip(leaves, draws, strict=True):
            leaf.grad = gradient(leaf, moving[step])
        peer.step()
        theirs.append(np.concatenate([leaf.numpy().ravel() for leaf in leaves]))
    np.testing.assert_allclose(trajectory(OPTIMIZERS[name], draw(0)), np.stack(theirs), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adam", "adamw"])
def test_optax_takes_the_same_hundred_steps(name, oracle):
    jax, optax = oracle("jax"), oracle("optax")
    peer = {
        "sgd": optax.sgd(RATE),
        "momentum": optax.sgd(RATE, momentum=0.8),
        "nesterov": optax.sgd(RATE, momentum=0.8, nesterov=True),
        "adam": optax.adam(RATE, b1=0.8, b2=0.99, eps=1e-6),
        "adamw": optax.adamw(RATE, weight_decay=0.1),
    }[name]
    start = tree.leaves(draw(0))
    draws = [noise(i, leaf.shape) for i, leaf in enumerate(start)]

    def step(carry, moving):
        leaves, state = carry
        grads = [gradient(leaf, now) for leaf, now in zip(leaves, moving, strict=True)]
        updates, state = peer.update(grads, state, leaves)
        leaves = optax.apply_updates(leaves, updates)
        return (leaves, state), leaves

    with x64(jax):
        _, theirs = jax.lax.scan(step, (start, peer.init(start)), draws)
        theirs = np.concatenate([np.asarray(leaf).reshape(STEPS, -1) for leaf in theirs], axis=1)
    np.testing.assert_allclose(trajectory(OPTIMIZERS[name], draw(0)), theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_every_backend_takes_the_same_steps(name, backend, population):
    """Five float32 steps against float64."""
    optimizer, xp = OPTIMIZERS[name], backend.xp
    expected = trajectory(optimizer, draw(0, population), steps=5)
    params = tree.map(lambda leaf: backend.asarray(leaf, xp.float32), draw(0, population))
    draws = [backend.asarray(noise(i, leaf.shape), xp.float32) for i, leaf in enumerate(tree.leaves(params))]
    config = tree.map(lambda value: backend.asarray(value, xp.float32), optimizer.config)
    rate, state = backend.asarray(RATE, xp.float32), optimizer.rule.init(params)
    for step in range(5):
        moving = iter(draws)
        grads = tree.map(lambda leaf, moving=moving, step=step: gradient(leaf, next(moving)[step, ...]), params)
        params, state = optimizer.rule.update(config, rate, grads, state, params)
    assert all(leaf.dtype == xp.float32 for leaf in tree.leaves(params, state))
    found = np.concatenate([leaf.ravel() for leaf in tree.leaves(backend.to_numpy(params))])
    np.testing.assert_allclose(found, expected[-1], rtol=1e-5, atol=1e-5)


RATES = np.array([0.01, 0.05, 0.2])
SPREAD = {
    "sgd": (optimizers.sgd, {"weight_decay": np.array([0.0, 0.1, 0.3])}),
    "momentum": (optimizers.momentum, {"momentum": np.array([0.5, 0.9, 0.0])}),
    "nesterov": (optimizers.nesterov, {"momentum": np.array([0.5, 0.9, 0.0]), "weight_decay": np.array([0.1, 0, 1])}),
    "adam": (optimizers.adam, {"b1": np.array([0.5, 0.9, 0.0]), "b2": np.array([0.9, 0.99, 0.999])}),
    "adamw": (optimizers.adamw, {"eps": np.array([1e-8, 1e-3, 1.0]), "weight_decay": np.array([0.1, 0, 1])}),
}


@pytest.mark.parametrize("name", SPREAD)
def test_numbers_over_a_population_equal_single_runs(name):
    make, spread = SPREAD[name]
    start = draw(0, 3)
    draws = [noise(i, leaf.shape) for i, leaf in enumerate(tree.leaves(start))]
    together = unflat(trajectory(make(RATES, **spread), tree.map(np.copy, start), rate=RATES)[-1], start)
    for i in range(3):
        optimizer = make(RATES[i], **{number: values[i] for number, values in spread.items()})
        params = tree.map(lambda leaf, i=i: leaf[i].copy(), start)
        state, config = optimizer.rule.init(params), numbers(optimizer)
        for step in range(STEPS):
            moving = iter(draws)
            grads = tree.map(lambda leaf, moving=moving, step=step, i=i: gradient(leaf, next(moving)[step, i]), params)
            params, state = optimizer.rule.update(config, np.asarray(RATES[i]), grads, state, params)
        for many, one in zip(tree.leaves(together), tree.leaves(params), strict=True):
            np.testing.assert_allclose(many[i], one, rtol=1e-11, atol=1e-13)


def unflat(flat, like):
    parts = iter(np.split(flat, np.cumsum([leaf.size for leaf in tree.leaves(like)])[:-1]))
    return tree.map(lambda leaf: next(parts).reshape(leaf.shape), like)


@pytest.mark.parametrize("name", NAMES)
def test_masked_weights_stay_exactly_zero(name, backend):
    """With masked gradients, through momentum, moments and weight decay; the others do move."""
    optimizer, xp = OPTIMIZERS[name], backend.xp
    removed = [np.random.default_rng(i).random(shape) < 0.5 for i, shape in enumerate(NETWORK.shapes)]
    masks = tuple(backend.asarray(~gone, xp.float32) for gone in removed)
    params = masked(tree.map(lambda leaf: backend.asarray(leaf, xp.float32), draw(0)), masks)
    start = tree.map(np.copy, backend.to_numpy(params))
    config = tree.map(lambda value: backend.asarray(value, xp.float32), optimizer.config)
    rate, state = backend.asarray(RATE, xp.float32), optimizer.rule.init(params)
    for step in range(8):
        grads = tree.map(lambda leaf: backend.asarray(leaf, xp.float32), draw(step + 1))
        params, state = optimizer.rule.update(config, rate, masked(grads, masks), state, params)
    for layer, before, gone in zip(backend.to_numpy(params), start, removed, strict=True):
        assert gone.any()
        np.testing.assert_array_equal(layer.weight[gone], 0)
        assert (layer.weight[~gone] != before.weight[~gone]).all()
        assert (layer.bias != before.bias).all()
    kept = [values for values in tree.leaves(backend.to_numpy(state)) if values.ndim == 2]
    for values, gone in zip(kept, removed * 2, strict=False):
        np.testing.assert_array_equal(values[gone], 0)


@pytest.mark.parametrize("name", NAMES)
def test_the_state_is_shaped_like_the_parameters(name):
    params = draw(0, 3)
    state = OPTIMIZERS[name].rule.init(params)
    found = [leaf.shape for leaf in tree.leaves(state) if leaf.ndim]
    copies = {"sgd": 0, "momentum": 1, "nesterov": 1, "adam": 2, "adamw": 2}[name.split()[0]]
    assert found == [leaf.shape for leaf in tree.leaves(params)] * copies
    assert not any(leaf.any() for leaf in tree.leaves(state))


def test_the_first_adam_step_is_the_learning_rate():
    """Whatever the scale of the gradient: m̂/√ŝ is its sign."""
    optimizer = optimizers.adam(0.01, eps=1e-12)
    params, grads = draw(0), tree.map(lambda leaf: 1e3 * leaf, draw(1))
    start = tree.map(np.copy, params)
    signs = tree.map(np.sign, grads)
    state = optimizer.rule.init(params)
    params, _ = optimizer.rule.update(numbers(optimizer), np.asarray(0.01), grads, state, params)
    for new, old, sign in zip(*map(tree.leaves, (params, start, signs)), strict=True):
        np.testing.assert_allclose(new, old - 0.01 * sign, rtol=1e-9)


def test_new_numbers_are_the_same_rule():
    """A rule is what programs are compiled for: numbers must not enter it."""
    assert optimizers.adam(0.1).rule == optimizers.adam(0.2, b1=0.5, weight_decay=1.0).rule
    assert hash(optimizers.adam(0.1).rule) == hash(optimizers.adam(0.3).rule)
    assert len({make(0.1).rule for make, _ in SPREAD.values()}) == len(SPREAD)
