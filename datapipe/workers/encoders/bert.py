"""Our own forward pass of BERT encoders and their kin (post-norm, a table of positions, exact GELU).

BERT (Devlin et al., arXiv 1810.04805), RoBERTa (Liu et al., arXiv 1907.11692), CamemBERT and XLM-R (Conneau et al.,
arXiv 1911.02116). The same numbers as transformers' classes, faster on texts of mixed lengths; `packed` says how.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datapipe.errors import ModelError
from datapipe.workers.encoders.packed import Linear, PackedEncoder, Tensors, checked_tensors

if TYPE_CHECKING:
    import torch

    from datapipe.workers.encoders.attention import Spans
    from datapipe.workers.encoders.steps import Norm, Stream
    from datapipe.workers.folder import ModelFolder

__all__ = ["BertEncoder", "BertShape"]

_PREFIXES = {"bert": "bert.", "camembert": "roberta.", "roberta": "roberta.", "xlm-roberta": "roberta."}
"""What the names of tensors may begin with, by `model_type`."""


@dataclass(frozen=True)
class BertShape:
    """The numbers in a config.json that decide the forward pass.

    Attributes:
        layers: How many there are.
        heads: Heads that `dim` is split into.
        dim: Width of a hidden state.
        inner: Width between the two products of a layer's second half.
        vocabulary: Rows of the table of tokens.
        positions: Rows of the table of positions.
        types: Rows of the table of token types.
        epsilon: Of the norms.
        padding: The token that stands for none where positions are counted from its id (RoBERTa); None for BERT.
        prefix: What the names of tensors may begin with.
    """

    layers: int
    heads: int
    dim: int
    inner: int
    vocabulary: int
    positions: int
    types: int
    epsilon: float
    padding: int | None = None
    prefix: str = "bert."

    @classmethod
    def of(cls, folder: ModelFolder) -> BertShape | None:
        """Read from config.json; None if it describes something else than a plain encoder of this kind.

        Raises:
            ModelError: It does, but a number is missing or impossible.
        """
        config = folder.config()
        kind = config["model_type"]
        plain = (
            kind in _PREFIXES
            and config.get("hidden_act", "gelu") == "gelu"
            and config.get("position_embedding_type", "absolute") == "absolute"
            and not config.get("is_decoder", False)
        )
        if not plain:
            return None
        try:
            shape = cls(
                layers=int(config["num_hidden_layers"]),
                heads=int(config["num_attention_heads"]),
                dim=int(config["hidden_size"]),
                inner=int(config["intermediate_size"]),
                vocabulary=int(config["vocab_size"]),
                positions=int(config["max_position_embeddings"]),
                types=int(config.get("type_vocab_size", 2)),
                epsilon=float(config.get("layer_norm_eps", 1e-12)),
                padding=None if kind == "bert" else int(config.get("pad_token_id", 1)),
                prefix=_PREFIXES[kind],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"model {folder.name}: config.json of a {_written(kind)} needs {error}") from error
        if shape.heads < 1 or shape.dim % shape.heads:
            raise ModelError(f"model {folder.name}: hidden_size {shape.dim} is no multiple of {shape.heads} heads")
        if shape.usable < 1 or not 0 <= (shape.padding or 0) < shape.vocabulary:
            raise ModelError(
                f"model {folder.name}: pad_token_id {shape.padding} is none of {shape.vocabulary} tokens, or leaves "
                f"none of {shape.positions} positions"
            )
        return shape

    @property
    def usable(self) -> int:
        """Tokens that a text may have."""
        return self.positions - (0 if self.padding is None else self.padding + 1)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors that a checkpoint must hold."""
        dim, inner = self.dim, self.inner
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (self.vocabulary, dim),
            "embeddings.position_embeddings.weight": (self.positions, dim),
            "embeddings.token_type_embeddings.weight": (self.types, dim),
        }
        norms = ["embeddings.LayerNorm"]
        for layer in range(self.layers):
            at = f"encoder.layer.{layer}."
            linears = {f"attention.self.{name}": (dim, dim) for name in ("query", "key", "value")}
            linears |= {"attention.output.dense": (dim, dim), "intermediate.dense": (inner, dim)}
            linears |= {"output.dense": (dim, inner)}
            for name, shape in linears.items():
                shapes[f"{at}{name}.weight"] = shape
                shapes[f"{at}{name}.bias"] = shape[:1]
            norms += [f"{at}attention.output.LayerNorm", f"{at}output.LayerNorm"]
        for name in norms:
            shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (dim,)
        return shapes


@dataclass(frozen=True)
class _Layer:
    qkv: Linear
    out: Linear
    attention_norm: Norm
    up: Linear
    down: Linear
    output_norm: Norm


class BertEncoder(PackedEncoder):
    """A BERT, or one of its kin, on its device.

    Args:
        folder: Where its safetensors lie.
        shape: Its numbers.
        device: Where it computes.
        dtype: In which precision products are computed; sums and norms between them are float32.

    Raises:
        ModelError: A tensor is missing, left over, or of another shape; names it.
    """

    def __init__(self, folder: ModelFolder, shape: BertShape, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(device=device, dtype=dtype, padding=shape.padding)
        tensors = Tensors(checked_tensors(folder, shape.tensors(), prefix=shape.prefix), device=device, dtype=dtype)
        self.dim, self.positions, self.vocabulary = shape.dim, shape.usable, shape.vocabulary
        self._heads = shape.heads
        self._words = tensors.put(tensors["embeddings.word_embeddings.weight"])
        # Every token of a text is of type 0, so its row is part of each position.
        types = tensors["embeddings.token_type_embeddings.weight"].float()
        places = tensors["embeddings.position_embeddings.weight"].float() + types[0]
        self._places = tensors.put(places if shape.padding is None else places[shape.padding :])
        self._input_norm = tensors.norm("embeddings.LayerNorm", shape.epsilon)
        self._layers = [_layer(tensors, f"encoder.layer.{index}.", shape.epsilon) for index in range(shape.layers)]
        parameters = sum(rows[0] * (rows[1] if len(rows) > 1 else 1) for rows in shape.tensors().values())
        self.nbytes = parameters * self._words.element_size()

    def _states(self, spans: Spans) -> torch.Tensor:
        stream = self._steps.embed(self._words, self._places, spans, norm=self._input_norm, dtype=self._dtype)
        for layer in self._layers:
            stream = self._layer(stream, layer, spans)
        return stream.sums

    def _layer(self, stream: Stream, layer: _Layer, spans: Spans) -> Stream:
        steps, tokens = self._steps, len(stream.sums)
        qkv = self._product(stream.operand, layer.qkv, "qkv")
        out = self._buffer("mixed", tokens, self.dim)
        mixed = steps.attend(qkv, spans, heads=self._heads, out=out, window=None)
        update = self._product(mixed, layer.out, "sum")
        stream = steps.add_norm(stream.sums, update, norm=layer.attention_norm, kept="norm")
        update = self._product(self._inner(stream.operand, layer.up), layer.down, "sum")
        return steps.add_norm(stream.sums, update, norm=layer.output_norm, kept="norm")

    def _inner(self, operand: torch.Tensor, up: Linear) -> torch.Tensor:
        import torch

        inner: torch.Tensor = torch.ops.aten.gelu_(self._product(operand, up, "inner"))
        return inner


def _layer(tensors: Tensors, at: str, epsilon: float) -> _Layer:
    return _Layer(
        qkv=tensors.linear(*(f"{at}attention.self.{name}" for name in ("query", "key", "value"))),
        out=tensors.linear(f"{at}attention.output.dense"),
        attention_norm=tensors.norm(f"{at}attention.output.LayerNorm", epsilon),
        up=tensors.linear(f"{at}intermediate.dense"),
        down=tensors.linear(f"{at}output.dense"),
        output_norm=tensors.norm(f"{at}output.LayerNorm", epsilon),
    )


def _written(kind: Any) -> str:
    return {"bert": "BERT", "camembert": "CamemBERT", "roberta": "RoBERTa", "xlm-roberta": "XLM-R"}[kind]
