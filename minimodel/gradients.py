"""Gradients by hand: reverse mode, forward mode, and one over the other.

With a₀ = x, z_l = a_{l−1}W_l + b_l, a_l = f(z_l) ∘ m_l, outputs z_L, and δ_l = ∂J/∂z_l:

    δ_{l−1} = (δ_l W_lᵀ) ∘ m_{l−1} ∘ f′(z_{l−1}),    ∂J/∂W_l = a_{l−1}ᵀ δ_l,    ∂J/∂b_l = Σ_batch δ_l

m is 1 but in training with dropout. Every array may carry leading population axes; every function takes its
namespace from its arguments.
"""

from typing import NamedTuple

from minimodel.losses import Loss, get, mean
from minimodel.network import Layer, Network, Params, affine, check
from minimodel.tree import Array, namespace

Noise = tuple[Array | None, ...]  # what multiplies x and every hidden activation


class Step(NamedTuple):
    """One layer of a forward pass: its input a_{l−1}, its pre-activation z_l and the activation f(z_{l−1}) before m."""

    a: Array
    z: Array
    f: Array


def value_and_grad(network: Network, loss: str | Loss, params: Params, x: Array, y: Array) -> tuple[Array, Params]:
    """J(θ) of shape (*population,) and ∂J/∂θ, shaped like ``params``.

    x is (batch, in) or (*population, batch, in). y is as the loss says: integer labels (batch,) or floats
    (batch, out) of the parameters' dtype, with the population's axes in front or not. Raises ValueError where the
    shapes do not fit. On an accelerator call it through ``backend.jit``, which pins the precision of products.
    """
    loss, steps = _checked(network, loss, params, x, y)
    return _descend(network, loss, params, steps, loss.encode(y, steps[-1].z), None, None)


def objective(
    network: Network, loss: Loss, params: Params, x: Array, t: Array, weight: Array | None, noise: Noise | None
) -> tuple[Array, Params]:
    """``value_and_grad`` unchecked, of encoded targets: J = mean of w·ℓ with row weights w (*population, batch)."""
    return _descend(network, loss, params, forward(network, params, x, noise), t, weight, noise)


def input_gradient(network: Network, loss: str | Loss, params: Params, x: Array, y: Array) -> Array:
    """∂J/∂x = δ₁W₁ᵀ, shaped (*population, batch, in)."""
    loss, steps = _checked(network, loss, params, x, y)
    delta = _backward(network, params, steps, loss.gradient(steps[-1].z, y))[1]
    return delta @ params[0].weight.mT


def vjp(network: Network, params: Params, x: Array, cotangent: Array) -> Params:
    """Jᵀu, J the Jacobian of the outputs by the parameters and u a cotangent shaped like the outputs."""
    check(network, params, x)
    return _backward(network, params, forward(network, params, x), cotangent)[0]


def jvp(network: Network, params: Params, tangent: Params, x: Array) -> tuple[Array, Array]:
    """The outputs and Jv, their change along v = ``tangent``: ż_l = ȧ_{l−1}W_l + a_{l−1}V_l + v_l, ȧ_l = f′ ∘ ż_l."""
    check(network, params, x)
    steps = forward(network, params, x)
    return steps[-1].z, _pushforward(network, params, tangent, steps)[-1].z


def hvp(network: Network, loss: str | Loss, params: Params, tangent: Params, x: Array, y: Array) -> Params:
    """(∂²J/∂θ²)·v: the derivative along v of every line of the backward pass (Pearlmutter 1994).

    With dots for derivatives along v: δ̇_L = (∂²J/∂z²)ż_L, and
    (δWᵀ)˙ = δ̇Wᵀ + δVᵀ,    δ̇_{l−1} = (δWᵀ)˙ ∘ f′ + (δWᵀ) ∘ f″ ∘ ż_{l−1},    (aᵀδ)˙ = ȧᵀδ + aᵀδ̇.
    """
    xp = namespace(params, tangent, x)
    loss, steps = _checked(network, loss, params, x, y)
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


def gnvp(network: Network, loss: str | Loss, params: Params, tangent: Params, x: Array, y: Array) -> Params:
    """Jᵀ(∂²J/∂z²)J·v, J the Jacobian of the outputs: the Gauss–Newton matrix times v, positive semi-definite.

    For softmax cross-entropy it is the Fisher matrix (of the model's own distribution) times v; for independent outputs
    and for the squared error it is that up to a factor. Schraudolph: Fast curvature matrix-vector products (2002).
    """
    loss, steps = _checked(network, loss, params, x, y)
    z_dot = _pushforward(network, params, tangent, steps)[-1].z
    return _backward(network, params, steps, loss.curvature(steps[-1].z, y, z_dot))[0]


def fisher_diagonal(network: Network, loss: str | Loss, params: Params, x: Array, y: Array) -> Params:
    """The diagonal of the empirical Fisher matrix, mean over the rows of (∂ℓ_row/∂θ)².

    A row's gradient of W_l is a ⊗ δ, so Σ_rows (a_i δ_j)² = (a∘a)ᵀ(δ∘δ): no row's gradient is ever formed.
    """
    loss, steps = _checked(network, loss, params, x, y)
    return squared_gradients(network, loss, params, steps, loss.encode(y, steps[-1].z))


def squared_gradients(
    network: Network, loss: Loss, params: Params, steps: list[Step], t: Array, weight: Array | None = None
) -> Params:
    """``fisher_diagonal`` from a forward pass and encoded targets, with weights of the rows in its mean."""
    xp, found = namespace(t), []
    for step, (delta, _) in zip(steps, row_deltas(network, loss, params, steps, t), strict=True):
        squared = delta * delta * (1 / delta.shape[-2])
        squared = squared if weight is None else squared * weight[..., None]
        found.append(Layer((step.a * step.a).mT @ squared, xp.sum(squared, axis=-2)))
    return tuple(found)


def row_deltas(
    network: Network, loss: Loss, params: Params, steps: list[Step], t: Array
) -> list[tuple[Array, Array | None]]:
    """For every layer, and every row: ∂ℓ/∂z_l, and ∂ℓ/∂a_l by what the layer gives to the next (None of the last)."""
    found: list[tuple[Array, Array | None]] = [(loss.rows(steps[-1].z, t)[1], None)]
    for i in reversed(range(1, len(params))):
        back = found[-1][0] @ params[i].weight.mT
        found.append((back * network.functions.slope(steps[i - 1].z, steps[i].f), back))
    return found[::-1]


def forward(network: Network, params: Params, x: Array, noise: Noise | None = None) -> list[Step]:
    """Every layer's step; nothing is checked."""
    value, f = network.functions.value, x
    steps: list[Step] = []
    for i, layer in enumerate(params):
        if i > 0:
            f = value(steps[-1].z)
        a = f if noise is None or noise[i] is None else f * noise[i]
        steps.append(Step(a, affine(layer, a), f))
    return steps


def _descend(
    network: Network, loss: Loss, params: Params, steps: list[Step], t: Array, weight: Array | None, noise: Noise | None
) -> tuple[Array, Params]:
    """J and its gradient from a forward pass."""
    rows, delta = loss.rows(steps[-1].z, t)
    if weight is not None:
        rows *= weight
        delta *= weight[..., None]
    delta *= 1 / rows.shape[-1]
    return mean(rows), _backward(network, params, steps, delta, noise)[0]


def _backward(
    network: Network, params: Params, steps: list[Step], delta: Array, noise: Noise | None = None
) -> tuple[Params, Array]:
    """The gradient and δ₁, from δ_L."""
    slope = network.functions.slope
    grads: list[Layer] = []
    xp = namespace(delta)
    for i in reversed(range(len(params))):
        grads.append(Layer(steps[i].a.mT @ delta, xp.sum(delta, axis=-2)))
        if i > 0:
            delta = delta @ params[i].weight.mT
            if noise is not None and noise[i] is not None:
                delta *= noise[i]
            delta *= slope(steps[i - 1].z, steps[i].f)
    return tuple(reversed(grads)), delta


def _pushforward(network: Network, params: Params, tangent: Params, steps: list[Step]) -> list[Step]:
    """ȧ and ż of every layer; ȧ₀ = 0 is written as zeros of x."""
    dots: list[Step] = []
    for i, (step, layer, along) in enumerate(zip(steps, params, tangent, strict=True)):
        z_dot = affine(along, step.a)
        if i == 0:
            a_dot = namespace(step.a).zeros_like(step.a)
        else:
            a_dot = network.functions.slope(steps[i - 1].z, step.f) * dots[-1].z
            z_dot += a_dot @ layer.weight
        dots.append(Step(a_dot, z_dot, a_dot))
    return dots


def _checked(network: Network, loss: str | Loss, params: Params, x: Array, y: Array) -> tuple[Loss, list[Step]]:
    """The loss and the forward pass. A target of another shape would broadcast into a wrong loss without a word."""
    loss = get(loss)
    check(network, params, x)
    steps = forward(network, params, x)
    z, axes = steps[-1].z, 1 if loss.labels else 2
    expected = z.shape[-2 : z.ndim - 2 + axes]
    if y.shape[-axes:] != expected or y.ndim - axes > z.ndim - 2:
        kind = "labels (…, batch)" if loss.labels else "targets (…, batch, out)"
        raise ValueError(f"y: {loss.name} expects {kind} = (…, {', '.join(map(str, expected))}), got {tuple(y.shape)}")
    if not loss.labels and y.dtype != z.dtype:
        raise ValueError(f"y: {loss.name} expects targets of the outputs' dtype {z.dtype}, got {y.dtype}")
    return loss, steps
