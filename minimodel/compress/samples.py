"""The training rows that scores, corrections and ranges look at: the same few thousand for every seed."""

import numpy as np

from minimodel import random, tree
from minimodel.problem import Problem, Rows

ROWS = 4096


def picked(rows: int) -> np.ndarray:
    """The numbers of so many of the rows, in order: all of them, or ``ROWS`` at random."""
    return np.sort(random.permutation(random.key(0), rows)[:ROWS])


def sample(problem: Problem) -> Rows:
    """Those rows on the problem's backend; those of a stream are of its first chunk."""
    rows = next(iter(problem.chunks(0, 1)))
    order = problem.backend.asarray(picked(rows.x.shape[0]))
    return tree.map(lambda leaf: problem.backend.take(leaf, order), rows)
