"""Parts of optimizers: what a gradient passes on its way to becoming a step.

A part is a pair of pure functions, ``init(params) -> state`` and ``update(numbers, d, state, params) -> (d, state)``.
What decides the program (flags) is a field of the part; the numbers are traced, and each may be an array over the
population. Arrays of a state have the population's axis in front; a number () is the same for all members.
``update`` consumes the state it is given, never d or the parameters.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from minimodel import tree
from minimodel.network import Layer, Params
from minimodel.tree import Array, Tree, align


class Part(Protocol):
    """What ``rules.Chain`` is made of; one that is not ``elementwise`` needs the weights in their shapes."""

    @property
    def elementwise(self) -> bool: ...

    def init(self, params: Params) -> Tree: ...

    def update(self, numbers: Any, d: Params, state: Tree, params: Params) -> tuple[Params, Tree]: ...


class _Elementwise:
    elementwise = True


class _Stateless(_Elementwise):
    def init(self, params: Params) -> None:
        return None


@dataclass(frozen=True)
class ClipValue(_Stateless):
    """d ← clip(d, −c, c)"""

    def update(self, limit: Array, d: Params, state: None, params: Params) -> tuple[Params, None]:
        xp = tree.space(d)
        return tree.map(lambda d: xp.clip(d, -align(limit, d), align(limit, d)), d), None


@dataclass(frozen=True)
class ClipNorm(_Stateless):
    """d ← d·min(1, c/‖d‖), ‖d‖ over all parameters of a member; as ``optax.clip_by_global_norm`` (torch adds 1e-6)."""

    def update(self, limit: Array, d: Params, state: None, params: Params) -> tuple[Params, None]:
        xp = tree.space(d)
        length = norm(d, d[0].bias[..., 0])
        factor = xp.where(length > limit, limit / nonzero(length), xp.ones_like(length))
        return tree.map(lambda d: d * align(factor, d), d), None


@dataclass(frozen=True)
class Lasso(_Stateless):
    """d ← d + λ sign W: the gradient of the L1 penalty λΣ|W|; biases are left alone."""

    def update(self, amount: Array, d: Params, state: None, params: Params) -> tuple[Params, None]:
        xp = tree.space(d)
        return tuple(
            Layer(own.weight + align(amount, p.weight) * xp.sign(p.weight), own.bias)
            for own, p in zip(d, params, strict=True)
        ), None


@dataclass(frozen=True)
class GroupLasso(_Stateless):
    """d ← d + λ√n·w/‖w‖ for the n weights w that an input or a neuron feeds: the gradient of λ Σ √n‖w‖, 0 at w = 0.

    Whole inputs and neurons fade. Scardapane et al., Group sparse regularization for deep neural networks (2017).
    """

    elementwise = False

    def update(self, amount: Array, d: Params, state: None, params: Params) -> tuple[Params, None]:
        xp = tree.space(d)

        def pull(w: Array) -> Array:
            length = nonzero(xp.sqrt(xp.sum(w * w, axis=-1, keepdims=True)))
            return align(amount, w) * (w.shape[-1] ** 0.5) * w / length

        return tuple(Layer(own.weight + pull(p.weight), own.bias) for own, p in zip(d, params, strict=True)), None


@dataclass(frozen=True)
class Decay(_Stateless):
    """d ← d + λW: before the moments the gradient of ½λ‖W‖², after them decoupled decay."""

    biases: bool = False

    def update(self, amount: Array, d: Params, state: None, params: Params) -> tuple[Params, None]:
        def add(d: Array, p: Array) -> Array:
            return d + align(amount, p) * p

        if self.biases:
            return tree.map(add, d, params), None
        return tuple(Layer(add(own.weight, p.weight), own.bias) for own, p in zip(d, params, strict=True)), None


@dataclass(frozen=True)
class Velocity(_Elementwise):
    """v ← μv + d, d ← v; with ``nesterov`` d ← d + μv."""

    nesterov: bool = False

    def init(self, params: Params) -> Params:
        return zeros(params)

    def update(self, mu: Array, d: Params, v: Params, params: Params) -> tuple[Params, Params]:
        def accumulate(v: Array, d: Array) -> Array:
            v *= align(mu, v)
            v += d
            return v

        v = tree.map(accumulate, v, d)
        return (tree.map(lambda d, v: d + align(mu, v) * v, d, v) if self.nesterov else v), v


class SquaresNumbers(NamedTuple):
    """Numbers of ``Squares``; without a decay squares are added up."""

    decay: Any
    eps: Any
    initial: Any


class SquaresState(NamedTuple):
    """The steps done, the squares without what is left of their initial value, and the mean if centred."""

    step: Array
    square: Params
    mean: Params | None


@dataclass(frozen=True)
class Squares(_Elementwise):
    """s ← s + d² (Adagrad) or, with a decay ρ, s ← ρs + (1 − ρ)d² (RMSprop); d ← d/(√s + ε) or d/√(s + ε).

    ``centered`` takes the variance, s − m² with m ← ρm + (1 − ρ)d, in place of s.
    """

    eps_in_root: bool = False
    centered: bool = False

    def init(self, params: Params) -> SquaresState:
        return SquaresState(zero(params), zeros(params), zeros(params) if self.centered else None)

    def update(self, n: SquaresNumbers, d: Params, state: SquaresState, params: Params) -> tuple[Params, SquaresState]:
        xp, step = tree.space(d), next_step(state.step)
        kept, added = (one(step), one(step)) if n.decay is None else (n.decay, 1 - n.decay)
        square = tree.map(lambda s, d: blend(s, kept, added, d * d), state.square, d)
        mean = state.mean and tree.map(lambda m, d: blend(m, kept, added, d), state.mean, d)
        first = None if n.initial is None else n.initial * kept**step
        spread = square
        if mean is not None:  # below 0 by rounding where d does not change
            spread = tree.map(lambda s, m: xp.maximum(s - m * m, xp.zeros_like(s)), square, mean)

        def scale(d: Array, s: Array) -> Array:
            s = s if first is None else s + align(first, s)
            eps = align(n.eps, s)
            return d / (xp.sqrt(s + eps) if self.eps_in_root else xp.sqrt(s) + eps)

        return tree.map(scale, d, spread), SquaresState(step, square, mean)


class MomentsNumbers(NamedTuple):
    """Numbers of ``Moments``."""

    b1: Any
    b2: Any
    eps: Any
    eps_root: Any


class MomentsState(NamedTuple):
    """The steps done, the running means of d and d², and the greatest such mean of d² (AMSGrad)."""

    step: Array  # float, shape ()
    mean: Params
    square: Params
    largest: Params | None


@dataclass(frozen=True)
class Moments(_Elementwise):
    """m ← β₁m + (1 − β₁)d, s ← β₂s + (1 − β₂)d², d ← m̂/(√(ŝ + ε_root) + ε), m̂ = m/(1 − β₁ᵗ), ŝ = s/(1 − β₂ᵗ).

    nesterov    m̂ ← β₁m/(1 − β₁ᵗ⁺¹) + (1 − β₁)d/(1 − β₁ᵗ)
    amsgrad     "torch": the greatest s so far, then its correction; "optax": the greatest ŝ so far
    eps_hat     ε is added to √s before the correction
    """

    nesterov: bool = False
    amsgrad: str | None = None
    eps_hat: bool = False

    def init(self, params: Params) -> MomentsState:
        largest = zeros(params) if self.amsgrad else None
        return MomentsState(zero(params), zeros(params), zeros(params), largest)

    def update(self, n: MomentsNumbers, d: Params, state: MomentsState, params: Params) -> tuple[Params, MomentsState]:
        xp, step = tree.space(d), next_step(state.step)
        left1, left2 = 1 - n.b1, 1 - n.b2
        mean = tree.map(lambda m, d: blend(m, n.b1, left1, d), state.mean, d)
        square = tree.map(lambda s, d: blend(s, n.b2, left2, d * d), state.square, d)
        fix1, fix2 = 1 - n.b1**step, 1 - n.b2**step
        largest, used = None, square
        if self.amsgrad:
            seen = square if self.amsgrad == "torch" else tree.map(lambda s: s / align(fix2, s), square)
            largest = used = tree.map(xp.maximum, state.largest, seen)
        by = one(step) if self.amsgrad == "optax" else fix2
        top, extra = n.b1 / (1 - n.b1 ** (step + 1)), left1 / fix1

        def direction(m: Array, s: Array, d: Array) -> Array:
            if self.eps_hat:
                scale = (xp.sqrt(s) + align(n.eps, s)) / align(xp.sqrt(by), s)
            else:
                root = s / align(by, s)
                scale = xp.sqrt(root if n.eps_root is None else root + align(n.eps_root, s))
                scale += align(n.eps, s)
            if self.nesterov:
                return (align(top, m) * m + align(extra, m) * d) / scale
            scale *= align(fix1, m)
            return m / scale

        return tree.map(direction, mean, used, d), MomentsState(step, mean, square, largest)


class NAdamNumbers(NamedTuple):
    """Numbers of ``ScheduledNesterov``."""

    b1: Any
    b2: Any
    eps: Any
    momentum_decay: Any


class NAdamState(NamedTuple):
    """As ``MomentsState``, with the product of the momenta so far."""

    step: Array
    product: Array
    mean: Params
    square: Params


@dataclass(frozen=True)
class ScheduledNesterov(_Elementwise):
    """NAdam with the momentum μ_t = β₁(1 − ½·0.96^(tψ)) of its paper, as torch has it:

    d ← (μ_{t+1}m/(1 − Πμ_{i≤t+1}) + (1 − μ_t)d/(1 − Πμ_{i≤t})) / (√ŝ + ε)
    """

    def init(self, params: Params) -> NAdamState:
        return NAdamState(zero(params), one(params[0].bias[..., 0]), zeros(params), zeros(params))

    def update(self, n: NAdamNumbers, d: Params, state: NAdamState, params: Params) -> tuple[Params, NAdamState]:
        xp, step = tree.space(d), next_step(state.step)
        now, ahead = (n.b1 * (1 - 0.5 * 0.96 ** (t * n.momentum_decay)) for t in (step, step + 1))
        product = state.product * now
        mean = tree.map(lambda m, d: blend(m, n.b1, 1 - n.b1, d), state.mean, d)
        square = tree.map(lambda s, d: blend(s, n.b2, 1 - n.b2, d * d), state.square, d)
        top, extra, fix = ahead / (1 - product * ahead), (1 - now) / (1 - product), 1 - n.b2**step

        def direction(m: Array, s: Array, d: Array) -> Array:
            return (align(top, m) * m + align(extra, m) * d) / (xp.sqrt(s / align(fix, s)) + align(n.eps, s))

        return tree.map(direction, mean, square, d), NAdamState(step, product, mean, square)


class LionNumbers(NamedTuple):
    """Numbers of ``Sign``."""

    b1: Any
    b2: Any


@dataclass(frozen=True)
class Sign(_Elementwise):
    """d ← sign(β₁m + (1 − β₁)d), m ← β₂m + (1 − β₂)d"""

    def init(self, params: Params) -> Params:
        return zeros(params)

    def update(self, n: LionNumbers, d: Params, m: Params, params: Params) -> tuple[Params, Params]:
        xp = tree.space(d)
        signs = tree.map(lambda m, d: xp.sign(align(n.b1, m) * m + (1 - align(n.b1, m)) * d), m, d)
        return signs, tree.map(lambda m, d: blend(m, n.b2, 1 - n.b2, d), m, d)


def norm(d: Params, like: Array) -> Array:
    """‖d‖ over all parameters of a member; ``like`` has the shape (*population,)."""
    xp, total = tree.space(d), tree.namespace(like).zeros_like(like)
    for leaf in tree.leaves(d):
        total = total + xp.sum(leaf * leaf, axis=tuple(range(like.ndim, leaf.ndim)))
    return xp.sqrt(total)


def nonzero(length: Array) -> Array:
    xp = tree.namespace(length)
    return xp.where(length > 0, length, xp.ones_like(length))


def blend(old: Array, kept: Array, added: Array, new: Array) -> Array:
    """old ← kept·old + added·new"""
    old *= align(kept, old)
    old += align(added, old) * new
    return old


def zeros(params: Params) -> Params:
    return tree.map(tree.namespace(params).zeros_like, params)


def zero(params: Params) -> Array:
    return tree.namespace(params).zeros((), dtype=params[0].weight.dtype)


def one(like: Array) -> Array:
    return tree.namespace(like).ones_like(like)


def next_step(step: Array) -> Array:
    return step + one(step)
