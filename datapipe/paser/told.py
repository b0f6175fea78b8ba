"""How rows are chosen, in sentences for a report: PickConfig -> reasons."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datapipe.paser.pick_config import PickConfig

__all__ = ["reasons"]

_METHODS = {
    "paper": (
        "The published rule to the letter: shares by damage, rounded down, the most efficient rows first, rows whose "
        "concepts were never seen together refused, and no refill (PASER, arXiv 2502.12594, equations 6 and 7)."
    ),
    "random": "Rows at random, in hash order: what every other choice has to beat.",
    "stratified": "Rows at random, as many of each skill as its size asks for.",
    "longest": "The rows with the longest responses.",
    "ifd": "The rows whose instruction helps the pruned model least with the response (arXiv 2308.12032).",
    "top_jsd": "The most damaged rows, whatever their skill.",
}
_RULES = {
    "ies": (
        "Within a skill, the rows with the most damage for the logarithm of their tokens come first (PASER, arXiv "
        "2502.12594, equation 7)."
    ),
    "jsd": "Within a skill, the most damaged rows come first.",
    "length": "Within a skill, the rows with the longest responses come first.",
    "random": "Within a skill, rows come at random, in hash order.",
}
_POWERS = {0.0: "alike, whatever it lost", 1.0: "in proportion to its damage"}


def reasons(pick: PickConfig, *, survey: bool) -> tuple[str, ...]:
    """Say how rows are chosen, a sentence each.

    Args:
        pick: How.
        survey: Whether damage was measured on a sample.
    """
    said = _ours(pick) if pick.method == "ours" else [_METHODS[pick.method]]
    if pick.filter == "contradiction":
        said.append("A row that asks what others ask, and answers otherwise than most of them, is left out.")
    if survey:
        said.append("Damage was measured on a sample of each skill; other rows count as the mean of their skill.")
    return tuple(said)


def _ours(pick: PickConfig) -> list[str]:
    part = _POWERS.get(pick.power, f"by its damage to the power {pick.power:g}")
    if pick.size_power:
        part += " and its size" + (f" to the power {pick.size_power:g}" if pick.size_power != 1.0 else "")
    sizes = f", but {100 * pick.even:g} % of it by size" if pick.even else ""
    share = f"Each skill gets its part of the budget {part}{sizes}; what a skill cannot use goes to the others."
    worth = "Skills are weighted by what they, or their sources, are worth to the user."
    rule = _RULES.get(pick.rule, f"Within a skill, damage times length decides, by the rule {pick.rule}.")
    return [share, *([worth] if pick.cluster_prior or pick.source_prior else []), rule]
