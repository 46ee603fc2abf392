"""Dropout: a ← a ∘ m, m = 1/(1 − p) with probability 1 − p, else 0. Srivastava et al. (2014), scaled in training."""

from minimodel import random
from minimodel.backends import Backend
from minimodel.gradients import Noise
from minimodel.tree import Array, namespace

STEPS = 2**16  # p is rounded to a multiple of 1/STEPS: half a random word decides over an activation


def noise(
    key: Array, inputs: Array | None, hidden: Array | None, sizes: tuple[int, ...], batch: int, *, backend: Backend
) -> Noise:
    """m for x and for every hidden layer, (*population, batch, size), or None where the rate is None.

    ``sizes`` are those of the inputs and the hidden layers; layer i draws under fold_in(key, i).
    """
    rates = (inputs, *[hidden] * (len(sizes) - 1))
    return tuple(
        None if rate is None else multiplier(random.fold_in(key, i), rate, (batch, size), backend=backend)
        for i, (rate, size) in enumerate(zip(rates, sizes, strict=True))
    )


def multiplier(key: Array, rate: Array, shape: tuple[int, int], *, backend: Backend) -> Array:
    """m of this shape behind the population's axes of the key."""
    xp, (rows, size) = namespace(key), shape
    words = backend.random_bits(key, (rows, -(-size // 2)))
    halves = xp.concat([words & (STEPS - 1), words >> 16], axis=-1)[..., :size]
    bar = xp.clip(xp.round(rate * STEPS), 0, STEPS - 1)
    bar, scale = (xp.reshape(part, (*part.shape, 1, 1)) for part in (bar, STEPS / (STEPS - bar)))
    return xp.astype(halves >= xp.astype(bar, xp.uint32), rate.dtype) * scale
