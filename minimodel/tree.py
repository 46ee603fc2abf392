"""Trees of arrays: nested tuples and NamedTuples with arrays at the leaves.

Tuples are what JAX takes as they are and what NumPy needs no library for. ``None`` is an empty tree.
"""

import sys
from collections.abc import Callable
from typing import Any

Array = Any  # an array of any Array-API namespace
Tree = Any  # an array, None, or a tuple / NamedTuple of trees


def map(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """fn(leaf, *leaves of rest) at every leaf; the trees must have the same structure."""
    if isinstance(tree, tuple):  # made without the NamedTuple's own constructor, which takes as long as an addition
        return tuple.__new__(type(tree), [map(fn, *branches) for branches in zip(tree, *rest, strict=True)])
    return None if tree is None else fn(tree, *rest)


def leaves(*trees: Tree) -> list[Any]:
    """The leaves of the trees from left to right."""
    found: list[Any] = []
    for tree in trees:
        if isinstance(tree, tuple):
            found += leaves(*tree)
        elif tree is not None:
            found.append(tree)
    return found


def namespace(*trees: Tree) -> Any:
    """The one array namespace that all leaves belong to.

    Raises TypeError on a mixture: arrays of two backends never meet silently.
    """
    if len(trees) == 1 and (known := _spaces.get(type(trees[0]))):
        return known
    found = None
    for leaf in leaves(*trees):
        space = _spaces.get(type(leaf)) or _space(leaf)
        if space is not found and found is not None:
            raise TypeError(
                f"expected arrays of one namespace, got {found.__name__} and {space.__name__}; "
                "move them to one backend first with backend.asarray"
            )
        found = space
    return found


def space(tree: Tree) -> Any:
    """The namespace of the first leaf, for inner loops: nobody else's mixture gets there."""
    while isinstance(tree, tuple):
        tree = tree[0]
    return _spaces.get(type(tree)) or _space(tree)


_spaces: dict[type, Any] = {}  # the namespace of each array type seen: asking the array takes longer than adding


def _space(leaf: Any) -> Any:
    if (found := space_of(leaf)) is None:
        raise TypeError(f"expected an array, got {type(leaf).__name__}; move it to a backend with backend.asarray")
    return _spaces.setdefault(type(leaf), found)


def space_of(value: Any) -> Any:
    """The namespace that an array tells, or that array-api-compat, where it is in use, tells of it; None of others."""
    if hasattr(value, "__array_namespace__"):
        return value.__array_namespace__()
    compat = sys.modules.get("array_api_compat")
    return compat.array_namespace(value) if compat and compat.is_array_api_obj(value) else None


def align(value: Array, leaf: Array) -> Array:
    """``value`` of shape () or (*population,), reshaped to broadcast against ``leaf`` (*population, …)."""
    if value.ndim == 0:
        return value
    return namespace(value).reshape(value, value.shape + (1,) * (leaf.ndim - value.ndim))


def stack(trees: list[Tree], xp: Any) -> Tree:
    """Trees of one structure, stacked leaf by leaf along a new first axis."""
    return map(lambda *rows: xp.stack(rows), *trees)
