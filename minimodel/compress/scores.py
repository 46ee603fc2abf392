"""Scores: how much a weight matters. A score is a function of the parameters; the lowest are pruned."""

from minimodel.network import Params
from minimodel.tree import Array, namespace


def magnitude(params: Params) -> tuple[Array, ...]:
    """|w|"""
    return tuple(namespace(layer.weight).abs(layer.weight) for layer in params)
