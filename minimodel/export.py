"""Models as ONNX files, for runtimes elsewhere. The extra ``onnx`` is imported when one is written.

    float       the network as it is: Gemm and its activation
    integer     an ``IntegerModel`` in standard operators, MatMulInteger and rescaling: the same integers everywhere
    qdq         the same as QuantizeLinear and DequantizeLinear around float products, which a runtime may fuse
    qoperator   the same as ONNX Runtime's QGemm

Every graph takes raw rows, "x" float32 (n, features), and gives "outputs" (n, out) as ``Model.outputs``.
"""

from pathlib import Path
from typing import Any

import numpy as np

from minimodel import storage
from minimodel.activations import TOP, steps
from minimodel.compress.integer import IntegerLayer, IntegerModel
from minimodel.model import Model

OPSET, IR = 20, 10
RUNTIME = "com.microsoft"  # the domain of ONNX Runtime's own operators
FORMS = ("integer", "qdq", "qoperator")


def to_onnx(model: Model | IntegerModel, path: str | Path | None = None, *, form: str = "integer") -> bytes:
    """The ONNX file of a model, or of an integer model in one of the forms; written to ``path`` if there is one."""
    source = model.model if isinstance(model, IntegerModel) else model
    if source.population is not None:
        raise ValueError("to_onnx: this is a population; take one of them with .member(i)")
    if form not in FORMS:
        raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {form!r}")
    if isinstance(model, Model) and form != "integer":
        raise ValueError(
            f"form: a model of floats has one form only; make it integers first, to_integers(…), for {form!r}"
        )
    graph = Graph()
    x = graph.prepared(source)
    if not isinstance(model, IntegerModel):
        z = graph.float_layers(source, x)
    elif form == "integer":
        z = graph.integer_layers(model, x)
    else:
        z = graph.quantized_layers(model, x, runtime=form == "qoperator")
    raw = graph.finished(source, z)
    if path is not None:
        storage.write(path, raw)
    return raw


class Graph:
    """An ONNX graph that is being written: nodes and constants, each under a name of its own."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """A node; the name of its result."""
        from onnx import helper

        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], domain=domain, **attributes))
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """An array in the file."""
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants.append(
            numpy_helper.from_array(np.ascontiguousarray(value, dtype).reshape(np.shape(value)), name)
        )
        return name

    def prepared(self, model: Model) -> str:
        """The rows as the network takes them."""
        x = "x"
        if model.inputs is not None:
            x = self.add("Gather", x, self.constant(np.flatnonzero(model.inputs), np.int64), axis=1)
        if model.normalization:
            x = self.add("Sub", x, self.constant(model.normalization.shift))
            x = self.add("Mul", x, self.constant(model.normalization.scale))
        return x

    def activated(self, name: str, z: str) -> str:
        """f(z)"""
        if name == "silu":
            return self.add("Mul", z, self.add("Sigmoid", z))
        if name == "gelu":
            return self.add("Gelu", z, approximate="tanh")
        if n := steps(name):
            z = self.add("Clip", z, self.constant(0.0), self.constant(TOP))
            z = self.add("Round", self.add("Mul", z, self.constant(n / TOP)))
            return self.add("Mul", z, self.constant(TOP / n))
        operators = {"relu": "Relu", "leaky_relu": "LeakyRelu", "tanh": "Tanh", "sigmoid": "Sigmoid"}
        return self.add(operators[name], z) if name in operators else z

    def float_layers(self, model: Model, a: str) -> str:
        """The outputs of the last layer."""
        for i, layer in enumerate(model.params):
            a = self.activated(model.network.activation, a) if i else a
            a = self.add("Gemm", a, self.constant(layer.weight), self.constant(layer.bias))
        return a

    def integer_layers(self, model: IntegerModel, x: str) -> str:
        """As ``integer.run``: every operator is exact or one rounding of float32."""
        q = self.rows_of(model.scales[0], x)
        for i, layer in enumerate(model.layers):
            product = self.add("MatMulInteger", q, self.constant(layer.weight, np.int8))
            acc = self.add("Add", product, self.constant(layer.bias, np.int32))
            if i + 1 < len(model.layers):
                q = self.rescaled(acc, layer)
        return self.add("Mul", self.cast(acc, np.float32), self.constant(model.units[-1]))

    def rows_of(self, first: Any, x: str) -> str:
        """The integers of the rows, as ``IntegerModel.quantized``: QuantizeLinear divides, which rounds otherwise."""
        scaled = self.add("Round", self.add("Mul", x, self.constant(np.float32(1) / first.scale)))
        return self.clipped(scaled, first.zero_point, first.low, first.high, np.float32)

    def rescaled(self, acc: str, layer: IntegerLayer) -> str:
        """As ``integer.rescaled``; a shift is a product in float64, where it is exact."""
        shift = layer.multiplier.dtype == np.int32
        wide = np.float64 if shift else np.float32
        multiplier = np.ldexp(1.0, -layer.multiplier) if shift else layer.multiplier
        scaled = self.add("Round", self.add("Mul", self.cast(acc, wide), self.constant(multiplier, wide)))
        q = self.clipped(scaled, layer.zero_point[0], layer.low[0], layer.high[0], wide)
        if layer.table is None:
            return q
        place = self.add("Add", self.cast(q, np.int32), self.constant(128, np.int32))
        return self.add("Gather", self.constant(layer.table, np.int8), place)

    def clipped(self, scaled: str, zero_point: Any, low: Any, high: Any, dtype: Any) -> str:
        """clip(q + z, low, high) as int8."""
        q = self.add("Add", scaled, self.constant(zero_point, dtype))
        return self.cast(self.add("Clip", q, self.constant(low, dtype), self.constant(high, dtype)), np.int8)

    def cast(self, x: str, dtype: Any) -> str:
        """x as another type."""
        from onnx import helper

        return self.add("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def quantized_layers(self, model: IntegerModel, x: str, runtime: bool) -> str:
        """The same network by scales: as ONNX Runtime's QGemm, or as float products between quantized activations."""
        network = model.model.network
        if network.activation not in ("relu", "identity") or model.scales[0].high != 127:
            raise ValueError("form: only relu and identity with activations of 8 bits go this way; take form='integer'")
        first = model.scales[0]
        a = self.rows_of(first, x) if runtime else self.add("QuantizeLinear", x, *self.scale_of(first))
        for i, (layer, unit, before) in enumerate(zip(model.layers, model.units, model.scales, strict=True)):
            after = () if i + 1 == len(model.layers) else self.scale_of(model.scales[i + 1])
            scale, zeros = self.constant(unit / before.scale), self.constant(np.zeros(len(unit)), np.int8)
            c = layer.bias + before.zero_point * layer.weight.astype(np.int64).sum(axis=0)
            weight = self.constant(layer.weight, np.int8)
            if runtime:
                inputs = (a, *self.scale_of(before), weight, scale, zeros, self.constant(c, np.int32), *after)
                a = self.add("QGemm", *inputs, domain=RUNTIME)
                continue
            rows = self.add("DequantizeLinear", a, *self.scale_of(before))
            floats = self.add("DequantizeLinear", weight, scale, zeros, axis=1)
            a = self.add("Gemm", rows, floats, self.constant(c * unit))
            if after:
                a = self.add("QuantizeLinear", self.activated(network.activation, a), *after)
        return a

    def scale_of(self, scale: Any) -> tuple[str, str]:
        """The constants of QuantizeLinear and its inverse."""
        return self.constant(scale.scale), self.constant(scale.zero_point, np.int8)

    def finished(self, model: Model, z: str) -> bytes:
        """The file, checked."""
        import onnx
        from onnx import TensorProto, helper

        if model.targets:
            z = self.add("Div", z, self.constant(model.targets.scale))
            z = self.add("Add", z, self.constant(model.targets.shift))
        self.nodes.append(helper.make_node("Identity", [z], ["outputs"]))
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size])
            for name, size in (("x", model.features), ("outputs", model.network.layer_sizes[-1]))
        ]
        graph = helper.make_graph(self.nodes, "minimodel", ends[:1], ends[1:], self.constants)
        domains = [helper.make_opsetid("", OPSET), helper.make_opsetid(RUNTIME, 1)]
        made = helper.make_model(graph, producer_name="minimodel", opset_imports=domains, ir_version=IR)
        onnx.checker.check_model(made, full_check=False)
        return made.SerializeToString()
