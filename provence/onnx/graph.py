"""A pruner as an ONNX graph in int8, whose results do not depend on what else is in the batch.

    input_ids, attention_mask (windows, tokens) -> int8 encoder -> keep (windows, tokens), score (windows,)

Weights are int8 with a factor a row (output channel). Activations are quantised while the graph runs, each token by its
own largest value: `q = round(x / s) + 128, s = max|x| / 127`, and behind GELU, whose values begin at -0.17,
`q = round((x + 0.17) / s), s = max(x + 0.17) / 255`. onnxruntime's own dynamic quantisation takes one factor for the
whole batch, so that a token's result depends on the other windows and on padding; this does not. A few channels that
leave norms and GELU are many times wider than the rest (Dettmers et al., arXiv 2208.07339): they are multiplied in
float32, and the others have the 8 bits to themselves. Products are int8 x int8 -> int32, everything between them
float32. Softmax leaves masked tokens out. Needs the package onnx; pure functions of arrays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datapipe.storage.arrays import Float32
    from provence.onnx.read import PlainPruner

__all__ = ["INPUTS", "OUTPUTS", "build_graph", "probe_graph", "quantised_rows"]

INPUTS: Final = ("input_ids", "attention_mask")
OUTPUTS: Final = ("keep", "score")

_MICROSOFT: Final = "com.microsoft"
_OPSETS: Final = (("", 20), (_MICROSOFT, 1))
_IR_VERSION: Final = 10
_TOP: Final = 127
_GELU_LEAST: Final = 0.17
"""No value of GELU lies below -0.16998."""


def build_graph(pruner: PlainPruner, wide: Mapping[str, Sequence[int]]) -> bytes:
    """The serialised graph of a pruner; a MiniLM of 6 layers takes 24 MB.

    Args:
        pruner: Its tensors.
        wide: By the name of a norm, or of the linear layer before GELU, the channels multiplied in float32.
    """
    graph = _Graph(wide)
    states = _encoder(graph, pruner)
    heads = pruner.heads
    keep = graph.float_linear(states, heads["keep.weight"], heads["keep.bias"], "keep")
    graph.node("Sigmoid", [graph.node("Squeeze", [keep, graph.constant([2])])], out=OUTPUTS[0])
    first = graph.node("Gather", [states, graph.constant(0)], axis=1)
    score = graph.float_linear(first, heads["score.weight"], heads["score.bias"], "score")
    graph.node("Squeeze", [score, graph.constant([1])], out=OUTPUTS[1])
    return graph.serialised({OUTPUTS[0]: ["windows", "tokens"], OUTPUTS[1]: ["windows"]})


def probe_graph(pruner: PlainPruner) -> tuple[bytes, list[str]]:
    """A graph that measures: outputs named as in `build_graph`'s `wide`, each channel's largest magnitude, float32."""
    graph = _Graph({})
    _encoder(graph, pruner)
    names = {}
    for states, name in graph.sources.items():
        graph.node("ReduceMax", [graph.node("Abs", [states]), graph.constant([0, 1])], out=name, keepdims=0)
        names[name] = [f"{name}.channels"]
    return graph.serialised(names), list(names)


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
    graph.sources[inner] = f"{at}intermediate.dense"
    update = graph.linear(inner, *_weights(pruner, f"{at}output.dense"), least=-_GELU_LEAST)
    return graph.norm(graph.node("Add", [states, update]), pruner, f"{at}output.LayerNorm")


def _weights(pruner: PlainPruner, name: str) -> tuple[Float32, Float32]:
    return pruner.encoder[f"{name}.weight"], pruner.encoder[f"{name}.bias"]


class _Graph:
    """Nodes and constants as they are added; most methods return the name of their result.

    Attributes:
        sources: By the name of a result, the norm that gave it, or the linear layer before the GELU that did.
    """

    def __init__(self, wide: Mapping[str, Sequence[int]]) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.sources: dict[str, str] = {}
        self._wide = wide
        self._codes: dict[str, tuple[str, str, str]] = {}
        self._windows: str | None = None

    def serialised(self, outputs: Mapping[str, Sequence[str]]) -> bytes:
        """The whole graph with outputs by name, each with the names of its axes."""
        from onnx import TensorProto, helper

        axes = ["windows", "tokens"]
        made = helper.make_graph(
            self.nodes,
            "pruner",
            [helper.make_tensor_value_info(name, TensorProto.INT64, axes) for name in INPUTS],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(of)) for name, of in outputs.items()],
            self.constants,
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS]
        model = helper.make_model(made, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="secateur")
        content: bytes = model.SerializeToString(deterministic=True)
        return content

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
        found = self.node("LayerNormalization", given, axis=-1, epsilon=pruner.shape.epsilon)
        self.sources[found] = name
        return found

    def float_linear(self, states: str, weight: Float32, bias: Float32, name: str) -> str:
        product = self.node("MatMul", [states, self.constant(weight.T)], out=f"{name}.product")
        return self.node("Add", [product, self.constant(bias)], out=f"{name}.logit")

    def linear(self, states: str, weight: Float32, bias: Float32, *, least: float | None = None) -> str:
        """The product in int8; `states` is (windows, tokens, columns), so is the result. No state is below `least`."""
        rows, columns = weight.shape
        given, step, rest = self._quantised(states, columns, least)
        wide = self._wide_of(states)
        narrow = weight.copy()
        narrow[:, wide] = 0
        codes, steps = quantised_rows(narrow)
        if least is not None:  # the product is of x - least
            bias = (bias + least * codes.sum(axis=1, dtype=np.float64) * steps).astype(np.float32)
        one, none = self.constant(np.array(1, np.float32)), self.constant(np.array(0, np.int8))
        shift = self.constant(np.array(128 if least is None else 0, np.uint8))
        weights, factors = self.constant(codes.T), self.constant(steps)
        product = self.node("MatMulIntegerToFloat", [given, weights, one, factors, shift, none], domain=_MICROSOFT)
        added = self.constant(bias)
        if wide:
            added = self.node("Gemm", [rest, self.constant(weight[:, wide].T), added])
        found = self.node("Add", [self.node("Mul", [product, step]), added])
        shape = self.node("Concat", [self._windows_and_tokens(), self.constant([rows])], axis=0)
        return self.node("Reshape", [found, shape])

    def _quantised(self, states: str, columns: int, least: float | None) -> tuple[str, str, str]:
        """Codes, uint8 (tokens, columns), each token's factor, float32 (tokens, 1), and the wide channels, float32.

        Tokens are those of all windows.
        """
        if states in self._codes:
            return self._codes[states]
        flat = self.node("Reshape", [states, self.constant([-1, columns])])
        wide, rest = self._wide_of(states), ""
        if wide:
            rest = self.node("Gather", [flat, self.constant(np.array(wide, np.int64))], axis=1)
            others = np.ones(columns, np.float32)
            others[wide] = 0
            flat = self.node("Mul", [flat, self.constant(others)])
        if least is None:
            sizes, top, shift = self.node("Abs", [flat]), _TOP, 128
        else:
            sizes = flat = self.node("Add", [flat, self.constant(np.float32(-least))])
            top, shift = 255, 0
        largest = self.node("ReduceMax", [sizes, self.constant([1])], keepdims=0)
        step = self.node("Mul", [largest, self.constant(np.float32(1 / top))])
        step = self.node("Max", [step, self.constant(np.float32(1e-12))])
        shifts = self.node("Expand", [self.constant(np.array([shift], np.uint8)), self.node("Shape", [step])])
        codes = self.node("QuantizeLinear", [flat, step, shifts], axis=0)
        self._codes[states] = codes, self.node("Unsqueeze", [step, self.constant([1])]), rest
        return self._codes[states]

    def _wide_of(self, states: str) -> list[int]:
        return list(self._wide.get(self.sources.get(states, ""), ()))

    def _windows_and_tokens(self) -> str:
        if self._windows is None:
            self._windows = self.node("Shape", [INPUTS[0]])
        return self._windows
