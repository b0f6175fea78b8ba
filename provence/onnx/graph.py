"""A pruner as an ONNX graph in int8, whose results do not depend on what else is in the batch.

    input_ids, attention_mask (windows, tokens) -> int8 encoder -> keep (windows, tokens), score (windows,)

Weights are int8 with a factor a row (output channel). Activations are quantised while the graph runs, each token by its
own largest value: `q = round(x / s) + 128, s = max|x| / 127`. onnxruntime's own dynamic quantisation takes one factor
for the whole batch, so that a token's result depends on the other windows and on padding; this does not, and is nearer
to the float32 model. Products are int8 x int8 -> int32, everything between them float32. Softmax leaves masked tokens
out. Needs the package onnx; pure functions of arrays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.storage.arrays import Float32
    from provence.onnx.read import PlainPruner

__all__ = ["INPUTS", "OUTPUTS", "build_graph", "quantised_rows"]

INPUTS: Final = ("input_ids", "attention_mask")
OUTPUTS: Final = ("keep", "score")

_MICROSOFT: Final = "com.microsoft"
_OPSETS: Final = (("", 20), (_MICROSOFT, 1))
_IR_VERSION: Final = 10
_TOP: Final = 127


def build_graph(pruner: PlainPruner) -> bytes:
    """The serialised graph of a pruner; a MiniLM of 6 layers takes about 23.5 MB."""
    from onnx import TensorProto, helper

    graph = _Graph()
    states = _encoder(graph, pruner)
    heads = pruner.heads
    keep = graph.float_linear(states, heads["keep.weight"], heads["keep.bias"], "keep")
    graph.node("Sigmoid", [graph.node("Squeeze", [keep, graph.constant([2])])], out=OUTPUTS[0])
    first = graph.node("Gather", [states, graph.constant(0)], axis=1)
    score = graph.float_linear(first, heads["score.weight"], heads["score.bias"], "score")
    graph.node("Squeeze", [score, graph.constant([1])], out=OUTPUTS[1])
    axes = ["windows", "tokens"]
    made = helper.make_graph(
        graph.nodes,
        "pruner",
        [helper.make_tensor_value_info(name, TensorProto.INT64, axes) for name in INPUTS],
        [
            helper.make_tensor_value_info(OUTPUTS[0], TensorProto.FLOAT, axes),
            helper.make_tensor_value_info(OUTPUTS[1], TensorProto.FLOAT, axes[:1]),
        ],
        graph.constants,
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS]
    model = helper.make_model(made, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="secateur")
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def quantised_rows(weight: Float32) -> tuple[Any, Float32]:
    """Codes, int8 (rows, columns) of -127 to 127, and a factor a row, float32 (rows,); the value is their product."""
    steps = np.abs(weight).max(axis=1) / np.float32(_TOP)
    steps[steps == 0] = 1
    codes = np.clip(np.round(weight / steps[:, None]), -_TOP, _TOP).astype(np.int8)
    return codes, steps.astype(np.float32)


def _encoder(graph: _Graph, pruner: PlainPruner) -> str:
    """Hidden states of the last layer, (windows, tokens, dim)."""
    from onnx import TensorProto

    shape, tensors = pruner.shape, pruner.encoder
    codes, steps = quantised_rows(tensors["embeddings.word_embeddings.weight"])
    found = graph.node("Cast", [graph.node("Gather", [graph.constant(codes), INPUTS[0]])], to=TensorProto.FLOAT)
    words = graph.node("Mul", [found, graph.node("Gather", [graph.constant(steps[:, None]), INPUTS[0]])])
    skipped = 0 if shape.padding is None else shape.padding + 1
    places = tensors["embeddings.position_embeddings.weight"][skipped:]
    places = places + tensors["embeddings.token_type_embeddings.weight"][0]  # every token is of type 0
    tokens = graph.node("Shape", [INPUTS[0]], start=1, end=2)
    seen = graph.node("Slice", [graph.constant(places), graph.constant([0]), tokens, graph.constant([0])])
    states = graph.norm(graph.node("Add", [words, seen]), pruner, "embeddings.LayerNorm")
    mask = graph.node("Cast", [INPUTS[1]], to=TensorProto.INT32)
    for layer in range(shape.layers):
        states = _layer(graph, pruner, states, mask, f"encoder.layer.{layer}.")
    return states


def _layer(graph: _Graph, pruner: PlainPruner, states: str, mask: str, at: str) -> str:
    tensors = pruner.encoder
    names = [f"{at}attention.self.{part}" for part in ("query", "key", "value")]
    three = graph.linear(
        states,
        np.concatenate([tensors[f"{name}.weight"] for name in names]),
        np.concatenate([tensors[f"{name}.bias"] for name in names]),
    )
    parts = [f"{three}.{part}" for part in "qkv"]
    graph.node("Split", [three], outs=parts, axis=2, num_outputs=3)
    mixed = graph.node("MultiHeadAttention", [*parts, "", mask], domain=_MICROSOFT, num_heads=pruner.shape.heads)
    update = graph.linear(mixed, *_weights(pruner, f"{at}attention.output.dense"))
    states = graph.norm(graph.node("Add", [states, update]), pruner, f"{at}attention.output.LayerNorm")
    inner = graph.linear(states, *_weights(pruner, f"{at}intermediate.dense"))
    inner = graph.node("Gelu", [inner], domain=_MICROSOFT)
    update = graph.linear(inner, *_weights(pruner, f"{at}output.dense"))
    return graph.norm(graph.node("Add", [states, update]), pruner, f"{at}output.LayerNorm")


def _weights(pruner: PlainPruner, name: str) -> tuple[Float32, Float32]:
    return pruner.encoder[f"{name}.weight"], pruner.encoder[f"{name}.bias"]


class _Graph:
    """Nodes and constants as they are added; every method returns the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._codes: dict[str, tuple[str, str]] = {}
        self._windows: str | None = None

    def constant(self, value: Any) -> str:
        from onnx import numpy_helper

        array = np.ascontiguousarray(np.asarray(value)) if np.ndim(value) else np.asarray(value)
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def node(
        self,
        operator: str,
        inputs: Sequence[str],
        *,
        out: str | None = None,
        outs: Sequence[str] | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        from onnx import helper

        names = list(outs) if outs is not None else [out or f"n{len(self.nodes)}"]
        self.nodes.append(helper.make_node(operator, list(inputs), names, domain=domain, **attributes))
        return names[0]

    def norm(self, states: str, pruner: PlainPruner, name: str) -> str:
        weight, bias = _weights(pruner, name)
        given = [states, self.constant(weight), self.constant(bias)]
        return self.node("LayerNormalization", given, axis=-1, epsilon=pruner.shape.epsilon)

    def float_linear(self, states: str, weight: Float32, bias: Float32, name: str) -> str:
        product = self.node("MatMul", [states, self.constant(weight.T)], out=f"{name}.product")
        return self.node("Add", [product, self.constant(bias)], out=f"{name}.logit")

    def linear(self, states: str, weight: Float32, bias: Float32) -> str:
        """The product in int8; `states` is (windows, tokens, columns), so is the result."""
        rows, columns = weight.shape
        given, step = self._quantised(states, columns)
        codes, steps = quantised_rows(weight)
        one, shift, none = (self.constant(np.array(value)) for value in (np.float32(1), np.uint8(128), np.int8(0)))
        product = self.node(
            "MatMulIntegerToFloat",
            [given, self.constant(codes.T), one, self.constant(steps), shift, none],
            domain=_MICROSOFT,
        )
        found = self.node("Add", [self.node("Mul", [product, step]), self.constant(bias)])
        shape = self.node("Concat", [self._windows_and_tokens(), self.constant([rows])], axis=0)
        return self.node("Reshape", [found, shape])

    def _quantised(self, states: str, columns: int) -> tuple[str, str]:
        """Codes, uint8 (tokens, columns), and each token's factor, float32 (tokens, 1); tokens of all windows."""
        if states not in self._codes:
            flat = self.node("Reshape", [states, self.constant([-1, columns])])
            largest = self.node("ReduceMax", [self.node("Abs", [flat]), self.constant([1])], keepdims=0)
            step = self.node("Mul", [largest, self.constant(np.float32(1 / _TOP))])
            step = self.node("Max", [step, self.constant(np.float32(1e-12))])
            shifts = self.node("Expand", [self.constant(np.array([128], np.uint8)), self.node("Shape", [step])])
            codes = self.node("QuantizeLinear", [flat, step, shifts], axis=0)
            self._codes[states] = codes, self.node("Unsqueeze", [step, self.constant([1])])
        return self._codes[states]

    def _windows_and_tokens(self) -> str:
        if self._windows is None:
            self._windows = self.node("Shape", [INPUTS[0]])
        return self._windows
