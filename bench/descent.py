"""An epoch of gradient descent, side by side with scikit-learn, eager PyTorch, the bare matrix products of the step,
and jax.grad + Optax in one jitted scan: same network, data, batches, dtype and threads, SGD with momentum 0.9.

Whole calls are timed, from checking the data to the model, after one that compiles: of 100 epochs of the small network,
10 of the large one, fewer for many at once. The final training losses are printed: none is fast by doing less.
"""

import warnings
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

import minimodel as mm
from minimodel.bench import resources
from minimodel.bench.common import arguments, report, side_by_side

RATE, MOMENTUM = 0.02, 0.9
SIZES = {"small": ((64, 32, 10), 32), "large": ((784, 300, 100, 10), 128)}  # layers, batch
CASES = (  # size, backend, networks, rows, epochs
    ("small", "numpy", 1, 1_440, 100),
    ("small", "numpy", 16, 1_440, 50),
    ("large", "numpy", 1, 12_800, 10),
    ("small", "jax", 1, 1_440, 100),
    ("small", "jax", 64, 1_440, 20),
    ("large", "jax", 1, 12_800, 5),
    ("large", "jax", 64, 12_800, 2),
)
Case = Callable[[], list[Any]]  # returns the weights and biases that were found, in turn


def main() -> None:
    """Print and store the tables."""
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="only cases of this name, as small-numpy-16, or large-*")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--compiled", action="store_true", help="PyTorch by torch.compile as well; needs a C++ compiler"
    )
    options = parser.parse_args()
    results = {}
    with resources.threads(options.threads) as threads:
        for size, backend, members, rows, epochs in CASES:
            name = f"{size}-{backend}-{members}"
            if options.only and not fnmatch(name, options.only):
                continue
            repeats = options.repeats * (3 if size == "small" else 1)  # its calls are short, and noise weighs more
            results[name] = compare(size, backend, members, rows, epochs, repeats, options.threads, options.compiled)
            show(name, results[name])
    report({"threads": threads, "results": results}, options.out)


def compare(
    size: str, backend: str, members: int, rows: int, epochs: int, repeats: int, threads: int, compiled: bool = False
) -> dict[str, Any]:
    """Microseconds a step and network of every case, how many times ours that is, and the final training losses."""
    sizes, batch = SIZES[size]
    data = problem(sizes, rows)
    population = members if members > 1 else None
    cases: dict[str, Case] = {"minimodel": partial(ours, data, sizes, batch, epochs, backend, population)}
    if backend == "numpy":
        cases["matrix products"] = partial(floor, sizes, batch, rows * epochs // batch * members)
        cases |= {"scikit-learn": partial(sklearn, data, sizes, batch, epochs)} if installed("sklearn") else {}
        peers = {"PyTorch": False} | ({"PyTorch compiled": True} if compiled else {})
        for name in peers if installed("torch") else ():
            cases[name] = torch(data, sizes, batch, epochs, threads, peers[name])
    elif installed("optax"):
        cases["jax.grad + Optax"] = optax(data, sizes, batch, epochs, members)
    losses = {name: final_loss(case(), data) for name, case in cases.items()}
    seconds = side_by_side(cases, repeats)
    found = {}
    for name, times in seconds.items():
        trained = 1 if name.startswith(("scikit-learn", "PyTorch")) else members
        unit = 1e6 / (rows // batch * epochs * trained)
        found[name] = {part: times[part] * unit for part in ("min", "median", "max")}
        found[name] |= {"ratio": times["ratio"] * members / trained, "loss": losses[name]}
    return found


def problem(sizes: tuple[int, ...], rows: int) -> mm.Splits:
    """Labels that a linear teacher gives to normal inputs; the validation part is small, so that it costs nothing."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows + 64, sizes[0])).astype(np.float32)
    y = (x @ rng.normal(size=(sizes[0], sizes[-1]))).argmax(1).astype(np.int32)
    held = mm.Dataset(x[rows:], y[rows:])
    return mm.Splits(mm.Dataset(x[:rows], y[:rows]), held, held)


def ours(
    data: mm.Splits, sizes: tuple[int, ...], batch: int, epochs: int, backend: str, population: int | None
) -> list[Any]:
    """``gradient_descent``, from checking the data to the model."""
    optimizer = mm.optimizers.momentum(RATE, momentum=MOMENTUM)
    options: dict[str, Any] = {"epochs": epochs, "batch_size": batch, "population": population}
    network = mm.Network(sizes, initializer="glorot")
    model = mm.gradient_descent(network, data, seed=0, backend=backend, optimizer=optimizer, **options)
    return [leaf if population is None else leaf[0] for layer in model.state.params for leaf in layer]


def sklearn(data: mm.Splits, sizes: tuple[int, ...], batch: int, epochs: int) -> list[Any]:
    """MLPClassifier, without its penalty."""
    from sklearn.neural_network import MLPClassifier

    peer = MLPClassifier(
        sizes[1:-1],
        solver="sgd",
        momentum=MOMENTUM,
        nesterovs_momentum=False,
        learning_rate_init=RATE,
        alpha=0,
        batch_size=batch,
        max_iter=epochs,
        n_iter_no_change=epochs + 1,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that so few epochs have not converged
        peer.fit(*data.train)
    return [leaf for pair in zip(peer.coefs_, peer.intercepts_, strict=True) for leaf in pair]


def torch(data: mm.Splits, sizes: tuple[int, ...], batch: int, epochs: int, threads: int, compiled: bool) -> Case:
    """An eager loop as everyone writes it, or with the network and its loss compiled."""
    import torch

    torch.set_num_threads(threads)
    x, y = torch.tensor(data.train.x), torch.tensor(data.train.y).long()
    layers = [torch.nn.Linear(a, b) for a, b in pairwise(sizes)]
    parts = [part for layer in layers for part in (layer, torch.nn.ReLU())][:-1]
    network, cross_entropy = torch.nn.Sequential(*parts), torch.nn.CrossEntropyLoss()

    def loss(x: Any, y: Any) -> Any:
        return cross_entropy(network(x), y)

    loss_of = torch.compile(loss) if compiled else loss

    def case() -> list[Any]:
        torch.manual_seed(0)
        for layer in layers:
            torch.nn.init.xavier_uniform_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        optimizer = torch.optim.SGD(network.parameters(), RATE, momentum=MOMENTUM)
        for _ in range(epochs):
            order = torch.randperm(len(x))
            for start in range(0, len(x) - batch + 1, batch):
                rows = order[start : start + batch]
                optimizer.zero_grad()
                loss_of(x[rows], y[rows]).backward()
                optimizer.step()
        return [leaf.detach().numpy() for layer in layers for leaf in (layer.weight.T, layer.bias)]

    return case


class Products:
    """The matrix products of a step."""

    def __init__(self, sizes: tuple[int, ...], batch: int) -> None:
        rng = np.random.default_rng(0)
        pairs = list(pairwise(sizes))
        self.weights = [rng.normal(size=pair).astype(np.float32) for pair in pairs]
        self.inputs = [rng.normal(size=(batch, pair[0])).astype(np.float32) for pair in pairs]
        self.deltas = [rng.normal(size=(batch, pair[1])).astype(np.float32) for pair in pairs]

    def step(self) -> None:
        """Forward, by the weights and back, and nothing else."""
        for a, weight in zip(self.inputs, self.weights, strict=True):
            a @ weight
        for i in reversed(range(len(self.weights))):
            self.inputs[i].T @ self.deltas[i]
            if i:
                self.deltas[i] @ self.weights[i].T


def floor(sizes: tuple[int, ...], batch: int, steps: int) -> list[Any]:
    """The matrix products of the steps and nothing else."""
    products = Products(sizes, batch)
    for _ in range(steps):
        products.step()
    return []


def optax(data: mm.Splits, sizes: tuple[int, ...], batch: int, epochs: int, members: int) -> Case:
    """Autodiff and Optax, an epoch in one jitted scan, networks side by side by vmap."""
    import jax
    import jax.numpy as jnp
    import optax

    many: Any = (lambda fn, axes: jax.vmap(fn, in_axes=axes)) if members > 1 else (lambda fn, axes: fn)
    optimizer, steps = optax.sgd(RATE, momentum=MOMENTUM), len(data.train.x) // batch

    def loss(params: Any, x: Any, y: Any) -> Any:
        for weight, bias in params[:-1]:
            x = jnp.maximum(x @ weight + bias, 0)
        z = x @ params[-1][0] + params[-1][1]
        return optax.softmax_cross_entropy_with_integer_labels(z, y).mean()

    def epoch(carry: Any, key: Any, x: Any, y: Any) -> Any:
        def step(carry: Any, rows: Any) -> Any:
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, x[rows], y[rows])
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), value

        order = jax.random.permutation(key, len(x))[: steps * batch].reshape(steps, batch)
        return jax.lax.scan(step, carry, order)

    def begin(key: Any) -> Any:
        keys = jax.random.split(key, len(sizes) - 1)
        draw = jax.nn.initializers.glorot_uniform()
        pairs = zip(keys, sizes[:-1], sizes[1:], strict=True)
        params = tuple((draw(k, (a, b)), jnp.zeros(b)) for k, a, b in pairs)
        return params, optimizer.init(params)

    start, fold = jax.jit(many(begin, 0)), jax.jit(many(jax.random.fold_in, (0, None)))
    run = jax.jit(many(epoch, (0, 0, None, None)), donate_argnums=0)

    def case() -> list[Any]:
        with jax.default_matmul_precision("highest"):
            x, y = jnp.asarray(data.train.x), jnp.asarray(data.train.y)
            keys = jax.random.split(jax.random.key(0), members) if members > 1 else jax.random.key(0)
            carry = start(keys)
            for number in range(epochs):
                carry, losses = run(carry, fold(keys, number), x, y)
                np.asarray(losses)
        return [np.asarray(leaf if members == 1 else leaf[0]) for layer in carry[0] for leaf in layer]

    return case


def installed(name: str) -> bool:
    """Whether a peer is here; where it is not, its column is left out."""
    from importlib.util import find_spec

    return find_spec(name) is not None


def final_loss(leaves: list[Any], data: mm.Splits) -> float | None:
    """The softmax cross-entropy of found parameters on all training rows."""
    if not leaves:
        return None
    pairs = zip(leaves[::2], leaves[1::2], strict=True)
    params = tuple(mm.Layer(*(np.asarray(leaf, np.float32) for leaf in pair)) for pair in pairs)
    network = mm.Network((params[0].weight.shape[0], *(layer.weight.shape[1] for layer in params)))
    return float(mm.losses.softmax_cross_entropy.value(network.apply(params, data.train.x), data.train.y))


def show(name: str, found: dict[str, Any]) -> None:
    """One line a case."""
    print(f"\n{name}: µs a step and network, median (least to greatest), times ours, final training loss")
    for case, row in found.items():
        loss, spread = "" if row["loss"] is None else f"{row['loss']:.4f}", f"({row['min']:.1f} to {row['max']:.1f})"
        print(f"{case:<17} {row['median']:9.1f} {spread:<20} {row['ratio']:6.2f}×  {loss}", flush=True)


if __name__ == "__main__":
    main()
