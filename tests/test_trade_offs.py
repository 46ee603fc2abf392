"""The Pareto front of points, against its definition."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minimodel.trade_offs import Point, front

PAIRS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=8)


def made(size, error):
    """A point of two seeds whose means these are."""
    spread = np.array([-0.5, 0.5])
    return Point(0.0, 8, None, spread, size + spread, spread, error + spread, spread)


@given(PAIRS)
def test_the_front_is_what_no_other_point_beats(pairs):
    points = [made(*pair) for pair in pairs]
    found = [(int(point.bytes.mean()), int(point.error.mean())) for point in front(points)]
    beaten = {
        (size, error)
        for size, error in pairs
        for other in pairs
        if other != (size, error) and other[0] <= size and other[1] <= error
    }
    assert found == sorted(set(pairs) - beaten)
