"""Optimal brain surgeon, layer by layer: which weights its outputs miss least, and how the others make up for them.

Let a (rows, in) be the inputs of a layer with weight W and bias b. A change of one column of W, with the bias at its
best, changes the layer's outputs by ½δᵀHδ on average, where H is the covariance of a. To remove the weight q costs

    w_q²/(2[H⁻¹]_qq),  the others moving by  δ = −w_q/[H⁻¹]_qq·H⁻¹e_q,

and H⁻¹ loses its row and column: H⁻¹ ← H⁻¹ − H⁻¹e_q e_qᵀH⁻¹/[H⁻¹]_qq. A hundredth of H's mean diagonal is added to
it. Hassibi, Stork: Second order derivatives for network pruning (1993); Frantar, Alistarh: Optimal brain compression
(2022). All weights of a layer cost O(out·in³), so this is for layers of up to some thousand inputs.
"""

from typing import Any

from minimodel.backends import Backend
from minimodel.network import Layer
from minimodel.tree import Array, namespace

DAMPING = 0.01  # of the mean diagonal
CACHED = 2**19  # floats: 2 MiB of inverses at a time


def covariance(a: Array) -> tuple[Array, Array]:
    """H (*population, in, in), damped, and the mean (*population, in) of the inputs (*population, rows, in)."""
    xp = namespace(a)
    mean = xp.mean(a, axis=-2)
    centred = a - mean[..., None, :]
    h = (centred.mT @ centred) * (1 / a.shape[-2])
    unit = xp.eye(a.shape[-1], dtype=a.dtype)
    level = xp.mean(xp.sum(h * unit, axis=-1), axis=-1)
    return h + DAMPING * xp.where(level > 0, level, xp.ones_like(level))[..., None, None] * unit, mean


def removal_costs(weight: Array, a: Array, backend: Backend) -> Array:
    """What the removal of each weight cost when it was its turn, in each column the least first.

    A cost is never less than that of what went before it in its column, so that the largest are kept together.
    """
    xp = backend.xp
    inverse = xp.linalg.inv(covariance(a)[0])
    inputs = weight.shape[-2]

    def of_columns(w: Array, inverse: Array) -> Array:
        diagonal = xp.broadcast_to(xp.sum(inverse * xp.eye(inputs, dtype=w.dtype), axis=-1), w.shape)
        square = xp.broadcast_to(inverse, (*w.shape, inputs))
        start = (w, square, diagonal, xp.zeros_like(w), xp.zeros_like(w), xp.zeros_like(w[..., :1]))
        return backend.scan(remove_one, start, xp.arange(inputs))[0][4]

    return by_columns(of_columns, (weight,), inverse, backend)


def remove_one(carry: tuple[Array, ...], _: Any) -> tuple[tuple[Array, ...], None]:
    """The cheapest weight of every row of w (rows, in) goes, and the others of its row make up for it."""
    w, inverse, diagonal, gone, cost, most = carry
    xp = namespace(w)
    scale = xp.maximum(diagonal, xp.full_like(diagonal, 1e-30))
    each = xp.where(gone > 0, xp.full_like(w, float("inf")), w * w / scale)
    one = xp.astype(xp.argmin(each, axis=-1)[..., None] == xp.arange(w.shape[-1]), w.dtype)
    column = xp.squeeze(one[..., None, :] @ inverse, axis=-2)
    pivot = xp.sum(one * scale, axis=-1, keepdims=True)
    own = xp.sum(one * w, axis=-1, keepdims=True)
    most = xp.maximum(most, own * own / pivot)
    share = column / pivot
    w = (w - own * share) * (1 - one)
    inverse = inverse - share[..., :, None] * column[..., None, :]
    return (w, inverse, diagonal - share * column, gone + one, cost + one * most, most), None


def corrected(layer: Layer, mask: Array, a: Array, backend: Backend) -> Layer:
    """The layer with the kept weights and the bias that change its outputs least: H_SS w_S = (Hw)_S in each column."""
    xp = backend.xp
    h, mean = covariance(a)
    unit = xp.eye(h.shape[-1], dtype=h.dtype)

    def of_columns(target: Array, kept: Array, h: Array) -> Array:
        system = h * kept[..., :, None] * kept[..., None, :] + unit * (1 - kept)[..., None, :]
        return xp.squeeze(xp.linalg.solve(system, (target * kept)[..., None]), axis=-1)

    kept = xp.astype(xp.broadcast_to(mask, layer.weight.shape), h.dtype)
    weight = by_columns(of_columns, (h @ layer.weight, kept), h, backend) * kept
    return with_bias(layer, weight, mean)


def with_bias(layer: Layer, weight: Array, mean: Array) -> Layer:
    """The layer with another weight, the bias at its best: it takes up the mean of what is missing."""
    missing = namespace(mean).squeeze(mean[..., None, :] @ (layer.weight - weight), axis=-2)
    return Layer(weight, layer.bias + missing)


def by_columns(fn: Any, values: tuple[Array, ...], h: Array, backend: Backend) -> Array:
    """fn(*rows, h) for the columns of weights (*population, in, out), a few at a time, each with its member's h."""
    xp = backend.xp
    inputs, outputs = values[0].shape[-2:]
    size = max(n for n in range(1, outputs + 1) if outputs % n == 0 and (n == 1 or n * inputs**2 <= CACHED))
    squares = xp.reshape(h, (-1, inputs, inputs))
    columns = tuple(xp.reshape(value.mT, (-1, size, inputs)) for value in values)
    parts = columns[0].shape[0]
    members = (
        xp.arange(parts, dtype=xp.int32) // (outputs // size)
        if squares.shape[0] > 1
        else xp.zeros(parts, dtype=xp.int32)
    )

    def one_part(carry: None, part: tuple[Array, ...]) -> tuple[None, Array]:
        *rows, member = part
        return None, fn(*rows, backend.take(squares, member))

    found = backend.scan(one_part, None, (*columns, members))[1]
    return xp.reshape(found, (*values[0].shape[:-2], outputs, inputs)).mT
