"""Small pictures of the few rows that a page shows, made from the images where they lie when the page is drawn.

row ids -> ingest/places -> the source, read as far as the last of them -> JPEG -> base64
"""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import TYPE_CHECKING

from datapipe.errors import ItemError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa

    from datapipe.pipeline import StageOutput
    from datapipe.report.facts import Example, MatchFacts, StratumExamples
    from datapipe.storage.images import ImageFiles

__all__ = ["pictured", "thumbnails"]

_ROW = "row "
"""How evidence begins that names another row of the run by its id."""


def pictured(
    examples: Sequence[StratumExamples],
    matches: Sequence[MatchFacts],
    ingest: StageOutput,
    images: ImageFiles,
    *,
    scratch: Path,
) -> tuple[tuple[StratumExamples, ...], tuple[MatchFacts, ...]]:
    """Return examples and matches with the thumbnail of each row that they show; arguments as for `thumbnails`."""
    others = {match.row_id: match.other.removeprefix(_ROW) for match in matches if match.other.startswith(_ROW)}
    shown = {row.row_id for group in examples for row in (*group.kept, *group.dropped)}
    shown |= {match.row_id for match in matches} | set(others.values())
    found = thumbnails(shown, ingest, images, scratch=scratch)

    def with_images(rows: tuple[Example, ...]) -> tuple[Example, ...]:
        return tuple(replace(row, image=found.get(row.row_id)) for row in rows)

    return (
        tuple(replace(each, kept=with_images(each.kept), dropped=with_images(each.dropped)) for each in examples),
        tuple(
            replace(match, image=found.get(match.row_id), other_image=found.get(others.get(match.row_id, "")))
            for match in matches
        ),
    )


def thumbnails(wanted: Collection[str], ingest: StageOutput, images: ImageFiles, *, scratch: Path) -> Mapping[str, str]:
    """Return the thumbnail of each row, a JPEG in base64, by row id; a row whose image has gone has none.

    Args:
        wanted: Row ids, 32 hexadecimal digits each; a few hundred.
        ingest: Where rows came from.
        images: The image column.
        scratch: Folder for a sort of the places.
    """
    from datapipe.embedding.image import thumbnail
    from datapipe.storage.images import ImagesByPlace, UnreadableImageError, content_key

    found: dict[str, str] = {}
    with ImagesByPlace(images, _places(wanted, ingest), scratch) as rows:
        for record, read in rows:
            try:
                data = read()
                if content_key(data) == record["image"]:
                    found[record["row_id"].hex()] = base64.b64encode(thumbnail(data)).decode()
            except (UnreadableImageError, ItemError):
                continue  # a file beside the source that was moved since: the page says all else without it
    return found


def _places(wanted: Collection[str], ingest: StageOutput) -> Iterator[pa.Table]:
    import pyarrow as pa
    import pyarrow.compute as pc

    from datapipe.storage.rowid import ID_TYPE

    ids = pa.array([bytes.fromhex(name) for name in sorted(wanted)], ID_TYPE)
    rows = ingest.tables("rows", columns=["image"])
    for table in ingest.tables("places"):
        beside = table.append_column("image", next(rows)["image"])
        yield beside.filter(pc.is_in(beside["row_id"], value_set=ids))
