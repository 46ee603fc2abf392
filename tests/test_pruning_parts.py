"""The parts of pruning: patterns against torch, allocations solved anew, schedules, exchanges, their properties."""

import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import minimodel as mm
from minimodel import losses, optimizers, patterns, pruning_schedules, scores, tree
from minimodel.compress import masks as make
from minimodel.compress.allocation import sparsities
from minimodel.compress.masks import Choice
from minimodel.compress.pruner import Pruner
from minimodel.compress.shrinking import warn_of_collapse
from minimodel.model import Model

pytestmark = pytest.mark.filterwarnings("ignore:prune. no kept weight")
NETWORK = mm.Network((5, 8, 6, 3))
WEIGHTS = 40 + 48 + 18
PATTERNS = {
    "unstructured": patterns.unstructured(),
    "n_of_m": patterns.n_of_m(2, 4),
    "rows": patterns.rows(),
    "columns": patterns.columns(),
    "neurons": patterns.neurons(),
}
FREE = [name for name in PATTERNS if name != "n_of_m"]
ALLOCATIONS = ("global", "uniform", "erdos_renyi")
SPARSITIES = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))


def make_data(network=NETWORK, rows=60):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(rows, network.layer_sizes[0])).astype(np.float32)
    y = np.arange(rows) % network.layer_sizes[-1]
    return mm.datasets.split(x, y, seed=0)


DATA = make_data()


def random_model(population=None, network=NETWORK, seed=0):
    """Normal weights, all different; biases that are not 0."""
    rng, lead = np.random.default_rng(seed), () if population is None else (population,)
    params = tuple(
        mm.Layer(*(rng.normal(size=(*lead, *shape)).astype(np.float32) for shape in (pair, pair[1:])))
        for pair in network.shapes
    )
    return Model(network, params, losses.softmax_cross_entropy)


def one_shot(model, **options):
    data = DATA if model.network.layer_sizes == NETWORK.layer_sizes else make_data(model.network)
    return mm.prune(model, data, **{"seed": 0, "epochs": 0, **options})


def weights(model):
    return [layer.weight for layer in model.params]


def assert_same_masks(one, other):
    for found, expected in zip(one, other, strict=True):
        np.testing.assert_array_equal(found, expected)


def assert_zeros(model):
    """What the masks remove is exactly 0."""
    for weight, mask in zip(weights(model), model.masks, strict=True):
        assert not weight[~np.broadcast_to(mask, weight.shape)].any()


def kept_units(name, masks):
    """Which units of each layer stay, (…, units); lines and neurons are whole or gone."""
    if name in ("unstructured", "n_of_m"):
        return [mask.reshape(*mask.shape[:-2], -1) for mask in masks]
    if name == "neurons":
        hidden = [mask.any(axis=-2) for mask in masks[:-1]]
        ends = [np.ones_like(masks[0][..., :, 0]), *hidden, np.ones_like(masks[-1][..., 0, :])]
        for mask, (before, after) in zip(masks, pairwise(ends), strict=True):
            rest = before.any(axis=-1, keepdims=True)  # with nothing before it a whole layer is empty
            np.testing.assert_array_equal(mask, before[..., :, None] & after[..., None, :])
            assert (mask.any(axis=-2) == (after & rest)).all()
        return hidden
    axis = -1 if name == "rows" else -2
    for mask in masks:
        assert (mask.any(axis=axis) == mask.all(axis=axis)).all()
    return [mask.any(axis=axis) for mask in masks]


def flat_scores(name, values):
    """The scores of units by their definition: the mean over the weights of each."""
    if name in ("unstructured", "n_of_m"):
        return [value.ravel() for value in values]
    if name == "neurons":
        return [value.mean(axis=0) for value in values[:-1]]
    return [value.mean(axis=1 if name == "rows" else 0) for value in values]


def largest(parts, k):
    """The k largest of all parts together, of equal ones the first, by a stable sort."""
    flat = np.concatenate(parts)
    chosen = np.zeros(len(flat), bool)
    chosen[np.argsort(-flat, kind="stable")[:k]] = True
    return np.split(chosen, np.cumsum([len(part) for part in parts])[:-1])


def winners(score, n, m):
    """The n largest of every m consecutive inputs of each column, of equal ones the first."""
    found = np.zeros(score.shape, bool)
    for j in range(score.shape[1]):
        for start in range(0, score.shape[0], m):
            group = range(start, min(start + m, score.shape[0]))
            found[sorted(group, key=lambda i: (-score[i, j], i))[:n], j] = True
    return found


def assert_at_most(masks, n, m):
    for mask in masks:
        for start in range(0, mask.shape[-2], m):
            assert (mask[..., start : start + m, :].sum(axis=-2) <= n).all()


def choose(values, kept, old=None, pattern="unstructured", spared=None, pooled=True, backend="numpy"):
    """``masks.choose``, compiled, on the host."""
    backend = mm.backends.load(backend)
    pattern = PATTERNS.get(pattern, pattern)
    choice = Choice(backend, pattern, pooled, spared or (0,) * len(values))
    values = tuple(np.asarray(value, np.float32) for value in values)
    kept = (kept,) if pooled else kept
    kept = tuple(np.asarray(k, np.int32) for k in kept)
    return backend.to_numpy(backend.jit(make.choose, static=("choice",))(values, old, kept, choice=choice))


# Patterns.


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.77, 1.0])
def test_lines_are_those_of_torch(oracle, sparsity):
    """prune.ln_structured of each layer; torch's weights are (out, in), so its dim 0 are our columns."""
    torch, prune = oracle("torch"), oracle("torch.nn.utils.prune")
    model = random_model()
    for score, n in (("magnitude", 1), ("squared", 2)):
        for pattern, dim in ((patterns.columns(), 0), (patterns.rows(), 1)):
            found = one_shot(model, sparsity=sparsity, score=score, pattern=pattern, allocation="uniform")
            for weight, mask in zip(weights(model), found.masks, strict=True):
                module = torch.nn.Linear(*weight.shape)
                module.weight.data = torch.tensor(weight.T.copy())
                prune.ln_structured(module, "weight", amount=sparsity, n=n, dim=dim)
                np.testing.assert_array_equal(mask, module.weight_mask.numpy().T.astype(bool))


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("pooled", [True, False], ids=["pooled", "layers"])
def test_masks_are_those_of_a_sort(backend, name, pooled):
    """Of every pattern and a population, on whole numbers, most of which have equals; n of m first of all."""
    rng, members = np.random.default_rng(0), 3
    values = [rng.integers(1, 5, size=(members, *shape)).astype(np.float32) for shape in NETWORK.shapes]
    sizes = [part.size for part in flat_scores(name, [value[0] for value in values])]
    shares = np.array([0.2, 0.6, 1.0])
    kept = np.round(shares * sum(sizes)) if pooled else [np.round(shares * size) for size in sizes]
    found = choose(values, kept, pattern=name, pooled=pooled, backend=backend)
    units = kept_units(name, found)
    for i in range(members):
        own = [value[i] for value in values]
        rank = flat_scores(name, own)
        if name == "n_of_m":
            rank = [part + 100 * winners(value, 2, 4).ravel() for part, value in zip(rank, own, strict=True)]
        expected = (
            largest(rank, int(kept[i]))
            if pooled
            else [largest([part], int(k[i]))[0] for part, k in zip(rank, kept, strict=True)]
        )
        assert_same_masks([unit[i] for unit in units], expected)


def test_literal_lines_and_neurons():
    """Means of 2, 1 and 3 for the columns; of 1, 3 for the rows; a neuron that goes takes what it feeds along."""
    first, second = np.array([[1, 1, 1], [3, 1, 5]]), np.array([[9], [9], [9]])
    ones, gone = [1, 1, 1], [1, 0, 1]
    assert [m.astype(int).tolist() for m in choose([first, second], 3, pattern="columns")] == [[gone, gone], [[1]] * 3]
    assert [m.astype(int).tolist() for m in choose([first, second], 4, pattern="rows")] == [[[0] * 3, ones], [[1]] * 3]
    found = choose([first, second], 2, pattern="neurons")
    assert [m.astype(int).tolist() for m in found] == [[gone, gone], [[1], [0], [1]]]


@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=4), st.integers(2, 5), st.data(), st.booleans(), st.integers(0, 9)
)
def test_n_of_m_keeps_the_largest_of_each_group(sizes, m, data, ties, seed):
    """Whatever the sizes, also where m does not divide them; of equal weights the first."""
    n = data.draw(st.integers(1, m - 1))
    assume(any(inputs % m > n or inputs >= m for inputs in sizes[:-1]))  # or there is nothing to remove
    model = random_model(network=mm.Network((*sizes[:-1], max(2, sizes[-1]))), seed=seed)
    if ties:
        model = replace(model, params=tree.map(np.round, model.params))
    found = one_shot(model, pattern=patterns.n_of_m(n, m))
    assert_same_masks(found.masks, [winners(np.abs(w), n, m) for w in weights(model)])


@given(st.floats(0, 1), st.sampled_from(ALLOCATIONS), st.integers(0, 9))
def test_n_of_m_goes_further_with_a_sparsity(sparsity, allocation, seed):
    """Of the winners the lowest go; a sparsity below what the pattern removes changes nothing."""
    model = random_model(seed=seed)
    found = one_shot(model, pattern=patterns.n_of_m(2, 4), sparsity=sparsity, allocation=allocation)
    best = [winners(np.abs(w), 2, 4) for w in weights(model)]
    least = sum(int((~part).sum()) for part in best)
    assert all((part | ~mask).all() for part, mask in zip(best, found.masks, strict=True))
    if allocation == "global":
        rank = [np.where(part, np.abs(w), -1).ravel() for part, w in zip(best, weights(model), strict=True)]
        kept = WEIGHTS - max(least, round(sparsity * WEIGHTS))
        assert_same_masks([mask.ravel() for mask in found.masks], largest(rank, kept))
    if allocation == "uniform":
        for part, mask in zip(best, found.masks, strict=True):
            assert (~mask).sum() == max((~part).sum(), round(sparsity * part.size))


WAYS = [(score, schedule) for score in ("magnitude", "taylor", "activation") for schedule in ("gradual", "rounds")]


@pytest.mark.parametrize(("score", "schedule"), [*WAYS, ("movement", "gradual"), ("movement", "periodic")])
@pytest.mark.parametrize("sparsity", [None, 0.7])
def test_n_of_m_is_reached_by_every_schedule(score, schedule, sparsity):
    """Scores change on the way, are 0 behind a neuron that is silent, and those of movement are below 0 as well."""
    schedule = pruning_schedules.one_shot(rounds=5) if schedule == "rounds" else schedule
    options = {"epochs": 6, "optimizer": optimizers.sgd(0.1), "batch_size": 16}
    found = mm.prune(
        random_model(2),
        DATA,
        seed=0,
        pattern=patterns.n_of_m(2, 4),
        sparsity=sparsity,
        score=score,
        schedule=schedule,
        **options,
    )
    least = 3 * 8 + 4 * 6 + 4 * 3  # inputs 5, 8, 6 of which 3, 4, 4 stay
    assert_at_most(found.masks, 2, 4)
    removed = sum((~mask).sum(axis=(-2, -1)) for mask in found.masks)
    assert (removed == max(WEIGHTS - least, round((sparsity or 0) * WEIGHTS))).all()
    assert_zeros(found)


def test_n_of_m_ranks_what_is_gone_below_what_stays(backend):
    """A weight that was pruned scores 0, more than those that move towards 0: yet it takes no place of theirs."""
    old = (np.array([[False], [True], [True], [True], [True], [True], [True], [True]]),)
    values = -np.array([[1], [2], [3], [4], [5], [6], [7], [8]])
    (found,) = choose([values], 4, old, "n_of_m", backend=backend)
    assert found[:, 0].tolist() == [False, True, True, False, True, True, False, False]


def test_n_of_m_of_a_pruned_model():
    """Where earlier pruning left whole groups the pattern removes more, not less."""
    before = one_shot(random_model(), sparsity=0.5)
    found = one_shot(before, pattern=patterns.n_of_m(2, 4))
    assert_at_most(found.masks, 2, 4)
    expected = [
        winners(np.where(mask, np.abs(w), -1), 2, 4) & mask
        for mask, w in zip(before.masks, weights(before), strict=True)
    ]
    assert_same_masks(found.masks, expected)


def test_n_of_m_under_a_threshold():
    model = random_model()
    found = one_shot(model, pattern=patterns.n_of_m(2, 4), threshold=0.6)
    assert_same_masks(found.masks, [winners(np.abs(w), 2, 4) & (np.abs(w) >= 0.6) for w in weights(model)])


def test_n_of_m_and_a_cap():
    """What a layer is spared are winners of their groups."""
    found = one_shot(random_model(), pattern=patterns.n_of_m(2, 4), cap=0.6)
    assert_at_most(found.masks, 2, 4)
    assert sum(int(mask.sum()) for mask in found.masks) == 3 * 8 + 4 * 6 + 4 * 3


# Counts.


def densities(density, sizes, shapes):
    """min(1, ε·(in + out)/(in·out)) with ε by bisection such that Σ density·size is what is wanted."""
    shares = np.array([(i + o) / (i * o) for i, o in shapes[: len(sizes)]])
    low, high = 0.0, 1 / shares.min()
    for _ in range(200):
        middle = (low + high) / 2
        if (np.minimum(1, middle * shares) * sizes).sum() < density * sum(sizes):
            low = middle
        else:
            high = middle
    return np.minimum(1, high * shares)


@given(SPARSITIES, st.sampled_from(FREE), st.sampled_from(ALLOCATIONS), st.sampled_from([None, 2]), st.integers(0, 9))
def test_counts_are_exact(sparsity, name, allocation, population, seed):
    """In units of the pattern: of all layers together, of each, or in proportion to (in + out)/(in·out)."""
    model = random_model(population, seed=seed)
    found = one_shot(model, sparsity=sparsity, pattern=PATTERNS[name], allocation=allocation)
    units = kept_units(name, found.masks)
    sizes = [part.shape[-1] for part in units]
    kept = np.array([part.sum(axis=-1) for part in units])
    if allocation == "global":
        assert (kept.sum(axis=0) == sum(sizes) - round(sparsity * sum(sizes))).all()
    for i, size in enumerate(sizes):
        if allocation == "uniform":
            assert (kept[i] == size - round(sparsity * size)).all()
        if allocation == "erdos_renyi":
            share = densities(1 - sparsity, sizes, NETWORK.shapes)[i]
            assert (abs(kept[i] - share * size) <= 0.5 + 1e-6).all()
    assert (abs(kept.sum(axis=0) - (1 - sparsity) * sum(sizes)) <= len(sizes) / 2 + 1e-6).all()
    assert_zeros(found)


@given(SPARSITIES, st.lists(st.integers(1, 300), min_size=2, max_size=5))
def test_erdos_renyi_by_bisection(sparsity, layer_sizes):
    shapes = mm.Network(tuple(layer_sizes)).shapes
    sizes = [inputs * outputs for inputs, outputs in shapes]
    overall = np.array([sparsity, 1 - sparsity])
    found = 1 - np.array(sparsities(overall, "erdos_renyi", sizes, mm.Network(tuple(layer_sizes))))
    for part, wanted in zip(found.T, 1 - overall, strict=True):
        np.testing.assert_allclose(part, densities(wanted, sizes, shapes), rtol=1e-6, atol=1e-9)
        assert (part * sizes).sum() == pytest.approx(wanted * sum(sizes), abs=1e-6 * sum(sizes))


def test_erdos_renyi_literal():
    """In proportion 12/32 to 6/8, the layers keep 12ε and 6ε, of which the small one has only 8."""
    model = random_model(network=mm.Network((8, 4, 2)))
    for kept, expected in ((9, [6, 3]), (18, [12, 6]), (28, [20, 8]), (39, [31, 8])):
        found = one_shot(model, sparsity=(40 - kept) / 40, allocation="erdos_renyi")
        assert [int(mask.sum()) for mask in found.masks] == expected


@given(st.floats(0.3, 1), st.floats(0, 1), st.sampled_from(FREE), st.sampled_from(ALLOCATIONS), st.integers(0, 9))
def test_no_layer_loses_more_than_the_cap(cap, part, name, allocation, seed):
    """The best of each layer stay; the others go by score, as many as are to go."""
    model = random_model(seed=seed)
    values = flat_scores(name, [np.abs(w) for w in weights(model)])
    sizes = [len(value) for value in values]
    sparsity = part * cap
    spared = [int(np.ceil(round((1 - cap) * size, 6))) for size in sizes]
    options = {"sparsity": sparsity, "pattern": PATTERNS[name], "allocation": allocation, "cap": cap}
    try:
        found = one_shot(model, **options)
    except ValueError as error:
        assert str(error).startswith("cap:")
        if allocation == "global":
            assert sum(spared) > sum(sizes) - round(sparsity * sum(sizes))
        else:
            shares = densities(1 - sparsity, sizes, NETWORK.shapes) if allocation == "erdos_renyi" else 1 - sparsity
            assert (shares * np.array(sizes) - spared < 0.5 + 1e-6).any()
    else:
        units = kept_units(name, found.masks)
        for unit, size in zip(units, sizes, strict=True):
            assert (~unit).sum() <= cap * size + 1e-5
        if allocation == "global":
            best = [largest([value], n)[0] for value, n in zip(values, spared, strict=True)]
            rank = [value + 100.0 * first for value, first in zip(values, best, strict=True)]
            assert_same_masks(units, largest(rank, sum(sizes) - round(sparsity * sum(sizes))))


def test_a_cap_bites(backend, population):
    """Small weights of a layer would all go."""
    model = random_model(population)
    small = (model.params[0], mm.Layer(model.params[1].weight * 0.01, model.params[1].bias), model.params[2])
    model = replace(model, params=small)
    without, capped = (one_shot(model, sparsity=0.6, cap=cap, backend=backend) for cap in (1.0, 0.75))
    assert not without.masks[1].any()
    assert (capped.masks[1].sum(axis=(-2, -1)) == 12).all()
    assert all((sum((~mask).sum(axis=(-2, -1)) for mask in found.masks) == 64).all() for found in (without, capped))


def test_a_cap_holds_for_thresholds():
    """Or is refused with one."""
    try:
        found = one_shot(random_model(), threshold=100.0, cap=0.5)
    except ValueError as error:
        assert str(error).startswith(("cap:", "threshold:"))
    else:
        assert [int((~mask).sum()) for mask in found.masks] == [20, 24, 9]


@given(st.lists(st.integers(1, 4), min_size=2, max_size=5), st.floats(0.05, 0.6), st.integers(0, 999))
def test_collapse_is_the_lack_of_a_way(sizes, density, seed):
    """Where the product of the masks is 0; of masks that keep nothing at all nobody needs to be told."""
    rng = np.random.default_rng(seed)
    for _ in range(20):
        masks = tuple(rng.random(shape) < density for shape in pairwise(sizes))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warn_of_collapse(masks)
        ways = np.linalg.multi_dot([np.eye(sizes[0]), *(mask.astype(float) for mask in masks)])
        assert bool(caught) == (any(mask.any() for mask in masks) and not ways.any())


def test_collapse_names_the_members():
    flow, cut = (np.array([[value]]) for value in (True, False))
    with pytest.warns(RuntimeWarning, match=r"^prune: no kept weight .* in members \[1, 2\] of the population"):
        warn_of_collapse((np.stack([flow, cut, flow]), np.stack([flow, flow, cut])))
    model = random_model(network=mm.Network((4, 2, 2)))
    with pytest.warns(RuntimeWarning, match="no kept weight") as caught:
        one_shot(model, allocation=[1.0, 0.0])
    assert caught[0].filename == __file__


# Schedules.


@given(st.floats(0, 1), st.integers(1, 40))
def test_gradual_rises_to_its_end(ramp, epochs):
    """One part before every epoch of the ramp, the last of them 1 exactly; then none."""
    schedule = pruning_schedules.gradual(ramp=ramp)
    parts = [schedule.parts(epoch, epochs) for epoch in range(epochs)]
    count = sum(map(len, parts))
    assert all(len(part) == (epoch < count) for epoch, part in enumerate(parts))
    flat = [part for own in parts for part in own]
    assert flat[-1] == 1
    np.testing.assert_allclose(np.diff([0, *flat]), 1 / count, rtol=1e-9)
    assert abs(count - 1 - min(ramp * epochs, epochs - 1)) <= 0.5 + 1e-9


@given(st.floats(0, 1), st.integers(1, 40), st.integers(1, 8))
def test_periodic_shares_out_its_rounds(ramp, epochs, rounds):
    """All of them, in order, evenly over the ramp, the first before the first epoch."""
    schedule = pruning_schedules.periodic(rounds=rounds, ramp=ramp)
    parts = [(epoch, part) for epoch in range(epochs) for part in schedule.parts(epoch, epochs)]
    assert [part for _, part in parts] == [(i + 1) / rounds for i in range(rounds)]
    assert parts[0][0] == 0 and parts[-1][1] == 1
    for i, (epoch, _) in enumerate(parts):
        assert abs(epoch - min(ramp * epochs * i / max(1, rounds - 1), epochs - 1)) <= 0.5 + 1e-9


@given(st.floats(0, 0.99), st.integers(1, 10))
def test_rounds_take_equal_parts_of_what_is_left(s, rounds):
    for schedule in (pruning_schedules.one_shot(rounds=rounds), pruning_schedules.periodic(rounds=rounds, ramp=0)):
        parts = schedule.parts(0, 5)
        left = [1.0, *(1 - float(schedule.sparsity(np.zeros(()), np.asarray(s), part)) for part in parts)]
        assert left[-1] == pytest.approx(1 - s, abs=1e-12)
        np.testing.assert_allclose([b / a for a, b in pairwise(left)], (1 - s) ** (1 / rounds), rtol=1e-9)
        assert not any(schedule.parts(epoch, 5) or schedule.exchanged(epoch, 5) for epoch in range(1, 5))


def test_literal_schedules():
    gradual = pruning_schedules.gradual(ramp=0.5)
    assert [gradual.parts(epoch, 8) for epoch in range(8)] == [(0.2,), (0.4,), (0.6,), (0.8,), (1.0,), (), (), ()]
    assert gradual.sparsity(0.0, 0.8, 0.5) == pytest.approx(0.7)  # 0.8·(1 − ½³)
    assert gradual.sparsity(0.4, 0.8, 0.5) == pytest.approx(0.75)
    periodic = pruning_schedules.periodic(rounds=3, ramp=0.5)
    assert [periodic.parts(epoch, 8) for epoch in range(5)] == [(1 / 3,), (), (2 / 3,), (), (1.0,)]
    assert periodic.sparsity(0.0, 0.875, 2 / 3) == pytest.approx(0.75)
    assert periodic.sparsity(0.5, 0.875, 0.5) == pytest.approx(0.75)
    assert pruning_schedules.one_shot(rounds=2).parts(0, 0) == (0.5, 1.0)
    regrow = pruning_schedules.regrow(drop=0.4, every=2, until=0.8)
    assert [regrow.parts(epoch, 10) for epoch in range(10)] == [(1.0,)] + [()] * 9
    found = [regrow.exchanged(epoch, 10) for epoch in range(10)]
    expected = [0, 0, 0.2 * (1 + np.cos(np.pi / 4)), 0, 0.2, 0, 0.2 * (1 - np.cos(np.pi / 4)), 0, 0, 0]
    assert found == pytest.approx(expected, abs=1e-12)


class Recorded(list):
    """The masks of every cut of a run, with its epoch and the parameters it was made from."""

    def cut(self, pruner, epoch, old, params, moved):
        given = pruner.problem.backend.to_numpy(tree.map(lambda leaf: leaf + 0.0, params))
        found = CUT(pruner, epoch, old, params, moved)
        if found is not None:
            self.append((epoch, old, given, found.masks))
        return found


CUT = Pruner.cut


@pytest.fixture
def cuts(monkeypatch):
    record = Recorded()
    monkeypatch.setattr(Pruner, "cut", lambda knife, *args: record.cut(knife, *args))
    return record


TRAINING = {"seed": 0, "batch_size": 16, "optimizer": optimizers.momentum(0.05)}


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("schedule", ["gradual", "periodic"])
def test_what_is_gone_stays_so(cuts, name, schedule):
    """Epoch after epoch, though weights and scores change; so many units are gone as the schedule says."""
    options = {"sparsity": 0.8, "pattern": PATTERNS[name], "schedule": schedule, "epochs": 8, "score": "taylor"}
    found = mm.prune(random_model(2), DATA, **options, **TRAINING)
    parts = [part for epoch in range(8) for part in pruning_schedules.get(schedule).parts(epoch, 8)]
    reached = [0.8 * (1 - (1 - part) ** 3) if schedule == "gradual" else 1 - 0.2**part for part in parts]
    total = sum(unit.shape[-1] for unit in kept_units(name, found.masks))
    expected = [total - round(s * total) for s in reached]
    expected = [n for i, n in enumerate(expected) if not i or n < expected[i - 1]]  # a cut of nothing is none
    assert len(cuts) == len(expected) > 2
    assert_same_masks(found.masks, cuts[-1][3])
    for (_, _, _, before), (_, old, _, after) in pairwise(cuts):
        assert old is before
        assert all((~new | was).all() for new, was in zip(after, before, strict=True))
    for (*_, masks), n in zip(cuts, expected, strict=True):
        assert (sum(unit.sum(axis=-1) for unit in kept_units(name, masks)) == n).all()


@given(st.integers(0, 99), st.floats(0, 1), st.floats(0, 1), st.sampled_from(FREE), st.booleans())
def test_new_masks_are_within_the_old(seed, one, other, name, pooled):
    """Also for other scores, negative ones among them, and ties."""
    rng, (less, more) = np.random.default_rng(seed), sorted((one, other))
    first, second = ([np.round(rng.normal(size=shape) * 2) for shape in NETWORK.shapes] for _ in range(2))
    sizes = [len(part) for part in flat_scores(name, first)]

    def kept(share):
        return round((1 - share) * sum(sizes)) if pooled else [round((1 - share) * size) for size in sizes]

    old = choose(first, kept(less), pattern=name, pooled=pooled)
    new = choose(second, kept(more), old, name, pooled=pooled)
    assert all((~n | o).all() for n, o in zip(new, old, strict=True))
    counts = [int(unit.sum()) for unit in kept_units(name, new)]
    assert (sum(counts) if pooled else counts) == kept(more)


@pytest.mark.parametrize("name", ["rows", "columns", "neurons"])
def test_lines_of_a_pruned_model_count_what_is_left(backend, name):
    """Single weights that were pruned before score nothing for their line and stay gone; an empty line is no line."""
    rng = np.random.default_rng(3)
    values = [rng.uniform(size=shape) for shape in NETWORK.shapes]
    old = tuple(rng.random(shape) < 0.4 for shape in NETWORK.shapes)
    old[0][:, 2] = old[1][:, 3] = old[1][4] = False  # two columns and a row
    left = [value * mask for value, mask in zip(values, old, strict=True)]
    scored, full = flat_scores(name, left), flat_scores(name, values)
    kept = sum(map(len, scored)) // 2
    best = largest(scored, kept)
    assert any((a != b).any() for a, b in zip(best, largest(full, kept), strict=True))
    found = choose(values, kept, old, name, backend=backend)
    if name == "neurons":
        ends = [np.ones(5, bool), *best, np.ones(3, bool)]
        lines = [before[:, None] & after for before, after in pairwise(ends)]
    else:
        lines = [part[:, None] if name == "rows" else part for part in best]
    assert_same_masks(found, [mask & line for mask, line in zip(old, lines, strict=True)])


def test_every_look_has_a_key_of_its_own():
    """Rounds, epochs, and within one what goes and what comes."""
    seen = []

    def spy(e):
        seen.append(tuple(e.key.tolist()))
        return scores.magnitude(e)

    for schedule, looks in (
        (pruning_schedules.one_shot(rounds=3), 3),
        (pruning_schedules.gradual(), 4),
        (pruning_schedules.regrow(first=spy, grow=spy, until=1), 1 + 2 * 5),
    ):
        seen.clear()
        mm.prune(random_model(), DATA, sparsity=0.5, score=spy, schedule=schedule, epochs=6, **TRAINING)
        assert len(seen) == len(set(seen)) == looks


def test_rounds_look_at_what_is_left():
    """In each round the weights are 0 that went in those before."""
    seen = []

    def spy(e):
        seen.append(sum(np.count_nonzero(layer.weight) for layer in e.params))
        return scores.magnitude(e)

    one_shot(random_model(), sparsity=0.875, score=spy, schedule=pruning_schedules.one_shot(rounds=3))
    assert seen == [WEIGHTS, WEIGHTS - round(WEIGHTS / 2), WEIGHTS - round(WEIGHTS * 3 / 4)]


# Exchange.


def exchanged(score, growth, old, part):
    """Of the kept the lowest go, of equal ones the last; of all that did not stay the highest growth come."""
    n = int(old.sum())
    m = round(np.float32(part) * np.float32(n))
    stay = largest([np.where(old, score, -np.inf)], n - m)[0]
    return stay | largest([np.where(stay, -np.inf, growth)], m)[0]


def run_exchange(values, growth, old, part, pattern, backend="numpy"):
    backend = mm.backends.load(backend)
    choice = Choice(backend, pattern, True, (0,) * len(values))
    run = backend.jit(make.exchange, static=("choice",))
    return backend.to_numpy(run(values, growth, old, np.asarray(part, np.float32), choice=choice))


@pytest.mark.parametrize("step", [None, 1.0], ids=["distinct", "ties"])
@pytest.mark.parametrize("name", FREE)
def test_exchange_is_literal(backend, name, step):
    """Each layer by itself, of members with different counts."""
    rng, members = np.random.default_rng(4), 2
    values, growth = ([rng.normal(size=(members, *shape)) for shape in NETWORK.shapes] for _ in range(2))
    if step:
        values, growth = ([np.round(part / step) * step for part in parts] for parts in (values, growth))
    values, growth = (tuple(part.astype(np.float32) for part in parts) for parts in (values, growth))
    sizes = [len(part) for part in flat_scores(name, [value[0] for value in values])]
    kept = np.array([sum(sizes) // 2, sum(sizes) * 3 // 4])
    old = choose([rng.random(value.shape) for value in values], kept, pattern=name)
    found = run_exchange(values, growth, old, 0.4, PATTERNS[name], backend)
    before, after = kept_units(name, old), kept_units(name, found)
    assert any((a != b).any() for a, b in zip(before, after, strict=True))
    for i in range(members):
        pairs = zip(*(flat_scores(name, [part[i] for part in parts]) for parts in (values, growth)), strict=True)
        for layer, (score, grown) in enumerate(pairs):
            np.testing.assert_array_equal(
                after[layer][i], exchanged(score, grown, before[layer][i], 0.4), err_msg=f"member {i}, layer {layer}"
            )


@given(st.integers(0, 99), st.floats(0, 1), st.integers(2, 4), st.data())
def test_exchange_keeps_n_of_m(seed, part, m, data):
    """As many as before in every layer, and at most n of every m; those that stay are the highest."""
    n, rng = data.draw(st.integers(1, m - 1)), np.random.default_rng(seed)
    values, growth = (tuple(rng.normal(size=shape).astype(np.float32) for shape in NETWORK.shapes) for _ in range(2))
    pattern = patterns.n_of_m(n, m)
    least = sum(int(winners(value, n, m).sum()) for value in values)
    old = choose([rng.random(shape) for shape in NETWORK.shapes], int(least * 0.8), pattern=pattern)
    found = run_exchange(values, growth, old, part, pattern)
    assert_at_most(found, n, m)
    for score, grown, before, after in zip(values, growth, old, found, strict=True):
        assert before.sum() == after.sum()
        moved = round(np.float32(part) * np.float32(before.sum()))
        stay = largest([np.where(before, score, -np.inf).ravel()], int(before.sum()) - moved)[0].reshape(score.shape)
        assert after[stay].all()
        allowed = winners(np.where(stay, np.inf, grown), n, m) & ~stay
        rank = np.where(allowed, grown, -np.inf).ravel()
        assert_same_masks([after.ravel()], [largest([rank], moved)[0] | stay.ravel()])


@pytest.mark.parametrize("grow", ["gradient", "random"])
@pytest.mark.parametrize("population", [None, 2])
def test_regrow_exchanges_weights(cuts, grow, population):
    """RigL and SET: the lowest magnitudes go; the highest gradients come, or any; all keep their count."""
    start = one_shot(random_model(population), sparsity=0.6, allocation="erdos_renyi", score="random")
    cuts.clear()
    schedule = pruning_schedules.regrow(grow=grow, drop=0.5)
    options = {"sparsity": 0.6, "allocation": "erdos_renyi", "schedule": schedule, "epochs": 8}
    found = mm.prune(random_model(population), DATA, **options, **TRAINING)
    assert_same_masks(cuts[0][3], start.masks)  # by scores of their own
    assert [epoch for epoch, *_ in cuts][:5] == [0, 1, 2, 3, 4] and cuts[-1][0] <= 5  # until ¾ of the epochs
    counts = [[mask.sum(axis=(-2, -1)).tolist() for mask in masks] for *_, masks in cuts]
    assert counts == counts[:1] * len(cuts)
    assert_same_masks(found.masks, cuts[-1][3])
    assert_zeros(found)
    for epoch, old, params, new in cuts[1:]:
        grads = mm.value_and_grad(NETWORK, "softmax_cross_entropy", params, DATA.train.x, DATA.train.y)[1]
        part = 0.25 * (1 + np.cos(np.pi * epoch / 6))
        for member in range(population or 1):
            at = () if population is None else (member,)
            for layer, grad, before, after in zip(params, grads, old, new, strict=True):
                w, g, b, a = (part[at].ravel() for part in (layer.weight, abs(grad.weight), before, after))
                if grow == "gradient":
                    np.testing.assert_array_equal(a, exchanged(abs(w), g, b, part))
                else:
                    moved = round(np.float32(part) * np.float32(b.sum()))
                    stay = largest([np.where(b, abs(w), -np.inf)], int(b.sum()) - moved)[0]
                    assert a[stay].all() and a.sum() == b.sum()
    if grow == "random":
        other = mm.prune(random_model(population), DATA, **options, **{**TRAINING, "seed": 9})
        assert any((a != b).any() for a, b in zip(found.masks, other.masks, strict=True))


def test_regrow_revives_weights(cuts):
    """What came back starts at 0 and learns."""
    schedule = pruning_schedules.regrow(drop=0.5, until=0.5)
    options = {"sparsity": 0.5, "schedule": schedule, "epochs": 8}
    found = mm.prune(random_model(network=replace(NETWORK, activation="tanh")), DATA, **options, **TRAINING)
    first = cuts[0][3]
    assert all((mask & ~was).any() for mask, was in zip(found.masks, first, strict=True))
    _, old, params, _ = cuts[1]
    assert not any(layer.weight[~was].any() for layer, was in zip(params, old, strict=True))
    final = [layer.weight for layer in found.state.params]
    assert all(w[mask & ~was].all() for w, mask, was in zip(final, found.masks, first, strict=True))


@pytest.mark.parametrize("name", [name for name in PATTERNS if name not in ("unstructured", "neurons")])
def test_regrow_keeps_the_pattern(cuts, name):
    schedule = pruning_schedules.regrow(drop=0.5)
    found = mm.prune(
        random_model(2), DATA, sparsity=0.6, pattern=PATTERNS[name], schedule=schedule, epochs=6, **TRAINING
    )
    counts = [[unit.sum(axis=-1).tolist() for unit in kept_units(name, masks)] for *_, masks in cuts]
    assert len(counts) > 1 and counts == counts[:1] * len(counts)
    assert any((a != b).any() for a, b in zip(cuts[0][3], found.masks, strict=True))
    if name == "n_of_m":
        for *_, masks in cuts:
            assert_at_most(masks, 2, 4)
    assert_zeros(found)


@pytest.mark.parametrize("schedule", ["one_shot", "gradual", "periodic", "regrow"])
def test_every_backend_goes_the_same_way(backend, schedule):
    """With training between the cuts; scores are far enough from each other not to mind the rounding."""
    options = {"sparsity": 0.6, "schedule": schedule, "epochs": 3, "seed": 0, "optimizer": optimizers.sgd(0.02)}
    found, expected = (mm.prune(random_model(), DATA, backend=each, **options) for each in (backend, "numpy"))
    assert_same_masks(found.masks, expected.masks)
    for a, b in zip(weights(found), weights(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


# Properties.


DISTINCT = [
    (score, name) for score in ("magnitude", "taylor", "lamp", "synaptic_flow", "wanda", "fisher") for name in FREE
] + [("neuron_taylor", "columns"), ("activation", "neurons")]  # by which the weights of a neuron tie


@pytest.mark.parametrize(("score", "name"), DISTINCT)
def test_permuted_neurons_have_permuted_masks(score, name):
    """The order of hidden neurons means nothing."""
    model, rng = random_model(network=replace(NETWORK, activation="tanh")), np.random.default_rng(2)
    orders = [np.arange(5), rng.permutation(8), rng.permutation(6), np.arange(3)]

    def turned(matrices):
        return [m[before][:, after] for m, (before, after) in zip(matrices, pairwise(orders), strict=True)]

    biases = [layer.bias[order] for layer, order in zip(model.params, orders[1:], strict=True)]
    other = replace(model, params=tuple(map(mm.Layer, turned(weights(model)), biases)))
    one, two = (one_shot(each, sparsity=0.5, score=score, pattern=PATTERNS[name]) for each in (model, other))
    assert_same_masks(two.masks, turned(one.masks))
    assert any((mask != was).any() for mask, was in zip(two.masks, one.masks, strict=True))


@given(st.floats(0, 1), st.sampled_from(list(PATTERNS)), st.sampled_from(ALLOCATIONS), st.integers(0, 9))
def test_pruning_again_changes_nothing(sparsity, name, allocation, seed):
    options = {"sparsity": sparsity, "pattern": PATTERNS[name], "allocation": allocation}
    once = one_shot(random_model(seed=seed), **options)
    twice = one_shot(once, **options)
    assert_same_masks(once.masks, twice.masks)
    for a, b in zip(tree.leaves(once.params), tree.leaves(twice.params), strict=True):
        np.testing.assert_array_equal(a, b)


PULLING = {"weight_decay": 0.1, "l1": 0.05, "group_l1": 0.05, "clip_norm": 1.0, "sharpness": 0.1, "average": 0.5}
TRAINERS = {
    name: getattr(optimizers, name)(0.05)
    for name in ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "amsgrad", "nadam", "lion")
} | {
    "lbfgs": optimizers.lbfgs(weight_decay=0.1),
    "rmsprop centered": optimizers.rmsprop(0.05, centered=True, momentum=0.9),
    "decoupled": optimizers.momentum(0.05, weight_decay=0.1, decoupled=True),
    "sharpness": optimizers.adam(0.05, sharpness=0.5),
    "average": optimizers.momentum(0.05, average=0.9),
    "group_l1": optimizers.sgd(0.05, group_l1=0.1),
    "l1": optimizers.nesterov(0.05, l1=0.1),
    "all": optimizers.adamw(0.05, **PULLING),
    "tracked": optimizers.tracked(optimizers.adam(0.05)),
}


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("schedule", ["one_shot", "gradual", "regrow"])
def test_no_optimizer_revives_a_weight(cuts, name, schedule):
    """Zeros stay zeros, in what is best and in where the run stands; what is exchanged is 0 too once it is gone."""
    options = {**TRAINING, "optimizer": TRAINERS[name], "sparsity": 0.6, "schedule": schedule, "epochs": 5}
    before = random_model(2)
    found = mm.prune(before, DATA, **options)
    assert_zeros(found)
    assert_zeros(replace(found, params=tuple(found.state.params)))
    for _, old, params, _ in cuts:
        for layer, mask in zip(params, old or (), strict=False):
            assert not layer.weight[~mask].any()
    assert any(
        (new[mask] != old[mask]).any()
        for new, old, mask in zip(
            weights(replace(found, params=found.state.params)), weights(before), found.masks, strict=True
        )
    )


@pytest.mark.parametrize("schedule", ["one_shot", "gradual"])
def test_weights_that_stay_are_rewound(population, schedule):
    """To the parameters that were given, bit for bit, biases too; at a rate of 0 they stay there."""
    start, trained = random_model(population, seed=1), random_model(population, seed=2)
    options = {"epochs": 0} if schedule == "one_shot" else {"epochs": 4, "optimizer": optimizers.sgd(0.0)}
    found = one_shot(trained, sparsity=0.5, rewind=start.params, schedule=schedule, **options)
    if schedule == "one_shot":
        assert_same_masks(found.masks, one_shot(trained, sparsity=0.5).masks)
    for new, old, mask in zip(found.params, start.params, found.masks, strict=True):
        np.testing.assert_array_equal(new.weight, old.weight * mask)
        np.testing.assert_array_equal(new.bias, old.bias)


def test_rewound_weights_train_from_there(cuts):
    """Every cut begins anew; the one after sees what training made of the rewound weights."""
    start, trained = random_model(seed=1), random_model(seed=2)
    options = {"sparsity": 0.7, "schedule": "periodic", "epochs": 8, "rewind": start.params}
    found = mm.prune(trained, DATA, **options, **TRAINING)
    assert_same_masks([params.weight for params in cuts[0][2]], weights(trained))
    for _, old, params, _ in cuts[1:]:
        near, far = (
            sum(
                float(np.abs(p.weight - model_w * mask).sum()) for p, model_w, mask in zip(params, of, old, strict=True)
            )
            for of in (weights(start), weights(trained))
        )
        assert 0 < near < far / 2
    assert_zeros(found)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("name", PATTERNS)
def test_masks_are_the_same_on_every_backend_and_for_every_member(backend, name, allocation):
    """Members of a sparsity each are runs of their own."""
    model, shares = random_model(3), np.array([0.55, 0.6, 0.7])
    options = {"pattern": PATTERNS[name], "allocation": allocation, "cap": 1.0 if name == "n_of_m" else 0.85}
    found = one_shot(model, sparsity=shares, backend=backend, **options)
    for i, share in enumerate(shares):
        alone = one_shot(model.member(i), sparsity=share, **options)
        assert_same_masks(found.member(i).masks, alone.masks)
        for a, b in zip(tree.leaves(found.member(i).params), tree.leaves(alone.params), strict=True):
            np.testing.assert_array_equal(a, b)


def test_members_draw_by_their_own_seeds():
    model = random_model(3)
    for options in ({"sparsity": 0.5}, {"count": np.array([10, 20, 50])}):
        found = one_shot(model, score="random", seed=5, **options)
        for i in range(3):
            own = {name: value if np.ndim(value) == 0 else value[i] for name, value in options.items()}
            alone = one_shot(model.member(i), score="random", seed=5 + i, **own)
            assert_same_masks(found.member(i).masks, alone.masks)
    assert any((mask[0] != mask[1]).any() for mask in one_shot(model, score="random", sparsity=0.5).masks)


# Bad input.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "lines"}, "pattern: expected"),
        ({"pattern": patterns.rows}, "pattern: expected"),
        ({"pattern": 4}, "pattern: expected"),
        ({"pattern": patterns.neurons(), "count": 15}, "count: expected integers from 0 to 14"),
        ({"pattern": patterns.neurons(), "allocation": [0.5, 0.5, 0.5]}, "allocation: expected .* or 2 sparsities"),
        ({"pattern": patterns.n_of_m(2, 4), "sparsity": 0.5, "count": 3}, "give one of sparsity"),
        ({"pattern": patterns.n_of_m(8, 9)}, "give one of sparsity"),  # no layer has 9 inputs: nothing to remove
        ({"sparsity": 0.5, "allocation": "erdos"}, "allocation: expected one of global, uniform, erdos_renyi"),
        ({"sparsity": 0.5, "allocation": ["0.5"] * 3}, "allocation: expected"),
        ({"sparsity": 0.5, "cap": "all"}, "cap: expected"),
        ({"sparsity": 0.5, "cap": -0.1}, "cap: expected"),
        ({"sparsity": 0.5, "cap": np.nan}, "cap: expected"),
        ({"sparsity": 0.5, "cap": True}, "cap: expected"),
        ({"sparsity": 0.5, "cap": [0.5, 0.5]}, "cap: expected"),
        ({"sparsity": 0.5, "cap": 0.49}, "cap: 0.49 keeps"),
        ({"allocation": [0.9, 0.1, 0.1], "cap": 0.5}, "cap: 0.5 keeps"),
        ({"sparsity": 0.5, "score": 3}, "score: expected a function of Evidence or one of"),
        ({"sparsity": 0.5, "schedule": pruning_schedules.gradual}, "schedule: expected a schedule or one of"),
        ({"sparsity": 0.5, "schedule": "cosine", "epochs": 3}, "schedule: expected a schedule or one of"),
        ({"sparsity": 0.5, "schedule": "periodic"}, "epochs: expected at least 1"),
        ({"sparsity": 0.5, "rewind": random_model(2).params}, "rewind: expected"),
        ({"sparsity": 0.5, "rewind": random_model().params, "correct": True}, "correct: rewinding"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        one_shot(random_model(), **options)


@pytest.mark.parametrize(
    ("make_part", "message"),
    [
        (lambda: patterns.n_of_m(0, 4), "n_of_m: expected 0 < n < m, got 0 of 4"),
        (lambda: patterns.n_of_m(4, 4), "n_of_m: expected 0 < n < m"),
        (lambda: patterns.n_of_m(2.0, 4), "n_of_m: expected two integers"),
        (lambda: patterns.n_of_m(True, 4), "n_of_m: expected two integers"),
        (lambda: pruning_schedules.one_shot(rounds=0), "rounds: expected"),
        (lambda: pruning_schedules.periodic(rounds=2.5), "rounds: expected"),
        (lambda: pruning_schedules.periodic(ramp=1.5), "ramp: expected a number from 0 to 1"),
        (lambda: pruning_schedules.gradual(ramp=None), "ramp: expected"),
        (lambda: pruning_schedules.gradual(ramp=np.nan), "ramp: expected"),
        (lambda: pruning_schedules.regrow(drop=-0.1), "drop: expected"),
        (lambda: pruning_schedules.regrow(drop=True), "drop: expected"),
        (lambda: pruning_schedules.regrow(until=2), "until: expected"),
        (lambda: pruning_schedules.regrow(every=0), "every: expected"),
        (lambda: pruning_schedules.regrow(first="best"), "(score|first): expected a function of Evidence"),
        (lambda: pruning_schedules.regrow(grow=None), "(score|grow): expected a function of Evidence"),
        (lambda: pruning_schedules.get(None), "schedule: expected"),
    ],
)
def test_parts_refuse_what_does_not_fit(make_part, message):
    with pytest.raises(ValueError, match=message):
        make_part()


def test_a_network_without_hidden_neurons_has_none_to_remove():
    with pytest.raises(ValueError, match="pattern: this network has no hidden neurons"):
        one_shot(random_model(network=mm.Network((5, 3))), sparsity=0.5, pattern=patterns.neurons())


def test_names_of_patterns():
    for name in FREE:
        assert patterns.get(name) == PATTERNS[name]
    assert patterns.get("2:4") == patterns.n_of_m(2, 4) == patterns.get(PATTERNS["n_of_m"])
    for wrong in ("n_of_m", "get", "2:", ":4", "2:4:8", "-2:4", "", None, 2):
        with pytest.raises(ValueError, match="pattern: expected a pattern, '2:4' or one of unstructured, rows"):
            patterns.get(wrong)


def test_names_of_schedules():
    for name in ("one_shot", "periodic", "gradual", "regrow"):
        assert pruning_schedules.get(name) == getattr(pruning_schedules, name)()
    own = pruning_schedules.gradual(ramp=0.3)
    assert pruning_schedules.get(own) is own
    assert pruning_schedules.regrow().first is scores.random
    assert pruning_schedules.regrow().grow is scores.gradient
