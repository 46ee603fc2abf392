"""minimodel.tree: nested tuples of arrays on every backend."""

from typing import Any, NamedTuple

import numpy as np
import pytest

import minimodel as mm
from minimodel import tree


class Pair(NamedTuple):
    left: Any
    right: Any


def nested(backend):
    """A tree with every kind of node: a tuple, a NamedTuple, None."""
    a, b, c = (backend.asarray(np.arange(n, dtype=np.float32)) for n in (1, 2, 3))
    return (a, Pair(b, None), (), (c,))


def test_map_keeps_the_structure_and_reaches_every_leaf(backend):
    found = tree.map(lambda leaf: leaf + 1, nested(backend))
    assert type(found) is tuple and type(found[1]) is Pair
    assert found[1].right is None and found[2] == ()
    values = [backend.to_numpy(leaf).tolist() for leaf in tree.leaves(found)]
    assert values == [[1.0], [1.0, 2.0], [1.0, 2.0, 3.0]]


def test_map_of_several_trees_pairs_their_leaves_in_order():
    found = tree.map(lambda *leaves: leaves, (1, Pair(2, (3,))), (4, Pair(5, (6,))), (7, Pair(8, (9,))))
    assert found == ((1, 4, 7), Pair((2, 5, 8), ((3, 6, 9),)))


def test_map_of_none_is_none():
    assert tree.map(lambda leaf: leaf + 1, None) is None


@pytest.mark.parametrize("other", [(1,), (1, 2, 3), (), (1, 2, (3,))])
def test_map_refuses_trees_of_another_structure(other):
    with pytest.raises(ValueError, match="zip"):
        tree.map(lambda x, y: x, (1, 2), other)


def test_map_refuses_another_structure_further_down():
    with pytest.raises(ValueError, match="zip"):
        tree.map(lambda x, y: x, (1, Pair(2, (3, 4))), (1, Pair(2, (3,))))


def test_leaves_come_from_left_to_right_without_none():
    assert tree.leaves((3, Pair((1, None), 2)), None, 5, ()) == [3, 1, 2, 5]
    assert tree.leaves(None) == [] and tree.leaves() == []


def test_leaves_do_not_look_into_arrays():
    leaf = np.arange(6).reshape(2, 3)
    assert [found is leaf for found in tree.leaves((leaf,))] == [True]


def test_namespace_is_the_backends_own(backend):
    space = tree.namespace(nested(backend), backend.asarray(np.float32(1)))
    leaf = backend.asarray(np.zeros(2, np.float32))
    assert space is leaf.__array_namespace__()
    assert isinstance(space.zeros(2), type(leaf))


def test_namespace_of_no_leaves_is_none():
    assert tree.namespace(None, (), (None,)) is None


@pytest.mark.parametrize("name", ["jax", "array_api:array_api_strict"])
def test_namespace_refuses_a_mixture_and_names_both(name):
    pytest.importorskip(name.rpartition(":")[2])
    theirs, ours = mm.backends.load(name).asarray([1.0]), np.ones(1)
    for mixture in [(ours, theirs), (theirs, ours)]:
        with pytest.raises(TypeError, match=r"one namespace.*numpy.*backend\.asarray"):
            tree.namespace(mixture)


@pytest.mark.parametrize("value", [1.0, [1.0, 2.0], "weights", {"a": np.ones(1)}])
def test_namespace_refuses_what_is_no_array(value):
    for given in [(value,), (np.ones(1), value)]:
        with pytest.raises(TypeError, match=f"expected an array, got {type(value).__name__}"):
            tree.namespace(given)


def test_namespace_refuses_a_non_array_every_time():
    """The table of known array types must not learn a type that is none."""
    for _ in range(2):
        with pytest.raises(TypeError, match="expected an array, got int"):
            tree.namespace(7)


@pytest.mark.parametrize("leaf_shape", [(), (3,), (3, 4), (3, 4, 5)])
def test_align_leaves_a_scalar_as_it_is(backend, leaf_shape):
    value, leaf = backend.asarray(np.float32(2)), backend.asarray(np.ones(leaf_shape, np.float32))
    assert tree.align(value, leaf) is value


@pytest.mark.parametrize("population", [(3,), (3, 2)])
@pytest.mark.parametrize("inner", [(), (4,), (4, 5)])
def test_align_gives_each_member_its_own_value(backend, population, inner):
    values = np.arange(np.prod(population), dtype=np.float32).reshape(population)
    leaf = backend.asarray(np.ones(population + inner, np.float32))
    aligned = tree.align(backend.asarray(values), leaf)
    assert aligned.shape == population + (1,) * len(inner)
    product = backend.to_numpy(aligned * leaf)
    for member in np.ndindex(population):
        assert np.all(product[member] == values[member])


def test_stack_adds_a_first_axis_to_every_leaf(backend):
    trees = [tree.map(lambda leaf, i=i: leaf + i, nested(backend)) for i in range(3)]
    stacked = tree.stack(trees, backend.xp)
    assert type(stacked[1]) is Pair and stacked[1].right is None
    for found, *rows in zip(tree.leaves(stacked), *map(tree.leaves, trees), strict=True):
        expected = np.stack([backend.to_numpy(row) for row in rows])
        np.testing.assert_array_equal(backend.to_numpy(found), expected)


def test_stack_refuses_trees_of_another_structure(backend):
    leaf = backend.asarray(np.ones(2, np.float32))
    with pytest.raises(ValueError, match="zip"):
        tree.stack([(leaf, leaf), (leaf,)], backend.xp)
