"""A model made ready to answer: shrunk, and each layer dense or sparse, whichever takes less time on this machine."""

from importlib.util import find_spec
from time import perf_counter
from typing import Any

import numpy as np

from minimodel.compress.shrinking import shrink
from minimodel.datasets import Normalization, check_x
from minimodel.model import ROWS, Model
from minimodel.network import Layer, Params
from minimodel.problem import check_count

ZERO = np.float32(0)
FAR = 8.0  # standard deviations
TRIES, SECONDS = 5, 2e-3  # of every product that is timed, and how long each try lasts at least


class Deployed:
    """What ``deploy`` makes.

    model     the shrunk model
    choices   "dense" or "sparse" for each layer
    seconds   what a product of each kind took, for each layer
    """

    def __init__(self, model: Model, batch_size: int) -> None:
        if model.population is not None:
            raise ValueError("deploy: this is a population; take one of them with .member(i) or .best()")
        self.model = shrink(model)
        self.features = None if self.model.inputs is None else np.flatnonzero(self.model.inputs)
        self.normalization, params = folded(self.model)
        self.biases = [layer.bias[:, None] for layer in params]
        self.matrices: list[Any] = []
        self.choices: list[str] = []
        self.seconds: list[dict[str, float]] = []
        for layer in params:
            matrices = kinds(layer.weight)
            inputs = np.ones((layer.weight.shape[0], batch_size), np.float32)
            times = {kind: timed(matrix, inputs) for kind, matrix in matrices.items()}
            self.choices.append(min(times, key=times.__getitem__))
            self.matrices.append(matrices[self.choices[-1]])
            self.seconds.append(times)

    def outputs(self, x: Any) -> np.ndarray:
        """As ``Model.outputs``, up to rounding."""
        x, model = check_x(x), self.model
        if x.shape[1] != model.features:
            raise ValueError(f"x: expected (n, {model.features}), got {x.shape}")
        if len(x) > ROWS:
            return np.concatenate([self.outputs(x[start : start + ROWS]) for start in range(0, len(x), ROWS)])
        x = x if self.features is None else x.take(self.features, axis=1)
        a = (self.normalization(x) if self.normalization else x.astype(np.float32)).T
        for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            a = matrix.dot(self.activated(a) if i else a)
            a += bias
        z = a.T
        return model.targets.inverse(z) if model.targets else z

    def activated(self, z: np.ndarray) -> np.ndarray:
        """f(z), in its place for the function that is so cheap that the place counts."""
        relu = self.model.network.activation == "relu"
        return np.maximum(z, ZERO, out=z) if relu else self.model.network.functions.value(z)

    def predict(self, x: Any) -> np.ndarray:
        """As ``Model.predict``."""
        return self.model.decide(self.outputs(x))


def deploy(model: Model, *, batch_size: int = 256) -> Deployed:
    """The model shrunk, with the products of each layer in the way that is faster for so many rows at once.

    Every layer is timed here and now as a dense product and, with SciPy, as a sparse one; about a tenth of a second
    goes into it. Of what ``outputs`` and ``predict`` then give, only the rounding may differ from the model's.
    """
    return Deployed(model, check_count("batch_size", batch_size, 1))


def folded(model: Model) -> tuple[Normalization | None, Params]:
    """The normalisation as a part of the first layer, where it is none that float32 would lose digits by:

    (x − m)s·W + b = x·(sW) + (b − (ms)W)
    """
    fitted, (first, *others) = model.normalization, model.params
    if fitted is None or np.abs(fitted.shift * fitted.scale).max() > FAR:
        return fitted, model.params
    shift, scale = (np.broadcast_to(part, first.weight.shape[:1]).astype(np.float64) for part in fitted)
    weight, bias = scale[:, None] * first.weight, first.bias - (shift * scale) @ first.weight
    return None, (Layer(weight.astype(np.float32), bias.astype(np.float32)), *others)


def kinds(weight: np.ndarray) -> dict[str, Any]:
    """The transposed weight (out, in) as each kind of matrix."""
    found: dict[str, Any] = {"dense": np.ascontiguousarray(weight.T)}
    if find_spec("scipy"):
        from scipy.sparse import csr_array

        found["sparse"] = csr_array(weight.T)
    return found


def timed(matrix: Any, inputs: np.ndarray) -> float:
    """Seconds of a product, the least of several tries."""

    def run(times: int) -> float:
        start = perf_counter()
        for _ in range(times):
            matrix @ inputs
        return perf_counter() - start

    times = max(1, round(SECONDS / max(min(run(1) for _ in range(3)), 1e-7)))
    return min(run(times) for _ in range(TRIES)) / times
