"""Scores: how much each weight matters. The lowest are pruned.

A score is a function of ``Evidence`` that gives, for each layer, an array that broadcasts to the layer's weight
(*population, in, out): (*population, 1, out) scores its neurons, (*population, in, 1) its inputs.
"""

from collections.abc import Callable
from typing import NamedTuple

from minimodel import random as draws
from minimodel.backends import Backend
from minimodel.compress.surgeon import removal_costs
from minimodel.gradients import forward, objective, row_deltas, squared_gradients
from minimodel.losses import Loss
from minimodel.network import Network, Params
from minimodel.problem import Rows
from minimodel.tree import Array


class Evidence(NamedTuple):
    """What a score may look at.

    params   the network as it is, weights that are pruned already being 0
    rows     training rows: x (rows, in), encoded targets t, with a teacher's beside them, and their weight in the loss
    loss     in training, of a teacher too; gradients and what is made of them obey the weights, while statistics of
             activations take all rows alike
    key      (*population, 2), for draws
    moved    −Σ w∘∂J/∂w over the steps since the optimizer began, of weights; for a score marked ``of_training``
    """

    network: Network
    loss: Loss
    backend: Backend
    params: Params
    rows: Rows
    key: Array
    moved: tuple[Array, ...] | None


Score = Callable[[Evidence], tuple[Array, ...]]
OF_TRAINING = "of_training"


def magnitude(e: Evidence) -> tuple[Array, ...]:
    """|w|"""
    return _of_weights(e, e.backend.xp.abs)


def squared(e: Evidence) -> tuple[Array, ...]:
    """w²: over the units of a pattern, their L2 norm."""
    return _of_weights(e, lambda w: w * w)


def random(e: Evidence) -> tuple[Array, ...]:
    """Uniform on [0, 1), whatever the weight."""
    return tuple(
        draws.uniform(draws.fold_in(e.key, i), layer.weight.shape[-2:], backend=e.backend)
        for i, layer in enumerate(e.params)
    )


def gradient(e: Evidence) -> tuple[Array, ...]:
    """|∂J/∂w|: what RigL grows by. Evci et al., Rigging the lottery (2020)."""
    return tuple(map(e.backend.xp.abs, _gradients(e)))


def taylor(e: Evidence) -> tuple[Array, ...]:
    """|w·∂J/∂w|: how J changes, to first order, when w becomes 0. Of a fresh network this is SNIP.

    Molchanov et al., Importance estimation for neural network pruning (2019); Lee, Ajanthan, Torr: SNIP (2019).
    """
    return tuple(e.backend.xp.abs(layer.weight * g) for layer, g in zip(e.params, _gradients(e), strict=True))


def movement(e: Evidence) -> tuple[Array, ...]:
    """−Σ w·∂J/∂w over the steps since the optimizer began: high where w moves away from 0, lowest where it shrinks.

    For schedules that prune while training. Sanh, Wolf, Rush: Movement pruning (2020), equation 2.
    """
    if e.moved is None:
        raise ValueError("score: movement is that of a training; use it with a schedule that prunes while training")
    return e.moved


def of_training(score: Score) -> Score:
    """Marks a score that looks at ``Evidence.moved``, which a training fills as it goes."""
    setattr(score, OF_TRAINING, True)
    return score


def is_of_training(score: Score) -> bool:
    """Whether it was marked so."""
    return getattr(score, OF_TRAINING, False)


of_training(movement)


def lamp(e: Evidence) -> tuple[Array, ...]:
    """w²/Σv² over the v of the layer with |v| ≥ |w|: scores that are comparable between layers.

    Of equal weights the first counts as the larger. Lee et al., Layer-adaptive sparsity for magnitude pruning (2021).
    """
    xp = e.backend.xp

    def of_layer(w: Array) -> Array:
        flat = xp.reshape(w * w, (*w.shape[:-2], -1))
        order = xp.argsort(-flat, axis=-1, stable=True)
        ordered = xp.take_along_axis(flat, order, axis=-1)
        total = xp.cumulative_sum(ordered, axis=-1)
        ordered = ordered / xp.where(total > 0, total, xp.ones_like(total))
        return xp.reshape(xp.take_along_axis(ordered, xp.argsort(order, axis=-1), axis=-1), w.shape)

    return _of_weights(e, of_layer)


def synaptic_flow(e: Evidence) -> tuple[Array, ...]:
    """|w|·∂R/∂|w|/R, R = 1ᵀ|W₁|…|W_L|1: the part of all flow that passes the weight; no data are used.

    Meant for ``one_shot(rounds=100)``: scored anew as weights go, it never empties a layer while another has weights to
    give. Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow (2020).
    """
    xp = e.backend.xp
    strengths = _of_weights(e, xp.abs)

    def scaled(x: Array) -> Array:  # R itself overflows; the scores of each layer add up to 1
        top = xp.max(x, axis=(-2, -1), keepdims=True)
        return x / xp.where(top > 0, top, xp.ones_like(top))

    ahead, behind = [xp.ones_like(strengths[0][..., :, :1])], [xp.ones_like(strengths[-1][..., :1, :])]
    for w in strengths[:-1]:
        ahead.append(scaled(w.mT @ ahead[-1]))
    for w in reversed(strengths[1:]):
        behind.append(scaled(behind[-1] @ w.mT))
    found = []
    for w, a, b in zip(strengths, ahead, reversed(behind), strict=True):
        flow = w * a * b
        total = xp.sum(flow, axis=(-2, -1), keepdims=True)
        found.append(flow / xp.where(total > 0, total, xp.ones_like(total)))
    return tuple(found)


def wanda(e: Evidence) -> tuple[Array, ...]:
    """|w_ij|·‖a_i‖/√n, a_i the input over n rows.

    The paper compares the weights of one output only; here those of all that the allocation compares. Sun et al., A
    simple and effective pruning approach for large language models (2024).
    """
    xp, found = e.backend.xp, []
    for layer, step in zip(e.params, forward(e.network, e.params, e.rows.x), strict=True):
        size = xp.sqrt(xp.mean(step.a * step.a, axis=-2))
        found.append(xp.abs(layer.weight) * size[..., :, None])
    return tuple(found)


def fisher(e: Evidence) -> tuple[Array, ...]:
    """½w²F_ww with the diagonal of the empirical Fisher matrix for that of the Hessian: optimal brain damage.

    LeCun, Denker, Solla: Optimal brain damage (1990); Theis et al., Faster gaze prediction (2018).
    """
    steps = forward(e.network, e.params, e.rows.x)
    found = squared_gradients(e.network, e.loss, e.params, steps, e.rows.t, e.rows.weight)
    return tuple(0.5 * w.weight * w.weight * f.weight for w, f in zip(e.params, found, strict=True))


def surgeon(e: Evidence) -> tuple[Array, ...]:
    """w²/[H⁻¹]_ww at the moment w goes, H the covariance of the layer's inputs, the least first: optimal brain surgeon.

    With ``correct=True`` the weights that stay make up for those that went. See ``surgeon.removal_costs``.
    """
    steps = forward(e.network, e.params, e.rows.x)
    return tuple(removal_costs(layer.weight, step.a, e.backend) for layer, step in zip(e.params, steps, strict=True))


def activation(e: Evidence) -> tuple[Array, ...]:
    """mean |a_j| over the rows, of the neuron that the weight feeds."""
    xp, steps = e.backend.xp, forward(e.network, e.params, e.rows.x)
    outputs = [step.f for step in steps[1:]] + [steps[-1].z]
    return tuple(xp.mean(xp.abs(a), axis=-2, keepdims=True) for a in outputs)


def neuron_taylor(e: Evidence) -> tuple[Array, ...]:
    """mean |a_j·∂ℓ/∂a_j| over the rows, of the neuron that the weight feeds: how losses change when it falls silent.

    Molchanov et al., Pruning convolutional neural networks for resource efficient inference (2017), equation 8.
    """
    xp, steps = e.backend.xp, forward(e.network, e.params, e.rows.x)
    deltas = row_deltas(e.network, e.loss, e.params, steps, e.rows.t)
    pairs = [(step.f, back) for step, (_, back) in zip(steps[1:], deltas, strict=False)]
    pairs.append((steps[-1].z, deltas[-1][0]))
    weight = 1.0 if e.rows.weight is None else e.rows.weight[..., None]
    return tuple(xp.mean(xp.abs(a * by) * weight, axis=-2, keepdims=True) for a, by in pairs)


NAMES = (
    "magnitude", "squared", "random", "gradient", "taylor", "movement", "lamp", "synaptic_flow", "wanda",
    "fisher", "surgeon", "activation", "neuron_taylor",
)  # fmt: skip


def get(score: str | Score, argument: str = "score") -> Score:
    """A score by its name, or the function itself."""
    if callable(score):
        hash(score)  # programs are cached by it
        return score
    if not isinstance(score, str) or score not in NAMES:
        raise ValueError(f"{argument}: expected a function of Evidence or one of {', '.join(NAMES)}, got {score!r}")
    return globals()[score]


def _of_weights(e: Evidence, fn: Callable[[Array], Array]) -> tuple[Array, ...]:
    return tuple(fn(layer.weight) for layer in e.params)


def _gradients(e: Evidence) -> tuple[Array, ...]:
    """∂J/∂W, of pruned weights too."""
    grads = objective(e.network, e.loss, e.params, e.rows.x, e.rows.t, e.rows.weight, None)[1]
    return tuple(grad.weight for grad in grads)


class Asked(NamedTuple):
    """What a program of a score is compiled for."""

    score: Score
    network: Network
    loss: Loss
    backend: Backend


def measure(
    params: Params, rows: Rows, key: Array, moved: tuple[Array, ...] | None, *, asked: Asked
) -> tuple[tuple[Array, ...], Array]:
    """The scores of every weight, as large as the weights; and whether one of them is no number."""
    xp = asked.backend.xp
    evidence = Evidence(asked.network, asked.loss, asked.backend, params, rows, key, moved)
    found, shapes = asked.score(evidence), [layer.weight.shape for layer in params]
    try:
        found = tuple(xp.broadcast_to(xp.astype(s, xp.float32), shape) for s, shape in zip(found, shapes, strict=True))
    except (TypeError, ValueError, AttributeError) as error:
        expected = f"expected an array for each layer that broadcasts to {shapes}"
        raise ValueError(f"score: {expected}, got {found!r:.200}") from error
    return found, xp.any(xp.stack([xp.any(xp.isnan(s)) for s in found]))
