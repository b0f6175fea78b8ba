"""One self-contained HTML page a run: RunFacts, proof -> sections -> page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datapipe.report.examples import examples, matches
from datapipe.report.frame import identity, laid_out, why
from datapipe.report.proof import proof_section
from datapipe.report.sections import balance, row_map, scores, strata

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datapipe.report.facts import RunFacts

__all__ = ["build_report"]


def build_report(facts: RunFacts, *, proof: Mapping[str, Any] | None = None) -> str:
    """Return the page. Equal facts give equal bytes; about 1 kB a shown stratum and 30 bytes a point of the map.

    Args:
        facts: What the run knows of itself.
        proof: What proof.json holds, where the run was proved.
    """
    parts = {
        "Why": why(facts.strategy),
        "Proof": proof_section(proof) if proof is not None else None,
        "Scores": scores(facts),
        "Strata": strata(facts),
        "Balance": balance(facts),
        "Map": row_map(facts),
        "Matches": matches(facts),
        "Examples": examples(facts),
        "Run": identity(facts),
    }
    return laid_out(facts, parts, kind="curation report")
