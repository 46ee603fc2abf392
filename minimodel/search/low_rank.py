"""Evolution strategies of low rank: each candidate changes a layer by σ·a·b, which is never formed.

All candidates share the product with W and add two thin ones, so a candidate costs little more than inference.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Any

from minimodel import tree
from minimodel.backends import Backend
from minimodel.network import Layer, LowRank, both
from minimodel.search.evolution import Gradient, GradientNumbers
from minimodel.search.plans import State, is_params
from minimodel.tree import Array, Tree


@dataclass(frozen=True)
class LowRankGradient(Gradient):
    """θ ← step(g) with W + (σ/√(in·r))·a·b and bias + (σ/√in)β, a (in, r), b (r, out), β (out) of independent N(0, 1);

    g_W = √in/(Pσ√r) Σ uᵢ aᵢbᵢ. In a mirrored pair a and β have either sign.
    Sarkar et al., Evolution strategies at the hyperscale (arXiv 2511.16652, 2025), equations 6 and 8.
    """

    rank: int = 1
    forms = False

    def init(self, numbers: GradientNumbers, params: Tree, backend: Backend) -> Any:
        if not is_params(params):
            raise TypeError("low_rank: expected the parameters of a network, whose weights are matrices, not a vector")
        return super().init(numbers, params, backend)

    def width(self, like: Tree) -> int:
        return sum(self.rank * (n + m) + m for n, m in (layer.weight.shape for layer in like))

    def factors(self, like: Tree, draws: Array) -> list[tuple[Array, Array, Array]]:
        """a (n, in, r), β (n, out) and b (n, r, out) of every layer; in a row stand every a, every β, every b."""
        xp, at, count, r = tree.space(draws), 0, draws.shape[0], self.rank
        shapes = [layer.weight.shape for layer in like]

        def cut(sizes: list[tuple[int, ...]]) -> list[Array]:
            nonlocal at
            found = []
            for size in sizes:
                stop = at + size[0] * (size[1] if len(size) > 1 else 1)
                found.append(xp.reshape(draws[:, at:stop], (count, *size)))
                at = stop
            return found

        a, beta = cut([(n, r) for n, _ in shapes]), cut([(m,) for _, m in shapes])
        return list(zip(a, beta, cut([(r, m) for _, m in shapes]), strict=True))

    def place(self, numbers: GradientNumbers, state: State, draws: Array) -> Tree:
        found = []
        for (weight, bias), (a, beta, b) in zip(state.own.mean, self.factors(state.best, draws), strict=True):
            if self.mirrored:
                a, beta, b = both(a), both(beta), tree.space(b).repeat(b, 2, axis=0)
            sigma = numbers.sigma * (1 / sqrt(weight.shape[0]))
            found.append(LowRank(weight, bias + sigma * beta, sigma * (1 / sqrt(self.rank)) * a, b))
        return tuple(found)

    def gradient(self, numbers: GradientNumbers, state: State, draws: Array, weights: Array) -> Tree:
        xp, count, r, found = tree.space(draws), draws.shape[0], self.rank, []
        for (weight, _), (a, beta, b) in zip(state.own.mean, self.factors(state.best, draws), strict=True):
            n, m = weight.shape
            factor = sqrt(n) / numbers.sigma
            side_by_side = xp.reshape(xp.moveaxis(a * weights[:, None, None], 0, 1), (n, count * r))
            product = side_by_side @ xp.reshape(b, (count * r, m))
            found.append(Layer(product * (factor * (1 / sqrt(r))), (weights @ beta) * factor))
        return tuple(found)
