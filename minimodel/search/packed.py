"""All weights of a network as one array, and all biases: for backends where a call costs more than a copy.

Packed parameters are those of a single ``Layer`` with flat leaves, so optimizers and masks do not tell the difference.
"""

from math import prod

from minimodel import tree
from minimodel.network import Layer, Network, Params
from minimodel.tree import Array


def pack(params: Params) -> Params:
    """(Layer(weights (…, n), biases (…, m)),), in the order of the layers."""
    xp = tree.space(params)
    flat = [flatten(layer.weight) for layer in params]
    return (Layer(xp.concat(flat, axis=-1), xp.concat([layer.bias for layer in params], axis=-1)),)


def flatten(weight: Array) -> Array:
    """(…, in, out) as (…, in·out)."""
    return tree.space(weight).reshape(weight, (*weight.shape[:-2], -1))


def unpack(network: Network, packed: Params) -> Params:
    """The layers, as views where arrays have them."""
    ((weights, biases),), layers, at, to = packed, [], 0, 0
    xp = tree.space(weights)
    for shape in network.shapes:
        weight = xp.reshape(weights[..., at : at + prod(shape)], (*weights.shape[:-1], *shape))
        layers.append(Layer(weight, biases[..., to : to + shape[1]]))
        at, to = at + prod(shape), to + shape[1]
    return tuple(layers)
