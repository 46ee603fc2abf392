"""Optimizers: a rule composed from parts, its numbers, and a learning-rate schedule.

    d ← g;  d ← part(d) for every part;  θ ← θ − η d

The parts stand in this order: clipping, L1 and L2 penalties, the optimizer's own, decoupled decay. Every number may
be an array over the population. Where optimizers of one name differ between libraries, an argument settles it and the
docstring says which is which; the defaults are torch's, but that biases are not decayed.
"""

from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np

from minimodel.search import parts, schedules
from minimodel.search.lbfgs import LBFGS
from minimodel.search.parts import Part
from minimodel.search.rules import Averaged, Chain, Rule, SharpnessAware, Tracked
from minimodel.tree import Tree


class Optimizer(NamedTuple):
    """What ``gradient_descent`` takes: a rule, its numbers, and the learning rate by step."""

    rule: Rule
    config: Tree
    schedule: schedules.Schedule


class Options(TypedDict, total=False):
    """What every optimizer but L-BFGS takes besides its own numbers.

    weight_decay    λ of L2 or decoupled decay
    decoupled       decay after the optimizer's own parts, θ ← θ − ηλθ, instead of λθ added to the gradient
    decay_biases    decay biases like weights, as torch and Optax do unless told otherwise
    l1              λ of L1: λ sign W is added to the gradient
    group_l1        λ of the group lasso, whose groups are the weights that an input or a neuron feeds
    clip_value      every entry of the gradient is cut to ±clip_value
    clip_norm       the gradient of a network is scaled down to at most this length
    average         β of an exponential moving average of the parameters, which is what is validated and returned
    sharpness       ρ of sharpness-aware minimization: the gradient is taken at θ + ρ g/‖g‖
    """

    weight_decay: Any
    decoupled: bool
    decay_biases: bool
    l1: Any
    group_l1: Any
    clip_value: Any
    clip_norm: Any
    average: Any
    sharpness: Any


class Range(NamedTuple):
    """Numbers from ``low`` up to ``high``, an end that is ``open`` not included."""

    low: float
    high: float
    open: str = ""


POSITIVE, AT_LEAST_0, BELOW_1 = Range(0, np.inf, "low"), Range(0, np.inf), Range(0, 1, "high")
RANGES = {
    "weight_decay": AT_LEAST_0, "l1": AT_LEAST_0, "group_l1": AT_LEAST_0, "clip_value": POSITIVE, "clip_norm": POSITIVE,
    "average": BELOW_1, "sharpness": AT_LEAST_0, "momentum": BELOW_1, "b1": BELOW_1, "b2": BELOW_1,
    "decay": BELOW_1, "eps": POSITIVE, "eps_root": AT_LEAST_0, "initial": AT_LEAST_0, "momentum_decay": AT_LEAST_0,
}  # fmt: skip
OPTIONAL = {"weight_decay", "l1", "group_l1", "clip_value", "clip_norm", "average", "sharpness", "eps_root", "initial"}


def number(name: str, value: Any) -> Any:
    """The value, if it is finite numbers within the range of that name, or None for what may be left out."""
    if value is None and name in OPTIONAL:
        return None
    low, high, open_ = RANGES[name]
    found = np.asarray(value)
    fits = found.dtype.kind in "iuf" and np.isfinite(found).all()
    if fits and open_ == "low":
        found = found.astype(np.float32)  # as which it is used: it must not vanish
    if not fits or not ((found > low if open_ == "low" else found >= low) & (found < high)).all():
        expected = f"numbers {'above' if open_ == 'low' else 'from'} {low:g}" + (
            f" and below {high:g}" if high < np.inf else ""
        )
        raise ValueError(f"{name}: expected finite {expected}, got {value!r}")
    return np.asarray(value)  # a tuple would be a tree


def compose(learning_rate: Any, *own: tuple[Part, Any], **options: Unpack[Options]) -> Optimizer:
    """An optimizer of parts, each given with its numbers, and of what ``Options`` adds to them."""
    if unknown := set(options) - set(Options.__annotations__):
        raise TypeError(f"unknown option {sorted(unknown)[0]}; expected {', '.join(Options.__annotations__)}")
    given = {name: number(name, value) for name, value in options.items() if name in RANGES}
    decay = (parts.Decay(options.get("decay_biases", False)), given.get("weight_decay"))
    decoupled = options.get("decoupled", False)
    chain: list[tuple[Part, Any]] = [
        (parts.ClipValue(), given.get("clip_value")),
        (parts.ClipNorm(), given.get("clip_norm")),
        (parts.Lasso(), given.get("l1")),
        (parts.GroupLasso(), given.get("group_l1")),
        *([] if decoupled else [decay]),
        *own,
        *([decay] if decoupled else []),
    ]
    chain = [(part, numbers) for part, numbers in chain if numbers is not None]
    rule: Any = Chain(tuple(part for part, _ in chain))
    config: Tree = tuple(numbers for _, numbers in chain)
    if given.get("sharpness") is not None:
        rule, config = SharpnessAware(rule), (given["sharpness"], config)
    if given.get("average") is not None:
        rule, config = Averaged(rule), (given["average"], config)
    return Optimizer(rule, config, schedules.get(learning_rate))


def sgd(learning_rate: Any, **options: Unpack[Options]) -> Optimizer:
    """θ ← θ − ηg"""
    return compose(learning_rate, **options)


def momentum(learning_rate: Any, *, momentum: Any = 0.9, **options: Unpack[Options]) -> Optimizer:
    """v ← μv + g, θ ← θ − ηv: the heavy ball as torch.optim.SGD (no dampening) and optax.sgd have it.

    Keras keeps η within v, which differs where η changes. Sutskever et al., On the importance of initialization and
    momentum (2013), up to the place of η.
    """
    return compose(learning_rate, (parts.Velocity(), number("momentum", momentum)), **options)


def nesterov(learning_rate: Any, *, momentum: Any = 0.9, **options: Unpack[Options]) -> Optimizer:
    """v ← μv + g, θ ← θ − η(g + μv): torch.optim.SGD(nesterov=True), optax.sgd(nesterov=True)."""
    return compose(learning_rate, (parts.Velocity(nesterov=True), number("momentum", momentum)), **options)


def adagrad(
    learning_rate: Any,
    *,
    eps: Any = 1e-10,
    eps_in_root: bool = False,
    initial: Any = None,
    **options: Unpack[Options],
) -> Optimizer:
    """s ← s + g², θ ← θ − ηg/(√s + ε), s = ``initial`` at first: torch.

    ``eps_in_root``: g/√(s + ε), as optax.adagrad, whose numbers are initial=0.1, eps=1e-7.
    Duchi, Hazan, Singer: Adaptive subgradient methods (2011).
    """
    numbers = parts.SquaresNumbers(None, number("eps", eps), number("initial", initial))
    return compose(learning_rate, (parts.Squares(eps_in_root), numbers), **options)


def rmsprop(
    learning_rate: Any,
    *,
    decay: Any = 0.99,
    eps: Any = 1e-8,
    eps_in_root: bool = False,
    initial: Any = None,
    centered: bool = False,
    momentum: Any = None,
    **options: Unpack[Options],
) -> Optimizer:
    """s ← ρs + (1 − ρ)g², θ ← θ − ηg/(√s + ε), s = ``initial`` at first: torch, also with momentum and centered.

    ``eps_in_root``: g/√(s + ε), as Optax (decay=0.9) and Keras have it. ``centered``: s − m² in place of s, m the
    running mean of g. ``momentum``: v ← μv + that, θ ← θ − ηv. Tieleman, Hinton: Lecture 6.5 (2012).
    """
    numbers = parts.SquaresNumbers(number("decay", decay), number("eps", eps), number("initial", initial))
    own: list[tuple[Part, Any]] = [(parts.Squares(eps_in_root, centered), numbers)]
    if momentum is not None:
        own.append((parts.Velocity(), number("momentum", momentum)))
    return compose(learning_rate, *own, **options)


def adam(
    learning_rate: Any,
    *,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = None,
    eps_hat: bool = False,
    amsgrad: str | None = None,
    **options: Unpack[Options],
) -> Optimizer:
    """θ ← θ − η m̂/(√ŝ + ε), ε outside the root and after the bias correction: torch, Optax.

    eps_root   added to ŝ within the root (Optax)
    eps_hat    ε is added before the correction, m̂/((√s + ε)/√(1 − β₂ᵗ)): Keras, TensorFlow
    amsgrad    as in ``amsgrad``

    Kingma, Ba: Adam (2015), algorithm 1.
    """
    if amsgrad not in (None, "torch", "optax"):
        raise ValueError(f"amsgrad: expected None, 'torch' or 'optax', got {amsgrad!r}")
    if eps_hat and eps_root is not None:
        raise ValueError("eps_root: with eps_hat there is no root to add it to; give one of them")
    numbers = _moments(b1, b2, eps, eps_root)
    return compose(learning_rate, (parts.Moments(False, amsgrad, eps_hat), numbers), **options)


def adamw(learning_rate: Any, *, weight_decay: Any = 1e-2, **options: Any) -> Optimizer:
    """``adam`` with decoupled decay: θ ← θ − η(m̂/(√ŝ + ε) + λθ), λ scaled by η as in torch, Optax and Keras.

    Loshchilov, Hutter: Decoupled weight decay regularization (2019).
    """
    return adam(learning_rate, weight_decay=weight_decay, **{"decoupled": True, **options})


def amsgrad(learning_rate: Any, *, like: str = "torch", **options: Any) -> Optimizer:
    """``adam`` with the greatest s so far in place of s. Reddi, Kale, Kumar: On the convergence of Adam (2018).

    like "torch": the greatest s, then its correction; "optax": the greatest of the corrected ŝ.
    """
    if like not in ("torch", "optax"):
        raise ValueError(f"like: expected 'torch' or 'optax', got {like!r}")
    return adam(learning_rate, amsgrad=like, **options)


def nadam(
    learning_rate: Any,
    *,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    momentum_decay: Any = 4e-3,
    **options: Unpack[Options],
) -> Optimizer:
    """Adam with Nesterov momentum, whose β₁ rises by ``momentum_decay`` ψ, μ_t = β₁(1 − ½·0.96^(tψ)): torch.

    ``momentum_decay=None`` keeps β₁ as it is: Optax. Dozat: Incorporating Nesterov momentum into Adam (2016).
    """
    if momentum_decay is None:
        return compose(learning_rate, (parts.Moments(nesterov=True), _moments(b1, b2, eps, None)), **options)
    checked = (number(*pair) for pair in zip(parts.NAdamNumbers._fields, (b1, b2, eps, momentum_decay), strict=True))
    return compose(learning_rate, (parts.ScheduledNesterov(), parts.NAdamNumbers(*checked)), **options)


def lion(learning_rate: Any, *, b1: Any = 0.9, b2: Any = 0.99, **options: Unpack[Options]) -> Optimizer:
    """θ ← θ − η(sign(β₁m + (1 − β₁)g) + λθ), m ← β₂m + (1 − β₂)g: Optax, Keras. Decay is decoupled by default.

    Chen et al., Symbolic discovery of optimization algorithms (2023).
    """
    numbers = parts.LionNumbers(number("b1", b1), number("b2", b2))
    options.setdefault("decoupled", True)
    return compose(learning_rate, (parts.Sign(), numbers), **options)


def lbfgs(learning_rate: Any = 1.0, *, memory: int = 10, weight_decay: Any = None) -> Optimizer:
    """Limited-memory BFGS with a line search, on all rows at once: every step is one evaluation of J and its gradient.

    An epoch of ``gradient_descent`` is one evaluation, and ``batch_size`` does not matter. ``learning_rate`` scales
    the first trial of each line search, and is best left at 1. ``weight_decay`` λ adds ½λ‖W‖² to J, also in the
    history. See ``search.lbfgs``.
    """
    if isinstance(memory, bool) or not hasattr(memory, "__index__") or memory < 1:
        raise ValueError(f"memory: expected an integer of at least 1, got {memory!r}")
    numbers = () if weight_decay is None else (number("weight_decay", weight_decay),)
    return Optimizer(LBFGS(int(memory)), numbers, schedules.get(learning_rate))


def tracked(optimizer: Optimizer) -> Optimizer:
    """The optimizer with −Σ θ∘∂J/∂θ over its steps in its state: what movement pruning goes by."""
    if not isinstance(optimizer, Optimizer) or isinstance(optimizer.rule, LBFGS):
        raise ValueError("optimizer: movement is that of single steps on mini-batches; take another than lbfgs")
    return optimizer._replace(rule=Tracked(optimizer.rule))


def _moments(b1: Any, b2: Any, eps: Any, eps_root: Any) -> parts.MomentsNumbers:
    values = zip(parts.MomentsNumbers._fields, (b1, b2, eps, eps_root), strict=True)
    return parts.MomentsNumbers(*(number(*pair) for pair in values))
