"""The suites on code that is not ours: other namespaces, Optax, evosax, torch. What they find there is in
``expected_failures``, with the smallest example; each is checked to be so still."""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest

import minimodel as mm
from minimodel import optimizers, schedules, storage, tree
from minimodel.qarray import QArray
from minimodel.search.strategies import Asked
from minimodel.testing.suites import BackendSuite, OptimizerSuite, Quantization, QuantizerSuite, StrategySuite


class TestStrict(BackendSuite):
    """array-api-strict through the generic backend."""

    @pytest.fixture
    def backend(self):
        return mm.backends.load("array_api:array_api_strict")


class TestTorch(BackendSuite):
    """PyTorch through array-api-compat and the generic backend."""

    expected_failures: ClassVar = dict.fromkeys(
        (
            "random_bits_are_threefry",
            "random_bits_count_in_row_major_order",
            "random_bits_of_many_keys_are_those_of_each",
            "folded_keys_are_words_of_threefry",
            "uniforms_are_the_high_bits",
            "normals_have_the_inverse_error_function",
            "permutations_are_those_of_numpy",
            "one_step_of_training_agrees_with_numpy",
            "training_repeats_to_the_bit",
        ),
        (
            'torch.ones(1, dtype=torch.uint32) + 1 is "add_stub" not implemented for UInt32: no threefry on the device',
            "not implemented for 'UInt32'",
        ),
    )

    @pytest.fixture
    def backend(self, oracle):
        oracle("torch"), oracle("array_api_compat")
        return mm.backends.load("array_api:array_api_compat.torch")


# Optax: its transformations as rules, in float64 where they are given float64.


@dataclass(frozen=True)
class FromOptax:
    """The rule of an Optax optimizer, by its name; its state as a tuple of leaves."""

    name: str
    full_batch = False
    elementwise = False

    def init(self, params: Any) -> Any:
        return self.run(params, lambda peer, p: _leaves(peer.init(p)), params)

    def update(self, numbers: Any, rate: Any, evaluate: Any, state: Any, params: Any) -> Any:
        loss, d = evaluate(params)
        return loss, *self.run(params, _optax_step, params, d, state, rate)

    def read(self, params: Any, state: Any) -> Any:
        return params

    def run(self, like: Any, fn: Any, *args: Any) -> Any:
        """A function of Optax's optimizer and arrays, compiled; NumPy's arrays come back as such."""
        import jax

        host = isinstance(tree.leaves(like)[0], np.ndarray)
        if not host:
            return fn(_peer(self.name), *args)
        with jax.enable_x64(True):
            return jax.tree.map(np.array, _compiled(self.name, fn.__code__, fn)(*args))


@functools.cache
def _peer(name: str) -> Any:
    import optax

    return getattr(optax, name)(1.0)


def _leaves(state: Any) -> Any:
    import jax

    return tuple(map(jax.numpy.asarray, jax.tree.leaves(state)))


_programs: dict[Any, Any] = {}


def _compiled(name: str, code: Any, fn: Any) -> Any:
    import jax

    return _programs.setdefault((name, code), jax.jit(functools.partial(fn, _peer(name))))


def _optax_step(peer: Any, params: Any, d: Any, state: Any, rate: Any) -> Any:
    import jax

    form = jax.tree.structure(peer.init(params))
    updates, state = peer.update(d, jax.tree.unflatten(form, state), params)
    return jax.tree.map(lambda p, u: p + rate * u, params, updates), _leaves(state)


class OptaxSuite(OptimizerSuite):
    """On JAX alone."""

    name = ""

    def backends(self):
        return (mm.backends.load("jax"),)

    @pytest.fixture
    def optimizer(self, oracle):
        oracle("jax"), oracle("optax")
        return optimizers.Optimizer(FromOptax(self.name), (), schedules.get(0.05))


class TestOptaxAdam(OptaxSuite):
    name = "adam"


class TestOptaxYogi(OptaxSuite):
    """optax.yogi moves a weight whose gradient is always 0: both moments start at 1e-6. The smallest example is
    θ = 0, g = 0: the first step is −η·m̂/(√v̂ + ε) with m = 0.9·1e-6."""

    name = "yogi"
    expected_failures: ClassVar = {
        "masked_weights_stay_zero": (
            "optax.yogi(1.0).update(0, init(0)) is not 0: m starts at 1e-6",
            "a masked weight moved",
        ),
        "every_backend_takes_the_same_steps": ("so it does on JAX", "jax: a masked weight moved"),
    }


class TestOptaxLamb(OptaxSuite):
    """optax.lamb takes the length of an array as it is: with a population in front, that of all members."""

    name = "lamb"
    expected_failures: ClassVar = {
        "a_population_is_its_members": "the trust ratio |θ|/|d| is taken over the whole array"
    }


# evosax: ask and tell under one protocol.


class Found(NamedTuple):
    """The state of an evosax strategy: the best, its fitness, and all its leaves."""

    best: Any
    fitness: Any
    leaves: tuple[Any, ...]


class FromEvosax:
    """An evosax strategy of vectors, called with parameters of ours."""

    def __init__(self, make: Any) -> None:
        self.make = functools.cache(make)  # of the population and the number of parameters

    def init(self, params: Any, fitness: Any = np.inf, *, backend: Any = "numpy") -> Found:
        import jax

        flat, peer = ravel(params), self.make(8, ravel(params).size)
        state = peer.init(jax.random.key(0), flat, peer.default_params)
        worth = np.nan_to_num(np.float32(fitness), nan=np.inf)  # evosax asks for none
        return self.found(params, state.replace(best_fitness=worth, best_solution=flat))

    def ask(self, state: Found, key: Any, population: int, *, backend: Any = "numpy") -> Asked:
        import jax

        peer, theirs = self.theirs(state, population)
        key = jax.random.wrap_key_data(key, impl="threefry2x32")
        rows = np.asarray(peer.ask(key, theirs, peer.default_params)[0])
        return Asked(rows, unravel(state.best, rows))

    def tell(self, state: Found, asked: Asked, fitness: Any, *, backend: Any = "numpy") -> Found:
        import jax

        peer, theirs = self.theirs(state, len(asked.draws))
        fitness = np.asarray(fitness, np.float32)
        return self.found(
            state.best, peer.tell(jax.random.key(0), asked.draws, fitness, theirs, peer.default_params)[0]
        )

    def save(self, state: Found, path: Any) -> None:
        storage.write(path, storage.dumps({}, {str(i): leaf for i, leaf in enumerate(tree.leaves(state))}))

    def load(self, path: Any, params: Any) -> Found:
        _, found = storage.loads(path.read_bytes())
        names = iter(sorted(found, key=int))
        return tree.map(lambda _: found[next(names)], self.init(params))

    def theirs(self, state: Found, population: int) -> Any:
        """The strategy and the state as evosax has them."""
        import jax

        peer = self.make(population, ravel(state.best).size)
        like = peer.init(jax.random.key(0), ravel(state.best), peer.default_params)
        return peer, jax.tree.unflatten(jax.tree.structure(like), state.leaves).replace(best_fitness=state.fitness)

    def found(self, like: Any, state: Any) -> Found:
        import jax

        leaves = tuple(np.array(leaf) for leaf in jax.tree.leaves(state.replace(best_fitness=np.float32(0))))
        best = tree.map(lambda leaf: leaf[0], unravel(like, np.asarray(state.best_solution)[None]))
        return Found(best, np.float32(state.best_fitness), leaves)


class EvosaxSuite(StrategySuite):
    """evosax is on JAX, whatever backend it is told."""

    def backends(self):
        return (mm.backends.load("jax"),)

    def make(self, population, size):
        raise NotImplementedError

    @pytest.fixture
    def strategy(self, oracle):
        oracle("jax"), oracle("evosax")
        return FromEvosax(self.make)


BY_JAX = (
    "evosax draws by jax.random: no key of minimodel.random is drawn from, and none can be watched",
    "no key was drawn from",
)


class TestEvosaxSNES(EvosaxSuite):
    """Nothing was found; how it uses its keys cannot be seen."""

    expected_failures: ClassVar = {"no_key_is_drawn_and_split": BY_JAX}

    def make(self, population, size):
        from evosax.algorithms import SNES

        return SNES(population, np.zeros(size, np.float32))


class TestEvosaxOpenES(EvosaxSuite):
    """Twins are z and −z in two halves, so that whose twin a candidate is depends on how many there are: of four the
    third is the first one's, of two the second."""

    expected_failures: ClassVar = {
        "a_candidate_depends_on_its_key_alone": (
            "Open_ES draws z for one half, and the other is −z",
            "the first candidates",
        ),
        "no_key_is_drawn_and_split": BY_JAX,
    }

    def make(self, population, size):
        from evosax.algorithms import Open_ES

        return Open_ES(population, np.zeros(size, np.float32))


# torch's fake quantization, per tensor.


def torch_levels(w):
    """The scale of each tensor, as torch's symmetric min–max observers have it: at least float32's ε."""
    most = np.abs(w).max(axis=(-2, -1), keepdims=True)
    return np.maximum(most / np.float32(127), np.finfo(np.float32).eps)


def torch_fake(w, scale):
    import torch

    rows = [
        torch.fake_quantize_per_tensor_affine(torch.from_numpy(np.array(one)), s.item(), 0, -127, 127).numpy()
        for one, s in zip(w.reshape(-1, *w.shape[-2:]), scale.ravel(), strict=True)
    ]
    return np.stack(rows).reshape(w.shape)


def torch_integers(w, scale):
    return QArray(np.round(torch_fake(w, scale) / scale).astype(np.int8), scale, np.zeros_like(scale, np.int8))


def torch_straight_through(w, scale, gradient):
    import torch

    leaf = torch.from_numpy(np.array(w)).requires_grad_()
    found = torch.fake_quantize_per_tensor_affine(leaf, scale.item(), 0, -127, 127)
    return torch.autograd.grad(found, leaf, torch.from_numpy(gradient.copy()))[0].numpy()


class TestTorchFakeQuantize(QuantizerSuite):
    """torch.fake_quantize_per_tensor_affine at 8 bits with the scales of its observers."""

    expected_failures: ClassVar = {
        "every_backend_gives_the_same_integers": "torch's function takes torch's tensors, no others"
    }

    @pytest.fixture
    def quantizer(self, oracle):
        oracle("torch")
        return Quantization(-127, 127, torch_levels, torch_integers, torch_fake, torch_straight_through)


def ravel(params):
    return np.concatenate([np.ravel(leaf) for leaf in tree.leaves(params)])


def unravel(like, rows):
    """Rows (P, N) as trees like this one with the axis of P in front."""
    at = 0

    def cut(leaf):
        nonlocal at
        at += leaf.size
        return rows[:, at - leaf.size : at].reshape(-1, *leaf.shape)

    return tree.map(cut, like)
