"""What a selection for recovery would cost: rows, tokens, disk and time, from the pool's footers and a small sample.

    pool, models -> some rows embedded and measured -> seconds a row -> Estimate of the run; nothing is written

Raises what `select_recovery` raises.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from datapipe.paser.wiring import RecoveryWiring

__all__ = ["RecoveryEstimate", "estimate_recovery"]

SAMPLE_ROWS = 128
"""Rows whose tokens are counted and which are embedded."""
TIMED_ROWS = 16
"""Rows that the models read."""
WARM_ROWS = 2


@dataclass(frozen=True, kw_only=True)
class RecoveryEstimate:
    """A run, before it is run.

    Attributes:
        rows: Rows in the pool.
        rows_kept: Rows that the budget keeps at most; None where it counts tokens.
        tokens: Tokens of all prompts and responses, about.
        files: Files in the pool.
        source_bytes: Their size.
        disk_bytes: What the run folder will hold, about; most of it the original's states.
        seconds: How long embedding and the models will take here, about; a survey takes a part of it.
        stages: The stages, in order.
    """

    rows: int
    rows_kept: int | None
    tokens: int
    files: int
    source_bytes: int
    disk_bytes: int
    seconds: float
    stages: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The estimate as plain values."""
        return {**asdict(self), "stages": " -> ".join(self.stages)}


def estimate_recovery(
    pool: str | os.PathLike[str] | Sequence[str],
    *,
    original: str | os.PathLike[str],
    pruned: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    **options: Any,
) -> RecoveryEstimate:
    """Look at the pool and the models, and say what `select_recovery` with the same arguments would cost."""
    from datapipe.paser.run import wired

    wiring = wired(pool, original=original, pruned=pruned, options=options)
    try:
        return _estimate(wiring)
    finally:
        wiring.close()


def _estimate(wiring: RecoveryWiring) -> RecoveryEstimate:
    from datapipe.paser.bodies import token_counts

    source, config, models = wiring.source, wiring.config, wiring.models
    rows = source.rows if source.rows is not None else _count(wiring)
    budget = config.budget
    sample = _sample(wiring)
    form = _form(wiring)
    answers, before = token_counts(models.tokenizer, form.texts(sample), max_length=models.max_length)
    source_bytes = sum(file.size for file in source.files)
    vectors = 2 * wiring.embedder.dim * (1 + wiring.answers)
    mean_answer = float(answers.mean()) if len(sample) else 0.0
    seconds, dim = _seconds_a_row(wiring, sample)
    states = 0.0 if config.survey else mean_answer * (2 * dim + 4)
    kept = None if budget.tokens is not None else min(budget.rows or rows, rows)
    if budget.fraction is not None:
        kept = budget.rows_of(rows)
    return RecoveryEstimate(
        rows=rows,
        rows_kept=kept,
        tokens=round(rows * float((answers + before).mean())) if len(sample) else 0,
        files=len(source.files),
        source_bytes=source_bytes,
        disk_bytes=int(rows * (vectors + states + 200) + 2 * source_bytes),
        seconds=round(rows * seconds, 1),
        stages=tuple(stage.name for stage in wiring.stages(("",) * len(source.files))),
    )


def _count(wiring: RecoveryWiring) -> int:
    columns = [wiring.columns.needed[0]]
    return sum(len(batch.rows) for batch in wiring.source.batches(columns, rejected=lambda _: None))


def _sample(wiring: RecoveryWiring) -> list[dict[str, Any]]:
    """The first usable rows, as rows of the pool."""
    from datapipe.storage.instructions import read_pairs

    found: list[dict[str, Any]] = []
    for batch in wiring.source.batches(rejected=lambda _: None):
        pairs, _ = read_pairs(batch.table, wiring.columns, max_chars=wiring.config.max_chars)
        found += [
            {"instruction": each.instruction, "input": each.input, "response": each.response, "history": each.history}
            for each in pairs[: SAMPLE_ROWS - len(found)]
        ]
        if len(found) >= SAMPLE_ROWS:
            break
    return found


def _form(wiring: RecoveryWiring) -> Any:
    from datapipe.stages.states import ReadConfig, form_of

    return form_of(wiring.models, ReadConfig.of(wiring.models))


def _seconds_a_row(wiring: RecoveryWiring, sample: Sequence[Mapping[str, Any]]) -> tuple[float, int]:
    """Time embedder and models on a few rows, after as many to warm up; also the width of the original's states."""
    from datapipe.embedding.text import embed_texts
    from datapipe.paser.bodies import read_responses
    from datapipe.paser.models import ORIGINAL

    models, embedder = wiring.models, wiring.embedder
    dim = models.load(ORIGINAL).dim
    if not sample:
        return 0.0, dim
    asked = [str(row["instruction"]) for row in sample]
    embed_texts(embedder.worker(), asked[:32], model=embedder.name)
    begun = time.perf_counter()
    embed_texts(embedder.worker(), asked, model=embedder.name)
    embedding = (1 + wiring.answers) * (time.perf_counter() - begun) / len(asked)
    texts = _form(wiring).texts(sample[:TIMED_ROWS])
    heads = models.heads(models.labels[0])
    spent: list[float] = []
    for name, width in ((ORIGINAL, heads.dims[0]), (models.labels[0], heads.dims[1])):
        read_responses(models.worker, name, texts[:WARM_ROWS], dim=width)
        begun = time.perf_counter()
        found = read_responses(models.worker, name, texts, dim=width)
        if name != ORIGINAL:
            # The other side's numbers do not matter for the time.
            heads.compare(np.zeros((len(found.ids), heads.dims[0]), np.uint16), found.states, found.ids)
        spent.append((time.perf_counter() - begun) / len(texts))
    return embedding + spent[0] + len(models.labels) * spent[1], dim
