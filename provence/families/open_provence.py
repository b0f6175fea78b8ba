"""OpenProvence (hotchpotch) and what has its layout, such as zilliz' semantic highlighters.

    ranking_model.*, a sequence classifier of transformers -> states -> its head -> sigmoid -> score
    states -> pruning_head.classifier (two rows, softmax's second) -> keep probabilities

The sequence classifier is a ModernBERT, or an XLM-R or one of its kin. A ModernBERT's pruning head is fed the states
before the final norm: that is what `hidden_states[-1]` was in the versions of transformers that these models were
trained with, whatever it is in the one that runs. Sentences are decided by the mean of their tokens' probabilities and
tokenised one by one, with the white space that follows them. Old files name tensors without `ranking_model.`. Raises
`ModelError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from datapipe.errors import ModelError
from datapipe.workers.encoders.bert import BertEncoder, BertShape
from datapipe.workers.encoders.checkpoint import refuse_difference
from datapipe.workers.encoders.modernbert import ModernBertEncoder, ModernBertShape
from datapipe.workers.encoders.steps import Norm
from provence.families.base import Conduct
from provence.families.heads import ACTIVATIONS, Affine, HeadedPruner, KeepHead, ScoreHead
from provence.families.view import FolderView, under

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from datapipe.workers.folder import ModelFolder
    from provence.families.heads import Activation

__all__ = ["open_open_provence", "open_provence_conduct"]

_RANKING, _PRUNING = "ranking_model.", "pruning_head."
_KEEP = "pruning_head.classifier"
_THRESHOLD = 0.1
_LENGTH = 512
_SPARE = "pruning_head.pooling_weights."
"""Trained with `use_weighted_pooling`, but no result depends on them."""


def open_provence_conduct(folder: ModelFolder) -> Conduct:
    """How the model in `folder` wants to be used.

    Its default threshold is written `default_threadshold` in config.json, at times `default_threshold`, often neither.

    Raises:
        ModelError: The threshold is none of 0 to 1, or the length no positive number.
    """
    config = folder.config()
    stated = [config.get(name) for name in ("default_threadshold", "default_threshold")]
    threshold = next((value for value in stated if value is not None), _THRESHOLD)
    length = config.get("max_length", _LENGTH)
    if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise ModelError(f"model {folder.name}: config.json needs a default threshold of 0 to 1. Got {threshold!r}")
    if not isinstance(length, int) or length < 1:
        raise ModelError(f"model {folder.name}: config.json needs a positive max_length. Got {length!r}")
    return Conduct(
        family="open_provence",
        rule="mean",
        threshold=float(threshold),
        trailing=True,
        max_length=length,
        squashed=True,
    )


def open_open_provence(
    folder: ModelFolder, *, conduct: Conduct, device: torch.device, dtype: torch.dtype
) -> HeadedPruner:
    """Load a model of this layout.

    Args:
        folder: Where it lies.
        conduct: Of `open_provence_conduct`, perhaps changed.
        device: Where it computes.
        dtype: In which precision the encoder computes.

    Raises:
        ModelError: The ranking model is of an architecture that is not supported, or tensors are missing, left over,
            or of another shape; names them.
    """
    config = folder.config()
    ranking, pruning = _split(folder.tensors(), weighted=_weighted(config))
    settings = config.get("base_model_config")
    if not isinstance(settings, dict) or not isinstance(settings.get("model_type"), str):
        raise ModelError(
            f"model {folder.name}: {folder.root / 'config.json'} has no base_model_config with a model_type; the "
            "ranking model cannot be built without it, and it is not fetched from elsewhere"
        )
    labels = config.get("num_labels") or 1
    if not isinstance(labels, int) or labels < 1:
        raise ModelError(f"model {folder.name}: config.json needs a positive num_labels. Got {labels!r}")
    ranker = _Ranker(folder, settings, ranking, labels, device, dtype)
    encoder, score = ranker.modernbert() if settings["model_type"] == "modernbert" else ranker.roberta()
    dim = encoder.dim
    refuse_difference(folder, {f"{_KEEP}.weight": (2, dim), f"{_KEEP}.bias": (2,)}, pruning)
    keep = KeepHead.of(pruning, _KEEP, device=device)
    return HeadedPruner(encoder, conduct=conduct, keep=keep, score=score)


def _split(
    tensors: Mapping[str, torch.Tensor], *, weighted: bool
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Tensors of the ranking model by its own names, and of the pruning head by their full names."""
    ranking, rest = under(tensors, _RANKING)
    pruning = {name: tensor for name, tensor in rest.items() if name.startswith(_PRUNING)}
    stray = {name: tensor for name, tensor in rest.items() if name not in pruning}
    if not ranking:
        ranking, stray = stray, {}
    if weighted:
        pruning = {name: tensor for name, tensor in pruning.items() if not name.startswith(_SPARE)}
    return ranking, pruning | stray


def _weighted(config: Mapping[str, Any]) -> bool:
    pruning = config.get("pruning_config")
    return isinstance(pruning, dict) and bool(pruning.get("use_weighted_pooling"))


@dataclass(frozen=True)
class _Ranker:
    """The ranking model, taken apart into encoder and head.

    Attributes:
        folder: For messages.
        settings: Its config.
        tensors: By its own names.
        labels: Rows of its output, of which the first counts.
        device: Where it computes.
        dtype: In which precision the encoder computes.
    """

    folder: ModelFolder
    settings: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]
    labels: int
    device: torch.device
    dtype: torch.dtype

    def modernbert(self) -> tuple[ModernBertEncoder, ScoreHead]:
        """ModernBertForSequenceClassification: final norm, pooling, dense, activation, norm, output."""
        inside, heads = under(self.tensors, "model.")
        view = FolderView.of(self.folder, settings=self.settings, tensors=inside)
        shape = ModernBertShape.of(view)
        if shape is None:
            raise ModelError(f"model {self.folder.name}: its ranking model is a ModernBERT of a kind not supported")
        encoder = ModernBertEncoder(view, shape, device=self.device, dtype=self.dtype, final_norm=False)
        biased = bool(self.settings.get("classifier_bias", False))
        dim = shape.dim
        expected: dict[str, tuple[int, ...]] = {"head.dense.weight": (dim, dim), "head.norm.weight": (dim,)}
        expected |= {"classifier.weight": (self.labels, dim), "classifier.bias": (self.labels,)}
        expected |= {"head.dense.bias": (dim,)} if biased else {}
        expected |= {"head.norm.bias": (dim,)} if shape.norm_bias else {}
        refuse_difference(self.folder, expected, heads)
        return encoder, ScoreHead(
            self._first_row(heads, "classifier"),
            dense=Affine.of(heads, "head.dense", device=self.device),
            activation=self._activation(),
            state_norm=self._norm(inside, "final_norm", shape.epsilon),
            dense_norm=self._norm(heads, "head.norm", shape.epsilon),
            pooling=self._pooling(),
            squashed=True,
        )

    def roberta(self) -> tuple[BertEncoder, ScoreHead]:
        """XLMRobertaForSequenceClassification and its kin: dense, tanh, output, of the first token."""
        inside, heads = under(self.tensors, "roberta.")
        view = FolderView.of(self.folder, settings=self.settings, tensors=inside)
        shape = BertShape.of(view)
        if shape is None or shape.padding is None:
            raise ModelError(
                f"model {self.folder.name}: its ranking model is a {self.settings['model_type']!r}, which is not "
                "supported; supported are modernbert, xlm-roberta, roberta and camembert, with their usual settings"
            )
        encoder = BertEncoder(view, shape, device=self.device, dtype=self.dtype)
        dim = shape.dim
        expected: dict[str, tuple[int, ...]] = {}
        for name, rows in (("classifier.dense", dim), ("classifier.out_proj", self.labels)):
            expected |= {f"{name}.weight": (rows, dim), f"{name}.bias": (rows,)}
        refuse_difference(self.folder, expected, heads)
        dense = Affine.of(heads, "classifier.dense", device=self.device)
        out = self._first_row(heads, "classifier.out_proj")
        return encoder, ScoreHead(out, dense=dense, activation="tanh", squashed=True)

    def _first_row(self, heads: Mapping[str, torch.Tensor], name: str) -> Affine:
        weight, bias = Affine.of(heads, name, device=self.device)
        return Affine(weight[:1], None if bias is None else bias[:1])

    def _norm(self, tensors: Mapping[str, torch.Tensor], name: str, epsilon: float) -> Norm:
        bias = tensors.get(f"{name}.bias")
        weight = tensors[f"{name}.weight"].float().to(self.device)
        return Norm(weight, None if bias is None else bias.float().to(self.device), epsilon)

    def _activation(self) -> Activation:
        stated = self.settings.get("classifier_activation", "gelu")
        for activation in ACTIVATIONS:
            if stated == activation:
                return activation
        raise ModelError(
            f"model {self.folder.name}: classifier_activation {stated!r} of its ranking model is not supported; "
            f"supported are {', '.join(ACTIVATIONS)}"
        )

    def _pooling(self) -> Literal["cls", "mean"]:
        stated = self.settings.get("classifier_pooling", "cls")
        if stated == "cls":
            return "cls"
        if stated == "mean":
            return "mean"
        raise ModelError(f"model {self.folder.name}: classifier_pooling must be cls or mean. Got {stated!r}")
