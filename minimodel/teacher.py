"""Distillation: to learn from the outputs of another model as well as from the targets."""

from typing import Any, NamedTuple

import numpy as np

from minimodel import losses
from minimodel.activations import sigmoid
from minimodel.losses import Loss
from minimodel.network import Network


class Teacher(NamedTuple):
    """A model to learn from, or a population, of which the mean prediction is learned.

        J = (1 − α)·ℓ(z, t) + α·T²·ℓ(z/T, s),    s = the mean over the population of softmax(z′/T)

    model         with outputs z′; for a regression and for independent outputs s is what it predicts
    weight        α, from 0 to 1
    temperature   T > 0, of softmax alone: above 1 the classes that are not the likeliest count for more

    s is computed once, for complete rows: a teacher sees what ``input_dropout`` hides from the learner.
    Up to a constant ℓ(z/T, s) is the divergence KL(s ‖ softmax(z/T)). Hinton, Vinyals, Dean: Distilling the knowledge
    in a neural network (2015).
    """

    model: Any
    weight: float = 0.5
    temperature: float = 1.0

    def loss(self, loss: Loss) -> Loss:
        """J, of targets (t, s) side by side."""
        return losses.distilled(loss, self.weight, self.temperature)

    def targets(self, x: np.ndarray) -> np.ndarray:
        """s (n, out) for raw inputs."""
        z = self.model.outputs(x)
        if self.model.loss.labels:
            z = losses.softmax(z * np.float32(1 / self.temperature))
        elif self.model.loss is losses.binary_cross_entropy:
            z = sigmoid(z)
        return z.mean(axis=0) if self.model.population else z


def check_teacher(teacher: Any, network: Network, loss: Loss, features: int | None) -> Teacher:
    """A teacher of this kind of problem, for data of so many features."""
    if not isinstance(teacher, Teacher):
        raise TypeError(f"teacher: expected a Teacher(model, weight=…, temperature=…), got {teacher!r:.80}")
    model, weight, temperature = teacher
    if getattr(model, "loss", None) is not loss or model.network.layer_sizes[-1] != network.layer_sizes[-1]:
        raise ValueError(
            f"teacher: expected a model with {loss.name} and {network.layer_sizes[-1]} outputs, got {model!r:.80}"
        )
    if features not in (None, model.features):
        raise ValueError(f"teacher: expected a model of {features} features, as the data have, got {model.features}")
    for name, value, most in (("weight", weight, 1), ("temperature", temperature, np.inf)):
        if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value <= most:
            raise ValueError(f"teacher: expected a {name} from 0 to {most:g}, got {value!r}")
    if not 0 < temperature < np.inf:
        raise ValueError(f"teacher: expected a finite temperature above 0, got {temperature!r}")
    if temperature != 1 and not loss.labels:
        raise ValueError(f"teacher: {loss.name} has no softmax to take a temperature; leave it at 1")
    return teacher
