"""Gradients by hand: reverse mode, forward mode, and one over the other.

With a₀ = x, z_l = a_{l−1}W_l + b_l, a_l = f(z_l), outputs z_L, and δ_l = ∂J/∂z_l:

    δ_{l−1} = (δ_l W_lᵀ) ∘ f′(z_{l−1}),    ∂J/∂W_l = a_{l−1}ᵀ δ_l,    ∂J/∂b_l = Σ_batch δ_l

Every array may carry leading population axes; every function takes its namespace from its arguments.
"""

from typing import NamedTuple

from minimodel.losses import Loss, get
from minimodel.network import Layer, Network, Params, affine, check
from minimodel.tree import Array, namespace


class Step(NamedTuple):
    """One layer of a forward pass: its input a_{l−1} and its pre-activation z_l."""

    a: Array
    z: Array


def value_and_grad(network: Network, loss: str | Loss, params: Params, x: Array, y: Array) -> tuple[Array, Params]:
    """J(θ) of shape (*population,) and ∂J/∂θ, shaped like ``params``.

    x is (batch, in) or (*population, batch, in). y is as the loss says: integer labels (batch,) or floats
    (batch, out) of the parameters' dtype, with the population's axes in front or not. Raises ValueError where the
    shapes do not fit. On an accelerator call it through ``backend.jit``, which pins the precision of products.
    """
    loss = get(loss)
    steps = _forward(network, params, x)
    _check_targets(loss, steps[-1].z, y)
    value = loss.value(steps[-1].z, y)
    return value, _backward(network, params, steps, loss.gradient(steps[-1].z, y))[0]


def input_gradient(network: Network, loss: str | Loss, params: Params, x: Array, y: Array) -> Array:
    """∂J/∂x = δ₁W₁ᵀ, shaped (*population, batch, in)."""
    loss = get(loss)
    steps = _forward(network, params, x)
    _check_targets(loss, steps[-1].z, y)
    delta = _backward(network, params, steps, loss.gradient(steps[-1].z, y))[1]
    return delta @ params[0].weight.mT


def vjp(network: Network, params: Params, x: Array, cotangent: Array) -> Params:
    """Jᵀu, J the Jacobian of the outputs by the parameters and u a cotangent shaped like the outputs."""
    return _backward(network, params, _forward(network, params, x), cotangent)[0]


def jvp(network: Network, params: Params, tangent: Params, x: Array) -> tuple[Array, Array]:
    """The outputs and Jv, their change along v = ``tangent``: ż_l = ȧ_{l−1}W_l + a_{l−1}V_l + v_l, ȧ_l = f′ ∘ ż_l."""
    steps = _forward(network, params, x)
    return steps[-1].z, _pushforward(network, params, tangent, steps)[-1].z


def hvp(network: Network, loss: str | Loss, params: Params, tangent: Params, x: Array, y: Array) -> Params:
    """(∂²J/∂θ²)·v: the derivative along v of every line of the backward pass (Pearlmutter 1994).

    With dots for derivatives along v: δ̇_L = (∂²J/∂z²)ż_L, and
    (δWᵀ)˙ = δ̇Wᵀ + δVᵀ,    δ̇_{l−1} = (δWᵀ)˙ ∘ f′ + (δWᵀ) ∘ f″ ∘ ż_{l−1},    (aᵀδ)˙ = ȧᵀδ + aᵀδ̇.
    """
    loss, xp = get(loss), namespace(params, tangent, x)
    steps = _forward(network, params, x)
    _check_targets(loss, steps[-1].z, y)
    dots = _pushforward(network, params, tangent, steps)
    delta = loss.gradient(steps[-1].z, y)
    delta_dot = loss.curvature(steps[-1].z, y, dots[-1].z)
    products: list[Layer] = []
    for i in reversed(range(len(params))):
        weight = steps[i].a.mT @ delta_dot
        if i > 0:
            weight = weight + dots[i].a.mT @ delta
        products.append(Layer(weight, xp.sum(delta_dot, axis=-2)))
        if i > 0:
            z, a = steps[i - 1].z, steps[i].a
            slope, curvature = network.functions.slope(z, a), network.functions.curvature(z, a)
            back = delta @ params[i].weight.mT
            back_dot = delta_dot @ params[i].weight.mT + delta @ tangent[i].weight.mT
            delta, delta_dot = back * slope, back_dot * slope + back * curvature * dots[i - 1].z
    return tuple(reversed(products))


def _forward(network: Network, params: Params, x: Array) -> list[Step]:
    check(network, params, x)
    steps: list[Step] = []
    for i, layer in enumerate(params):
        a = x if i == 0 else network.functions.value(steps[-1].z)
        steps.append(Step(a, affine(layer, a)))
    return steps


def _backward(network: Network, params: Params, steps: list[Step], delta: Array) -> tuple[Params, Array]:
    """The gradient and δ₁, from δ_L."""
    xp = namespace(delta)
    grads = []
    for i in reversed(range(len(params))):
        grads.append(Layer(steps[i].a.mT @ delta, xp.sum(delta, axis=-2)))
        if i > 0:
            delta = delta @ params[i].weight.mT
            delta *= network.functions.slope(steps[i - 1].z, steps[i].a)
    return tuple(reversed(grads)), delta


def _pushforward(network: Network, params: Params, tangent: Params, steps: list[Step]) -> list[Step]:
    """ȧ and ż of every layer; ȧ₀ = 0 is written as zeros of x."""
    dots: list[Step] = []
    for i, (step, layer, along) in enumerate(zip(steps, params, tangent, strict=True)):
        z_dot = affine(along, step.a)
        if i == 0:
            a_dot = namespace(step.a).zeros_like(step.a)
        else:
            a_dot = network.functions.slope(steps[i - 1].z, step.a) * dots[-1].z
            z_dot += a_dot @ layer.weight
        dots.append(Step(a_dot, z_dot))
    return dots


def _check_targets(loss: Loss, z: Array, y: Array) -> None:
    """A target of another shape would broadcast into a wrong loss without a word."""
    axes = 1 if loss.labels else 2
    expected = z.shape[-2 : z.ndim - 2 + axes]
    if y.shape[-axes:] != expected or y.ndim - axes > z.ndim - 2:
        kind = "labels (…, batch)" if loss.labels else "targets (…, batch, out)"
        raise ValueError(f"y: {loss.name} expects {kind} = (…, {', '.join(map(str, expected))}), got {tuple(y.shape)}")
    if not loss.labels and y.dtype != z.dtype:
        raise ValueError(f"y: {loss.name} expects targets of the outputs' dtype {z.dtype}, got {y.dtype}")
