"""Silver labels: which sentences a language model needed to answer a question, as rows to train a pruner on.

    source -> passages -> prompts -> Labeller -> replies.jsonl -> judge -> labels.parquet, rejected.parquet, report.json

The method is Provence's (Chirkova et al., arXiv 2501.16214, section 3): the model answers and cites, and what it cites
is relevant. A run that is broken off goes on where it was when it is started again; the two tables are there whole or
not at all. Raises `SourceError`, `ColumnError`, `ConfigError`, `OutputError`, `LockedError` and what a labeller raises.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from datapipe.errors import ConfigError, OutputError
from provence.training.silver_answers import judge, prompt_of
from provence.training.silver_journal import Journal, Reply, key_of
from provence.training.silver_report import LabelReport, Tally
from provence.training.silver_source import SILVER, Refused, Row, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa
    from pyarrow import parquet

__all__ = ["Labeller", "make_labels"]

CHUNK_PASSAGES: Final = 1024
"""Passages whose prompts are handed to a labeller at a time, so that it can sort them by length."""

Outcome: TypeAlias = "Reply | str"
"""A reply, or the reason why the model cannot be asked this."""


class Labeller(Protocol):
    """A language model that answers prompts.

    Attributes:
        name: What `label_kind` says, behind `silver:`.
        identity: Everything that a reply depends on but the prompt.
    """

    name: str
    identity: str

    def replies(self, prompts: Sequence[str]) -> Iterator[tuple[int, Outcome]]:
        """The place of each prompt and what became of it, in any order, as soon as it is there.

        Raises:
            WorkerError: The model cannot be asked any more; what was given before stands.
        """


def make_labels(
    source: Path,
    labeller: Labeller,
    *,
    out: Path,
    sentences: int = 10,
    limit: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> LabelReport:
    """Label the passages of `source` and write them to `out`.

    Args:
        source: Parquet or JSON Lines in the question-answering layout; see `silver_source`.
        labeller: Who is asked.
        out: Folder of the result. labels.parquet has the same layout, `label_kind` `silver:MODEL` and, in `extra`, the
            reply, the source's id and its own labels; rejected.parquet holds the other rows with a reason.
        sentences: Sentences of a passage at most, at least 1; longer contexts are cut into several.
        limit: Passages and refused rows read at most; None reads all.
        progress: Told how many passages are done, after each chunk.

    Raises:
        ConfigError: A number is below 1.
        SourceError: The source cannot be read.
        ColumnError: It has no question or context.
        OutputError: `out` cannot be written.
        LockedError: Another process labels into `out`.
        WorkerError: The labeller failed for good; the same call goes on from there.
    """
    for name, value in {"sentences": sentences, "limit": limit}.items():
        if value is not None and value < 1:
            raise ConfigError(f"the {name!r} parameter of make_labels must be at least 1. Got {value}")
    tally, done = Tally(), 0
    with Journal(out / "replies.jsonl") as journal:
        rows = islice(rows_of(source, sentences=sentences), limit)
        with (
            _table(out / "labels.parquet", _label_schema()) as labels,
            _table(out / "rejected.parquet", _rejected_schema()) as rejected,
        ):
            while chunk := list(islice(rows, CHUNK_PASSAGES)):
                _label_chunk(chunk, labeller, journal=journal, tally=tally, labels=labels, rejected=rejected)
                done += len(chunk)
                if progress is not None:
                    progress(done)
        report = tally.report(labeller.name)
        _replace(out / "report.json", json.dumps(asdict(report), indent=2).encode() + b"\n")
    return report


def _label_chunk(
    chunk: Sequence[Row | Refused],
    labeller: Labeller,
    *,
    journal: Journal,
    tally: Tally,
    labels: parquet.ParquetWriter,
    rejected: parquet.ParquetWriter,
) -> None:
    import pyarrow as pa

    prompts = {id(row): prompt_of(row.passage) for row in chunk if isinstance(row, Row)}
    keys = {place: key_of(prompt, identity=labeller.identity) for place, prompt in prompts.items()}
    refusals = _ask(labeller, {keys[place]: prompt for place, prompt in prompts.items()}, journal, tally)
    good, bad = [], []
    for row in chunk:
        tally.passages += 1
        if isinstance(row, Refused):
            bad.append(_refused_row(row))
            tally.rejected[row.reason] += 1
        elif (key := keys[id(row)]) in refusals:
            bad.append(_rejected_row(row, refusals[key], reply=None))
            tally.rejected[refusals[key]] += 1
        else:
            reply = journal[key]
            verdict = judge(reply.text, row.passage, finished=reply.finished)
            tally.judged(verdict, row.human)
            if verdict.reason:
                bad.append(_rejected_row(row, verdict.reason, reply=reply.text))
                tally.rejected[verdict.reason] += 1
            else:
                good.append(_label_row(row, verdict.relevant, reply=reply.text, model=labeller.name))
    labels.write_table(pa.Table.from_pylist(good, _label_schema()))
    rejected.write_table(pa.Table.from_pylist(bad, _rejected_schema()))


def _ask(labeller: Labeller, prompts: dict[str, str], journal: Journal, tally: Tally) -> dict[str, str]:
    """Put the replies that are missing into the journal; reasons of the prompts that have none, by key."""
    missing = [key for key in prompts if key not in journal]
    refusals: dict[str, str] = {}
    for place, outcome in labeller.replies([prompts[key] for key in missing]) if missing else ():
        if isinstance(outcome, Reply):
            journal.add([(missing[place], outcome)])
            tally.asked += 1
        else:
            refusals[missing[place]] = outcome
    return refusals


def _label_row(row: Row, relevant: Sequence[int], *, reply: str, model: str) -> dict[str, Any]:
    passage = row.passage
    extra: dict[str, Any] = {"reply": reply, "source": row.source}
    if row.human is not None:
        extra |= {"relevant": list(row.human), "label_kind": row.label_kind}
    return {
        "id": row.id,
        "split": row.split,
        "question": passage.question,
        "title": passage.title,
        "context": passage.text,
        "sent_start": [start for start, _ in passage.spans],
        "sent_end": [end for _, end in passage.spans],
        "relevant": relevant,
        "answers": row.answers,
        "answerable": any(relevant),
        "label_kind": f"{SILVER}{model}",
        "extra": json.dumps(extra, ensure_ascii=False),
    }


def _rejected_row(row: Row, reason: str, *, reply: str | None) -> dict[str, Any]:
    passage = row.passage
    content = {"question": passage.question, "title": passage.title, "context": passage.text}
    return {"id": row.id, "reason": reason, "reply": reply, "row": json.dumps(content, ensure_ascii=False)}


def _refused_row(row: Refused) -> dict[str, Any]:
    content = json.dumps(row.row, default=str)  # escaped, for it may hold what no file can
    return {"id": row.id, "reason": row.reason, "reply": None, "row": content}


def _label_schema() -> pa.Schema:
    import pyarrow as pa

    texts = {name: pa.string() for name in ("id", "split", "question", "title", "context")}
    places = {"sent_start": pa.list_(pa.int32()), "sent_end": pa.list_(pa.int32()), "relevant": pa.list_(pa.int8())}
    rest = {"answers": pa.list_(pa.string()), "answerable": pa.bool_(), "label_kind": pa.string(), "extra": pa.string()}
    return pa.schema([*(texts | places | rest).items()])


def _rejected_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([(name, pa.string()) for name in ("id", "reason", "reply", "row")])


@contextmanager
def _table(path: Path, schema: pa.Schema) -> Iterator[parquet.ParquetWriter]:
    """A Parquet file that becomes `path` on leaving without an error."""
    from pyarrow import parquet

    temporary = path.with_name(f".{path.name}.partial")
    try:
        with parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
            yield writer
        _settle(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(content)
    _settle(temporary, path)


def _settle(temporary: Path, path: Path) -> None:
    try:
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
