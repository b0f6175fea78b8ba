"""Questions with contexts, read from a file row by row and cut into passages that a model can be asked about.

    Parquet or JSON Lines -> rows -> Row (id, passage, human labels) or Refused (why)

Columns are those of the question-answering layout: question and context must be there; id, split, title, sent_start,
sent_end, relevant, answers and label_kind may be. Raises `SourceError` and `ColumnError`; a row at fault is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from datapipe.errors import ColumnError, SourceError
from provence.training.silver_answers import Passage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["SILVER", "Refused", "Row", "check_source", "rows_of"]

SILVER: Final = "silver:"
"""What `label_kind` begins with where a model gave the labels; its name follows."""

_BATCH_ROWS: Final = 256
_COLUMNS: Final = ("id", "split", "question", "title", "context", "sent_start", "sent_end", "relevant", "answers")
_WANTED: Final = (*_COLUMNS, "label_kind")


@dataclass(frozen=True, slots=True)
class Row:
    """A passage and what its source says of it.

    Attributes:
        id: The source's, with `#k` after it for passage k of a context that was cut.
        passage: What the model is asked about.
        split: The source's; empty if it has none.
        source: The source's id.
        answers: The source's.
        human: 1 for each sentence that the source marks as relevant, else 0; None if it marks none by hand.
        label_kind: How the source's labels came about.
    """

    id: str
    passage: Passage
    split: str = ""
    source: str = ""
    answers: tuple[str, ...] = ()
    human: tuple[int, ...] | None = None
    label_kind: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that no model is asked about.

    Attributes:
        id: The source's.
        reason: `no_question`, `no_text`, `not_unicode` (half a surrogate pair, or no UTF-8) or `bad_spans`.
        row: Its columns, as they are.
    """

    id: str
    reason: str
    row: dict[str, Any] = field(default_factory=dict)


def rows_of(source: Path, *, sentences: int) -> Iterator[Row | Refused]:
    """Read passages of at most that many whole sentences, in the order of the file.

    A row without sentences of its own is split into units of prose. Memory does not grow with the file.

    Raises:
        SourceError: The file is missing or damaged, or is neither Parquet nor JSON Lines.
        ColumnError: There is no question or context; names the columns there are.
    """
    for place, row in enumerate(_read(source)):
        name = str(row.get("id") or place).encode("utf-8", "replace").decode()
        try:
            yield from _passages(row, name=name, sentences=sentences)
        except _RowError as error:
            yield Refused(name, str(error), row)


def check_source(source: Path) -> None:
    """Read the first row, so that a mistake shows before a model is loaded. Raises as `rows_of` does."""
    next(_read(source), None)


class _RowError(Exception):
    """Why a row cannot be used."""


def _passages(row: dict[str, Any], *, name: str, sentences: int) -> Iterator[Row]:
    question, text = row.get("question"), row.get("context")
    if not isinstance(question, str) or not question.strip():
        raise _RowError("no_question")
    if not isinstance(text, str) or not text.strip():
        raise _RowError("no_text")
    title = str(row.get("title") or "").strip()
    try:
        (question + title + text).encode()
    except UnicodeEncodeError as error:
        raise _RowError("not_unicode") from error
    spans = _spans(row, text)
    human = _human(row, len(spans))
    cuts = range(0, len(spans), sentences)
    for number, begin in enumerate(cuts):
        part = spans[begin : begin + sentences]
        start, end = part[0][0], part[-1][1]
        yield Row(
            id=f"{name}#{number}" if len(cuts) > 1 else name,
            passage=Passage(
                question=question,
                title=title,
                text=text[start:end],
                spans=tuple((left - start, right - start) for left, right in part),
            ),
            split=str(row.get("split") or ""),
            source=name,
            answers=tuple(str(answer) for answer in row.get("answers") or ()),
            human=None if human is None else human[begin : begin + sentences],
            label_kind=str(row.get("label_kind") or ""),
        )


def _spans(row: dict[str, Any], text: str) -> Sequence[tuple[int, int]]:
    starts, ends = row.get("sent_start") or [], row.get("sent_end") or []
    if not starts and not ends:
        from provence.units import split

        return [(unit.start, unit.end) for unit in split(text, kind="prose")]
    if len(starts) != len(ends):
        raise _RowError("bad_spans")
    last = 0
    for start, end in zip(starts, ends, strict=True):
        if not (isinstance(start, int) and isinstance(end, int) and last <= start < end <= len(text)):
            raise _RowError("bad_spans")
        last = end
    return list(zip(starts, ends, strict=True))


def _human(row: dict[str, Any], count: int) -> tuple[int, ...] | None:
    kind, relevant = str(row.get("label_kind") or ""), row.get("relevant")
    if not isinstance(relevant, list) or kind == "none" or kind.startswith(SILVER):
        return None
    if len(relevant) != count:
        raise _RowError("bad_spans")
    return tuple(int(bool(label)) for label in relevant)


def _read(source: Path) -> Iterator[dict[str, Any]]:
    if not source.is_file():
        raise SourceError(f"{source} is no file; labels are made from one Parquet or JSON Lines file")
    try:
        source.open("rb").close()
    except OSError as error:
        raise SourceError(f"{source} cannot be read: {error.strerror}") from error
    if source.suffix in {".jsonl", ".ndjson"}:
        return _read_lines(source)
    if source.suffix in {".parquet", ".pq"}:
        return _read_parquet(source)
    raise SourceError(f"{source} must end with .parquet, .pq, .jsonl or .ndjson. Got {source.suffix or 'no ending'!r}")


def _read_parquet(source: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(source) as file:
            names = file.schema_arrow.names
            _refuse_missing(source, names)
            wanted = [name for name in _WANTED if name in names]
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{source} is not a readable Parquet file ({error})") from error


def _read_lines(source: Path) -> Iterator[dict[str, Any]]:
    # What is no UTF-8 becomes halves of surrogate pairs, for which a row is refused.
    with source.open(encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise SourceError(f"{source}, line {number} is no JSON ({error})") from error
            if not isinstance(row, dict):
                raise SourceError(f"{source}, line {number} must be an object. Got {type(row).__name__}")
            if number == 1:
                _refuse_missing(source, list(row))
            yield {name: row[name] for name in _WANTED if name in row}


def _refuse_missing(source: Path, names: Sequence[str]) -> None:
    for needed in ("question", "context"):
        if needed not in names:
            raise ColumnError(f"{source} has no column {needed!r}; there are: {', '.join(names)}")
