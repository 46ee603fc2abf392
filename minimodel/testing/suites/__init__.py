"""Suites of checks for code of one's own; ``CHECKS_VERSION`` is that of the set of checks."""

from minimodel.testing.suites.backend import BackendSuite
from minimodel.testing.suites.base import CHECKS_VERSION, Result, Suite, run
from minimodel.testing.suites.functions import ActivationSuite, GradientSuite, LossSuite
from minimodel.testing.suites.optimizers import OptimizerSuite
from minimodel.testing.suites.quantizers import FileSuite, Quantization, QuantizerSuite, quantization
from minimodel.testing.suites.scores import ScoreSuite
from minimodel.testing.suites.search import StrategySuite

__all__ = [
    "CHECKS_VERSION",
    "ActivationSuite",
    "BackendSuite",
    "FileSuite",
    "GradientSuite",
    "LossSuite",
    "OptimizerSuite",
    "Quantization",
    "QuantizerSuite",
    "Result",
    "ScoreSuite",
    "StrategySuite",
    "Suite",
    "quantization",
    "run",
]
