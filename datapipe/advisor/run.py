"""`datapipe.advise`: a source in, advice out; the same as `datapipe advise SOURCE`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datapipe.errors import BudgetError, MetricError

if TYPE_CHECKING:
    import os

    import polars as pl

    from datapipe.advisor.decide import Advice
    from datapipe.advisor.look import Facts, Sample
    from datapipe.advisor.pilot import Pilot


def advise(  # noqa: PLR0913 - the source; the rest by keyword
    source: str | os.PathLike[str] | list[str] | pl.DataFrame | pl.LazyFrame,
    *,
    keep: float | None = None,
    text_column: str | None = None,
    embedding_column: str | None = None,
    label_column: str | None = None,
    image_column: str | None = None,
    teacher: bool = False,
    parameters: int | None = None,
    pilot: bool = False,
    evidence: str | os.PathLike[str] | None = None,
    model: str = "default",
    device: str | None = None,
    seed: int = 0,
) -> Advice:
    """Say what to do with a data set, how far, with which method, and why. Reads the source once; writes nothing.

    Args:
        source: As for `datapipe.curate`.
        keep: Fraction to keep, 0 < keep <= 1; None asks how far to go.
        text_column: Text; default `text` or the only string column.
        embedding_column: Vectors that the source brings; then nothing is embedded.
        label_column: Class labels. Methods that need labels are considered only with it.
        image_column: Images; default the first binary column of a source without text.
        teacher: Whether a teacher's soft labels will go with the rows kept.
        parameters: Parameters of the model to be trained.
        pilot: Whether to try windows on a sample of at most 4,000 rows first; needs labels, takes a minute or two.
        evidence: A JSON file in place of the published evidence; see `datapipe.selection.evidence`.
        model: Embedder for the sample; images are not embedded without a vision model.
        device: Where it runs.
        seed: Of the pilot's splits.

    Returns:
        The advice; `advice.command` is the command line that follows it.

    Raises:
        BudgetError: `keep` is out of range.
        ColumnError: A column is not there.
        MetricError: A pilot was asked for and the sample cannot serve one.
        SourceError: The source cannot be read.
    """
    from pathlib import Path

    from datapipe.advisor.decide import decide
    from datapipe.advisor.look import SAMPLE_ROWS, look, with_images
    from datapipe.advisor.pilot import MOST_ROWS
    from datapipe.config import CurateConfig
    from datapipe.selection.evidence import load_evidence, published
    from datapipe.settings import Settings
    from datapipe.stages.columns import text_columns
    from datapipe.storage.source import open_source

    if keep is not None and not 0 < keep <= 1:
        raise BudgetError(f"keep must be a fraction above 0 and at most 1, got {keep!r}")
    if pilot and label_column is None:
        raise MetricError("a pilot trains on labels: name their column with label_column")
    config = CurateConfig(
        text_column=text_column,
        embedding_column=embedding_column,
        label_column=label_column,
        image_column=image_column,
        model=model,
        device=device,
    )
    settings = Settings()
    table = published() if evidence is None else load_evidence(Path(evidence))
    opened = open_source(source, limits=settings.limits.as_limits(), text_columns=text_columns(config))
    config = with_images(config, opened)
    facts, sample = look(opened, config, settings=settings, sample_rows=MOST_ROWS if pilot else SAMPLE_ROWS)
    options = {"source": _named(source)}
    for name in ("text_column", "embedding_column", "image_column", "label_column"):
        value = getattr(config, name)
        if value is not None:
            options[name] = value
    if model != "default":
        options["model"] = model
    elif config.image_column is not None and embedding_column is None:
        options["model"] = "MODEL"
    first = decide(facts, keep=keep, has_teacher=teacher, parameters=parameters, table=table, options=options)
    if not pilot or first.keep >= 1:
        return first
    found = _pilot(facts, sample, keep=first.keep, seed=seed)
    return decide(
        facts, keep=keep, has_teacher=teacher, parameters=parameters, table=table, pilot=found, options=options
    )


def _pilot(facts: Facts, sample: Sample | None, *, keep: float, seed: int) -> Pilot:
    from datapipe.advisor.pilot import run_pilot

    if sample is None:
        raise MetricError("a pilot needs vectors: name embedding_column, or a vision model with model")
    return run_pilot(sample.vectors, sample.labels, keep=keep, rows=facts.rows, seed=seed)


def _named(source: object) -> str:
    from os import PathLike, fspath

    return str(fspath(source)) if isinstance(source, (str, PathLike)) else "SOURCE"
