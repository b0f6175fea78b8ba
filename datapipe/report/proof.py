"""The section of a run's page on what `datapipe prove` found: verdicts in words, and every arm with its interval.

    proof.json -> proof_section -> markup

It reads the plain values of the file alone, so the page needs nothing of what trains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datapipe.report.markup import Html, count, join, number, tag

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["proof_section"]

_MEANING = {
    "win": "they are better, beyond what the seeds differ by",
    "loss": "they are worse, beyond what the seeds differ by",
}
_SAME = "the difference lies within what the seeds differ by"
_COLUMNS = ("Rows", "Number", "Accuracy, %", "Interval", "Worst class, %", "Interval")


def proof_section(proof: Mapping[str, Any]) -> Html:
    """Return the section; an end of an interval that is null is shown as a dash."""
    others = (("random rows of the same number", "against_random"), ("all rows", "against_full"))
    said = [tag("li", _sentence(other, proof[name])) for other, name in others]
    warnings = [tag("li", warning, class_="warning") for warning in proof["warnings"]]
    head = [tag("th", name, scope="col", class_=None if i == 0 else "n") for i, name in enumerate(_COLUMNS)]
    table = tag(
        "table",
        tag("caption", "Accuracy on test rows from outside the run, mean over the seeds"),
        tag("thead", tag("tr", *head)),
        tag("tbody", *[_row(arm) for arm in proof["arms"]]),
    )
    recipe, seconds = proof["recipe"], proof["seconds"]
    how = (
        f"Trainer {proof['trainer']}: {count(len(proof['arms'][0]['accuracies']))} seeds, {count(recipe['steps'])} "
        f"steps of {count(recipe['batch_rows'])} rows for every choice of rows; {count(proof['test_rows'])} test rows "
        f"of {count(proof['classes'])} classes. Choosing the rows took {number(seconds['scoring'])} s, all trainings "
        f"{number(seconds['training'])} s."
    )
    return join(
        tag("h2", "Proof", id="proof-title"),
        tag("ul", *warnings, *said, class_="why"),
        tag("div", table, class_="scroll"),
        tag("p", how, class_="note"),
    )


def _sentence(other: str, found: Mapping[str, Any]) -> Html:
    gap = found["difference"]
    return join(
        tag("b", f"Kept rows against {other}: {found['verdict']}"),
        f" \u2013 {_MEANING.get(found['verdict'], _SAME)}. Difference {_points(gap['mean'])} points, 95 % interval "
        f"{_points(gap['low'])} to {_points(gap['high'])}; these seeds would show {_points(found['detectable'])}.",
    )


def _row(arm: Mapping[str, Any]) -> Html:
    cells = [count(arm["rows"])]
    for name in ("accuracy", "worst_class"):
        found = arm[name]
        cells += [_points(found["mean"]), f"{_points(found['low'])} to {_points(found['high'])}"]
    return tag("tr", tag("th", arm["name"], scope="row"), *[tag("td", cell, class_="n") for cell in cells])


def _points(share: float | None) -> str:
    return number(100 * share if share is not None else None)
