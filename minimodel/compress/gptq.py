"""GPTQ: one input after the other is rounded, and the inputs to come make up for what it missed.

Let H be the covariance of a layer's inputs (``surgeon.covariance``), and H⁻¹ = UᵀU with U upper triangular. In the
order of the inputs i, for all outputs at once,

    e = (w_i − ŵ_i)/U_ii,    w_j ← w_j − U_ij·e  for j > i,

which is optimal brain surgeon with the weights before i fixed where they were rounded to. The bias takes up the mean of
what is still missing. Frantar et al., GPTQ (2023), algorithm 1, exactly and without blocks: layers are small.
"""

from minimodel import qarray, tree
from minimodel.backends import Backend
from minimodel.compress.surgeon import covariance, with_bias
from minimodel.network import Layer
from minimodel.qarray import Quantizer
from minimodel.tree import Array


def rounded(layer: Layer, quantizer: Quantizer, mask: Array | None, a: Array, backend: Backend) -> Layer:
    """The layer on the quantizer's grid, for inputs a (*population, rows, in); what the mask removed stays 0."""
    xp = backend.xp
    h, mean = covariance(a)
    upper = xp.linalg.cholesky(xp.linalg.inv(h)).mT
    kept = xp.ones_like(layer.weight) if mask is None else xp.astype(mask, layer.weight.dtype)
    places = xp.arange(h.shape[-1], dtype=xp.int32)
    lead, inputs = layer.weight.shape[:-2], h.shape[-1]

    def by_row(leaf: Array) -> Array:
        return xp.moveaxis(xp.broadcast_to(leaf, (*lead, inputs, leaf.shape[-1])), -2, 0)

    def own_row(leaf: Array) -> Array:
        return by_row(leaf)[..., None, :]

    def step(w: Array, given: tuple[Array, Array, Array, Quantizer]) -> tuple[Array, None]:
        place, row, own, levels = given
        one = xp.astype(places == place, w.dtype)
        now = one @ w
        missed = now - xp.squeeze(qarray.fake_quantize(now[..., None, :], levels), axis=-2) * own
        return w - row[..., :, None] * (missed / xp.sum(row * one, axis=-1)[..., None])[..., None, :], None

    rows = tree.map(own_row, qarray.spread(quantizer, inputs))
    weight = backend.scan(step, layer.weight, (places, by_row(upper), by_row(kept), rows))[0]
    weight = qarray.fake_quantize(weight, quantizer) * kept
    return with_bias(layer, weight, mean)
