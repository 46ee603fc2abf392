"""GPTQ: one input after the other is rounded, and the inputs to come make up for what it missed.

Let H be the covariance of a layer's inputs (``surgeon.covariance``), and H⁻¹ = UᵀU with U upper triangular. In the
order of the inputs i, for all outputs at once,

    e = (w_i − ŵ_i)/U_ii,    w_j ← w_j − U_ij·e  for j > i,

which is optimal brain surgeon with the weights before i fixed where they were rounded to. The bias takes up the mean of
what is still missing. Frantar et al., GPTQ (2023), algorithm 1, exactly and without blocks: layers are small.
"""

from minimodel import qarray
from minimodel.backends import Backend
from minimodel.compress.surgeon import covariance, with_bias
from minimodel.gradients import forward
from minimodel.network import Layer, Network, Params
from minimodel.qarray import Quantizer
from minimodel.tree import Array, namespace


def rounded(layer: Layer, quantizer: Quantizer, mask: Array | None, a: Array, backend: Backend) -> Layer:
    """The layer on the quantizer's grid, for inputs a (*population, rows, in); what the mask removed stays 0."""
    xp = backend.xp
    h, mean = covariance(a)
    upper = xp.linalg.cholesky(xp.linalg.inv(h)).mT
    kept = xp.ones_like(layer.weight) if mask is None else xp.astype(mask, layer.weight.dtype)
    lead = layer.weight.shape[:-2]
    places = xp.arange(h.shape[-1], dtype=xp.int32)
    rows = xp.moveaxis(xp.broadcast_to(upper, (*lead, *h.shape[-2:])), -2, 0)

    def step(w: Array, given: tuple[Array, Array, Array]) -> tuple[Array, None]:
        place, row, own = given
        one = xp.astype(places == place, w.dtype)
        now = one @ w
        missed = now - round_row(now, quantizer) * own
        return w - row[..., :, None] * (missed / xp.sum(row * one, axis=-1)[..., None])[..., None, :], None

    weight = backend.scan(step, layer.weight, (places, rows, xp.moveaxis(kept, -2, 0)))[0]
    weight = qarray.fake_quantize(weight, quantizer) * kept
    return with_bias(layer, weight, mean)


def round_row(w: Array, quantizer: Quantizer) -> Array:
    """ŵ of the weights (*population, out) of one input."""
    return namespace(w).squeeze(qarray.fake_quantize(w[..., None, :], quantizer), axis=-2)


def fitted(
    params: Params,
    quantizers: tuple[Quantizer, ...],
    masks: tuple[Array, ...] | None,
    x: Array,
    *,
    network: Network,
    backend: Backend,
) -> Params:
    """Every layer rounded, each for the inputs that the layers before it now give."""
    done: list[Layer] = []
    for i, quantizer in enumerate(quantizers):
        a = forward(network, (*done, *params[i:]), x)[i].a
        done.append(rounded(params[i], quantizer, None if masks is None else masks[i], a, backend))
    return tuple(done)
