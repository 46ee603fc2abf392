"""minimodel: search, train, prune and quantize small dense networks, by hand, on NumPy and JAX."""

from minimodel import backends, datasets, losses, observe, random
from minimodel._version import __version__
from minimodel.compress import coded, patterns, pruning_schedules, ranges, scores
from minimodel.compress.deployment import deploy
from minimodel.compress.integer import to_integers
from minimodel.compress.pruning import prune
from minimodel.compress.quantization import quantize
from minimodel.compress.shrinking import shrink
from minimodel.datasets import Dataset, Normalization, Splits
from minimodel.export import to_onnx
from minimodel.gradients import fisher_diagonal, gnvp, hvp, input_gradient, jvp, value_and_grad, vjp
from minimodel.model import Evaluation, Model, load
from minimodel.network import Layer, Network, Params
from minimodel.packing import pack_n_of_m, unpack_n_of_m
from minimodel.problem import DivergedError
from minimodel.qarray import QArray
from minimodel.search import optimizers, schedules, strategies
from minimodel.search.budgets import hyperband, hyperband_brackets, hyperband_candidates, successive_halving
from minimodel.search.gradient_descent import gradient_descent
from minimodel.search.random_search import error_rate, random_search
from minimodel.streams import Stream, stream_batches, stream_files
from minimodel.teacher import Teacher
from minimodel.trade_offs import trade_off

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
    "Stream",
    "Teacher",
    "__version__",
    "backends",
    "coded",
    "datasets",
    "deploy",
    "error_rate",
    "fisher_diagonal",
    "gnvp",
    "gradient_descent",
    "hvp",
    "hyperband",
    "hyperband_brackets",
    "hyperband_candidates",
    "input_gradient",
    "jvp",
    "load",
    "losses",
    "observe",
    "optimizers",
    "pack_n_of_m",
    "patterns",
    "prune",
    "pruning_schedules",
    "quantize",
    "random",
    "random_search",
    "ranges",
    "schedules",
    "scores",
    "shrink",
    "strategies",
    "stream_batches",
    "stream_files",
    "successive_halving",
    "to_integers",
    "to_onnx",
    "trade_off",
    "unpack_n_of_m",
    "value_and_grad",
    "vjp",
]
