"""Scores of weights against torch's autograd, the papers' formulas in plain loops, and jax.random."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

import minimodel as mm
from minimodel import losses, optimizers, random, tree
from minimodel.compress import scores
from minimodel.compress.samples import ROWS, sample
from minimodel.compress.scores import Asked, measure
from minimodel.model import Model
from minimodel.problem import prepare, to_backend
from minimodel.testing.suites import ScoreSuite

pytestmark = pytest.mark.filterwarnings("ignore:prune. no kept weight")
NETWORK = mm.Network((4, 6, 5, 3), "tanh")
OWN_TESTS = ("surgeon", "movement")  # in test_surgeon; with the trainings below
EVERY = tuple(name for name in scores.NAMES if name not in OWN_TESTS)


def random_model(population=None, network=NETWORK, seed=0, zeros=0.0):
    """Normal weights, of which a part is 0 under masks; biases that are not 0."""
    rng, lead = np.random.default_rng(seed), () if population is None else (population,)
    params, masks = [], []
    for pair in network.shapes:
        weight, bias = (rng.normal(size=(*lead, *shape)).astype(np.float32) for shape in (pair, pair[1:]))
        masks.append(rng.random(weight.shape) >= zeros)
        params.append(mm.Layer(weight * masks[-1], bias))
    return Model(network, tuple(params), losses.softmax_cross_entropy, masks=tuple(masks) if zeros else None)


def evaluated(score, model, data, backend="numpy", seed=0, moved=None, **options):
    """The scores of all weights on the host, from the training rows of ``data``."""
    backend = mm.backends.load(backend)
    problem = prepare(model.network, data, model.loss, backend, fitted=model, **options)
    seeds = seed if model.population is None else seed + np.arange(model.population)
    asked = Asked(scores.get(score), model.network, problem.objective, backend)
    run = backend.jit(measure, static=("asked",))
    return backend.to_numpy(
        run(to_backend(backend, model.params), sample(problem), random.key(seeds), moved, asked=asked)
    )[0]


def assert_close(found, expected, rtol=1e-4):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * 0.01 * max(np.abs(b).max(), 1e-30))


class Autograd:
    """The model in torch's float64: weights that ask for gradients, and the layers' outputs and losses of rows."""

    def __init__(self, torch, model, x, y):
        self.torch, double = torch, torch.float64
        self.weights = [torch.tensor(layer.weight, dtype=double, requires_grad=True) for layer in model.params]
        self.biases = [torch.tensor(layer.bias, dtype=double, requires_grad=True) for layer in model.params]
        self.act = {"tanh": torch.tanh, "relu": torch.relu}[model.network.activation]
        x = np.asarray(x, np.float64)
        if model.normalization:
            x = (x - model.normalization.shift) * model.normalization.scale
        self.x, self.y = torch.tensor(x), torch.tensor(np.asarray(y, np.int64))

    def forward(self, weights=None):
        """What every layer gives: activations, at last outputs."""
        a, given = self.x, []
        for i, (w, b) in enumerate(zip(weights or self.weights, self.biases, strict=True)):
            z = a @ w + b
            a = z if i == len(self.biases) - 1 else self.act(z)
            given.append(a)
        return given

    def losses(self, z):
        return self.torch.nn.functional.cross_entropy(z, self.y, reduction="none")

    def gradients(self, value, leaves=None):
        found = self.torch.autograd.grad(value, leaves or self.weights, retain_graph=True)
        return [g.numpy() for g in found]

    def values(self):
        return [w.detach().numpy() for w in self.weights]


def autograd(oracle, model, splits):
    return Autograd(oracle("torch"), model, splits.train.x, splits.train.y)


@pytest.fixture(params=["tanh", "relu"])
def model(request, splits):
    """With pruned weights, and a normalisation of its own."""
    network = replace(NETWORK, activation=request.param)
    return replace(random_model(network=network, zeros=0.2), normalization=splits.normalization)


def test_gradient_and_taylor_are_autograds(oracle, model, splits):
    """|∂J/∂w|, of pruned weights too, and |w·∂J/∂w|."""
    run = autograd(oracle, model, splits)
    grads = run.gradients(run.losses(run.forward()[-1]).mean())
    assert all(g[~mask].any() for g, mask in zip(grads, model.masks, strict=True))
    assert_close(evaluated("gradient", model, splits), [abs(g) for g in grads])
    expected = [abs(w * g) for w, g in zip(run.values(), grads, strict=True)]
    assert_close(evaluated("taylor", model, splits), expected)


def test_gradient_weighs_classes(oracle, model, splits):
    run, classes = autograd(oracle, model, splits), [1.0, 2.0, 5.0]
    weight = run.torch.tensor(classes, dtype=run.torch.float64)
    loss = run.torch.nn.functional.cross_entropy(run.forward()[-1], run.y, weight=weight)
    expected = [abs(g) for g in run.gradients(loss)]
    assert_close(evaluated("gradient", model, splits, class_weight=classes), expected)


def test_taylor_learns_from_the_teacher(oracle, model, splits):
    """J = ½ℓ(z, t) + ½T²ℓ(z/T, softmax(z′/T)), T = 2."""
    teacher = replace(random_model(network=model.network, seed=9), normalization=model.normalization)
    run, theirs = autograd(oracle, model, splits), autograd(oracle, teacher, splits)
    soft = (theirs.forward()[-1] / 2).softmax(dim=-1).detach()
    z = run.forward()[-1]
    loss = (run.losses(z) + 4 * run.torch.nn.functional.cross_entropy(z / 2, soft, reduction="none")).mean() / 2
    expected = [abs(w * g) for w, g in zip(run.values(), run.gradients(loss), strict=True)]
    assert_close(evaluated("taylor", model, splits, teacher=mm.Teacher(teacher, 0.5, 2.0)), expected)


def test_taylor_of_a_fresh_network_is_snip(oracle, splits):
    """|∂J/∂c| at c = 1, c a factor of every weight: the connection sensitivity of its paper."""
    fresh = mm.gradient_descent(NETWORK, splits, seed=3, epochs=0)
    run = autograd(oracle, fresh, splits)
    gates = [run.torch.ones_like(w, requires_grad=True) for w in run.weights]
    loss = run.losses(run.forward([w.detach() * c for w, c in zip(run.weights, gates, strict=True)])[-1]).mean()
    expected = [abs(g) for g in run.gradients(loss, gates)]
    assert_close(evaluated("taylor", fresh, splits), expected)


def test_fisher_squares_the_gradients_of_rows(oracle, model, splits):
    """½w²·mean (∂ℓ_row/∂w)²"""
    run = autograd(oracle, model, splits)
    rows = [run.gradients(loss) for loss in run.losses(run.forward()[-1])]
    means = [np.mean(np.square(grads), axis=0) for grads in zip(*rows, strict=True)]
    expected = [0.5 * w**2 * mean for w, mean in zip(run.values(), means, strict=True)]
    assert_close(evaluated("fisher", model, splits), expected)


def test_neuron_scores_are_those_of_rows(oracle, model, splits):
    """mean |a_j| and mean |a_j·∂ℓ_row/∂a_j|, the same for all weights that feed neuron j."""
    run = autograd(oracle, model, splits)
    given = run.forward()
    back = run.gradients(run.losses(given[-1]).sum(), given)  # a row's activations touch no other row's loss
    activations = [a.detach().numpy() for a in given]
    for name, of in (("activation", [1.0] * 3), ("neuron_taylor", back)):
        expected = [
            np.broadcast_to(np.mean(np.abs(a * g), axis=0), shape)
            for a, g, shape in zip(activations, of, NETWORK.shapes, strict=True)
        ]
        assert_close(evaluated(name, model, splits), expected)


def test_wanda_is_its_formula(oracle, model, splits):
    """|w_ij|·‖a_i‖ up to √rows, the inputs being those of torch."""
    run = autograd(oracle, model, splits)
    inputs = [run.x.numpy(), *(a.detach().numpy() for a in run.forward()[:-1])]
    expected = [
        np.abs(w) * np.linalg.norm(a, axis=0)[:, None] / np.sqrt(len(a))
        for w, a in zip(run.values(), inputs, strict=True)
    ]
    assert_close(evaluated("wanda", model, splits), expected)


def test_magnitudes_are_literal(splits):
    model = random_model(network=mm.Network((4, 3)))
    (w,) = (layer.weight for layer in model.params)
    for name, expected in (("magnitude", abs(w)), ("squared", w**2)):
        (found,) = evaluated(name, model, splits)
        np.testing.assert_array_equal(found, expected)


def lamp(w):
    """w²/Σv² over the v that are larger, and over w: the first of equal ones counts as larger. O(n²)."""
    flat = w.astype(np.float64).ravel() ** 2
    found = np.zeros_like(flat)
    for i, own in enumerate(flat):
        total = own + sum(v for j, v in enumerate(flat) if v > own or (v == own and j < i))
        found[i] = own / total if total else 0.0
    return found.reshape(w.shape)


def test_lamp_is_its_formula(backend, splits):
    """Also of weights in halves, most of which have equals, and of zeros."""
    for halves, zeros in ((False, 0.2), (True, 0.2), (True, 0.0)):
        model = random_model(2, zeros=zeros)
        if halves:
            model = replace(model, params=tree.map(lambda leaf: np.round(leaf * 2) / 2, model.params))
        found = evaluated("lamp", model, splits, backend)
        for i in range(2):
            expected = [lamp(layer.weight) for layer in model.member(i).params]
            assert_close([part[i] for part in found], expected, rtol=1e-5)
    assert lamp(np.array([[2.0, 1.0], [1.0, 0.0]])).tolist() == [[1.0, 0.2], [1 / 6, 0.0]]


def test_synaptic_flow_is_autograds(oracle, model, splits):
    """|w|·∂R/∂|w|/R, R = 1ᵀ|W₁|…|W_L|1; what flows through each layer is all."""
    torch = oracle("torch")
    strengths = [torch.tensor(np.abs(layer.weight), dtype=torch.float64, requires_grad=True) for layer in model.params]
    flow = torch.ones(NETWORK.layer_sizes[0], dtype=torch.float64)
    for w in strengths:
        flow = flow @ w
    grads = torch.autograd.grad(flow.sum(), strengths)
    expected = [(w * g / flow.sum()).detach().numpy() for w, g in zip(strengths, grads, strict=True)]
    found = evaluated("synaptic_flow", model, splits)
    assert_close(found, expected)
    assert [float(part.sum()) for part in found] == pytest.approx([1.0] * 3, rel=1e-5)


def test_synaptic_flow_is_conserved_at_every_neuron_and_depth(backend, splits):
    """What enters a hidden neuron leaves it; through 24 layers of 100 neurons R ≈ 1e45 does not overflow."""
    deep = random_model(network=mm.Network((4, *(100,) * 24, 3), "relu"))
    found = evaluated("synaptic_flow", deep, splits, backend)
    for before, after in pairwise(found):
        np.testing.assert_allclose(before.sum(axis=0), after.sum(axis=1), rtol=1e-4)
        assert after.sum() == pytest.approx(1, rel=1e-4)


def test_synaptic_flow_in_rounds_empties_no_layer():
    """At 99 % magnitude leaves nothing of the wide first layer, and flow taken once cuts the way somewhere."""
    network = mm.Network((400, 10, 10, 3))
    data = mm.datasets.split(np.random.default_rng(0).normal(size=(60, 400)), np.arange(60) % 3, seed=0)
    fresh = mm.gradient_descent(network, data, seed=0, epochs=0)

    def kept(score, rounds):
        schedule = mm.pruning_schedules.one_shot(rounds=rounds)
        found = mm.prune(fresh, data, seed=0, sparsity=0.99, score=score, schedule=schedule, epochs=0)
        return [int(mask.sum()) for mask in found.masks]

    flow, magnitude = kept("synaptic_flow", 100), kept("magnitude", 1)
    assert sum(flow) == sum(magnitude) == network.parameters - 23 - round(0.99 * (network.parameters - 23))
    assert min(magnitude) == 0 < min(flow)


def test_random_is_jax_random(backend, population, splits):
    """Uniform on [0, 1) under fold_in(key, layer), to the bit on every backend; another for another seed."""
    jax = pytest.importorskip("jax")
    model = random_model(population)
    found = evaluated("random", model, splits, backend, seed=5)

    def drawn(seed, layer, shape):
        key = jax.random.wrap_key_data(random.key(seed), impl="threefry2x32")
        return np.asarray(jax.random.uniform(jax.random.fold_in(key, layer), shape))

    for i, (part, shape) in enumerate(zip(found, NETWORK.shapes, strict=True)):
        each = [drawn(5 + member, i, shape) for member in range(population or 1)]
        np.testing.assert_array_equal(part, each[0] if population is None else np.stack(each))
    other = evaluated("random", model, splits, backend, seed=11)
    assert all((a != b).mean() > 0.99 for a, b in zip(found, other, strict=True))


# Movement: trainings in torch's float64 on all rows, and on the very mini-batches.

RATE = 0.05
TRACKED = {
    "sgd": (optimizers.sgd(RATE), "SGD", {}),
    "momentum": (optimizers.momentum(RATE), "SGD", {"momentum": 0.9}),
    "adam": (optimizers.adam(RATE), "Adam", {}),
    "sharpness": (optimizers.sgd(RATE, sharpness=0.5), "SGD", {}),
    "average": (optimizers.momentum(RATE, average=0.9), "SGD", {"momentum": 0.9}),
}


def moved_in_torch(oracle, model, splits, name, epochs, batches=None, masks=None):
    """−Σ w∘∂J/∂w over the steps, each at the weights before it; the step may be taken with a gradient nearby."""
    run, rho = autograd(oracle, model, splits), 0.5 if name == "sharpness" else 0.0
    torch, leaves = run.torch, [*run.weights, *run.biases]
    masks = [torch.tensor(mask) for mask in masks or [np.ones(shape) for shape in NETWORK.shapes]]
    masks += [torch.ones_like(b) for b in run.biases]
    stepper = getattr(torch.optim, TRACKED[name][1])(leaves, lr=RATE, **TRACKED[name][2])
    total = [np.zeros(shape) for shape in NETWORK.shapes]

    def at(leaves, rows):
        run.weights, run.biases = leaves[:3], leaves[3:]
        loss = run.losses(run.forward()[-1])[rows].mean()
        return [g * mask for g, mask in zip(torch.autograd.grad(loss, leaves), masks, strict=True)]

    for rows in batches or [slice(None)] * epochs:
        grads = at(leaves, rows)
        for sum_, w, g in zip(total, leaves, grads, strict=False):
            sum_ -= (w * g).detach().numpy()
        if rho:
            scale = rho / torch.sqrt(sum((g * g).sum() for g in grads))
            grads = at([(w + scale * g).detach().requires_grad_() for w, g in zip(leaves, grads, strict=True)], rows)
        for leaf, g in zip(leaves, grads, strict=True):
            leaf.grad = g
        stepper.step()
    return total


def all_rows(splits):
    return {"epochs": 4, "batch_size": len(splits.train.x), "seed": 0, "loss": "softmax_cross_entropy"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in TRACKED for kind in ("packed", "unpacked")] + [("adam", "jax"), ("sharpness", "jax")],
)
def test_tracked_totals_are_those_of_torch(oracle, splits, name, kind):
    """Weights as one flat array, as layers, and compiled; what the masks remove has moved nowhere."""
    model = replace(random_model(zeros=0.2), normalization=splits.normalization)
    if kind == "jax":
        pytest.importorskip("jax")
    each = (
        mm.backends.load("jax")
        if kind == "jax"
        else replace(mm.backends.load("numpy"), packs=2**16 * (kind == "packed"))
    )
    optimizer = optimizers.tracked(TRACKED[name][0])
    found = mm.gradient_descent(
        NETWORK, splits, params=model.params, masks=model.masks, optimizer=optimizer, backend=each, **all_rows(splits)
    )
    total = [layer.weight for layer in found.state.opt_state.total]
    assert_close(total, moved_in_torch(oracle, model, splits, name, 4, masks=model.masks))
    assert all(part.any() and not part[~mask].any() for part, mask in zip(total, model.masks, strict=True))


def test_tracked_totals_of_a_population_are_its_members(oracle, splits):
    model = replace(random_model(3), normalization=splits.normalization)
    optimizer, options = optimizers.tracked(optimizers.adam(RATE)), all_rows(splits)
    found = mm.gradient_descent(NETWORK, splits, params=model.params, population=3, optimizer=optimizer, **options)
    for i in range(3):
        expected = moved_in_torch(oracle, model.member(i), splits, "adam", 4)
        assert_close([layer.weight[i] for layer in found.state.opt_state.total], expected)


def test_tracked_totals_add_up_over_mini_batches(oracle, splits):
    """The order of the rows is that of random words, drawn anew each epoch."""
    model = replace(random_model(), normalization=splits.normalization)
    rows, size, epochs, seed = len(splits.train.x), 16, 3, 7
    keys = random.fold_in(random.fold_in(random.key(seed), 1), np.arange(epochs))
    orders = [np.argsort(random.bits(key, (rows,)), kind="stable") for key in keys]
    batches = [order[i : i + size] for order in orders for i in range(0, rows - size + 1, size)]
    optimizer = optimizers.tracked(optimizers.momentum(RATE))
    found = mm.gradient_descent(
        NETWORK, splits, seed=seed, params=model.params, optimizer=optimizer, epochs=epochs, batch_size=size
    )
    expected = moved_in_torch(oracle, model, splits, "momentum", epochs, batches)
    assert_close([layer.weight for layer in found.state.opt_state.total], expected)


def test_tracking_changes_nothing_else(splits):
    options = {"params": random_model().params, **all_rows(splits)}
    one, other = (
        mm.gradient_descent(NETWORK, splits, optimizer=optimizer, **options)
        for optimizer in (optimizers.adam(RATE), optimizers.tracked(optimizers.adam(RATE)))
    )
    for a, b in zip(tree.leaves(one.params), tree.leaves(other.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_movement_prunes_what_shrinks(oracle, backend, splits):
    """After one full step the weights go whose −w·∂J/∂w is lowest, whatever their magnitude."""
    model = replace(random_model(), normalization=splits.normalization)
    expected = moved_in_torch(oracle, model, splits, "sgd", 1)
    found = mm.prune(
        model,
        splits,
        seed=0,
        sparsity=0.5,
        score="movement",
        schedule=mm.pruning_schedules.periodic(rounds=2, ramp=0.5),  # before epochs 0 and 1
        epochs=2,
        batch_size=len(splits.train.x),
        optimizer=optimizers.sgd(RATE),
        backend=backend,
    )
    bar = np.median(np.concatenate([part.ravel() for part in expected]))
    for mask, part in zip(found.masks, expected, strict=True):
        np.testing.assert_array_equal(mask, part >= bar)


SCHEDULES = {
    "gradual": (mm.pruning_schedules.gradual(), 4),
    "gradual, one epoch": (mm.pruning_schedules.gradual(), 1),
    "gradual, no ramp": (mm.pruning_schedules.gradual(ramp=0.0), 3),
    "periodic": (mm.pruning_schedules.periodic(), 4),
    "periodic, one round": (mm.pruning_schedules.periodic(rounds=1), 3),
    "regrow": (mm.pruning_schedules.regrow(), 4),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_movement_reaches_the_sparsity_or_is_refused(splits, name):
    """Never is a model returned unpruned, without a word."""
    schedule, epochs = SCHEDULES[name]
    options = {"score": "movement", "schedule": schedule, "epochs": epochs}
    try:
        found = mm.prune(random_model(), splits, seed=0, sparsity=0.5, **options)
    except ValueError as error:
        assert name not in ("gradual", "periodic") and str(error).startswith(("score:", "schedule:"))
    else:
        assert found.masks is not None
        assert sum(int((~mask).sum()) for mask in found.masks) == round(0.5 * (24 + 30 + 15))


# What all scores have in common.


class TestScore(ScoreSuite):
    """Numbers, populations, draws, rows, empty layers, masks, backends."""

    @pytest.fixture(params=scores.NAMES)
    def score(self, request):
        return request.param


def test_synaptic_flow_is_finite_where_the_way_is_cut(backend, splits):
    """A layer without weights passes no flow: then every score is 0."""
    whole = random_model()
    cut = (whole.params[0], tree.map(np.zeros_like, whole.params[1]), whole.params[2])
    for part in evaluated("synaptic_flow", replace(whole, params=cut), splits, backend):
        assert np.isfinite(part).all() and not part.any()


def distance(e):
    """|w − 1|, of weights of any population."""
    return tuple(e.backend.xp.abs(layer.weight - 1) for layer in e.params)


def of_outputs(e):
    """The largest |w| that feeds an output, (…, 1, out)."""
    return tuple(e.backend.xp.max(e.backend.xp.abs(layer.weight), axis=-2, keepdims=True) for layer in e.params)


def of_inputs(e):
    """The same of an input, (…, in, 1)."""
    return tuple(e.backend.xp.max(e.backend.xp.abs(layer.weight), axis=-1, keepdims=True) for layer in e.params)


OWN = {
    distance: lambda w: np.abs(w - 1),
    of_outputs: lambda w: np.broadcast_to(np.abs(w).max(axis=-2, keepdims=True), w.shape),
    of_inputs: lambda w: np.broadcast_to(np.abs(w).max(axis=-1, keepdims=True), w.shape),
}


@pytest.mark.parametrize("score", OWN, ids=lambda score: score.__name__)
def test_a_score_is_a_function(backend, population, splits, score):
    """One of the user's own, that need not be as large as the weights: of equal ones the first stay."""
    model = random_model(population)
    found = mm.prune(model, splits, seed=0, sparsity=0.6, allocation="uniform", score=score, epochs=0, backend=backend)
    for mask, layer in zip(found.masks, model.params, strict=True):
        flat = OWN[score](layer.weight).reshape(-1, *layer.weight.shape[-2:])
        for own, kept in zip(flat, mask.reshape(flat.shape), strict=True):
            order = np.argsort(-own.ravel(), kind="stable")[: own.size - round(0.6 * own.size)]
            np.testing.assert_array_equal(np.flatnonzero(kept), np.sort(order))


@pytest.mark.parametrize("schedule", ["gradual", "periodic"])
@pytest.mark.parametrize("name", ["taylor", "wanda", "random"])
def test_scores_serve_schedules(splits, name, schedule):
    found = mm.prune(random_model(2), splits, seed=0, sparsity=0.7, score=name, schedule=schedule, epochs=4)
    assert (sum((~mask).sum(axis=(-2, -1)) for mask in found.masks) == round(0.7 * (24 + 30 + 15))).all()


def test_of_many_rows_a_sample_is_looked_at():
    """So many training rows, none twice, in their order, the same every time."""
    x = np.arange(7000, dtype=np.float32)[:, None]
    data = replace(mm.datasets.split(x, np.arange(7000) % 2, seed=0), normalization=None)
    rows = sample(prepare(mm.Network((1, 2)), data, None, mm.backends.load("numpy"), fitted=data))
    found = rows.x[:, 0].tolist()
    assert len(found) == len(set(found)) == ROWS < len(data.train.x)
    places = {value: place for place, value in enumerate(data.train.x[:, 0].tolist())}
    order = [places[value] for value in found]
    assert order == sorted(order)
    assert max(order) > ROWS  # not just the first
    np.testing.assert_array_equal(rows.t[:, 1], np.asarray(found) % 2)


def test_names():
    for name in scores.NAMES:
        assert scores.get(name) is getattr(scores, name)
    assert scores.get(distance) is distance
    for wrong in ("nope", "get", "measure", "", None, 3, ("magnitude",)):
        with pytest.raises(ValueError, match=r"score: expected a function of Evidence or one of magnitude, squared"):
            scores.get(wrong)


def test_movement_alone_needs_a_training(splits):
    with pytest.raises(ValueError, match="score: movement is that of a training"):
        evaluated("movement", random_model(), splits)
    totals = tuple(np.full(shape, i, np.float32) for i, shape in enumerate(NETWORK.shapes))
    for found, given in zip(evaluated("movement", random_model(), splits, moved=totals), totals, strict=True):
        np.testing.assert_array_equal(found, given)


def test_movement_refuses_one_shot_and_lbfgs(splits):
    for options, message in (
        ({}, "score: movement is that of a training"),
        ({"schedule": "gradual", "optimizer": optimizers.lbfgs()}, "optimizer: movement is that of single steps"),
    ):
        with pytest.raises(ValueError, match=message):
            mm.prune(random_model(), splits, seed=0, sparsity=0.5, score="movement", epochs=3, **options)
