"""threefry2x32, a counter-based random generator, in plain array operations.

Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3 (SC 2011). 20 rounds, as in JAX.
"""

from typing import Any

from minimodel.tree import Array

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA


def threefry2x32(key: tuple[Array, Array], x0: Array, x1: Array) -> tuple[Array, Array]:
    """Encrypt the counter words (x0, x1) under the key words; uint32 arrays of at least one axis that broadcast.

    x1 with the key, and x0 with that, must have the full shape: from there on every update is in place on NumPy.
    """
    words = (key[0], key[1], key[0] ^ key[1] ^ PARITY)
    x1 = x1 + words[1]
    x0 = x0 + words[0] + x1  # with the first round's addition
    for group in range(5):
        for i, rotation in enumerate(ROTATIONS[group % 2]):
            if group or i:
                x0 += x1
            spill = x1 >> (32 - rotation)
            x1 <<= rotation
            x1 |= spill
            x1 ^= x0
        x0 += words[(group + 1) % 3]
        x1 += words[(group + 2) % 3] + (group + 1)
    return x0, x1


def counter_words(xp: Any, key: Array, start: int, stop: int) -> Array:
    """The words number start..stop of a key (*population, 2), as (*population, stop − start).

    Word i is a ⊕ b where (a, b) encrypts the 64-bit counter (0, i): JAX's partitionable layout.
    """
    low = xp.arange(start, stop, dtype=xp.uint32)
    k0, k1 = key[..., 0:1], key[..., 1:2]
    x0, x1 = threefry2x32((k0, k1), xp.zeros_like(k0), low)
    x0 ^= x1
    return x0
