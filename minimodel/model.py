"""Model: what every algorithm returns, and all that is needed to use a network elsewhere."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minimodel import datasets, losses, packing, storage, tree
from minimodel.datasets import Dataset, Normalization, Splits
from minimodel.losses import Loss
from minimodel.network import Network, Params
from minimodel.problem import Masks, check_data
from minimodel.qarray import QArray, check_bits
from minimodel.streams import Stream
from minimodel.summary import Summary, summarize
from minimodel.tree import Tree

ROWS = 4096  # rows in one go: activations stay small whatever the size of the data
NORMALIZATIONS = ("normalization", "targets")
MAX_PARAMETERS = 2**27  # in a file: what a damaged or hostile header could ask for


class Evaluation(NamedTuple):
    """The loss, and the accuracy (classification) or the R² (regression); arrays over a population.

    R² is the mean over the outputs of 1 − Σ(y − ŷ)²/Σ(y − ȳ)², or None where a target never varies. As text it is
    the mean ± its standard error over the population.
    """

    loss: Any
    accuracy: Any = None
    r2: Any = None

    def mean(self) -> "Evaluation":
        """Over the population."""
        return Evaluation(*(None if value is None else float(np.mean(value, dtype=np.float64)) for value in self))

    def standard_error(self) -> "Evaluation":
        """s/√P of the mean over P networks, s² their sample variance; NaN for one network."""
        return Evaluation(*(None if value is None else standard_error(np.asarray(value)) for value in self))

    def __str__(self) -> str:
        found = zip(self._fields, self.mean(), self.standard_error(), strict=True)
        parts = [
            f"{name} {mean:.4f}" + ("" if np.isnan(error) else f" ± {error:.4f}")
            for name, mean, error in found
            if mean is not None
        ]
        return ", ".join(parts)


def standard_error(values: np.ndarray) -> float:
    """s/√n of their mean, s² their sample variance; NaN of one alone."""
    return float(values.std(ddof=1, dtype=np.float64) / np.sqrt(values.size)) if values.size > 1 else float("nan")


@dataclass(frozen=True, eq=False)
class Model:
    """A network with its parameters on the host, and what is known of them.

    params          as the network uses them: pruned weights are 0, quantized ones are s·(q − z)
    normalization   applied to every x before the network sees it
    targets         undone on every output of a regression
    classes         names of the labels 0, 1, …, if they are not plain numbers
    split_seed      what the data were split with, so that their test part can be found again
    masks           what pruning kept, one array of bool per weight
    quantized       the integers of each weight
    bits            of those integers: one number, or one for each layer; of a population a tuple where members differ
    inputs          which of the raw features the network takes, an array of bool; None for all
    history         what the run recorded: loss and learning_rate by step, validation_loss by epoch; of a random search
                    loss by generation; of a budgeted search the rungs as well; not saved
    state           where the run stopped, and the validation losses of the best, for ``resume`` and ``best``; not saved
    """

    network: Network
    params: Params
    loss: Loss
    normalization: Normalization | None = None
    targets: Normalization | None = None
    classes: tuple[str, ...] | None = None
    split_seed: int | None = None
    masks: Masks | None = None
    quantized: tuple[QArray, ...] | None = None
    bits: Any = None
    inputs: np.ndarray | None = None
    history: dict[str, np.ndarray] = field(default_factory=dict)
    state: Tree = None

    def __repr__(self) -> str:
        """Without the numbers."""
        sizes = "-".join(map(str, self.network.layer_sizes))
        several = "" if self.population is None else f", population {self.population}"
        return f"<Model {sizes} {self.network.activation}, {self.loss.name}, {self.nonzero:,} non-zero{several}>"

    @property
    def population(self) -> int | None:
        """How many networks this is, or None for one without the axis."""
        bias = self.params[0].bias
        return bias.shape[0] if bias.ndim > 1 else None

    @property
    def features(self) -> int:
        """How many raw features the model takes."""
        return self.network.layer_sizes[0] if self.inputs is None else len(self.inputs)

    @property
    def nonzero(self) -> int:
        """How many parameters, weights and biases, are not 0."""
        return sum(int(np.count_nonzero(leaf)) for leaf in tree.leaves(self.params))

    @property
    def nbytes(self) -> int:
        """The size of the file that ``save`` writes."""
        return len(self.dumps())

    def member(self, i: int) -> "Model":
        """Network number i of a population, as a model of its own."""
        if self.population is None:
            raise ValueError("member: this model is one network, not a population")

        def pick(values: Any) -> Any:
            return tree.map(lambda leaf: leaf[i], values)

        masks = self.masks and tuple(mask[i] if mask.ndim > 2 else mask for mask in self.masks)
        history = {name: log[:, i] if log.ndim > 1 else log for name, log in self.history.items()}
        bits = self.bits[i] if isinstance(self.bits, tuple) else self.bits
        fields = {"params": pick(self.params), "masks": masks, "quantized": pick(self.quantized), "bits": bits}
        return replace(self, **fields, history=history, state=None)

    def members(self, indices: Iterable[int]) -> "Model":
        """A population of the networks of these numbers, each as often as it is named; of one network, its copies."""
        several = [self if self.population is None else self.member(int(i)) for i in indices]
        if not several:
            raise ValueError("members: expected at least one number")

        def stacked(*leaves: Any) -> Any:
            return np.stack(leaves)

        params = tree.map(stacked, *(model.params for model in several))
        masks = self.masks and tree.map(stacked, *(model.masks for model in several))
        quantized = self.quantized and tree.map(stacked, *(model.quantized for model in several))
        widths = tuple(model.bits for model in several)
        bits = widths[0] if len(set(widths)) == 1 and not isinstance(widths[0], tuple) else widths
        return replace(self, params=params, masks=masks, quantized=quantized, bits=bits, history={}, state=None)

    def best(self) -> "Model":
        """The member of a population whose validation loss got lowest; test data never choose."""
        if self.population is None:
            return self
        if self.state is None:
            raise ValueError(
                "best: the run's state is gone, as it is not saved; evaluate the members on validation data"
            )
        return self.member(int(self.state.best_loss.argmin()))

    def outputs(self, x: Any) -> np.ndarray:
        """Scores of the classes, or predicted targets, (*population, n, out), for raw inputs (n, features)."""
        x, parts = self._selected(x), []
        for start in range(0, len(x), ROWS):
            parts.append(self.network.apply(self.params, self._normalized(x[start : start + ROWS])))
        z = np.concatenate(parts, axis=-2) if len(parts) > 1 else parts[0]
        return self.targets.inverse(z) if self.targets else z

    def prepared(self, x: Any) -> np.ndarray:
        """What the network itself takes, float32 (n, in), of raw inputs (n, features)."""
        return self._normalized(self._selected(x))

    def _selected(self, x: Any) -> np.ndarray:
        x = datasets.check_x(x)
        if x.shape[1] != self.features:
            raise ValueError(f"x: expected (n, {self.features}), got {x.shape}")
        return x if self.inputs is None else x[:, self.inputs]

    def _normalized(self, x: np.ndarray) -> np.ndarray:
        return self.normalization(x) if self.normalization else x.astype(np.float32)

    def predict(self, x: Any) -> np.ndarray:
        """The predicted labels, named where the classes have names, or the predicted targets."""
        return self.decide(self.outputs(x))

    def decide(self, outputs: np.ndarray) -> np.ndarray:
        """The predictions of such outputs."""
        decided = self.loss.decide(outputs)
        return np.asarray(self.classes)[decided] if self.classes and self.loss.labels else decided

    def evaluate(self, data: Dataset) -> Evaluation:
        """The loss and the accuracy or R² on a data set, normalised as the training data were."""
        _, y = check_data(self.network, self.loss, data, inputs=self.inputs)
        return evaluation(self.loss, self.outputs(data.x), y)

    def summary(self) -> Summary:
        """What each layer keeps, its shape after a ``shrink``, its bytes and multiply-adds; prints as a table."""
        packed = [packing.pack_layer(*pieces) for pieces in self._layers()]
        return summarize(self.params, [sum(tensor.nbytes for tensor in tensors.values()) for tensors in packed])

    def save(self, path: str | Path) -> None:
        """Write the model to one file; ``load`` gives back the same numbers."""
        storage.write(path, self.dumps())

    def dumps(self) -> bytes:
        """The bytes of the file."""
        config = dict(self.loss.config)
        if self.loss.name not in losses.NAMES or losses.get(self.loss.name, **config) is not self.loss:
            raise ValueError(f"save: a file holds losses of minimodel.losses only, not {self.loss.name!r} of your own")
        if self.network.parameters * (self.population or 1) > MAX_PARAMETERS:
            raise ValueError(f"save: a file holds at most {MAX_PARAMETERS} parameters")
        header = {
            "layer_sizes": self.network.layer_sizes,
            "activation": self.network.activation,
            "initializer": self.network.initializer,
            "loss": [self.loss.name, config],
            "classes": self.classes,
            "split_seed": self.split_seed,
            "population": self.population,
            "bits": self.bits,
            "features": None if self.inputs is None else len(self.inputs),
        }
        tensors: dict[str, np.ndarray] = {} if self.inputs is None else {"inputs": np.packbits(self.inputs)}
        for name in NORMALIZATIONS:
            if fitted := getattr(self, name):
                tensors |= {f"{name}.{part}": tensor for part, tensor in fitted._asdict().items()}
        for i, pieces in enumerate(self._layers()):
            tensors |= {f"{i}.{name}": tensor for name, tensor in packing.pack_layer(*pieces).items()}
        return storage.dumps({key: value for key, value in header.items() if value is not None}, tensors)

    def _layers(self) -> Iterator[tuple[Any, Any, Any, Any]]:
        widths = [widest(self.bits, i, self.population) for i in range(len(self.params))]
        nothing = (None,) * len(self.params)
        masks = (
            nothing
            if self.masks is None
            else tuple(
                np.broadcast_to(mask, layer.weight.shape) for mask, layer in zip(self.masks, self.params, strict=True)
            )
        )
        return zip(self.params, masks, self.quantized or nothing, widths, strict=True)


def evaluation(loss: Loss, z: np.ndarray, y: np.ndarray) -> Evaluation:
    """Of outputs z (*population, n, out), in the units of the targets y."""
    value, decided = loss.value(z, y), loss.decide(z)
    if loss.labels or loss is losses.binary_cross_entropy:
        hits = np.asarray(decided == (y if loss.labels else y > 0.5))
        return Evaluation(value, hits.mean(axis=-1 if loss.labels else (-2, -1), dtype=np.float64))
    if (y == y[0]).all(axis=0).any():
        return Evaluation(value)
    exact = y.astype(np.float64)
    missed, spread = np.square(z - exact).sum(axis=-2), np.square(exact - exact.mean(axis=0)).sum(axis=-2)
    return Evaluation(value, r2=(1 - missed / spread).mean(axis=-1))


def new_model(network: Network, params: Params, loss: Loss, data: Splits | Stream) -> Model:
    """A model with what it needs to know of the data it was found on."""
    targets = data.targets if loss.scaled else None
    return Model(network, params, loss, data.normalization, targets, data.classes, data.split_seed)


def load(path: str | Path) -> Model:
    """The model in a file. Raises ValueError for a file that is damaged or not a model, OSError if there is none."""
    return loads(Path(path).read_bytes(), str(path))


READERS: dict[bytes, Callable[[bytes, str], Model]] = {}  # of other kinds of files, by their first bytes


def loads(raw: bytes, name: str = "model") -> Model:
    """The model in the bytes of a file, of whatever kind."""
    if reader := READERS.get(bytes(raw[:4])):
        return reader(raw, name)
    header, tensors = storage.loads(raw, name)
    try:
        return _decode(header, tensors)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{name}: not a valid model: {error}") from error


def _decode(header: dict[str, Any], tensors: dict[str, np.ndarray]) -> Model:
    network = Network(tuple(header["layer_sizes"]), header["activation"], header["initializer"])
    population, bits = header.get("population"), header.get("bits")
    if population is not None and (type(population) is not int or population < 1):
        raise ValueError(f"population: expected a positive integer, got {population!r}")
    bits = _bits(bits, len(network.shapes), population)
    if network.parameters * (population or 1) > MAX_PARAMETERS:
        raise ValueError(f"{network.parameters} parameters; at most {MAX_PARAMETERS} are read")
    known = {f"{name}.{part}" for name in NORMALIZATIONS for part in Normalization._fields} | {"inputs"}
    layers, used = [], known & set(tensors)
    for i, shape in enumerate(network.shapes):
        own = {key.partition(".")[2]: tensor for key, tensor in tensors.items() if key.startswith(f"{i}.")}
        width = widest(bits, i, population)
        layers.append(packing.unpack_layer(own, (population, *shape) if population else shape, width))
        used |= {f"{i}.{key}" for key in own}
    if used != set(tensors):
        raise ValueError(f"unexpected tensors {sorted(set(tensors) - used)}")
    params, masks, quantized = zip(*layers, strict=True)
    if len({mask is None for mask in masks}) > 1:
        raise ValueError("expected masks of all layers or of none")
    name, config = header["loss"]
    return Model(
        network,
        tuple(params),
        losses.get(name, **config),
        _normalization(tensors, "normalization", network.layer_sizes[0]),
        _normalization(tensors, "targets", network.layer_sizes[-1]),
        _classes(header["classes"], network.layer_sizes[-1]) if "classes" in header else None,
        _split_seed(header.get("split_seed")),
        None if masks[0] is None else masks,
        None if bits is None else quantized,
        bits,
        _inputs(tensors.get("inputs"), header.get("features"), network.layer_sizes[0]),
    )


def networks(model: Model) -> list[Model]:
    """Each network of a population, or the one there is."""
    return [model] if model.population is None else [model.member(i) for i in range(model.population)]


def bits_of_layer(bits: Any, layer: int, population: int | None) -> Any:
    """The bits of that layer: None, an integer, or where members differ a tuple of one for each."""
    several = isinstance(bits, tuple)
    if several and population is not None:
        found = tuple(bits_of_layer(one, layer, None) for one in bits)
        return found[0] if len(set(found)) == 1 else found
    return bits[layer] if several else bits


def widest(bits: Any, layer: int, population: int | None) -> int | None:
    """The bits that all members' integers of that layer fit in."""
    found = bits_of_layer(bits, layer, population)
    return max(found) if isinstance(found, tuple) else found


def _bits(found: Any, layers: int, population: int | None) -> Any:
    """The bits in a header."""
    if not isinstance(found, list):
        return None if found is None else check_bits(found)
    if len(found) != (layers if population is None else population):
        raise ValueError(f"bits: expected one number, or one for each layer or member, got {len(found)}")
    return tuple(check_bits(one) if population is None else _bits(one, layers, None) for one in found)


def _normalization(tensors: dict[str, np.ndarray], name: str, size: int) -> Normalization | None:
    if not {f"{name}.{part}" for part in Normalization._fields} & set(tensors):
        return None
    found = Normalization(*(tensors[f"{name}.{part}"] for part in Normalization._fields))
    fits = all(part.dtype == np.float32 and part.shape in ((1,), (size,)) and np.isfinite(part).all() for part in found)
    if not fits or not (found.scale > 0).all():
        raise ValueError(f"{name}: it does not fit the network")
    return found


def _inputs(packed: np.ndarray | None, features: Any, size: int) -> np.ndarray | None:
    if packed is None and features is None:
        return None
    fits = type(features) is int and 0 < features <= MAX_PARAMETERS
    if not fits or packed is None or packed.dtype != np.uint8 or packed.shape != (-(-features // 8),):
        raise ValueError(f"inputs: expected a bit for each of the {features!r} features")
    inputs = np.unpackbits(packed, count=features).astype(bool)
    if inputs.sum() != size:
        raise ValueError(f"inputs: the network takes {size} of them, but {inputs.sum()} are marked")
    return inputs


def _classes(names: Any, outputs: int) -> tuple[str, ...]:
    if not isinstance(names, list) or len(names) != outputs or not all(isinstance(name, str) for name in names):
        raise ValueError(f"classes: expected {outputs} names, got {names!r}")
    return tuple(names)


def _split_seed(seed: Any) -> int | None:
    if seed is not None and (type(seed) is not int or not 0 <= seed < 2**64):
        raise ValueError(f"split_seed: expected an integer from 0 to 2^64 − 1, got {seed!r}")
    return seed
