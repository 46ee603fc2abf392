"""What Hypothesis calls when it starts: types whose values ``st.from_type`` can then make.

It is called while Hypothesis is being imported, and so perhaps by ``minimodel.testing.strategies``, half of which is
there by then. Therefore it stands alone: how a type's values are made is looked up when the first one is asked for.
"""

from collections.abc import Callable
from typing import Any

from minimodel.losses import Loss
from minimodel.network import Layer, Network
from minimodel.qarray import QArray
from minimodel.search.optimizers import Optimizer
from minimodel.search.strategies import Strategy

MAKERS: dict[type, str] = {
    Network: "networks",
    Layer: "layers",
    QArray: "quantized",
    Optimizer: "optimizers",
    Loss: "losses",
    Strategy: "searches_of",
}


def register() -> None:
    """Tell Hypothesis of every type; imports nothing that takes time."""
    from hypothesis import strategies as st

    for kind, name in MAKERS.items():
        st.register_type_strategy(kind, _deferred(name))


def _deferred(name: str) -> Callable[[Any], Any]:
    def make(kind: Any) -> Any:
        from minimodel.testing import strategies

        return getattr(strategies, name)()

    return make
