"""The programs of gradient descent: what is compiled, what it is compiled for, and what flows through it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from minimodel import losses, random, tree
from minimodel.backends import Backend
from minimodel.gradients import objective
from minimodel.losses import Loss
from minimodel.network import Network, Params
from minimodel.problem import Masks, Rows, each_params, masked, nan_last, to_backend
from minimodel.search import dropout
from minimodel.search.packed import pack, unpack
from minimodel.search.rules import Rule
from minimodel.tree import Array, Tree, align


class Through(Protocol):
    """A function that the parameters pass before they meet the data, and the way its gradient comes back.

    forward(values, params) -> params used; backward(values, params, grads by those used) -> grads by params. Arrays
    among the values have the population's axis in front. ``learned``: those params are more than the network's, which
    come first.
    """

    @property
    def learned(self) -> bool: ...

    def forward(self, values: Tree, params: Params) -> Params: ...

    def backward(self, values: Tree, params: Params, grads: Params) -> Params: ...


@dataclass(frozen=True)
class Direct:
    """Nothing on the way."""

    learned = False

    def forward(self, values: Tree, params: Params) -> Params:
        """The parameters."""
        return params

    def backward(self, values: Tree, params: Params, grads: Params) -> Params:
        """The gradient."""
        return grads


class Static(NamedTuple):
    """What a training program is compiled for."""

    backend: Backend
    network: Network
    loss: Loss
    rule: Rule
    through: Through
    batch_size: int
    packed: bool = False


class Noise(NamedTuple):
    """What is random or blurred in training alone; None where it is absent."""

    inputs: Array | None = None
    hidden: Array | None = None
    labels: Array | None = None


class Draws(NamedTuple):
    """The keys of an epoch: for the order of the rows, and for dropout where there is any."""

    order: Array
    noise: Array | None = None


class Traced(NamedTuple):
    """What a training program is given: numbers that change without recompiling."""

    config: Tree
    masks: tuple[Array, ...] | None = None
    values: Tree = None
    noise: Noise = Noise()
    active: Array | None = None  # 1 for members whose best may still change, 0 for those that have stopped


class State(NamedTuple):
    """A training run between two epochs."""

    params: Params
    opt_state: Tree
    best: Params  # the best on validation so far, as it is used
    best_loss: Array  # (*population,)
    last: Params  # the last after an epoch with a finite validation loss, as it is used


def enter(static: Static, values: Tree) -> Tree:
    """Every ``Params`` of the tree as the loop keeps it."""
    return each_params(pack, values) if static.packed else values


def leave(static: Static, values: Tree) -> Tree:
    """Every ``Params`` of the tree as everyone else knows it."""
    return each_params(partial(unpack, static.network), values) if static.packed else values


def masks_on(static: Static, masks: Masks | None) -> tuple[Array, ...] | None:
    """The masks on the backend, as the loop keeps the weights."""
    if masks is None or not static.packed:
        return masks and to_backend(static.backend, masks)
    flat = [mask.reshape((*mask.shape[:-2], -1)) for mask in masks]
    return to_backend(static.backend, (np.concatenate(flat, axis=-1),))


def begin(params: Params, opt_state: Tree, validation: Rows, given: Traced, *, static: Static) -> State:
    """Enforce the masks on the parameters and the optimizer's state, new if None; the best so far is where we stand."""
    params = masked(params, given.masks)
    opt_state = static.rule.init(params) if opt_state is None else masked(opt_state, given.masks)
    best, last = (
        tree.map(lambda p: static.backend.xp.asarray(p, copy=True), static.rule.read(params, opt_state))
        for _ in range(2)  # donated buffers must be distinct
    )
    return State(params, opt_state, best, nan_last(validation_loss(best, validation, given, static)), last)


def survivors(state: State, *, static: Static) -> State:
    """The state with every member whose parameters are not finite any more taken back to its best, its optimizer new.

    A line search does not get there: it takes back what is not finite.
    """
    xp = tree.namespace(state.params)
    alive = xp.ones_like(state.best_loss, dtype=xp.bool)
    for leaf in tree.leaves(state.params):
        alive = alive & xp.all(xp.isfinite(leaf), axis=tuple(range(alive.ndim, leaf.ndim)))
    params = tree.map(lambda new, old: xp.where(align(alive, new), new, old), state.params, state.best)

    def revived(old: Array, new: Array) -> Array:
        return xp.where(align(alive, old), old, new) if old.ndim > alive.ndim else old

    if static.rule.full_batch:
        return state._replace(params=params)
    return state._replace(params=params, opt_state=tree.map(revived, state.opt_state, static.rule.init(params)))


def validation_loss(params: Params, validation: Rows, given: Traced, static: Static) -> Array:
    """J on the validation part, of the parameters as they are used."""
    used = static.through.forward(given.values, leave(static, params))
    return losses.mean(static.loss.rows(static.network.apply(used, validation.x), validation.t)[0])


def epoch(
    state: State, rows: Rows, validation: Rows, key: Draws, rates: Array, given: Traced, *, static: Static
) -> tuple[State, Array, Array]:
    """The last chunk of an epoch, then the best so far by validation: the state, the loss of each step and that."""

    def run(state: State, key: Draws, rates: Array, given: Traced) -> tuple[State, Array, Array]:
        state, found = steps(state, key, rates, given, rows=rows, static=static)
        xp, used = static.backend.xp, static.rule.read(state.params, state.opt_state)
        loss = validation_loss(used, validation, given, static)
        better = (loss < state.best_loss) & given.active

        def chosen(which: Array, old: Params) -> Params:
            return tree.map(lambda old, new: xp.where(align(which, new), new, old), old, used)

        best, last = chosen(better, state.best), chosen(xp.isfinite(loss), state.last)
        return State(state.params, state.opt_state, best, xp.where(better, loss, state.best_loss), last), found, loss

    return by_parts(run, state, key, rates, given, static)


def descend(
    state: State, rows: Rows, key: Draws, rates: Array, given: Traced, *, static: Static
) -> tuple[State, Array]:
    """One pass over the rows in a random order: the new state, and the loss of each step."""
    return by_parts(partial(steps, rows=rows, static=static), state, key, rates, given, static)


def by_parts(run: Callable[..., Any], state: State, key: Draws, rates: Array, given: Traced, static: Static) -> Any:
    """run(…) -> (state, loss of each step, …) of the population or, where that is much, of one part after the other.

    Members know nothing of each other, and a part that stays in the cache for a whole epoch is soon done. What is
    parted has the members' axis in front or is a number, else all is one part; rates and losses (steps, *population)
    have it behind, and masks may lack it.
    """
    xp, members, masks = static.backend.xp, state.best_loss.shape, given.masks
    shared = masks if masks and masks[0].ndim < state.params[0].weight.ndim else None
    own = (state, key, rates.mT if rates.ndim > 1 else None, given._replace(masks=None) if shared else given)
    count = parts_of(static, members)
    if count == 1 or any(leaf.shape[:1] not in ((), members) for leaf in tree.leaves(own)):
        return run(state, key, rates, given)
    size = members[0] // count

    def parted(leaf: Array) -> Array:
        if leaf.ndim:
            return xp.reshape(leaf, (count, size, *leaf.shape[1:]))
        return xp.repeat(xp.reshape(leaf, (1,)), count)  # a number of its own for each part, which steps may consume

    def joined(leaf: Array) -> Array:
        return xp.reshape(leaf, (count * size, *leaf.shape[2:])) if leaf.ndim > 1 else leaf[0, ...]

    def part(carry: None, own: tuple[State, Draws, Array | None, Traced]) -> tuple[None, tuple[Any, ...]]:
        state, key, some, given = own
        given = given._replace(masks=shared) if shared else given
        state, losses, *held = run(state, key, rates if some is None else some.mT, given)
        return None, (state, losses.mT, *held)

    state, losses, *held = tree.map(joined, static.backend.scan(part, None, tree.map(parted, own))[1])
    return state, losses.mT, *held


def parts_of(static: Static, members: tuple[int, ...]) -> int:
    """How many parts of one size the population is trained in, so that the backend keeps each in its cache.

    One, where all such parts are less than half as large as they may be: many at once are worth more than the cache.
    And with all rows in every step, since an epoch is then over before the cache can help.
    """
    most = max(1, static.backend.keeps // static.network.parameters)
    if not members or static.rule.full_batch:
        return 1
    size = max(size for size in range(1, min(most, members[0]) + 1) if members[0] % size == 0)
    return members[0] // size if 2 * size >= most else 1


def steps(state: State, key: Draws, rates: Array, given: Traced, *, rows: Rows, static: Static) -> tuple[State, Array]:
    """A step for each rate: the new state, and the loss of each."""
    backend = static.backend

    def step(carry: tuple[Params, Tree, Traced], inputs: tuple[Array, Array, Array]) -> tuple[Any, Array]:
        (params, opt_state, given), (picked, noise_key, rate) = carry, inputs
        noise = given.noise
        batch = rows if static.rule.full_batch else tree.map(lambda leaf: backend.take(leaf, picked), rows)
        t = batch.t
        if noise.labels is not None:
            t = losses.smooth(t, noise.labels, None if static.loss.labels else 2)
        dropped = None
        if noise_key is not None:
            sizes = static.network.layer_sizes[:-1]
            dropped = dropout.noise(noise_key, noise.inputs, noise.hidden, sizes, static.batch_size, backend=backend)

        def evaluate(params: Params, away: Params | None = None) -> tuple[Array, Params]:
            own = leave(static, params)
            used = static.through.forward(given.values, own)
            if away is not None:
                used = tree.map(lambda p, e: p + e, used, leave(static, away)[: len(used)])
            loss, grads = objective(static.network, static.loss, used, batch.x, t, batch.weight, dropped)
            return loss, masked(enter(static, static.through.backward(given.values, own, grads)), given.masks)

        loss, params, opt_state = static.rule.update(given.config, rate, evaluate, opt_state, params)
        return (params, opt_state, given), loss

    noise_keys = None
    if key.noise is not None:
        numbers = backend.xp.arange(rates.shape[0], dtype=backend.xp.uint32)
        noise_keys = backend.xp.moveaxis(random.fold_in(key.noise, numbers), -2, 0)
    batches = mini_batches(key.order, rows.x.shape[0], static)
    # What is given is carried along, so that NumPy's record of the step serves every part of a population.
    carry, found = backend.scan(step, (state.params, state.opt_state, given), (batches, noise_keys, rates))
    params, opt_state, _ = carry
    return state._replace(params=params, opt_state=opt_state), found


def mini_batches(key: Array, rows: int, static: Static) -> Array:
    """Row numbers in the order of random words, (steps, *population, batch); the remainder is left out."""
    xp, size = static.backend.xp, static.batch_size
    steps = rows // size
    order = static.backend.order(static.backend.random_bits(key, (rows,)))[..., : steps * size]
    return xp.moveaxis(xp.reshape(order, (*key.shape[:-1], steps, size)), -2, 0)
