"""Provence (arXiv 2501.16214) and XProvence (arXiv 2601.18886), as naver publishes their weights.

    deberta.* or roberta.* -> encoder -> states -> token_classifier (two rows, softmax's second) -> keep probabilities
                                         states of the first token -> pooler -> classifier -> score, a raw logit

Provence is a DeBERTa-v2 whose pooler is a dense layer and GELU; XProvence an XLM-R with its own pooler, a dense layer
and tanh. Both decide by the share of a sentence's tokens above the threshold. A Provence was trained on questions
without case and punctuation. Raises `ModelError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datapipe.errors import ModelError
from datapipe.workers.encoders import open_encoder
from datapipe.workers.encoders.checkpoint import refuse_difference
from provence.families.base import Conduct
from provence.families.heads import ACTIVATIONS, Affine, HeadedPruner, KeepHead, ScoreHead
from provence.families.view import FolderView, under

if TYPE_CHECKING:
    import torch

    from datapipe.workers.folder import ModelFolder
    from provence.families.heads import Activation

__all__ = ["PROVENCE", "XPROVENCE", "Naver", "naver_conduct", "open_naver"]


@dataclass(frozen=True)
class Naver:
    """How the two differ.

    Attributes:
        family: Name of the family.
        architecture: `model_type` of the encoder.
        prefix: Of its tensors.
        pooler: Prefix of the pooler's tensors.
        activation: After the pooler's dense layer.
        threshold: Published default.
        plain_question: See `Conduct`.
    """

    family: str
    architecture: str
    prefix: str
    pooler: str
    activation: Activation
    threshold: float
    plain_question: bool


PROVENCE = Naver("provence", "deberta-v2", "deberta.", "pooler.dense", "gelu", 0.1, plain_question=True)
XPROVENCE = Naver("xprovence", "xlm-roberta", "roberta.", "roberta.pooler.dense", "tanh", 0.3, plain_question=False)


def naver_conduct(folder: ModelFolder, kind: Naver) -> Conduct:
    """How the model in `folder` wants to be used. Raises `ModelError` if its config states no positions."""
    config = folder.config()
    try:
        # XLM-R counts positions from the padding token, so that many rows of its table stand for no token.
        unused = int(config.get("pad_token_id", 1)) + 1 if kind is XPROVENCE else 0
        positions = int(config["max_position_embeddings"]) - unused
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"model {folder.name}: config.json of a {kind.family} needs {error}") from error
    return Conduct(
        family=kind.family,
        rule="share",
        threshold=kind.threshold,
        plain_question=kind.plain_question,
        max_length=positions,
    )


def open_naver(
    folder: ModelFolder, kind: Naver, *, conduct: Conduct, device: torch.device, dtype: torch.dtype
) -> HeadedPruner:
    """Load a Provence or an XProvence.

    Args:
        folder: Where it lies.
        kind: `PROVENCE` or `XPROVENCE`.
        conduct: Of `naver_conduct`, perhaps changed.
        device: Where it computes.
        dtype: In which precision the encoder computes.

    Raises:
        ModelError: Tensors are missing, left over, or of another shape; names them.
    """
    config = folder.config()
    tensors = folder.tensors()
    pooling = kind.pooler.removesuffix("dense")
    pooler = {name: tensors.pop(name) for name in list(tensors) if name.startswith(pooling)}
    inside, heads = under(tensors, kind.prefix)
    settings = config | {"model_type": kind.architecture}
    encoder = open_encoder(FolderView.of(folder, settings=settings, tensors=inside), device=device, dtype=dtype)
    heads |= pooler
    dim = encoder.dim
    refuse_difference(folder, _head_shapes(kind, dim), heads)
    score = ScoreHead(
        Affine.of(heads, "classifier", device=device),
        dense=Affine.of(heads, kind.pooler, device=device),
        activation=_activation(folder, config, kind),
    )
    keep = KeepHead.of(heads, "token_classifier", device=device)
    return HeadedPruner(encoder, conduct=conduct, keep=keep, score=score)


def _head_shapes(kind: Naver, dim: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, rows in ((kind.pooler, dim), ("classifier", 1), ("token_classifier", 2)):
        shapes |= {f"{name}.weight": (rows, dim), f"{name}.bias": (rows,)}
    return shapes


def _activation(folder: ModelFolder, config: dict[str, Any], kind: Naver) -> Activation:
    stated = config.get("pooler_hidden_act", kind.activation) if kind is PROVENCE else kind.activation
    for activation in ACTIVATIONS:
        if stated == activation:
            return activation
    raise ModelError(
        f"model {folder.name}: pooler_hidden_act {stated!r} in config.json is not supported; "
        f"supported are {', '.join(ACTIVATIONS)}"
    )
