"""What parameters pass on their way through integers: ŵ in place of w forward, the gradient by w, and by the levels,
backward. The levels are a grid (``qarray``) or a codebook (``codebooks``), which have the same functions.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from minimodel import qarray
from minimodel.compress import codebooks
from minimodel.network import Layer, Params
from minimodel.qarray import QArray
from minimodel.tree import Array


class Levels(NamedTuple):
    """An entry for each layer: its quantizer or codebook; masks, where the levels lack a 0; draws, if rounding is
    stochastic."""

    quantizers: tuple[Any, ...]
    masks: tuple[Array, ...] | None = None
    draws: tuple[Array, ...] | None = None

    def layers(self, params: Params) -> list[tuple[Layer, Any, Array | None, Array | None]]:
        """Each layer of the network with its entries."""
        nothing = (None,) * len(self.quantizers)
        layers = params[: len(self.quantizers)]
        return list(zip(layers, self.quantizers, self.masks or nothing, self.draws or nothing, strict=True))


@dataclass(frozen=True)
class Rounding:
    """A ``Through`` of gradient descent.

    learned   the parameters have as many layers more, without inputs, whose biases are the levels of those before
    """

    codebook: bool = False
    name: str = "half_even"
    learned: bool = False

    @property
    def kind(self) -> Any:
        """The functions of the levels."""
        return codebooks if self.codebook else qarray

    def extended(self, levels: Levels, params: Params) -> Params:
        """The parameters with what is learned besides."""
        if not self.learned:
            return params
        ts = [self.kind.start(quantizer) for quantizer in levels.quantizers]
        return (*params, *(Layer(t[..., :0, :1], t) for t in ts))

    def masks(self, masks: tuple[np.ndarray, ...] | None) -> tuple[np.ndarray, ...] | None:
        """The masks of those parameters."""
        return (*masks, *(np.ones((0, 1), bool) for _ in masks)) if masks and self.learned else masks

    def moved(self, levels: Levels, params: Params) -> Levels:
        """The levels where they now are."""
        if not self.learned:
            return levels
        learned = params[len(levels.quantizers) :]
        moved = [self.kind.at(q, layer.bias) for q, layer in zip(levels.quantizers, learned, strict=True)]
        return levels._replace(quantizers=tuple(moved))

    def forward(self, levels: Levels, params: Params) -> Params:
        """ŵ in place of w."""
        used = []
        for layer, quantizer, mask, u in self.moved(levels, params).layers(params):
            weight = self.kind.fake_quantize(layer.weight, quantizer, self.name, u)
            used.append(Layer(weight if mask is None else weight * mask, layer.bias))
        return tuple(used)

    def backward(self, levels: Levels, params: Params, grads: Params) -> Params:
        """The gradient by w, and by the levels, from that by ŵ."""
        found = []
        entries = self.moved(levels, params).layers(params)
        for (layer, quantizer, _, u), grad in zip(entries, grads, strict=True):
            weight = self.kind.straight_through(layer.weight, quantizer, grad.weight, self.name, u)
            found.append(Layer(weight, grad.bias))
        for (layer, quantizer, mask, _), grad, (empty, t) in zip(
            levels.layers(params), grads, params[len(grads) :], strict=self.learned
        ):
            gradient = grad.weight if mask is None else grad.weight * mask
            each = layer.weight.shape[-2] * layer.weight.shape[-1] / (t.shape[-2] * t.shape[-1])
            slope = self.kind.level_gradient(layer.weight, quantizer, t, gradient)
            found.append(Layer(empty, slope * each**-0.5))  # as large as that of a weight
        return tuple(found)

    def integers(self, levels: Levels, params: Params) -> tuple[QArray, ...]:
        """What is stored, on the host; what a mask removed is the integer of 0, or of no meaning in a codebook."""
        found = []
        for layer, quantizer, mask, u in self.moved(levels, params).layers(params):
            q = self.kind.quantize(layer.weight, quantizer, self.name, u)
            zero = qarray.spread(q.zero_point, q.values.shape[-2])
            found.append(q if mask is None else q._replace(values=np.where(mask > 0, q.values, zero)))
        return tuple(found)
