"""What every family of checkpoints offers the task: probabilities of tokens, a score, and its published decision rule.

folder -> open_model (recognised by config and keys) -> PrunerModel.heads(windows) -> Heads (on the device)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from datapipe.storage.arrays import Int32

__all__ = ["Conduct", "Heads", "PrunerModel", "Rule"]

Rule: TypeAlias = Literal["mean", "share"]
"""How a family decides on a sentence: by the mean of its tokens' keep probabilities, or by the share of its tokens that
are above the threshold (the share is then compared with the same threshold)."""


@dataclass(frozen=True, kw_only=True)
class Conduct:
    """How a family wants to be used.

    Attributes:
        family: Its name: `native`, `provence`, `xprovence`, `open_provence`.
        rule: Its published decision rule.
        threshold: Its published default threshold, 0-1.
        plain_question: Whether questions are lower-cased, ASCII punctuation stripped and white space collapsed first.
        spaced: Whether every unit but the first of a window is tokenised with a space before it.
        trailing: Whether every unit is instead tokenised with the white space that follows it in the text.
        max_length: Tokens of a window at most, special tokens included.
        squashed: Whether relevance scores lie between 0 and 1; otherwise they are logits.
    """

    family: str
    rule: Rule
    threshold: float
    plain_question: bool = False
    spaced: bool = True
    trailing: bool = False
    max_length: int = 512
    squashed: bool = False


class Heads(NamedTuple):
    """What a forward pass gives, on the device, float32.

    Attributes:
        keep: Keep probability of every token, packed window after window, (tokens,).
        scores: Relevance of each window on the family's scale, (windows,).
    """

    keep: torch.Tensor
    scores: torch.Tensor


class PrunerModel(Protocol):
    """A pruner on its device.

    Attributes:
        conduct: How it wants to be used.
        vocabulary: Token ids that it knows.
        positions: Tokens that a window may have.
        padded: Whether a batch costs as if each window were as long as the longest.
        nbytes: Memory that the tensors hold.
    """

    conduct: Conduct
    vocabulary: int
    positions: int
    padded: bool
    nbytes: int

    def heads(self, windows: Sequence[Int32]) -> Heads:
        """Both heads over windows of token ids, special tokens included. Scores do not depend on the other windows."""
