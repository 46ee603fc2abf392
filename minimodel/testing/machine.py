"""A model's life in any order: search, descend, prune, quantize, save and load, resume, on any backend.

    TestLifecycle = Lifecycle.TestCase

Hypothesis chooses the steps, and the backend of each, and shrinks what fails to the shortest life that does. A subclass
may break one of them: ``save`` and ``load`` are methods, and ``backends`` names what steps are taken on.
"""

import warnings
from typing import Any, ClassVar

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import minimodel as mm
from minimodel import qarray
from minimodel.model import Model, loads
from minimodel.testing import strategies as some
from minimodel.testing.oracles import assert_same_bits, names_installed, positive_zeros

NETWORK = mm.Network((4, 5, 3))
QUICK: dict[str, Any] = {"batch_size": 24, "optimizer": mm.optimizers.momentum(0.05)}


class Lifecycle(RuleBasedStateMachine):
    """One model, and what must stay true of it whatever is done:

    masks are nested, what is pruned stays 0, integers stay in range and stand for the weights, a file gives back the
    same model, and the loss is finite, or the run said at which step it stopped.

    backends   the names of those that steps are taken on; none is for all that are installed
    """

    backends: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.model: Model
        self.pruned: tuple[np.ndarray, ...] = ()  # what has ever been removed
        self.stopped: mm.DivergedError | None = None
        rng = np.random.default_rng(0)
        x = rng.normal(size=(60, 4)).astype(np.float32)
        self.data = mm.datasets.split(x, (x @ rng.normal(size=(4, 3))).argmax(axis=1), seed=0)

    def save(self, model: Model) -> bytes:
        """The file of a model."""
        return model.dumps()

    def load(self, raw: bytes) -> Model:
        """The model of a file."""
        return loads(raw)

    def take(self, backend: int, step: Any, *args: Any, **options: Any) -> None:
        """A step, on one of the backends; what it prunes stays pruned."""
        if hasattr(self, "model"):
            self.pruned = tuple(~mask for mask in self.model.masks or ()) or self.pruned
        names = self.backends or names_installed()
        name = names[backend % len(names)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "prune: no kept weight")  # says so, and goes on
            try:
                self.model = step(*args, self.data, backend=name, **options)
            except mm.DivergedError as error:
                self.stopped, self.model = error, error.last

    which = st.integers(0, 7)

    @initialize(seed=st.integers(0, 9), backend=which)
    def begin(self, seed: int, backend: int) -> None:
        """A random search for where to begin."""
        self.take(backend, mm.random_search, NETWORK, seed=seed, generations=2, population=4)

    @precondition(lambda self: self.model.masks is None and self.model.quantized is None)
    @rule(seed=st.integers(0, 9), backend=which)
    def search(self, seed: int, backend: int) -> None:
        """A random search from here, which finds nothing worse. It knows of no masks and no integers."""
        before = self.model.evaluate(self.data.train).loss
        options = {"generations": 2, "population": 4, "params": self.model.params}
        self.take(backend, mm.random_search, NETWORK, seed=seed, **options)
        assert self.model.evaluate(self.data.train).loss <= before * (1 + 1e-5) + 1e-6, "a search made it worse"

    @rule(seed=st.integers(0, 9), backend=which)
    def descend(self, seed: int, backend: int) -> None:
        """Gradient descent from here, under the masks."""
        start = {"params": self.model.params, "masks": self.model.masks}
        self.take(backend, mm.gradient_descent, NETWORK, seed=seed, epochs=2, **start, **QUICK)

    @precondition(lambda self: self.model.masks is None and self.model.quantized is None)
    @rule(seed=st.integers(0, 9), backend=which)
    def diverge(self, seed: int, backend: int) -> None:
        """Gradient descent by steps so large that it has to stop, and to say so."""
        self.stopped = None
        huge = {**QUICK, "optimizer": mm.optimizers.momentum(1e38)}
        self.take(backend, mm.gradient_descent, NETWORK, seed=seed, epochs=2, params=self.model.params, **huge)
        assert self.stopped is not None, "a rate of 1e38 did not stop the run"

    @precondition(lambda self: getattr(self.model.state, "opt_state", None) is not None)
    @precondition(lambda self: self.model.quantized is None)
    @rule(backend=which)
    def resume(self, backend: int) -> None:
        """One epoch more than there were, which changes neither masks nor what is 0."""
        done = len(self.model.history["validation_loss"]) - 1
        self.take(backend, mm.gradient_descent, NETWORK, seed=0, epochs=done + 1, resume=self.model, **QUICK)

    @rule(sparsity=st.sampled_from((0.0, 0.3, 0.6, 0.9)), backend=which)
    def prune(self, sparsity: float, backend: int) -> None:
        """At least so many weights go, of those that are left, and the others are trained."""
        gone = sum(int((~mask).sum()) for mask in self.model.masks or ())
        size = sum(layer.weight.size for layer in self.model.params)
        self.take(backend, mm.prune, self.model, seed=0, sparsity=max(sparsity, gone / size), epochs=1, **QUICK)

    @rule(bits=st.integers(1, 8), scheme=st.sampled_from(qarray.SCHEMES), backend=which)
    def quantize(self, bits: int, scheme: str, backend: int) -> None:
        """Weights become integers, and are trained through the rounding."""
        self.take(backend, mm.quantize, self.model, seed=0, bits=bits, scheme=scheme, epochs=1, **QUICK)
        self.scheme = scheme

    @rule()
    def save_and_load(self) -> None:
        """The model goes on from its file; its history and where the run stopped are not saved."""
        self.model = self.load(self.save(self.model))

    @invariant()
    def masks_are_nested(self) -> None:
        """What was removed once is removed still."""
        if self.pruned:
            assert self.model.masks is not None, "the masks are gone"
            for gone, mask in zip(self.pruned, self.model.masks, strict=True):
                assert not (gone & mask).any(), "a weight that was pruned came back"

    @invariant()
    def zeros_stay_zero(self) -> None:
        """Pruned weights are 0."""
        for layer, mask in zip(self.model.params, self.model.masks or (), strict=bool(self.model.masks)):
            assert not layer.weight[~mask].any(), "a pruned weight is not 0"

    @invariant()
    def integers_are_in_range(self) -> None:
        """Integers are of their bits, and the weights are what they stand for."""
        for q, layer in zip(self.model.quantized or (), self.model.params, strict=bool(self.model.quantized)):
            low, high = qarray.levels(self.model.bits, self.scheme)
            assert q.values.dtype == np.int8 and q.values.min() >= low and q.values.max() <= high, "out of range"
            np.testing.assert_allclose(qarray.dequantize(q), layer.weight, rtol=1e-6)

    @invariant()
    def a_file_gives_back_the_same_model(self) -> None:
        """Parameters, masks and integers, to the bit but for the sign of 0."""
        found = self.load(self.save(self.model))
        for part in ("params", "masks", "quantized"):
            ours, theirs = (positive_zeros(getattr(model, part)) for model in (found, self.model))
            assert (ours is None) == (theirs is None), f"{part} got lost"
            assert_same_bits(ours, theirs, part)

    @invariant()
    def the_loss_is_finite_or_its_stop_is_stated(self) -> None:
        """A run that diverges says at which step, and what is kept is finite."""
        if self.stopped:
            assert self.stopped.step >= 0 and np.isfinite(self.stopped.last_finite_loss)
        with np.errstate(all="ignore"):
            assert np.isfinite(self.model.evaluate(self.data.validation).loss), "the loss is not finite"


Lifecycle.TestCase.settings = settings(some.CALM, max_examples=15, stateful_step_count=6)
