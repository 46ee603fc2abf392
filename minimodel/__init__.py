"""minimodel: search, train, prune and quantize small dense networks, by hand, on NumPy and JAX."""

from minimodel import backends, datasets, losses, random
from minimodel._version import __version__
from minimodel.compress.pruning import prune
from minimodel.compress.quantization import quantize
from minimodel.datasets import Dataset, Normalization, Splits
from minimodel.gradients import hvp, input_gradient, jvp, value_and_grad, vjp
from minimodel.model import Evaluation, Model, load
from minimodel.network import Layer, Network, Params
from minimodel.problem import DivergedError
from minimodel.qarray import QArray
from minimodel.search import optimizers, schedules, strategies
from minimodel.search.gradient_descent import gradient_descent
from minimodel.search.random_search import random_search

__all__ = [
    "Dataset",
    "DivergedError",
    "Evaluation",
    "Layer",
    "Model",
    "Network",
    "Normalization",
    "Params",
    "QArray",
    "Splits",
    "__version__",
    "backends",
    "datasets",
    "gradient_descent",
    "hvp",
    "input_gradient",
    "jvp",
    "load",
    "losses",
    "optimizers",
    "prune",
    "quantize",
    "random",
    "random_search",
    "schedules",
    "strategies",
    "value_and_grad",
    "vjp",
]
