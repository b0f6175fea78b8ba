"""Our own forward pass of DeBERTa-v2 and -v3 (post-norm, disentangled attention, exact GELU).

DeBERTa (He et al., arXiv 2006.03654) as in version 2, and DeBERTaV3 (He et al., arXiv 2111.09543), whose encoder is
the same. The same numbers as transformers' DebertaV2Model without its padding and its gathers; `relative` says how.
Keys and queries of the positions do not hang on the text, so they are computed when the model is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datapipe.errors import ModelError
from datapipe.workers.encoders.packed import Linear, PackedEncoder, Tensors, checked_tensors
from datapipe.workers.encoders.relative import Distances, Relative
from datapipe.workers.encoders.steps import HEAD_WIDTHS, steps_for

if TYPE_CHECKING:
    import torch

    from datapipe.workers.encoders.attention import Spans
    from datapipe.workers.encoders.steps import Norm, Stream
    from datapipe.workers.folder import ModelFolder

__all__ = ["DebertaEncoder", "DebertaShape"]

_PREFIX = "deberta."
_C2P, _P2C = "c2p", "p2c"
_PLACES = "embeddings.position_embeddings.weight"
_RELATIVE = "encoder.rel_embeddings.weight"
_RELATIVE_NORM = "encoder.LayerNorm"


@dataclass(frozen=True)
class DebertaShape:
    """The numbers in a config.json that decide the forward pass.

    Attributes:
        layers: How many there are.
        heads: Heads that `dim` is split into.
        dim: Width of a hidden state.
        inner: Width between the two products of a layer's second half.
        vocabulary: Rows of the table of tokens.
        positions: Tokens that a text may have.
        types: Rows of the table of token types; 0 if there is none.
        epsilon: Of the norms.
        placed: Whether the position of a token is added to its embedding.
        terms: What distances add to attention: `c2p` (content to position), `p2c` (position to content), both or none.
        shared: Whether keys and queries of positions come from the same products as those of tokens.
        normed: Whether the table of relative positions goes through a norm.
        buckets: Rows of that table on each side; 0 if every distance has a row of its own.
        furthest: Distance at which the last row is reached.
    """

    layers: int
    heads: int
    dim: int
    inner: int
    vocabulary: int
    positions: int
    types: int = 0
    epsilon: float = 1e-7
    placed: bool = True
    terms: frozenset[str] = frozenset({_C2P, _P2C})
    shared: bool = False
    normed: bool = False
    buckets: int = 0
    furthest: int = 512

    @classmethod
    def of(cls, folder: ModelFolder) -> DebertaShape | None:
        """Read from config.json; None if it describes something else than a plain DeBERTa-v2 with relative positions.

        Raises:
            ModelError: It does, but a number is missing or impossible.
        """
        config = folder.config()
        if config["model_type"] != "deberta-v2" or not _plain(config):
            return None
        try:
            furthest = int(config.get("max_relative_positions", -1))
            shape = cls(
                layers=int(config["num_hidden_layers"]),
                heads=int(config["num_attention_heads"]),
                dim=int(config["hidden_size"]),
                inner=int(config["intermediate_size"]),
                vocabulary=int(config["vocab_size"]),
                positions=int(config["max_position_embeddings"]),
                types=int(config.get("type_vocab_size", 0)),
                epsilon=float(config.get("layer_norm_eps", 1e-7)),
                placed=bool(config.get("position_biased_input", True)),
                terms=frozenset(_words(config.get("pos_att_type"))),
                shared=bool(config.get("share_att_key", False)),
                normed="layer_norm" in _words(config.get("norm_rel_ebd")),
                buckets=max(0, int(config.get("position_buckets", -1))),
                furthest=furthest if furthest >= 1 else int(config["max_position_embeddings"]),
            )
            head = int(config.get("attention_head_size") or shape.dim // max(1, shape.heads))
            embedding = int(config.get("embedding_size") or shape.dim)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f"model {folder.name}: config.json of a DeBERTa-v2 needs {error}") from error
        if shape.heads < 1 or shape.dim % shape.heads:
            raise ModelError(f"model {folder.name}: hidden_size {shape.dim} is no multiple of {shape.heads} heads")
        if shape.positions < 1:
            raise ModelError(f"model {folder.name}: max_position_embeddings {shape.positions} leaves no position")
        ours = head * shape.heads == shape.dim == embedding and shape.terms <= {_C2P, _P2C} and shape.ranges_grow
        return shape if ours else None

    @property
    def ranges_grow(self) -> bool:
        """Whether ranges of distances get longer outwards, and the last begins at `furthest`."""
        return not self.buckets or (self.buckets % 2 == 0 and self.buckets // 2 < self.furthest - 1)

    @property
    def rows(self) -> int:
        """Rows of the table of relative positions."""
        return 2 * (self.buckets or self.furthest)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors that a checkpoint must hold."""
        dim, inner = self.dim, self.inner
        shapes: dict[str, tuple[int, ...]] = {"embeddings.word_embeddings.weight": (self.vocabulary, dim)}
        shapes |= {_PLACES: (self.positions, dim)} if self.placed else {}
        shapes |= {"embeddings.token_type_embeddings.weight": (self.types, dim)} if self.types else {}
        shapes[_RELATIVE] = (self.rows, dim)
        norms = ["embeddings.LayerNorm", *([_RELATIVE_NORM] if self.normed else [])]
        for layer in range(self.layers):
            at = f"encoder.layer.{layer}."
            linears = {f"attention.self.{name}_proj": (dim, dim) for name in ("query", "key", "value")}
            if not self.shared:
                linears |= {"attention.self.pos_key_proj": (dim, dim)} if _C2P in self.terms else {}
                linears |= {"attention.self.pos_query_proj": (dim, dim)} if _P2C in self.terms else {}
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
    relative: Relative
    out: Linear
    attention_norm: Norm
    up: Linear
    down: Linear
    output_norm: Norm


class DebertaEncoder(PackedEncoder):
    """A DeBERTa-v2 on its device.

    Args:
        folder: Where its safetensors lie.
        shape: Its numbers.
        device: Where it computes.
        dtype: In which precision products are computed; sums and norms between them are float32.

    Raises:
        ModelError: A tensor is missing, left over, or of another shape; names it.
    """

    def __init__(self, folder: ModelFolder, shape: DebertaShape, *, device: torch.device, dtype: torch.dtype) -> None:
        # Only the kernel needs no lengths on the host.
        fused = steps_for(device, dtype).name == "triton" and shape.dim // shape.heads in HEAD_WIDTHS
        super().__init__(device=device, dtype=dtype, replays=fused)
        tensors = Tensors(_checked(folder, shape), device=device, dtype=dtype)
        self.dim, self.positions, self.vocabulary = shape.dim, shape.positions, shape.vocabulary
        self._heads = shape.heads
        self._words, self._places = _tables(tensors, shape)
        self._input_norm = tensors.norm("embeddings.LayerNorm", shape.epsilon)
        self._layers = _layers(tensors, shape, device)
        parameters = sum(rows[0] * (rows[1] if len(rows) > 1 else 1) for rows in shape.tensors().values())
        kept = shape.layers * len(shape.terms) * shape.rows * shape.dim
        self.nbytes = (parameters + kept) * self._words.element_size()

    def _states(self, spans: Spans) -> torch.Tensor:
        stream = self._steps.embed(self._words, self._places, spans, norm=self._input_norm, dtype=self._dtype)
        for layer in self._layers:
            stream = self._layer(stream, layer, spans)
        return stream.sums

    def _layer(self, stream: Stream, layer: _Layer, spans: Spans) -> Stream:
        steps = self._steps
        qkv = self._product(stream.operand, layer.qkv, "qkv")
        out = self._buffer("mixed", len(stream.sums), self.dim)
        mixed = steps.attend_relative(qkv, spans, layer.relative, heads=self._heads, out=out)
        update = self._product(mixed, layer.out, "sum")
        stream = steps.add_norm(stream.sums, update, norm=layer.attention_norm, kept="norm")
        update = self._product(self._inner(stream.operand, layer.up), layer.down, "sum")
        return steps.add_norm(stream.sums, update, norm=layer.output_norm, kept="norm")

    def _inner(self, operand: torch.Tensor, up: Linear) -> torch.Tensor:
        import torch

        inner: torch.Tensor = torch.ops.aten.gelu_(self._product(operand, up, "inner"))
        return inner


def _checked(folder: ModelFolder, shape: DebertaShape) -> dict[str, torch.Tensor]:
    """The tensors of the encoder. Checkpoints may hold positions that are not added, as transformers allows."""
    expected = shape.tensors()
    spare = () if shape.placed else (_PLACES,)
    return checked_tensors(folder, expected, prefix=_PREFIX, spare=spare)


def _tables(tensors: Tensors, shape: DebertaShape) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rows of tokens and of positions. Every token is of type 0, whose row is part of one or the other."""
    words = tensors["embeddings.word_embeddings.weight"]
    first = tensors["embeddings.token_type_embeddings.weight"][0].float() if shape.types else None
    if not shape.placed:
        return tensors.put(words if first is None else words.float() + first), None
    places = tensors[_PLACES].float()
    return tensors.put(words), tensors.put(places if first is None else places + first)


def _layers(tensors: Tensors, shape: DebertaShape, device: torch.device) -> list[_Layer]:
    import torch

    distances = Distances.of(buckets=shape.buckets, furthest=shape.furthest, positions=shape.positions, device=device)
    table = tensors[_RELATIVE].to(device=device, dtype=torch.float32)
    if shape.normed:
        norm = tensors.norm(_RELATIVE_NORM, shape.epsilon)
        table = torch.layer_norm(table, (shape.dim,), norm.weight, norm.bias, norm.epsilon)
    layers = []
    for index in range(shape.layers):
        at = f"encoder.layer.{index}."
        layers.append(
            _Layer(
                qkv=tensors.linear(*(f"{at}attention.self.{name}_proj" for name in ("query", "key", "value"))),
                relative=_relative(tensors, shape, table, f"{at}attention.self.", distances),
                out=tensors.linear(f"{at}attention.output.dense"),
                attention_norm=tensors.norm(f"{at}attention.output.LayerNorm", shape.epsilon),
                up=tensors.linear(f"{at}intermediate.dense"),
                down=tensors.linear(f"{at}output.dense"),
                output_norm=tensors.norm(f"{at}output.LayerNorm", shape.epsilon),
            )
        )
    return layers


def _relative(tensors: Tensors, shape: DebertaShape, table: torch.Tensor, at: str, distances: Distances) -> Relative:
    """Keys and queries of the positions, from the table in float32 (rows, dim)."""
    import torch

    scale = (shape.dim // shape.heads * (1 + len(shape.terms))) ** -0.5

    def projected(name: str) -> torch.Tensor:
        weight, bias = (tensors[f"{at}{name}.{part}"].to(table) for part in ("weight", "bias"))
        rows = torch.addmm(bias, table, weight.t()) * scale
        return tensors.put(rows.view(shape.rows, shape.heads, -1).transpose(0, 1))

    prefix = "" if shape.shared else "pos_"
    return Relative(
        distances,
        keys=projected(f"{prefix}key_proj") if _C2P in shape.terms else None,
        queries=projected(f"{prefix}query_proj") if _P2C in shape.terms else None,
        scale=scale,
    )


def _plain(config: dict[str, Any]) -> bool:
    """Whether what the config asks for is what we compute."""
    return (
        config.get("hidden_act", "gelu") == "gelu"
        and bool(config.get("relative_attention", False))
        and not config.get("conv_kernel_size")
    )


def _words(setting: Any) -> list[str]:
    """Words of a setting that is a list or a text such as `p2c|c2p`; `none` and nothing are none."""
    words = setting.split("|") if isinstance(setting, str) else list(setting or ())
    return [word.strip().lower() for word in words if word.strip().lower() != "none"]
