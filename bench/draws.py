"""Nanoseconds a random word: our threefry on NumPy and JAX, beside the generators those libraries bring."""

import numpy as np

from minimodel import random
from minimodel.backends import load
from minimodel.bench.common import arguments, report, side_by_side

WORDS, REPEATS = 1_000_000, 25


def main() -> None:
    """Print and store the table."""
    options = arguments(__doc__).parse_args()
    key, generator = random.key(0), np.random.default_rng(0)
    found = side_by_side(
        {
            "numpy bits": lambda: random.bits(key, (WORDS,)),
            "numpy uniform": lambda: random.uniform(key, (WORDS,)),
            "numpy normal": lambda: random.normal(key, (WORDS,)),
            "numpy PCG64 bits": lambda: generator.integers(0, 2**32, WORDS, dtype=np.uint32),
            "numpy PCG64 normal": lambda: generator.standard_normal(WORDS, dtype=np.float32),
        },
        repeats=REPEATS,
    )
    try:  # after NumPy's turn: once started, JAX's threads take time from it
        found |= on_jax(key)
    except ImportError as error:
        print(f"without JAX: {error}")
    for name, seconds in found.items():
        low, middle, high = (seconds[part] / WORDS * 1e9 for part in ("min", "median", "max"))
        print(f"{name:<20} {middle:6.1f} ns a word   ({low:.1f} to {high:.1f})")
    report({"words": WORDS, "seconds": found}, options.out)


def on_jax(key: np.ndarray) -> dict[str, dict[str, float]]:
    """The same on JAX, beside ``jax.random``."""
    backend = load("jax")
    import jax

    own, theirs = backend.asarray(key), jax.random.key(0)
    return side_by_side(
        {
            "jax bits": lambda: random.bits(own, (WORDS,), backend=backend).block_until_ready(),
            "jax.random.bits": lambda: jax.random.bits(theirs, (WORDS,)).block_until_ready(),
            "jax normal": lambda: random.normal(own, (WORDS,), backend=backend).block_until_ready(),
            "jax.random.normal": lambda: jax.random.normal(theirs, (WORDS,)).block_until_ready(),
        },
        repeats=REPEATS,
    )


if __name__ == "__main__":
    main()
