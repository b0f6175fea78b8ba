"""`datapipe.soft_labels`: teachers judge the rows of a finished run; their labels lie beside the kept rows.

    run folder, teachers -> teach -> soft_labels -> RUN/soft_labels.parquet, RUN/teacher_scores.parquet, manifest

Both are stages of the run, named by what they depend on, so a killed call goes on where it stopped, a second one does
nothing, and `datapipe verify` hashes them. Where the same teachers have judged more of the same rows in this folder
(a larger budget, or all rows), those labels are read and no teacher runs: kept sets in hash order are nested, so one
pass over the largest serves all. `curate` in the folder again keeps the labels where it chooses the same rows and
takes them off its result where it chooses others; the call then brings theirs. Raises `SoftLabelError`, `ConfigError`,
`ColumnError`, `ModelError`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from datapipe.distill.alpha import CONTRADICTION, recommended_alpha
from datapipe.distill.question import Question
from datapipe.distill.wiring import Lesson
from datapipe.errors import ConfigError
from datapipe.pipeline import Pipeline, StageOutput
from datapipe.publication import LABEL_STAGES, publish_labels
from datapipe.stages.soft_labels import SOFT_LABELS, TEACHER_SCORES, SoftLabelsConfig, WriteSoftLabels
from datapipe.storage.digest import plain

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from datapipe.distill.alpha import Alpha
    from datapipe.distill.header import SoftLabelHeader
    from datapipe.distill.labels import LabelMap
    from datapipe.distill.store import SoftLabelStore
    from datapipe.pipeline import StageTiming
    from datapipe.progress import Progress

__all__ = ["SoftLabelResult", "soft_labels"]

SCRATCH = ".scratch-soft-labels"


@dataclass(frozen=True, kw_only=True)
class SoftLabelResult:
    """Soft labels of a run.

    Attributes:
        out: The run folder.
        facts: What its manifest says of them: header, identity, rows, alpha, contradiction, bytes a row.
        timings: Rows and seconds of `teach` and `soft_labels` in this process.
    """

    out: Path
    facts: Mapping[str, Any]
    timings: tuple[StageTiming, ...] = field(default=())

    @property
    def path(self) -> Path:
        """The store."""
        return self.out / SOFT_LABELS

    @property
    def scores(self) -> Path:
        """The scores that came with it."""
        return self.out / TEACHER_SCORES

    @property
    def alpha(self) -> float:
        """Recommended weight of the teacher in the loss."""
        return float(self.facts["alpha"]["value"])

    @property
    def rows_per_second(self) -> float | None:
        """Rows judged a second; None where nothing was judged now."""
        own = next((each for each in self.timings if each.stage == "teach" and not each.reused), None)
        return own.rows / own.seconds if own is not None and own.seconds > 0 else None

    def store(self, **expected: Any) -> SoftLabelStore:
        """Open the store; see `SoftLabelStore.open` for what may be expected of it."""
        from datapipe.distill.store import SoftLabelStore

        return SoftLabelStore.open(self.path, **expected)

    def as_dict(self) -> dict[str, Any]:
        """The result as plain values, for `--json`."""
        timings = [plain(timing) for timing in self.timings]
        return {
            "out": str(self.out),
            **plain(dict(self.facts)),
            "timings": timings,
            "rows_per_second": self.rows_per_second,
        }


def soft_labels(  # noqa: PLR0913 - the run and its teachers; the rest by keyword
    run: str | os.PathLike[str],
    *,
    teacher: str | Sequence[str],
    top_k: int | None = None,
    dense: bool = False,
    sampled: int | None = None,
    wide: bool = False,
    rows: Literal["kept", "all"] = "kept",
    task: Literal["auto", "classify", "causal"] = "auto",
    label_map: LabelMap | str | os.PathLike[str] | None = None,
    prompt_column: str | None = None,
    response_column: str | None = None,
    tokenizer: str | None = None,
    folds: int = 5,
    contradiction: float = CONTRADICTION,
    noise: float | None = None,
    device: str | None = None,
    workers: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> SoftLabelResult:
    """Ask teachers about the rows of a finished run and store what they say, at temperature 1.

    Args:
        run: Folder of a finished run.
        teacher: `head` (trained on the run's vectors and labels), a classifier or a causal language model (a folder, a
            cached hub id, or a name at the server), or several of them: the mean of their log probabilities, normalised
            again; causal models then have one tokenizer, and run in this process.
        top_k: Store the k most probable classes and the mass of the rest.
        dense: Store every class.
        sampled: Store so many draws. Default: dense up to 128 classes, else the 32 most probable, and 64 draws a token.
        wide: Allow `dense` for more than 128 classes.
        rows: `kept`, or `all` accepted ones.
        task: What the teachers do; `auto` looks at the first one's config.json.
        label_map: Which of the run's labels each of the teacher's classes is: a mapping by name, the run's labels as a
            list in the order of the logits, or a JSON file of either. None: the names are the same, in any order.
        prompt_column: With a causal teacher, the source's column with what stands before each response.
        response_column: Its column with the responses; without it the run's texts are taught whole.
        tokenizer: Model whose tokenizer a causal teacher behind a server uses; default: the teacher itself.
        folds: Of the `head`; 1 lets it judge rows that it has learnt.
        contradiction: Probability of another class than the label, 0.5 < p <= 1, from which the label counts for
            nothing (alpha 1) and the row is flagged; it is never dropped.
        noise: Share of wrong labels, where it is known, for the recommended alpha.
        device: `auto`, `cpu`, `cuda`, `cuda:1`; default from `DATAPIPE_DEVICE`.
        workers: URL of a `datapipe serve` that runs the teachers.
        seed: Of draws, folds and heads.
        progress: Is told how far the stages are.

    Raises:
        ConfigError: Options exclude each other or are out of range.
        SoftLabelError: A teacher's classes are not the run's, or its logits are no numbers.
        ColumnError: The run has no labels, vectors or column that a teacher needs.
        SourceError: There is no finished run, or its source is gone or has changed.
        ModelError: A teacher cannot be loaded.
        LockedError: Another process is writing to the run folder.
    """
    from datapipe.storage.lock import exclusive
    from datapipe.storage.verify import read_run_manifest

    if not 0.5 < contradiction <= 1:  # noqa: PLR2004 - below a half two classes could contradict at once
        raise ConfigError(f"contradiction must be above 0.5 and at most 1, got {contradiction!r}")
    if rows not in {"kept", "all"}:
        raise ConfigError(f"rows must be kept or all, got {rows!r}")
    question = Question(
        teachers=(teacher,) if isinstance(teacher, str) else tuple(teacher),
        top_k=top_k,
        dense=dense,
        sampled=sampled,
        wide=wide,
        rows=rows,
        task=task,
        label_map=label_map,
        prompt_column=prompt_column,
        response_column=response_column,
        tokenizer=tokenizer,
        folds=folds,
        device=device,
        url=workers,
        seed=seed,
    )
    folder = Path(run)
    read_run_manifest(folder)  # where there is no run, nothing is locked and no folder made
    with exclusive(folder):
        lesson = Lesson(folder, question)
        alpha = recommended_alpha(lesson.fraction, classes=_classes(lesson.header), noise=noise)
        outputs, timings = _made(lesson, alpha, contradiction, progress)
        facts = _facts(lesson, outputs, alpha, contradiction)
        _publish(lesson, outputs, facts, timings)
    return SoftLabelResult(out=folder, facts=facts, timings=tuple(timings))


def _classes(header: SoftLabelHeader) -> int | None:
    return header.classes if header.level == "row" else None


def _made(
    lesson: Lesson, alpha: Alpha, contradiction: float, progress: Progress | None
) -> tuple[dict[str, StageOutput], list[StageTiming]]:
    """Run the stages that are missing; returns the outputs of both, and how long they took."""
    from datapipe.executors.local import LocalExecutor
    from datapipe.storage.atomic import scratch_folder
    from datapipe.storage.stage import StageStore

    store = StageStore(lesson.folder / "stages")
    settings = SoftLabelsConfig(
        header=lesson.header,
        rows=lesson.question.rows,
        alpha=alpha.value,
        contradiction=contradiction,
        ordered=lesson.ordered,
    )
    wider = lesson.wider()
    given = {**lesson.outputs, **({"teach": wider} if wider is not None else {})}
    own = [] if wider is not None else [lesson.stage()]
    pipeline = Pipeline([*own, WriteSoftLabels(settings)], given=given)
    with scratch_folder(lesson.folder, SCRATCH) as scratch:
        try:
            outputs = pipeline.run(store, LocalExecutor(lesson.threads), scratch=scratch, progress=progress)
        finally:
            lesson.close()
    return {name: outputs[name] for name in LABEL_STAGES}, pipeline.timings


def _facts(lesson: Lesson, outputs: Mapping[str, StageOutput], alpha: Alpha, contradiction: float) -> dict[str, Any]:
    written = outputs["soft_labels"]
    store = next(shard for shard in written.manifest.shards if shard.name == SOFT_LABELS)
    counted = {name: written.facts[name] for name in ("labelled", "disagreeing", "contradicted")}
    taught = {
        name: outputs["teach"].facts[name] for name in ("positions", "truncated") if name in outputs["teach"].facts
    }
    return {
        "header": lesson.header.as_plain(),
        "identity": lesson.header.identity,
        "of": lesson.question.rows,
        "rows": store.rows,
        **counted,
        **taught,
        "bytes": store.bytes,
        "bytes_a_row": round(store.bytes / store.rows, 2) if store.rows else None,
        "alpha": plain(alpha),
        "contradiction": contradiction,
    }


def _publish(
    lesson: Lesson, outputs: Mapping[str, StageOutput], facts: Mapping[str, Any], timings: Sequence[StageTiming]
) -> None:
    """Put the files beside the run's own, all at once."""
    from datapipe.runs import stage_entry
    from datapipe.storage.atomic import write_atomically

    folder, stages = lesson.folder, [stage_entry(outputs[name]) for name in LABEL_STAGES]
    publish_labels(folder, lesson.manifest, stages=stages, facts=plain(dict(facts)))
    path = folder / "timings.json"
    told = json.loads(path.read_bytes()) if path.exists() else {"stages": []}
    told["soft_labels"] = [plain(timing) for timing in timings]
    write_atomically(path, json.dumps(told, indent=1).encode())
