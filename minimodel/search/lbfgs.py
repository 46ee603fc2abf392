"""Limited-memory BFGS: θ ← θ − αHg, H from the last m pairs of steps and changes of gradient.

Liu, Nocedal: On the limited memory BFGS method (1989). The line search brackets an α that satisfies the weak Wolfe
conditions by doubling and halving (Lewis, Overton: Nonsmooth optimization via quasi-Newton methods, 2013, section 3):

    J(θ + αd) ≤ J + c₁α gᵀd,    g(θ + αd)ᵀd ≥ c₂ gᵀd

Where J no longer changes beyond rounding, the first is judged by the slope: g(θ + αd)ᵀd ≤ (2c₁ − 1)gᵀd (Hager, Zhang: A
new conjugate gradient method with guaranteed descent, 2005, section 4).

Every update is one evaluation, at one trial point of each member of a population; a member accepts it or moves its
bracket, whatever the others do. So the search needs no loop of its own and runs in any fixed-length scan.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from minimodel import tree
from minimodel.network import Layer, Params
from minimodel.search.rules import Evaluate
from minimodel.tree import Array, align

C1, C2 = 1e-4, 0.9
TRIALS = 20  # after so many in one line search the pairs are forgotten and it starts anew along −g


class Pairs(NamedTuple):
    """The last m steps s and changes of gradient y, oldest first, along a first axis of m; ρ = 1/sᵀy, 0 for none."""

    s: Params
    y: Params
    rho: Array


class Search(NamedTuple):
    """Where each member stands: the point it searches from, along which direction, and its bracket."""

    point: Params
    loss: Array  # infinite before the first evaluation
    gradient: Params
    direction: Params
    slope: Array  # gᵀd
    size: Array  # α of the trial
    low: Array
    high: Array
    trials: Array
    pairs: Pairs


@dataclass(frozen=True)
class LBFGS:
    """The rule, with ``memory`` pairs."""

    memory: int = 10
    full_batch = True
    elementwise = True

    def init(self, params: Params) -> Search:
        xp = tree.namespace(params)

        def zeros(*lead: int) -> Params:
            return tree.map(lambda p: xp.zeros((*lead, *p.shape), dtype=p.dtype), params)

        zero = xp.zeros_like(params[0].bias[..., 0])
        pairs = Pairs(zeros(self.memory), zeros(self.memory), xp.zeros((self.memory, *zero.shape), dtype=zero.dtype))
        point, infinity = tree.map(lambda p: xp.asarray(p, copy=True), params), xp.full_like(zero, float("inf"))
        slope, size, low, trials = (xp.zeros_like(zero) for _ in range(4))  # donated buffers must be distinct
        high = xp.full_like(zero, float("inf"))
        return Search(point, infinity, zeros(), zeros(), slope, size, low, high, trials, pairs)

    def update(
        self, numbers: Any, rate: Array, evaluate: Evaluate, state: Search, params: Params
    ) -> tuple[Array, Params, Search]:
        xp = tree.namespace(params)
        loss, g = evaluate(params)
        if numbers:  # λ
            loss, g = ridge(numbers[0], loss, g, params)
        first, slope = xp.isinf(state.loss), dot(g, state.direction, loss)
        rounding = 16 * xp.finfo(loss.dtype).eps * xp.abs(state.loss)
        lower = loss <= state.loss + C1 * state.size * state.slope
        level = (loss <= state.loss + rounding) & (slope <= (2 * C1 - 1) * state.slope)
        accept = first | ((lower | level) & (slope >= C2 * state.slope))
        accept = accept & xp.isfinite(loss)
        restart = ~accept & (state.trials >= TRIALS)

        def choose(if_accepted: Params, otherwise: Params) -> Params:
            return tree.map(lambda a, b: xp.where(align(accept, a), a, b), if_accepted, otherwise)

        pairs = self.remember(state, params, g, accept & ~first, restart)
        point, gradient = choose(params, state.point), choose(g, state.gradient)
        moved = accept | restart
        fresh = descend(pairs, gradient, loss)
        direction = tree.map(lambda a, b: xp.where(align(moved, a), a, b), fresh, state.direction)
        known = xp.any(pairs.rho > 0, axis=0)
        length = xp.sqrt(dot(gradient, gradient, loss))
        start = rate * xp.where(known, xp.ones_like(length), 1 / xp.maximum(length, xp.ones_like(length)))

        low = xp.where(lower | level, state.size, state.low)
        high = xp.where(lower | level, state.high, state.size)
        bisected = xp.where(xp.isinf(high), 2 * state.size, 0.5 * (low + high))
        zero, infinity = xp.zeros_like(low), xp.full_like(low, float("inf"))
        new = Search(
            point,
            xp.where(accept, loss, state.loss),
            gradient,
            direction,
            xp.where(moved, dot(gradient, direction, loss), state.slope),
            xp.where(moved, start, bisected),
            xp.where(moved, zero, low),
            xp.where(moved, infinity, high),
            xp.where(moved, zero, state.trials + 1),
            pairs,
        )
        trial = tree.map(lambda p, d: p + align(new.size, p) * d, point, direction)
        return new.loss, trial, new

    def remember(self, state: Search, params: Params, g: Params, accept: Array, restart: Array) -> Pairs:
        """The pairs with the newest one behind them, where it was accepted and curves upwards; none after a restart."""
        xp = tree.namespace(g)
        s = tree.map(lambda new, old: new - old, params, state.point)
        y = tree.map(lambda new, old: new - old, g, state.gradient)
        curvature = dot(s, y, state.loss)
        kind = xp.finfo(curvature.dtype)  # below the smallest normal number the inverse may overflow
        least = xp.maximum(kind.eps * dot(y, y, state.loss), xp.full_like(curvature, float(kind.smallest_normal)))
        keep = accept & (curvature > least)
        rho = xp.where(keep, 1 / xp.where(keep, curvature, xp.ones_like(curvature)), xp.zeros_like(curvature))

        def push(old: Array, new: Array) -> Array:
            shifted = xp.concat([old[1:, ...], new[None, ...]], axis=0)
            return xp.where(align(keep, new), shifted, old)

        pushed = push(state.pairs.rho, rho)
        return Pairs(
            tree.map(push, state.pairs.s, s),
            tree.map(push, state.pairs.y, y),
            xp.where(restart, xp.zeros_like(pushed), pushed),
        )

    def read(self, params: Params, state: Search) -> Params:
        return state.point


def descend(pairs: Pairs, g: Params, like: Array) -> Params:
    """−Hg by the two loops over the pairs (Nocedal 1980), H₀ = sᵀy/yᵀy of the newest."""
    xp, memory = tree.namespace(g), pairs.rho.shape[0]
    at = [tree.map(lambda leaf, i=i: leaf[i, ...], pairs) for i in range(memory)]
    q, found = g, []
    for i in reversed(range(memory)):
        a = at[i].rho * dot(at[i].s, q, like)
        q = tree.map(lambda q, y, a=a: q - align(a, q) * y, q, at[i].y)
        found.append(a)
    newest = at[-1]
    curved = newest.rho > 0
    square = dot(newest.y, newest.y, like)
    scale = xp.where(curved, 1 / xp.where(curved, newest.rho * square, xp.ones_like(square)), xp.ones_like(square))
    q = tree.map(lambda q: align(scale, q) * q, q)
    for i, a in zip(range(memory), reversed(found), strict=True):
        b = at[i].rho * dot(at[i].y, q, like)
        q = tree.map(lambda q, s, c=a - b: q + align(c, q) * s, q, at[i].s)
    return tree.map(lambda q: -q, q)


def ridge(amount: Array, loss: Array, g: Params, params: Params) -> tuple[Array, Params]:
    """J + ½λ‖W‖² and its gradient; biases are left alone."""
    weights = tuple(layer.weight for layer in params)
    loss = loss + 0.5 * amount * dot(weights, weights, loss)
    return loss, tuple(
        Layer(d.weight + align(amount, p.weight) * p.weight, d.bias) for d, p in zip(g, params, strict=True)
    )


def dot(a: Params, b: Params, like: Array) -> Array:
    """aᵀb over all parameters of a member; ``like`` has the shape (*population,)."""
    total = tree.namespace(like).zeros_like(like)
    for left, right in zip(tree.leaves(a), tree.leaves(b), strict=True):
        total = total + tree.namespace(left).sum(left * right, axis=tuple(range(like.ndim, left.ndim)))
    return total
