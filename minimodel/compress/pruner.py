"""What makes the masks of ``prune`` before an epoch, from the scores of that moment."""

from typing import NamedTuple

import numpy as np

from minimodel import random, tree
from minimodel.backends import Backend
from minimodel.compress import masks as make
from minimodel.compress import scores
from minimodel.compress.masks import Choice
from minimodel.compress.patterns import Neurons, Pattern
from minimodel.compress.pruning_schedules import PruningSchedule
from minimodel.compress.scores import Asked, Score
from minimodel.compress.surgeon import corrected
from minimodel.compress.target import Target
from minimodel.gradients import forward
from minimodel.network import Layer, Network, Params
from minimodel.problem import Masks, Problem, Rows, masked
from minimodel.search.training import same_masks
from minimodel.tree import Array


class Cut(NamedTuple):
    """Masks, and parameters to go on from where they are not those that were."""

    masks: Masks
    params: Params | None


class Pruner(NamedTuple):
    """All that decides what goes."""

    problem: Problem
    schedule: PruningSchedule
    score: Score
    pattern: Pattern
    target: Target
    rows: Rows
    key: np.ndarray
    epochs: int
    rewind: Params | None
    correct: bool

    def cut(self, epoch: int, old: Masks | None, params: Params, moved: Params | None) -> Cut | None:
        """The cut before this epoch, from parameters on the backend; None where there is none."""
        backend = self.problem.backend
        masks = before = old and on_backend(old, params, backend)
        key = random.fold_in(self.key, epoch)
        parts, revived = self.schedule.parts(epoch, self.epochs), None
        exchanged = self.schedule.exchanged(epoch, self.epochs)
        for number, part in enumerate(parts):
            found = self.scored(self.schedule.first or self.score, params, random.fold_in(key, number), moved)
            masks = self.chosen(found, masks, part)
            params = self.obeying(params, masks)
        if exchanged and masks and self.schedule.grow:
            found = self.scored(self.score, params, random.fold_in(key, 0), moved)
            growth = self.scored(self.schedule.grow, params, random.fold_in(key, 1), moved)
            run = backend.jit(make.exchange, static=("choice",))
            masks = run(found, growth, masks, np.asarray(exchanged, np.float32), choice=self.choice)
            params = self.obeying(params, masks)
            if isinstance(self.pattern, Neurons) and before:  # from weights of 0 on both sides none could ever learn
                params = revived = self.fresh(params, before, masks, random.fold_in(key, 2))
        if not (parts or exchanged):
            return None
        new = backend.to_numpy(masks)
        if same_masks(new, before and backend.to_numpy(before)):
            return None
        return Cut(new, backend.to_numpy(params) if self.correct or revived else self.rewind)

    def fresh(self, params: Params, old: tuple[Array, ...], new: tuple[Array, ...], key: np.ndarray) -> Params:
        """The parameters with weights that feed neurons which came drawn anew; those they feed begin at 0."""
        backend, found = self.problem.backend, []
        drawn = self.problem.network.init(key, backend=backend)
        for layer, own, before, mask in zip(params, drawn, old, new, strict=True):
            xp = backend.xp
            came = xp.any(mask, axis=-2, keepdims=True) & ~xp.any(mask & before, axis=-2, keepdims=True)
            found.append(Layer(xp.where(mask & came, own.weight, layer.weight), layer.bias))
        return tuple(found)

    @property
    def choice(self) -> Choice:
        """What the programs of masks are compiled for."""
        return Choice(self.problem.backend, self.pattern, self.target.pooled, self.target.spared)

    def scored(self, score: Score, params: Params, key: np.ndarray, moved: Params | None) -> tuple[Array, ...]:
        """The scores of all weights."""
        problem = self.problem
        asked = Asked(score, problem.network, problem.objective, problem.backend)
        total = moved and tuple(layer.weight for layer in moved)
        run = problem.backend.jit(scores.measure, static=("asked",))
        found, wrong = run(params, self.rows, key, total, asked=asked)
        if problem.backend.to_numpy(wrong).any():
            raise ValueError(f"score: {getattr(score, '__name__', score)} gave NaN; expected numbers for every weight")
        return found

    def chosen(self, found: tuple[Array, ...], old: tuple[Array, ...] | None, part: float) -> tuple[Array, ...]:
        """The masks at a part of the way."""
        backend, target = self.problem.backend, self.target
        if target.threshold is not None:
            run = backend.jit(make.above, static=("choice",))
            return run(found, old, np.asarray(target.threshold, np.float32), choice=self.choice)

        def reached(s: np.ndarray, before: np.ndarray) -> np.ndarray:
            return self.schedule.sparsity(before, s, part) if part < 1 else s

        kept = target.kept(reached)
        return backend.jit(make.choose, static=("choice",))(found, old, kept, choice=self.choice)

    def obeying(self, params: Params, masks: tuple[Array, ...]) -> Params:
        """The parameters under the masks; corrected, if they are to be."""
        network, backend = self.problem.network, self.problem.backend
        if self.correct:
            run = backend.jit(repaired, static=("network", "backend"))
            return run(params, masks, self.rows.x, network=network, backend=backend)
        return masked(params, tree.map(lambda mask: backend.xp.astype(mask, backend.xp.float32), masks))


def repaired(params: Params, masks: tuple[Array, ...], x: Array, *, network: Network, backend: Backend) -> Params:
    """Every layer corrected for the masks, for the inputs that it had."""
    steps = forward(network, params, x)
    return tuple(
        corrected(layer, mask, step.a, backend) for layer, mask, step in zip(params, masks, steps, strict=True)
    )


def on_backend(masks: Masks, params: Params, backend: Backend) -> tuple[Array, ...]:
    """The masks as arrays of bool there, as large as the weights."""
    shapes = (layer.weight.shape for layer in params)
    return tuple(backend.asarray(np.broadcast_to(mask, shape)) for mask, shape in zip(masks, shapes, strict=True))
