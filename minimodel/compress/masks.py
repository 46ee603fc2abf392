"""Masks from scores: so many units of each group go, those of the lowest scores."""

from typing import Any, NamedTuple

from minimodel.backends import Backend
from minimodel.compress.patterns import Pattern
from minimodel.tree import Array

Arrays = tuple[Array, ...]


class Choice(NamedTuple):
    """What a program that makes masks is compiled for: ``spared`` units of each layer stay before any other's go."""

    backend: Backend
    pattern: Pattern
    pooled: bool
    spared: tuple[int, ...]


def choose(scores: Arrays, old: Arrays | None, kept: Arrays, *, choice: Choice) -> Arrays:
    """The masks that keep so many units (*population,) of all layers, pooled, or of each.

    Of equal scores the first in row-major order, and of layers the earlier, are kept. What ``old`` masks removed stays
    removed, and a unit with nothing left is gone.
    """
    pattern, backend = choice.pattern, choice.backend
    units, present = flat_units(scores, old, choice)
    shapes = [unit.shape for unit in pattern.units(scores)]
    fixed = first(units, shapes, choice)
    tiers = [tier for tier in (spared(units, present, fixed, choice), fixed) if tier is not None]
    if choice.pooled:
        chosen = keep(units, present, tiers, kept[0], backend)
    else:
        chosen = keep_each(units, present, tiers, kept, backend)
    return masks_of(chosen, shapes, scores, old, choice)


def above(scores: Arrays, old: Arrays | None, least: Array, *, choice: Choice) -> Arrays:
    """The masks that keep units with a score of at least ``least``."""
    units, present = flat_units(scores, old, choice)
    shapes = [unit.shape for unit in choice.pattern.units(scores)]
    kept, fixed = tuple(unit >= least for unit in units), first(units, shapes, choice)
    kept = kept if fixed is None else tuple(k & f for k, f in zip(kept, fixed, strict=True))
    best = spared(units, present, fixed, choice)
    kept = kept if best is None else tuple(k | b for k, b in zip(kept, best, strict=True))
    return masks_of(kept, shapes, scores, old, choice)


def exchange(scores: Arrays, growth: Arrays, old: Arrays, part: Array, *, choice: Choice) -> Arrays:
    """In each layer a part of the kept units, those of lowest score, go, and as many of the highest growth come."""
    backend, xp = choice.backend, choice.backend.xp
    shapes = [unit.shape for unit in choice.pattern.units(scores)]
    units, present = flat_units(scores, old, choice)
    grown, _ = flat_units(growth, None, choice)
    assert present is not None
    counts = [count(mask, xp) for mask in present]
    moved = tuple(xp.astype(xp.round(part * xp.astype(n, xp.float32)), xp.int32) for n in counts)
    staying = tuple(n - m for n, m in zip(counts, moved, strict=True))
    stay = keep_each(units, present, [], staying, backend)
    wanted = tuple(xp.where(s, xp.full_like(g, float("inf")), g) for s, g in zip(stay, grown, strict=True))
    allowed = first(wanted, shapes, choice) or tuple(xp.ones_like(s) for s in stay)
    open_to = tuple(a & ~s for a, s in zip(allowed, stay, strict=True))
    come = keep_each(grown, open_to, [], moved, backend)
    kept, others = (tuple(map(fn, stay, come)) for fn in (lambda s, c: s | c, lambda s, c: ~c))
    whole, same = (masks_of(units, shapes, scores, None, choice) for units in (kept, others))
    return tuple(w & (o | ~s) for w, o, s in zip(whole, old, same, strict=True))  # what stays is not refilled


def flat_units(scores: Arrays, old: Arrays | None, choice: Choice) -> tuple[Arrays, Arrays | None]:
    """The scores of the units, (*population, units) of each layer, lowest where nothing is left; where something is."""
    pattern, xp = choice.pattern, choice.backend.xp
    if old is None:
        return flat(pattern.units(scores), xp), None
    there = tuple(xp.astype(mask, s.dtype) for mask, s in zip(old, scores, strict=True))
    live = tuple(xp.where(mask, s, xp.zeros_like(s)) for s, mask in zip(scores, old, strict=True))
    units = flat(pattern.units(live), xp)
    present = tuple(part > 0 for part in flat(pattern.units(there), xp))
    lowest = (xp.full_like(unit, -float("inf")) for unit in units)
    return tuple(xp.where(p, u, low) for p, u, low in zip(present, units, lowest, strict=True)), present


def spared(units: Arrays, present: Arrays | None, fixed: Arrays | None, choice: Choice) -> Arrays | None:
    """The best of each layer, as many as it is to keep whatever happens."""
    if not any(choice.spared):
        return None
    xp = choice.backend.xp
    if present is not None and fixed is not None:
        present = tuple(p & f for p, f in zip(present, fixed, strict=True))
    counts = tuple(xp.asarray(n, dtype=xp.int32) for n in choice.spared)
    return keep_each(units, present or fixed, [], counts, choice.backend)


def first(units: Arrays, shapes: list[tuple[int, ...]], choice: Choice) -> Arrays | None:
    """What the pattern lets stay, from flat scores."""
    xp = choice.backend.xp
    found = choice.pattern.first(tuple(xp.reshape(unit, shape) for unit, shape in zip(units, shapes, strict=True)))
    return None if found is None else flat(found, xp)


def keep_each(scores: Arrays, present: Arrays | None, tiers: list[Arrays], counts: Arrays, backend: Backend) -> Arrays:
    """``keep`` in every layer by itself, so many."""
    here: Any = present and [(layer,) for layer in present]
    return tuple(
        keep((score,), here and here[i], [(tier[i],) for tier in tiers], n, backend)[0]
        for i, (score, n) in enumerate(zip(scores, counts, strict=True))
    )


def keep(scores: Arrays, present: Arrays | None, tiers: list[Arrays], k: Array, backend: Backend) -> Arrays:
    """k of those present: first of the first tier, then of the next, at last of the others, each by score."""
    xp = backend.xp
    if present is None and not tiers:
        return backend.largest(scores, xp.broadcast_to(k, scores[0].shape[:-1]))
    rest = present or tuple(xp.ones_like(s, dtype=xp.bool) for s in scores)
    found = tuple(xp.zeros_like(part) for part in rest)
    for tier in (*tiers, rest):
        own = tuple(t & r for t, r in zip(tier, rest, strict=True))
        n = sum(count(part, xp) for part in own)
        whole = sum(count(t & ~f, xp) for t, f in zip(tier, found, strict=True))  # what is gone keeps its place
        k = xp.maximum(k, xp.zeros_like(n))
        taken = xp.minimum(k, n)
        ranked = tuple(xp.where(o, s, xp.full_like(s, -float("inf"))) for o, s in zip(own, scores, strict=True))
        best = backend.largest(ranked, taken)
        found = tuple(f | (o & b) for f, o, b in zip(found, own, best, strict=True))
        rest, k = tuple(r & ~o for r, o in zip(rest, own, strict=True)), k - xp.minimum(k, whole)
    return found


def masks_of(kept: Arrays, shapes: list[tuple[int, ...]], like: Arrays, old: Arrays | None, choice: Choice) -> Arrays:
    """The masks of the weights, from flat ones of the units, without what the old ones removed."""
    xp = choice.backend.xp
    masks = choice.pattern.masks(tuple(xp.reshape(k, shape) for k, shape in zip(kept, shapes, strict=True)), like)
    return masks if old is None else tuple(mask & o for mask, o in zip(masks, old, strict=True))


def count(mask: Array, xp: Any) -> Array:
    """How many are True, along the last axis."""
    return xp.sum(xp.astype(mask, xp.int32), axis=-1, dtype=xp.int32)


def flat(values: Arrays, xp: Any) -> Arrays:
    """(…, units) of every layer."""
    return tuple(xp.reshape(value, (*value.shape[:-2], -1)) for value in values)
