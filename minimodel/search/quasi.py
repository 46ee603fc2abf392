"""Quasi-random points, which fill a space more evenly than independent ones: by scipy, on the host."""

import warnings

import numpy as np

SEQUENCES = ("sobol", "halton", "latin_hypercube")


def points(sequence: str, law: str, key: np.ndarray, count: int, width: int) -> np.ndarray:
    """``count`` points of a law, float32 (count, width), scrambled by the key of their generation.

    "normal" and "cauchy" are the inverse distribution function of the uniform points.
    """
    try:
        from scipy.special import ndtri
        from scipy.stats import qmc
    except ImportError as error:
        raise ImportError(f"points={sequence!r} needs scipy: pip install 'minimodel[scipy]'") from error
    if sequence == "sobol" and width > qmc.Sobol.MAXDIM:
        raise ValueError(f"points: scipy's Sobol points have at most {qmc.Sobol.MAXDIM} numbers, not {width}")
    engines = {"sobol": qmc.Sobol, "halton": qmc.Halton, "latin_hypercube": qmc.LatinHypercube}
    engine = engines[sequence](width, rng=np.random.default_rng(key.tolist()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that only powers of two of Sobol points are balanced
        u = engine.random(count)
    if law != "uniform":
        u = np.clip(u, 2.0**-32, 1 - 2.0**-32)
        u = ndtri(u) if law == "normal" else np.tan(np.pi * (u - 0.5))
    return np.asarray(u, np.float32)
