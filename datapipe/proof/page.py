"""proof.html: one self-contained page in the style of the report."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

from datapipe.report.markup import Html, count, join, number, tag

if TYPE_CHECKING:
    from datapipe.proof.arms import Arm, Proof
    from datapipe.proof.statistics import Comparison, Interval


_TRAINED = {
    "head": "Linear heads on the run's vectors",
    "finetune": "A transformer, fine-tuned on the texts",
    "network": "A small ResNet from scratch, on the images",
}


def build_page(proof: Proof, *, title: str) -> str:
    """Return the page; equal outcomes give equal bytes."""
    style = Html(resources.files("datapipe.report").joinpath("page.css").read_text(encoding="utf-8"))
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{title} \u2013 proof"),
        tag("style", style),
    )
    body = tag("main", tag("h1", f"Proof: {title}"), section(proof))
    return "<!doctype html>\n" + tag("html", head, tag("body", body), lang="en")


def section(proof: Proof) -> Html:
    """Return what the page says, for another page to hold."""
    heads = ("Rows", "Number", "Accuracy, %", "Worst class, %")
    table = tag(
        "table",
        tag("thead", tag("tr", *[tag("th", name, scope="col") for name in heads])),
        tag("tbody", *[_row(arm) for arm in proof.arms]),
    )
    recipe, seconds = proof.recipe, proof.seconds
    how = (
        f"{_TRAINED[proof.trainer]}: {proof.arms[0].accuracy.count} seeds, {count(recipe.steps)} steps of "
        f"{recipe.batch_rows} rows for every arm; {count(proof.test_rows)} test rows, {count(proof.classes)} classes. "
        f"Choosing the rows took {number(seconds['scoring'])} s, all trainings {number(seconds['training'])} s."
    )
    return join(
        tag("p", sentence("random rows of the same number", proof.against_random)),
        tag("p", sentence("all rows", proof.against_full)),
        table,
        tag("p", how),
        *[tag("p", warning) for warning in proof.warnings],
    )


def sentence(other: str, found: Comparison) -> str:
    """Say one comparison in words, in points of accuracy."""
    gap = found.difference
    return (
        f"Kept rows against {other}: {found.verdict}. Difference {number(100 * gap.mean)} points, interval "
        f"{number(100 * gap.low)} to {number(100 * gap.high)}; these seeds would show {number(100 * found.detectable)}."
    )


def _row(arm: Arm) -> Html:
    cells = (arm.name, count(arm.rows), _shown(arm.accuracy), _shown(arm.worst_class))
    return tag("tr", *[tag("td", cell) for cell in cells])


def _shown(found: Interval) -> str:
    return f"{number(100 * found.mean)} \u00b1 {number(100 * (found.high - found.mean))}"
