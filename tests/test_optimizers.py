"""Optimizers against torch.optim, Optax and their formulas over whole trajectories, over a population, under masks."""

import contextlib
import warnings
from functools import partial

import numpy as np
import pytest

import minimodel as mm
from minimodel import optimizers, tree
from minimodel.problem import masked
from minimodel.search.rules import Averaged, SharpnessAware
from minimodel.testing.suites import OptimizerSuite
from minimodel.testing.suites.optimizers import direct

NETWORK = mm.Network((5, 4, 2))
STEPS = 100
RATE = 0.05
MAKERS = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "amsgrad", "nadam", "lion")
OPTIMIZERS = {
    "sgd": optimizers.sgd(RATE),
    "momentum": optimizers.momentum(RATE, momentum=0.8, weight_decay=0.1),
    "nesterov": optimizers.nesterov(RATE, momentum=0.8, weight_decay=0.1),
    "adagrad": optimizers.adagrad(RATE),
    "adagrad in root": optimizers.adagrad(RATE, initial=0.1, eps=1e-7, eps_in_root=True),
    "rmsprop": optimizers.rmsprop(RATE),
    "rmsprop in root": optimizers.rmsprop(RATE, decay=0.9, eps=1e-4, eps_in_root=True, initial=0.3),
    "rmsprop centered": optimizers.rmsprop(RATE, centered=True, momentum=0.8, weight_decay=0.1),
    "adam": optimizers.adam(RATE, b1=0.8, b2=0.99, eps=1e-6, weight_decay=0.1),
    "adam eps_root": optimizers.adam(RATE, eps_root=1e-3),
    "adam eps_hat": optimizers.adam(RATE, eps_hat=True, eps=1e-3),
    "adamw": optimizers.adamw(RATE, weight_decay=0.1),
    "amsgrad": optimizers.amsgrad(RATE, b2=0.9),
    "amsgrad optax": optimizers.amsgrad(RATE, like="optax", b2=0.9),
    "nadam": optimizers.nadam(RATE),
    "nadam plain": optimizers.nadam(RATE, momentum_decay=None),
    "lion": optimizers.lion(RATE, weight_decay=0.1),
    "clipped": optimizers.momentum(RATE, clip_value=1.5, clip_norm=4.0, l1=0.01, weight_decay=0.1),
    "average": optimizers.momentum(RATE, average=0.9),
    "sharpness": optimizers.sgd(RATE, sharpness=0.5),
    "average sharpness": optimizers.adamw(RATE, average=0.9, sharpness=0.5),
}


def draw(seed, population=None):
    rng = np.random.default_rng(seed)
    lead = () if population is None else (population,)
    return tuple(
        mm.Layer(rng.normal(size=(*lead, *shape)), rng.normal(size=(*lead, shape[1]))) for shape in NETWORK.shapes
    )


def noise(like):
    """The part of every step's gradient that does not depend on the parameters, a leaf (STEPS, …) for each."""
    count = iter(range(10))
    return tree.map(lambda leaf: np.random.default_rng(next(count)).normal(size=(STEPS, *leaf.shape)), like)


def gradient(leaf, now):
    """Of the bowl ½·log(1 + θ²) + ν·θ, shaken by the noise ν; the same line serves every library."""
    return leaf / (1 + leaf * leaf) + now


def bowl(now):
    """The bowl under one step's noise, as ``evaluate``: its sum over the parameters of each member, its gradient."""

    def evaluate(params):
        xp, axes = tree.namespace(params), params[0].bias.ndim - 1
        loss = xp.zeros_like(params[0].bias[..., 0])
        for leaf, moving in zip(tree.leaves(params), tree.leaves(now), strict=True):
            loss = loss + xp.sum(0.5 * xp.log1p(leaf * leaf) + moving * leaf, axis=tuple(range(axes, leaf.ndim)))
        return loss, tree.map(gradient, params, now)

    return direct(evaluate)


def masked_bowl(now, masks):
    """``bowl`` with masked gradients, as gradient descent gives them to a rule."""

    def evaluate(params):
        loss, grads = bowl(now)(params)
        return loss, masked(grads, masks)

    return direct(evaluate)


def at(values, *where):
    return tree.map(lambda leaf: leaf[(*where, ...)], values)


def flat(values):
    return np.concatenate([np.ravel(leaf) for leaf in tree.leaves(values)])


def host(values, dtype=np.float64):
    return tree.map(lambda value: np.asarray(value, dtype), values)


def drive(optimizer, params, draws, rate=RATE, steps=STEPS, masks=None):
    """Drive the rule by hand in float64: the loss, the parameters and those to be used after every step, flat."""
    config, state, found = host(optimizer.config), optimizer.rule.init(params), []
    for step in range(steps):
        evaluate = masked_bowl(at(draws, step), masks)
        loss, params, state = optimizer.rule.update(config, np.asarray(rate), evaluate, state, params)
        found.append((np.copy(loss), flat(params), flat(optimizer.rule.read(params, state))))
    return tuple(map(np.stack, zip(*found, strict=True)))


def used(optimizer, population=None, **options):
    """The parameters to be used after every step."""
    start = draw(0, population)
    return drive(optimizer, start, noise(start), **options)[2]


class TestOptimizer(OptimizerSuite):
    """The laws, of every rule."""

    @pytest.fixture(params=[*OPTIMIZERS, "lbfgs"])
    def optimizer(self, request):
        return optimizers.lbfgs(memory=2) if request.param == "lbfgs" else OPTIMIZERS[request.param]


# Against torch, which decays biases.

DECAYED = {"weight_decay": 0.1, "decay_biases": True}
TORCH = {
    "sgd": (optimizers.sgd(RATE), "SGD", {}),
    "sgd decayed": (optimizers.sgd(RATE, **DECAYED), "SGD", {"weight_decay": 0.1}),
    "momentum": (optimizers.momentum(RATE, momentum=0.8), "SGD", {"momentum": 0.8}),
    "momentum decayed": (optimizers.momentum(RATE, **DECAYED), "SGD", {"momentum": 0.9, "weight_decay": 0.1}),
    "nesterov": (optimizers.nesterov(RATE, momentum=0.8), "SGD", {"momentum": 0.8, "nesterov": True}),
    "nesterov decayed": (
        optimizers.nesterov(RATE, **DECAYED),
        "SGD",
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ),
    "adagrad": (optimizers.adagrad(RATE), "Adagrad", {}),
    "adagrad decayed": (
        optimizers.adagrad(RATE, initial=0.3, eps=1e-3, **DECAYED),
        "Adagrad",
        {"initial_accumulator_value": 0.3, "eps": 1e-3, "weight_decay": 0.1},
    ),
    "rmsprop": (optimizers.rmsprop(RATE), "RMSprop", {}),
    "rmsprop decayed": (
        optimizers.rmsprop(RATE, decay=0.9, eps=1e-3, **DECAYED),
        "RMSprop",
        {"alpha": 0.9, "eps": 1e-3, "weight_decay": 0.1},
    ),
    "rmsprop centered": (optimizers.rmsprop(RATE, centered=True), "RMSprop", {"centered": True}),
    "rmsprop momentum": (optimizers.rmsprop(RATE, momentum=0.8), "RMSprop", {"momentum": 0.8}),
    "rmsprop all": (
        optimizers.rmsprop(RATE, momentum=0.8, centered=True, **DECAYED),
        "RMSprop",
        {"momentum": 0.8, "centered": True, "weight_decay": 0.1},
    ),
    "adam": (optimizers.adam(RATE, b1=0.8, b2=0.99, eps=1e-6), "Adam", {"betas": (0.8, 0.99), "eps": 1e-6}),
    "adam decayed": (optimizers.adam(RATE, **DECAYED), "Adam", {"weight_decay": 0.1}),
    "adam of adamw": (
        optimizers.adamw(RATE, decoupled=False, **DECAYED),
        "Adam",
        {"weight_decay": 0.1},
    ),
    "amsgrad": (optimizers.amsgrad(RATE, b2=0.9), "Adam", {"amsgrad": True, "betas": (0.9, 0.9)}),
    "amsgrad of adam": (
        optimizers.adam(RATE, amsgrad="torch", **DECAYED),
        "Adam",
        {"amsgrad": True, "weight_decay": 0.1},
    ),
    "adamw": (optimizers.adamw(RATE, **DECAYED), "AdamW", {"weight_decay": 0.1}),
    "adamw default": (optimizers.adamw(RATE, decay_biases=True), "AdamW", {}),
    "adamw amsgrad": (
        optimizers.adamw(RATE, amsgrad="torch", **DECAYED),
        "AdamW",
        {"amsgrad": True, "weight_decay": 0.1},
    ),
    "nadam": (optimizers.nadam(RATE), "NAdam", {}),
    "nadam decayed": (
        optimizers.nadam(RATE, b1=0.8, b2=0.99, eps=1e-6, momentum_decay=0.03, **DECAYED),
        "NAdam",
        {"betas": (0.8, 0.99), "eps": 1e-6, "momentum_decay": 0.03, "weight_decay": 0.1},
    ),
    "nadam decayed apart": (
        optimizers.nadam(RATE, decoupled=True, **DECAYED),
        "NAdam",
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
    ),
}


@contextlib.contextmanager
def float64_scalars(torch):
    """NAdam's product of momenta too, which torch keeps in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("name", TORCH)
def test_torch_takes_the_same_hundred_steps(name, oracle):
    torch = oracle("torch")
    optimizer, peer, options = TORCH[name]
    start = draw(0)
    leaves = [torch.tensor(leaf) for leaf in tree.leaves(start)]
    draws = [torch.tensor(leaf) for leaf in tree.leaves(noise(start))]
    peer, theirs = getattr(torch.optim, peer)(leaves, lr=RATE, **options), []
    with float64_scalars(torch):
        for step in range(STEPS):
            for leaf, moving in zip(leaves, draws, strict=True):
                leaf.grad = gradient(leaf, moving[step])
            peer.step()
            theirs.append(np.concatenate([leaf.numpy().ravel() for leaf in leaves]))
    np.testing.assert_allclose(used(optimizer), np.stack(theirs), rtol=1e-10, atol=1e-12)


# Against Optax.


@contextlib.contextmanager
def x64(jax):
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable(True):
        yield


WEIGHTS = [True, False, True, False]  # which leaves are weights: biases are not decayed by default
OPTAX = {
    "sgd": (optimizers.sgd(RATE), lambda optax: optax.sgd(RATE)),
    "momentum": (optimizers.momentum(RATE, momentum=0.8), lambda optax: optax.sgd(RATE, momentum=0.8)),
    "nesterov": (
        optimizers.nesterov(RATE, momentum=0.8),
        lambda optax: optax.sgd(RATE, momentum=0.8, nesterov=True),
    ),
    "momentum decayed apart": (
        optimizers.momentum(RATE, weight_decay=0.1, decoupled=True),
        lambda optax: optax.chain(optax.trace(0.9), optax.add_decayed_weights(0.1, WEIGHTS), optax.scale(-RATE)),
    ),
    "adagrad": (optimizers.adagrad(RATE, initial=0.1, eps=1e-7, eps_in_root=True), lambda optax: optax.adagrad(RATE)),
    "rmsprop": (optimizers.rmsprop(RATE, decay=0.9, eps_in_root=True), lambda optax: optax.rmsprop(RATE)),
    "rmsprop initial": (
        optimizers.rmsprop(RATE, decay=0.9, eps_in_root=True, initial=0.5),
        lambda optax: optax.rmsprop(RATE, initial_scale=0.5),
    ),
    "rmsprop centered": (
        optimizers.rmsprop(RATE, decay=0.8, eps=1e-4, eps_in_root=True, centered=True, momentum=0.8),
        lambda optax: optax.rmsprop(RATE, decay=0.8, eps=1e-4, centered=True, momentum=0.8),
    ),
    "rmsprop centered initial": (
        optimizers.rmsprop(RATE, decay=0.9, eps=1e-4, centered=True, initial=0.5),
        lambda optax: optax.rmsprop(RATE, eps=1e-4, eps_in_sqrt=False, centered=True, initial_scale=0.5),
    ),
    "adam": (
        optimizers.adam(RATE, b1=0.8, b2=0.99, eps=1e-6),
        lambda optax: optax.adam(RATE, b1=0.8, b2=0.99, eps=1e-6),
    ),
    "adam eps_root": (optimizers.adam(RATE, eps_root=1e-3), lambda optax: optax.adam(RATE, eps_root=1e-3)),
    "adamw": (optimizers.adamw(RATE, **DECAYED), lambda optax: optax.adamw(RATE, weight_decay=0.1)),
    "adamw weights": (
        optimizers.adamw(RATE, weight_decay=0.1),
        lambda optax: optax.adamw(RATE, weight_decay=0.1, mask=WEIGHTS),
    ),
    "amsgrad": (
        optimizers.amsgrad(RATE, like="optax", b2=0.9, eps_root=1e-4),
        lambda optax: optax.amsgrad(RATE, b2=0.9, eps_root=1e-4),
    ),
    "nadam": (optimizers.nadam(RATE, b1=0.8, momentum_decay=None), lambda optax: optax.nadam(RATE, b1=0.8)),
    "lion": (optimizers.lion(RATE), lambda optax: optax.lion(RATE, weight_decay=0.0)),
    "lion decayed": (
        optimizers.lion(RATE, b1=0.8, b2=0.9, weight_decay=0.1),
        lambda optax: optax.lion(RATE, b1=0.8, b2=0.9, weight_decay=0.1, mask=WEIGHTS),
    ),
    "clip_value": (optimizers.sgd(RATE, clip_value=0.7), lambda optax: optax.chain(optax.clip(0.7), optax.sgd(RATE))),
    "clip_norm": (
        optimizers.sgd(RATE, clip_norm=5.0),
        lambda optax: optax.chain(optax.clip_by_global_norm(5.0), optax.sgd(RATE)),
    ),
    "clipped and decayed": (
        optimizers.adam(RATE, clip_value=1.5, clip_norm=4.0, weight_decay=0.1),
        lambda optax: optax.chain(
            optax.clip(1.5), optax.clip_by_global_norm(4.0), optax.add_decayed_weights(0.1, WEIGHTS), optax.adam(RATE)
        ),
    ),
    "sharpness": (optimizers.sgd(RATE, sharpness=0.5), lambda optax: sam(optax, optax.sgd(RATE), 0.5)),
    "sharpness adamw": (
        optimizers.adamw(RATE, weight_decay=0.1, sharpness=1.5),
        lambda optax: sam(optax, optax.adamw(RATE, weight_decay=0.1, mask=WEIGHTS), 1.5),
    ),
}


def sam(optax, peer, radius):
    return optax.contrib.sam(peer, optax.chain(optax.contrib.normalize(), optax.sgd(radius)), opaque_mode=True)


def with_gradient(optax, peer):
    """Optax's update told of the gradient elsewhere, which sharpness-aware minimization asks for."""
    return optax.with_extra_args_support(peer).update


def in_optax(jax, optax, peer):
    """The parameters after every step with Optax, (STEPS, size)."""
    start = draw(0)
    leaves, draws = tree.leaves(start), tree.leaves(noise(start))
    update = with_gradient(optax, peer)

    def step(carry, moving):
        leaves, state = carry

        def grads(leaves, _=None):
            return [gradient(leaf, now) for leaf, now in zip(leaves, moving, strict=True)]

        updates, state = update(grads(leaves), state, leaves, grad_fn=grads)
        leaves = optax.apply_updates(leaves, updates)
        return (leaves, state), leaves

    with x64(jax):
        _, theirs = jax.lax.scan(step, (leaves, peer.init(leaves)), draws)
        return np.concatenate([np.asarray(leaf).reshape(STEPS, -1) for leaf in theirs], axis=1)


@pytest.mark.parametrize("name", OPTAX)
def test_optax_takes_the_same_hundred_steps(name, oracle):
    jax, optax = oracle("jax"), oracle("optax")
    optimizer, peer = OPTAX[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Optax's own, on importing optax.contrib
        theirs = in_optax(jax, optax, peer(optax))
    np.testing.assert_allclose(used(optimizer), theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_the_average_is_that_of_optax(decay, oracle):
    """Of the trajectory that the same optimizer takes without it, which it does not change."""
    jax, optax = oracle("jax"), oracle("optax")
    start = draw(0)
    _, moving, read = drive(optimizers.adamw(RATE, average=decay), start, noise(start))
    np.testing.assert_array_equal(moving, used(optimizers.adamw(RATE)))
    peer = optax.ema(decay, debias=True)
    with x64(jax):
        _, theirs = jax.lax.scan(lambda state, p: peer.update(p, state)[::-1], peer.init(moving[0]), moving)
        theirs = np.asarray(theirs)
    np.testing.assert_allclose(read, theirs, rtol=1e-10, atol=1e-12)


# Against formulas.


def by_formula(step, start=None):
    """θ after every step of ``step(t, θ, g, is it a weight)``, t from 1, applied to every leaf; flat."""
    start = start or draw(0)
    leaves, draws = tree.leaves(start), tree.leaves(noise(start))
    found = []
    for t in range(1, STEPS + 1):
        grads = [gradient(leaf, moving[t - 1]) for leaf, moving in zip(leaves, draws, strict=True)]
        leaves = [step(t, i, leaf, g) for i, (leaf, g) in enumerate(zip(leaves, grads, strict=True))]
        found.append(np.concatenate([leaf.ravel() for leaf in leaves]))
    return np.stack(found)


def test_eps_hat_is_the_adam_of_keras():
    """α = η√(1 − β₂ᵗ)/(1 − β₁ᵗ), θ ← θ − α m/(√v + ε), and not what ε outside the correction gives."""
    b1, b2, eps = 0.8, 0.95, 1e-2
    m, v = [0.0] * 4, [0.0] * 4

    def step(t, i, theta, g):
        alpha = RATE * np.sqrt(1 - b2**t) / (1 - b1**t)
        m[i] = m[i] + (g - m[i]) * (1 - b1)
        v[i] = v[i] + (np.square(g) - v[i]) * (1 - b2)
        return theta - alpha * m[i] / (np.sqrt(v[i]) + eps)

    expected = by_formula(step)
    options = {"b1": b1, "b2": b2, "eps": eps}
    np.testing.assert_allclose(used(optimizers.adam(RATE, eps_hat=True, **options)), expected, rtol=1e-10, atol=1e-12)
    assert np.abs(used(optimizers.adam(RATE, **options)) - expected).max() > 1e-3


def test_l1_adds_the_sign_of_the_weights_to_the_gradient():
    def step(t, i, theta, g):
        return theta - RATE * (g + (0.2 * np.sign(theta) if WEIGHTS[i] else 0))

    np.testing.assert_allclose(used(optimizers.sgd(RATE, l1=0.2)), by_formula(step), rtol=1e-12, atol=1e-14)


def test_penalties_come_after_clipping_and_before_the_optimizer():
    velocity = [0.0] * 4

    def step(t, i, theta, g):
        g = np.clip(g, -0.5, 0.5) + (0.2 * np.sign(theta) + 0.1 * theta if WEIGHTS[i] else 0)
        velocity[i] = 0.9 * velocity[i] + g
        return theta - RATE * velocity[i]

    optimizer = optimizers.momentum(RATE, clip_value=0.5, l1=0.2, weight_decay=0.1)
    np.testing.assert_allclose(used(optimizer), by_formula(step), rtol=1e-11, atol=1e-13)


def test_a_decayed_weight_shrinks_by_its_part_and_a_bias_does_not():
    """With no gradient at all: θ ← (1 − ηλ)θ."""
    start, kept = draw(0), draw(0)
    nothing = tree.map(np.zeros_like, start)
    evaluate = lambda params: (np.zeros(()), nothing)  # noqa: E731
    for decoupled in (False, True):
        for biases in (False, True):
            optimizer = optimizers.sgd(RATE, weight_decay=0.3, decoupled=decoupled, decay_biases=biases)
            state = optimizer.rule.init(start)
            _, params, _ = optimizer.rule.update(host(optimizer.config), np.asarray(RATE), evaluate, state, draw(0))
            for found, before in zip(params, kept, strict=True):
                np.testing.assert_allclose(found.weight, before.weight * (1 - RATE * 0.3), rtol=1e-14)
                np.testing.assert_allclose(found.bias, before.bias * (1 - RATE * 0.3 * biases), rtol=1e-14)


@pytest.mark.parametrize("make", [optimizers.sgd, optimizers.momentum, optimizers.adagrad, optimizers.rmsprop])
@pytest.mark.parametrize("decoupled", [False, True])
def test_biases_are_not_decayed_by_default(make, decoupled):
    """Every bias moves as without decay, every weight otherwise; what is added is a bias's own alone."""
    plain, decayed = used(make(RATE)), used(make(RATE, weight_decay=0.5, decoupled=decoupled))
    everything = used(make(RATE, weight_decay=0.5, decoupled=decoupled, decay_biases=True))
    is_weight = flat(tree.map(lambda leaf: np.full(leaf.shape, leaf.ndim == 2), draw(0)))
    np.testing.assert_array_equal(decayed[:, ~is_weight], plain[:, ~is_weight])
    assert (decayed[0, is_weight] != plain[0, is_weight]).any()
    np.testing.assert_array_equal(decayed[:, is_weight], everything[:, is_weight])
    assert (everything[-1, ~is_weight] != plain[-1, ~is_weight]).all()


def test_the_first_adam_step_is_the_learning_rate():
    """Whatever the scale of the gradient: m̂/√ŝ is its sign."""
    optimizer, start = optimizers.adam(0.01, eps=1e-12), draw(0)
    grads = tree.map(lambda leaf: 1e3 * leaf, draw(1))
    state = optimizer.rule.init(start)
    evaluate = lambda params: (np.zeros(()), grads)  # noqa: E731
    _, params, _ = optimizer.rule.update(host(optimizer.config), np.asarray(0.01), evaluate, state, draw(0))
    for new, old, grad in zip(*map(tree.leaves, (params, start, grads)), strict=True):
        np.testing.assert_allclose(new, old - 0.01 * np.sign(grad), rtol=1e-9)


def test_clipping_cuts_what_is_too_long_and_leaves_the_rest(population):
    """The step is at most ηc long and along the gradient; each member is cut by its own length."""
    limit = 2.0 if population is None else np.array([2.0, 1e9, 0.5])
    optimizer, start = optimizers.sgd(1.0, clip_norm=limit), draw(0, population)
    for scale in (1e-3, 1.0, 1e3):
        grads = tree.map(lambda leaf, scale=scale: scale * leaf, draw(1, population))
        evaluate = lambda params, grads=grads: (np.zeros(params[0].bias.shape[:-1]), grads)  # noqa: E731
        state = optimizer.rule.init(start)
        fresh = draw(0, population)
        _, params, _ = optimizer.rule.update(host(optimizer.config), np.asarray(1.0), evaluate, state, fresh)
        for i in range(population or 1):
            pick = (lambda leaf: leaf) if population is None else (lambda leaf, i=i: leaf[i])
            step = flat(tree.map(lambda old, new, pick=pick: pick(old) - pick(new), start, params))
            whole = flat(tree.map(pick, grads))
            length, most = np.linalg.norm(whole), np.broadcast_to(limit, 3)[i]
            np.testing.assert_allclose(step, whole * min(1, most / length), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [getattr(optimizers, name) for name in MAKERS])
def test_a_gradient_of_zero_is_left_alone(make):
    """No length to divide by: clipping and sharpness give steps of 0, not NaN; nor do moments of 0."""
    optimizer = make(RATE, clip_norm=1.0, sharpness=0.5, average=0.5)
    params = draw(0)
    nothing = tree.map(np.zeros_like, params)
    config, state = host(optimizer.config), optimizer.rule.init(params)
    for _ in range(2):
        _, params, state = optimizer.rule.update(
            config, np.asarray(RATE), direct(lambda params: (np.zeros(()), nothing)), state, params
        )
    for layers in (params, optimizer.rule.read(params, state)):
        for found, before in zip(layers, draw(0), strict=True):
            assert np.isfinite(found.weight).all()
            np.testing.assert_array_equal(found.bias, before.bias)
            if make is not optimizers.adamw:
                np.testing.assert_array_equal(found.weight, before.weight)


@pytest.mark.parametrize("in_root", [False, True])
def test_centered_rmsprop_outlives_a_gradient_that_does_not_change(in_root):
    """s − m² is then 0 but for rounding, and the root of what is below 0 is no number."""
    optimizer = optimizers.rmsprop(1e-9, decay=0.9, eps=1e-8, eps_in_root=in_root, centered=True)
    params, config = host(draw(0), np.float32), host(optimizer.config, np.float32)
    grads, state = host(draw(1), np.float32), optimizer.rule.init(params)
    for _ in range(300):
        _, params, state = optimizer.rule.update(
            config, np.asarray(1e-9, np.float32), lambda params: (np.zeros((), np.float32), grads), state, params
        )
    assert np.isfinite(flat(params)).all()


def assert_same(found, expected):
    for ours, theirs in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


NOTHING = {
    "no momentum": (optimizers.momentum(RATE, momentum=0.0), optimizers.sgd(RATE)),
    "no nesterov momentum": (optimizers.nesterov(RATE, momentum=0.0), optimizers.sgd(RATE)),
    "no momentum of rmsprop": (optimizers.rmsprop(RATE, momentum=0.0), optimizers.rmsprop(RATE)),
    "no decay": (optimizers.adamw(RATE, weight_decay=0.0), optimizers.adam(RATE)),
    "no lasso": (optimizers.adam(RATE, l1=0.0), optimizers.adam(RATE)),
    "no initial": (optimizers.adagrad(RATE, initial=0.0), optimizers.adagrad(RATE)),
    "no eps_root": (optimizers.adam(RATE, eps_root=0.0), optimizers.adam(RATE)),
    "far limits": (optimizers.adam(RATE, clip_value=1e9, clip_norm=1e9), optimizers.adam(RATE)),
    "no sharpness": (optimizers.adam(RATE, sharpness=0.0), optimizers.adam(RATE)),
    "no average": (optimizers.adam(RATE, average=0.0), optimizers.adam(RATE)),
    "no momentum decay": (
        optimizers.nadam(RATE, b1=0.0, momentum_decay=0.5),
        optimizers.nadam(RATE, b1=0.0, momentum_decay=None),
    ),
}


@pytest.mark.parametrize("name", NOTHING)
def test_a_number_that_means_nothing_changes_nothing(name):
    ours, plain = NOTHING[name]
    np.testing.assert_allclose(used(ours), used(plain), rtol=1e-12, atol=1e-14)


# What a step evaluates.


@pytest.mark.parametrize(("options", "count"), [({}, 1), ({"average": 0.9}, 1), ({"sharpness": 0.5}, 2)])
def test_the_loss_is_that_of_the_parameters_before_the_step(options, count):
    start = draw(0)
    optimizer, calls, draws = optimizers.momentum(RATE, **options), [], noise(start)

    def evaluate(params):
        calls.append(flat(params))
        return bowl(at(draws, 0))(params)

    expected = bowl(at(draws, 0))(start)[0]
    loss, _, _ = optimizer.rule.update(
        host(optimizer.config), np.asarray(RATE), direct(evaluate), optimizer.rule.init(start), draw(0)
    )
    assert loss == expected
    assert len(calls) == count
    np.testing.assert_array_equal(calls[0], flat(start))
    if count == 2:
        np.testing.assert_allclose(np.linalg.norm(calls[1] - calls[0]), 0.5, rtol=1e-12)


# A number for each member of a population.

RATES = np.array([0.01, 0.05, 0.2])
SPREAD = {
    "sgd": (optimizers.sgd, {"weight_decay": np.array([0.0, 0.1, 0.3]), "l1": np.array([0.1, 0.0, 0.3])}),
    "sgd clipped": (optimizers.sgd, {"clip_norm": np.array([1.0, 5.0, 1e9]), "clip_value": np.array([9, 1.0, 0.3])}),
    "momentum": (optimizers.momentum, {"momentum": np.array([0.5, 0.9, 0.0])}),
    "nesterov": (optimizers.nesterov, {"momentum": np.array([0.5, 0.9, 0.0]), "weight_decay": np.array([0.1, 0, 1])}),
    "adagrad": (optimizers.adagrad, {"eps": np.array([1e-8, 1e-3, 1.0]), "initial": np.array([0.0, 0.1, 1.0])}),
    "rmsprop": (
        partial(optimizers.rmsprop, centered=True, eps_in_root=True),
        {
            "decay": np.array([0.9, 0.99, 0.5]),
            "eps": np.array([1e-4, 1e-3, 1.0]),
            "initial": np.array([0.0, 0.1, 1.0]),
            "momentum": np.array([0.5, 0.9, 0.0]),
        },
    ),
    "adam": (
        optimizers.adam,
        {
            "b1": np.array([0.5, 0.9, 0.0]),
            "b2": np.array([0.9, 0.99, 0.999]),
            "eps": np.array([1e-8, 1e-3, 1.0]),
            "eps_root": np.array([1e-8, 0.0, 1.0]),
        },
    ),
    "adam eps_hat": (partial(optimizers.adam, eps_hat=True), {"eps": np.array([1e-8, 1e-3, 1.0])}),
    "adamw": (optimizers.adamw, {"eps": np.array([1e-8, 1e-3, 1.0]), "weight_decay": np.array([0.1, 0, 1])}),
    "amsgrad": (optimizers.amsgrad, {"b1": np.array([0.5, 0.9, 0.0]), "b2": np.array([0.9, 0.99, 0.5])}),
    "amsgrad optax": (partial(optimizers.amsgrad, like="optax"), {"b2": np.array([0.9, 0.99, 0.5])}),
    "nadam": (
        optimizers.nadam,
        {
            "b1": np.array([0.5, 0.9, 0.0]),
            "b2": np.array([0.9, 0.99, 0.999]),
            "momentum_decay": np.array([0.0, 4e-3, 0.1]),
        },
    ),
    "nadam plain": (partial(optimizers.nadam, momentum_decay=None), {"b1": np.array([0.5, 0.9, 0.0])}),
    "lion": (
        optimizers.lion,
        {"b1": np.array([0.5, 0.9, 0]), "b2": np.array([0.9, 0, 0.5]), "weight_decay": np.array([0.1, 0, 1])},
    ),
    "average": (optimizers.momentum, {"average": np.array([0.0, 0.9, 0.99]), "momentum": np.array([0.5, 0.9, 0.0])}),
    "sharpness": (optimizers.momentum, {"sharpness": np.array([0.0, 0.1, 1.0])}),
    "everything": (
        optimizers.adamw,
        {
            "average": np.array([0.5, 0.9, 0.0]),
            "sharpness": np.array([0.5, 0.0, 1.0]),
            "clip_norm": np.array([3.0, 9.0, 1.0]),
            "l1": np.array([0.1, 0.0, 0.01]),
        },
    ),
}


@pytest.mark.parametrize("name", SPREAD)
def test_numbers_over_a_population_equal_single_runs(name):
    make, spread = SPREAD[name]
    start = draw(0, 3)
    draws, kept = noise(start), tree.map(np.copy, start)
    losses, moving, read = drive(make(RATES, **spread), start, draws, rate=RATES)
    owner = flat(
        tree.map(lambda leaf: np.broadcast_to(np.arange(3).reshape(-1, *[1] * (leaf.ndim - 1)), leaf.shape), kept)
    )
    for i in range(3):
        optimizer = make(RATES[i], **{number: values[i] for number, values in spread.items()})
        alone = drive(optimizer, at(tree.map(np.copy, kept), i), at(draws, slice(None), i), rate=RATES[i])
        assert optimizer.rule == make(RATES, **spread).rule
        found = (losses[:, i], moving[:, owner == i], read[:, owner == i])
        for many, one in zip(found, alone, strict=True):
            np.testing.assert_allclose(many, one, rtol=1e-10, atol=1e-12)


# States and rules.

COPIES = {
    "sgd": 0, "momentum": 1, "nesterov": 1, "adagrad": 1, "rmsprop": 1, "rmsprop centered": 3, "adam": 2, "adamw": 2,
    "amsgrad": 3, "amsgrad optax": 3, "nadam": 2, "nadam plain": 2, "lion": 1, "clipped": 1, "sharpness": 0,
    "average": 2, "average sharpness": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", COPIES)
def test_the_state_is_shaped_like_the_parameters(name, population):
    """Copies of them, all zero but for the average, which starts at the parameters; and counts."""
    params, rule = draw(0, population), OPTIMIZERS[name].rule
    state, members = rule.init(params), params[0].bias.ndim - 1
    copies = [leaf for leaf in tree.leaves(state) if leaf.ndim > members]
    assert [leaf.shape for leaf in copies] == [leaf.shape for leaf in tree.leaves(params)] * COPIES[name]
    if isinstance(rule, Averaged):
        first, copies = copies[:4], copies[4:]
        assert_same(tuple(first), tuple(tree.leaves(params)))
        assert not any(np.shares_memory(*pair) for pair in zip(first, tree.leaves(params), strict=True))
    assert not any(leaf.any() for leaf in copies)
    assert_same(rule.read(params, state), params)
    rest = [leaf for leaf in tree.leaves(state) if leaf.ndim <= members]
    assert all(leaf.shape in ((), (population,)) for leaf in rest)
    assert all((leaf == (name == "nadam" and i == 1)).all() for i, leaf in enumerate(rest))


def test_new_numbers_are_the_same_rule():
    """A rule is what programs are compiled for: numbers must not enter it."""
    other = {"weight_decay": 0.9, "l1": 0.9, "clip_norm": 9.0, "average": 0.9, "sharpness": 0.9, "eps": 0.9}
    for make in (optimizers.adagrad, optimizers.rmsprop, optimizers.adam, optimizers.adamw, optimizers.nadam):
        one = make(0.1, **{name: value / 2 for name, value in other.items()})
        two = make(np.array([0.2, 0.3]), **{name: np.array([value / 3, value]) for name, value in other.items()})
        assert one.rule == two.rule
        assert hash(one.rule) == hash(two.rule)
    assert optimizers.adam(0.1).rule == optimizers.adam(0.2, b1=0.5, b2=0.1).rule
    assert optimizers.momentum(0.1).rule == optimizers.momentum(0.1, momentum=0.1).rule
    assert optimizers.lbfgs().rule == optimizers.lbfgs(0.5).rule
    assert hash(optimizers.lbfgs().rule) == hash(optimizers.lbfgs(0.5).rule)


def test_what_changes_the_program_is_another_rule():
    sgd, adam = partial(optimizers.sgd, RATE), partial(optimizers.adam, RATE)
    rules = [
        sgd().rule,
        sgd(weight_decay=0.1).rule,
        sgd(weight_decay=0.1, decay_biases=True).rule,
        sgd(l1=0.1).rule,
        sgd(clip_value=1.0).rule,
        sgd(clip_norm=1.0).rule,
        sgd(average=0.9).rule,
        sgd(sharpness=0.1).rule,
        sgd(average=0.9, sharpness=0.1).rule,
        optimizers.momentum(RATE).rule,
        optimizers.nesterov(RATE).rule,
        optimizers.rmsprop(RATE).rule,
        optimizers.rmsprop(RATE, eps_in_root=True).rule,
        optimizers.rmsprop(RATE, centered=True).rule,
        optimizers.rmsprop(RATE, momentum=0.9).rule,
        adam().rule,
        adam(weight_decay=0.1).rule,
        adam(weight_decay=0.1, decoupled=True).rule,
        adam(eps_hat=True).rule,
        adam(amsgrad="torch").rule,
        adam(amsgrad="optax").rule,
        adam(average=0.9).rule,
        adam(sharpness=0.9).rule,
        optimizers.nadam(RATE).rule,
        optimizers.nadam(RATE, momentum_decay=None).rule,
        optimizers.lion(RATE).rule,
        optimizers.lbfgs().rule,
        optimizers.lbfgs(memory=3).rule,
    ]
    assert len(set(rules)) == len(rules)
    assert adam(weight_decay=0.1, decoupled=True).rule == optimizers.adamw(RATE).rule
    assert adam(amsgrad="torch").rule == optimizers.amsgrad(RATE).rule
    plain, averaged, aware = adam().rule, adam(average=0.5).rule, adam(sharpness=0.5).rule
    assert isinstance(averaged, Averaged)
    assert isinstance(aware, SharpnessAware)
    assert averaged.rule == aware.chain == plain
    assert adam(average=0.5, sharpness=0.5).rule == Averaged(aware)
    assert [rule for rule in rules if rule.full_batch] == rules[-2:]


# Bad numbers, by name.

NAN, INF = float("nan"), float("inf")
OUTSIDE = {
    "weight_decay": (optimizers.adam, (-1e-9, NAN, INF, "much", True)),
    "l1": (optimizers.sgd, (-0.1, NAN, INF)),
    "clip_value": (optimizers.sgd, (0.0, -1.0, NAN, INF)),
    "clip_norm": (optimizers.sgd, (0.0, -1.0, NAN, INF, [1.0, 0.0])),
    "average": (optimizers.sgd, (1.0, -0.1, NAN, [0.5, 1.0])),
    "sharpness": (optimizers.sgd, (-0.1, NAN, INF)),
    "momentum": (optimizers.momentum, (1.5, 1.0, -0.1, NAN)),
    "momentum of nesterov": (optimizers.nesterov, (1.5, 1.0, -0.1, NAN)),
    "momentum of rmsprop": (optimizers.rmsprop, (1.5, 1.0, -0.1, NAN)),
    "decay": (optimizers.rmsprop, (1.0, -0.1, NAN)),
    "eps": (optimizers.adam, (-1e-9, 0.0, 1e-50, NAN, INF)),
    "eps of adagrad": (optimizers.adagrad, (-1e-9, NAN, INF)),
    "eps of rmsprop": (optimizers.rmsprop, (-1e-9, NAN, INF)),
    "eps of nadam": (optimizers.nadam, (-1e-9, NAN, INF)),
    "eps_root": (optimizers.adam, (-1e-9, NAN, INF)),
    "initial": (optimizers.adagrad, (-0.1, NAN, INF)),
    "initial of rmsprop": (optimizers.rmsprop, (-0.1, NAN, INF)),
    "b1": (optimizers.adam, (-1, 1.0, NAN, [0.9, 1.0], 1j)),
    "b1 of adamw": (optimizers.adamw, (-1, 1.0, NAN)),
    "b1 of nadam": (optimizers.nadam, (-1, 1.0, NAN)),
    "b1 of lion": (optimizers.lion, (-1, 1.0, NAN)),
    "b2": (optimizers.adam, (-1, 1.0, NAN)),
    "b2 of amsgrad": (optimizers.amsgrad, (-1, 1.0, NAN)),
    "b2 of nadam": (optimizers.nadam, (-1, 1.0, NAN)),
    "b2 of lion": (optimizers.lion, (-1, 1.0, NAN)),
    "momentum_decay": (optimizers.nadam, (-0.1, NAN, INF)),
    "amsgrad": (optimizers.adam, ("keras", True)),
    "memory": (optimizers.lbfgs, (0, -1, 2.5, True, "10", None)),
}


@pytest.mark.parametrize(("case", "wrong"), [(case, wrong) for case, (_, all_) in OUTSIDE.items() for wrong in all_])
def test_a_number_outside_its_range_is_refused_by_name(case, wrong):
    name, make = case.split()[0], OUTSIDE[case][0]
    rate = () if make is optimizers.lbfgs else (RATE,)
    with pytest.raises(ValueError, match=rf"^{name}: expected .*got"):
        make(*rate, **{name: wrong})


NEEDED = {
    "momentum": ("momentum",),
    "nesterov": ("momentum",),
    "adagrad": ("eps",),
    "rmsprop": ("decay", "eps"),
    "adam": ("b1", "b2", "eps"),
    "adamw": ("b1", "b2", "eps"),
    "amsgrad": ("b1", "b2", "eps"),
    "nadam": ("b1", "b2", "eps"),
    "lion": ("b1", "b2"),
}


@pytest.mark.parametrize("name", NEEDED)
def test_none_is_refused_where_a_number_is_needed(name):
    """And not taken for another optimizer: momentum of None is no plain SGD, a decay of None no Adagrad."""
    for needed in NEEDED[name]:
        with pytest.raises(ValueError, match=rf"^{needed}: expected .*got None"):
            getattr(optimizers, name)(RATE, **{needed: None})


@pytest.mark.parametrize("name", MAKERS)
def test_none_leaves_an_option_out(name):
    options = dict.fromkeys(("l1", "clip_value", "clip_norm", "average", "sharpness"))
    make = getattr(optimizers, name)
    assert make(RATE, **options).rule == make(RATE).rule
    assert make(RATE, weight_decay=None).rule == make(RATE, weight_decay=None, decoupled=True, decay_biases=True).rule


@pytest.mark.parametrize("make", [getattr(optimizers, name) for name in (*MAKERS, "lbfgs")])
@pytest.mark.parametrize("wrong", [-0.1, NAN, INF, [0.1, -0.1], None])
def test_a_bad_learning_rate_is_refused(make, wrong):
    with pytest.raises(ValueError, match=r"^learning_rate: expected"):
        make(wrong)


@pytest.mark.parametrize(
    "make", [optimizers.sgd, optimizers.adam, optimizers.adamw, optimizers.amsgrad, optimizers.lion]
)
def test_an_unknown_option_is_a_type_error(make):
    with pytest.raises(TypeError, match="unknown option wieght_decay; expected weight_decay"):
        make(RATE, wieght_decay=0.1)
    with pytest.raises(TypeError, match="momentum"):
        make(RATE, momentum=0.9)


def test_lbfgs_takes_no_option_but_weight_decay():
    with pytest.raises(TypeError, match="clip_norm"):
        optimizers.lbfgs(clip_norm=0.1)


def test_amsgrad_must_be_like_one_of_two():
    for wrong in ("keras", None):
        with pytest.raises(ValueError, match="'torch' or 'optax'"):
            optimizers.amsgrad(RATE, like=wrong)
