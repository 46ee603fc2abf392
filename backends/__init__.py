"""Array backends: ``load("numpy")``, ``load("jax")``, ``load("jax:gpu")``, ``load("array_api:array_api_strict")``."""

import functools
import importlib
from collections.abc import Callable
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

from minimodel.backends.interface import Backend

__all__ = ["Backend", "available", "load", "register"]

GROUP = "minimodel.backends"
# name: (the library it needs, how to install it)
BUILT_IN = {
    "numpy": ("numpy", "pip install numpy"),
    "jax": ("jax", "pip install 'minimodel[jax]'"),
    "array_api": ("array_api_strict", "pip install array-api-strict"),
}
_registered: dict[str, Callable[..., Backend]] = {}


def register(name: str, factory: Callable[..., Backend]) -> None:
    """Make ``load(name)`` call ``factory()``, and ``load("name:variant")`` call ``factory("variant")``.

    A package can do the same without code: an entry point in the group ``minimodel.backends``.
    """
    if not name or ":" in name or name in BUILT_IN:
        raise ValueError(f"name: expected a new name without ':', got {name!r}; {', '.join(BUILT_IN)} are built in")
    _registered[name] = factory
    _load.cache_clear()


def available() -> tuple[str, ...]:
    """The names that can be loaded here and now."""
    installed = [name for name, (needs, _) in BUILT_IN.items() if find_spec(needs)]
    return (*installed, *_registered, *(point.name for point in entry_points(group=GROUP)))


def load(name: str | Backend, **options: Any) -> Backend:
    """The backend of that name; the same name and options give the same object. A ``Backend`` is returned as it is.

    Options go to the backend: ``load("jax", precision="default")``, ``load("numpy", debug=True)``.
    Raises ValueError for a name that is unknown and ImportError for one that is not installed.
    """
    if not isinstance(name, str | Backend) or (isinstance(name, Backend) and options):
        raise TypeError(f"backend: expected a name with options, or a Backend alone, got {name!r} and {options}")
    return _load(name, **options) if isinstance(name, str) else name


@functools.cache
def _load(name: str, **options: Any) -> Backend:
    head, _, variant = name.partition(":")
    arguments = (variant,) if variant else ()
    factory = _factory(head)
    try:
        return factory(*arguments, **options)
    except TypeError as error:
        raise TypeError(f"backend {name!r} with options {options}: {error}") from error


def _factory(name: str) -> Callable[..., Backend]:
    if name in _registered:
        return _registered[name]
    if name in BUILT_IN:
        needs, install = BUILT_IN[name]
        if name != "array_api" and not find_spec(needs):  # any namespace will do for that one
            raise ImportError(f"backend {name!r} needs {needs}: {install}. {_what_there_is()}")
        return importlib.import_module(f"minimodel.backends.{name}").make
    for point in entry_points(group=GROUP, name=name):
        return point.load()
    raise ValueError(f"unknown backend {name!r}. {_what_there_is()}")


def _what_there_is() -> str:
    ready = available()
    missing = [f"{name} ({install})" for name, (_, install) in BUILT_IN.items() if name not in ready]
    return f"Available: {', '.join(ready)}." + (f" Not installed: {', '.join(missing)}." if missing else "")
