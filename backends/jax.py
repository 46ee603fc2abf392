"""JAX: whole programs compiled by XLA for CPU, GPU or TPU. The only file that imports JAX."""

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from minimodel.backends import array_api
from minimodel.backends.interface import Backend, check_integer_matmul, scan_length
from minimodel.tree import Array, Tree

PRECISIONS = ("highest", "high", "default")
HOST_ROOM, DEVICE_ROOM = 2**21, 2**28  # 8 MiB for each lane of the cache that cores share; 1 GiB of an accelerator
LANES = 2  # steps of a loop on the host that run side by side
ALL = 2**62  # parameters: an accelerator keeps none in a cache, and parts would hold the state twice


def make(variant: str | None = None, *, precision: str = "highest") -> Backend:
    """JAX on its default device, or on the first of a platform: ``jax:cpu``, ``jax:gpu``, ``jax:tpu``.

    Without a platform a population that is spread uses all devices.

    ``precision`` is that of matrix products: "highest" is full float32 everywhere; "high" and "default" let an
    accelerator use fewer bits for speed.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {PRECISIONS}, got {precision!r}")
    device = find_device(variant) if variant else None
    devices: list[Any] = [device] if variant else jax.devices()
    on_host = devices[0].platform == "cpu"
    placed = functools.partial(jax.default_device, device) if variant else nullcontext
    return Backend(
        name=f"jax:{variant}" if variant else "jax",
        xp=jnp,
        devices=tuple(map(str, devices)),
        asarray=functools.partial(asarray, device),
        to_numpy=functools.partial(jax.tree.map, np.array),
        synchronize=jax.block_until_ready,
        packs=0,
        keeps=array_api.HOST_KEEPS if on_host else ALL,
        room=HOST_ROOM if on_host else DEVICE_ROOM,
        columns=on_host,
        jit=functools.cache(functools.partial(jit, placed, precision)),
        scan=functools.partial(scan, LANES if on_host else 1),
        spread=functools.partial(spread, devices),
        take=take,
        random_bits=random_bits,
        order=order,
        integer_matmul=integer_matmul,
        largest=largest,
    )


def find_device(variant: str) -> Any:
    """The first device of a platform."""
    try:
        return jax.devices(variant)[0]
    except RuntimeError as error:
        seen = ", ".join(str(device) for device in jax.devices())
        raise ValueError(f"backend 'jax:{variant}': JAX sees no such device, only {seen}") from error


def asarray(device: Any, x: Any, dtype: Any = None, copy: bool = True) -> Array:
    """A copy on the device. ``device_put`` alone could alias NumPy's memory; a copy nobody else has may be aliased."""
    if isinstance(x, jax.Array):  # also while it is being traced
        return jax.device_put(jnp.array(x, dtype=dtype, copy=True), device)
    return jax.device_put(np.array(x, dtype=dtype, copy=copy or None), device)


def jit(
    placed: Callable[[], Any], precision: str, fn: Any, static: tuple[str, ...] = (), donate: tuple[str, ...] = ()
) -> Any:
    """``jax.jit`` on the device, products of this precision; ``call.compiled._cache_size()`` counts compilations."""

    @functools.wraps(fn)
    def traced(*args: Any, **kwargs: Any) -> Any:
        with jax.default_matmul_precision(precision):
            return fn(*args, **kwargs)

    compiled = jax.jit(traced, static_argnames=static, donate_argnames=donate)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        with placed():
            return compiled(*args, **kwargs)

    call.compiled = compiled  # type: ignore[attr-defined]
    return call


def scan(lanes: int, step: Callable[..., Any], carry: Tree, xs: Tree) -> tuple[Tree, Tree]:
    """One XLA loop. Steps that need nothing of those before run side by side, so many of them: within a loop XLA uses
    one core for all that is not a product. A loop is left, in which nothing is computed twice."""
    long = scan_length(xs) >= 2 * lanes
    return lax.scan(step, carry, xs, unroll=lanes if long and not jax.tree.leaves(carry) else 1)


def spread(devices: list[Any], values: Tree, axis: int | None) -> Tree:
    """A constraint on where XLA keeps them."""
    if len(devices) == 1:
        return values
    mesh = Mesh(devices, ("population",))

    def place(leaf: Array) -> Array:
        shared = axis is not None and leaf.shape[axis] % len(devices) == 0
        names = (*(None,) * axis, "population") if axis is not None and shared else ()
        where = NamedSharding(mesh, PartitionSpec(*names))  # type: ignore[no-untyped-call]
        return lax.with_sharding_constraint(leaf, where)  # type: ignore[no-untyped-call]

    return jax.tree.map(place, values)


def take(x: Array, rows: Array) -> Array:
    """x[rows] without a check of each number."""
    return x.at[rows].get(mode="promise_in_bounds")


def random_bits(key: Array, shape: tuple[int, ...]) -> Array:
    """The same source, jitted. The barrier keeps XLA from simplifying through chained keys, which took it seconds."""
    return array_api.random_bits(jnp, lax.optimization_barrier(key), shape)  # type: ignore[no-untyped-call]


def order(words: Array) -> Array:
    """Words with their places behind them, sorted as numbers of 64 bits: XLA sorts pairs five times as slowly."""
    with jax.enable_x64(True):
        places = jnp.arange(words.shape[-1], dtype=jnp.uint64)
        wide = lax.sort((words.astype(jnp.uint64) << 32) | places, is_stable=False)
        return wide.astype(jnp.uint32).astype(jnp.int32)


def integer_matmul(a: Array, b: Array) -> Array:
    """int8 · int8 → int32 on the device's integer units."""
    check_integer_matmul(a, b)
    return jnp.matmul(a, b, preferred_element_type=jnp.int32)


def largest(arrays: tuple[Array, ...], k: Any) -> tuple[Array, ...]:
    """By bisection on the bits of the k-th largest float: 32 counts, no sort.

    Floats order like their bits once the negative ones are flipped: u ↦ ¬u if the sign is set, else u ⊕ 2³¹.
    """
    sign = jnp.uint32(1 << 31)
    k = jnp.broadcast_to(jnp.asarray(k, jnp.int32), arrays[0].shape[:-1])

    def ordered(x: Array) -> Array:
        raw = lax.bitcast_convert_type(x, jnp.uint32)
        raw = jnp.where(raw == sign, jnp.uint32(0), raw)  # −0 is 0
        return jnp.where(raw & sign, ~raw, raw ^ sign)

    def count(flags: Array) -> Array:
        return jnp.sum(flags, axis=-1, dtype=jnp.int32)

    bits = [ordered(x) for x in arrays]

    def halve(i: int, found: Array) -> Array:
        candidate = found | (sign >> jnp.asarray(i, jnp.uint32))
        enough = sum(count(b >= candidate[..., None]) for b in bits) >= k
        return jnp.where(enough, candidate, found)

    bar = lax.fori_loop(0, 32, halve, jnp.zeros(k.shape, jnp.uint32))[..., None]

    def all_of_them() -> tuple[Array, ...]:
        return tuple(b >= bar for b in bits)

    def first_ties() -> tuple[Array, ...]:
        room, masks = k - sum(count(b > bar) for b in bits), []
        for b in bits:
            ties = b == bar
            masks.append((b > bar) | (ties & (jnp.cumsum(ties, axis=-1, dtype=jnp.int32) <= room[..., None])))
            room = room - count(ties)
        return tuple(masks)

    exact = sum(map(count, all_of_them())) == k  # as where no floats are equal, which saves the running sum
    return lax.cond(jnp.all(exact), all_of_them, first_ties)
