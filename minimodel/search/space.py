"""The space that is searched: the parameters of a network, or any one array, as a vector."""

from math import prod, sqrt

from minimodel import tree
from minimodel.network import Layer
from minimodel.tree import Array, Tree


def size(like: Tree) -> int:
    """How many numbers there are: N."""
    return sum(prod(leaf.shape) for leaf in tree.leaves(like))


def ravel(params: Tree) -> Array:
    """All leaves in a row, (N,)."""
    flat = [tree.space(leaf).reshape(leaf, (-1,)) for leaf in tree.leaves(params)]
    return tree.space(params).concat(flat) if len(flat) > 1 else flat[0]


def unravel(like: Tree, vectors: Array) -> Tree:
    """Vectors (…, N) as trees like this one whose leaves have those axes in front: views where arrays have them."""
    xp, at = tree.space(vectors), 0

    def cut(leaf: Array) -> Array:
        nonlocal at
        start, at = at, at + prod(leaf.shape)
        return xp.reshape(vectors[..., start:at], (*vectors.shape[:-1], *leaf.shape))

    return tree.map(cut, like)


def scales(like: Tree) -> Array:
    """1/√in for the weights and biases of a layer with that many inputs, else 1; (N,). One σ then fits all layers."""
    xp = tree.space(like)
    if not isinstance(like, tuple):
        return xp.ones_like(xp.reshape(like, (-1,)))
    if isinstance(like, Layer):
        return xp.full_like(ravel(like), 1 / sqrt(like.weight.shape[-2]))
    return xp.concat([scales(part) for part in like])
