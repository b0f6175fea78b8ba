"""Rows of a shard against rows that must not be trained on: equal, quoting or near, each match with its evidence.

EvaluationSet -> Matcher.match(rows, vectors) -> table: row_id, reason, rule, similarity, match
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

    from datapipe.dedup.contained import GramIndex
    from datapipe.dedup.near import NearIndex
    from datapipe.storage.arrays import Bool, Float32, Ids

SHOWN_CHARACTERS = 240


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """Rows to protect.

    Attributes:
        texts: Their texts; None where the run has vectors only.
        vectors: Their unit vectors, float32 (rows, dim); None where the run has no vectors.
        keys: Keys of their content where they have no texts, such as images, uint64 (rows, 2); else None.
        called: What one of them is called where it has no text to be shown.
    """

    texts: list[str] | None
    vectors: Float32 | None
    keys: Ids | None = None
    called: str = "evaluation row"


def content_keys(column: pa.ChunkedArray) -> Ids:
    """Keys of texts, of vectors by their bits, or the keys of images as they stand, uint64 (rows, 2)."""
    import pyarrow as pa

    from datapipe.dedup.exact import text_keys
    from datapipe.storage.rowid import ID_TYPE, ids_from_arrow, value_digests

    if column.type == ID_TYPE:
        return ids_from_arrow(column)
    return value_digests(column) if pa.types.is_fixed_size_binary(column.type) else text_keys(column)


class Matcher:
    """The three rules of protection over one evaluation set.

    Args:
        evaluation: The rows to compare with.
        threshold: Cosine from which a row matches nearly.
        content: `text`, `image` or `vector`: the column by which rows are equal.
    """

    def __init__(self, evaluation: EvaluationSet, threshold: float, *, content: str) -> None:
        from datapipe.dedup.contained import gram_index
        from datapipe.dedup.exact import text_keys
        from datapipe.dedup.near import near_index
        from datapipe.dedup.protect import sort_keys

        self._evaluation, self._content = evaluation, content
        self._index: GramIndex | None = None
        self._near: NearIndex | None = None
        keys = text_keys(evaluation.texts) if evaluation.texts else evaluation.keys
        self._keyed = keys is not None and len(keys) > 0
        if keys is not None and self._keyed:
            self._keys, self._places = sort_keys(keys)
        if evaluation.texts:
            self._index = gram_index(evaluation.texts)
        if evaluation.vectors is not None:
            self._near = near_index(evaluation.vectors, threshold=threshold)

    def exactly(self, keys: Ids) -> Bool:
        """Whether each key is one of the evaluation set's, bool (rows,)."""
        import numpy as np

        from datapipe.dedup.protect import protect_exact

        return protect_exact(keys, self._keys)[0] if self._keyed else np.zeros(len(keys), np.bool_)

    def match(self, rows: pa.Table, vectors: pa.Table | None, *, reason: str) -> pa.Table:
        """Evidence for every row of `rows` that a rule finds."""
        import numpy as np
        import pyarrow as pa

        from datapipe.dedup.contained import protect_contained
        from datapipe.dedup.near import protect_near
        from datapipe.dedup.protect import RULES, combine_matches, protect_exact
        from datapipe.storage.vectors import decode

        exact = contained = near = None
        if self._keyed:
            found, place = protect_exact(content_keys(rows[self._content]), self._keys)
            exact = (found, np.where(found, self._places[np.maximum(place, 0)], -1))
        if self._index is not None:
            contained = protect_contained(rows["text"].to_pylist(), self._index)
        if vectors is not None and self._near is not None:
            near = protect_near(decode(vectors["vector"]), self._near)
        matches = combine_matches(exact=exact, contained=contained, near=near)
        texts_ = self._evaluation.texts
        shown = [
            texts_[i][:SHOWN_CHARACTERS] if texts_ else f"{self._evaluation.called} {i}"
            for i in matches.evaluation.tolist()
        ]
        rules = [RULES[i] for i in matches.rules.tolist()]
        ids = rows["row_id"].combine_chunks().take(pa.array(matches.rows))
        return evidence(ids, reason, rules, matches.similarity, pa.array(shown, pa.string()))


def evidence(ids: pa.Array, reason: str, rules: list[str], similarity: Float32, match: pa.Array) -> pa.Table:
    """The table of rows that go out for one reason."""
    import pyarrow as pa

    reasons = pa.array([reason] * len(ids), pa.string())
    columns = [ids, reasons, pa.array(rules, pa.string()), pa.array(similarity, pa.float32()), match]
    return pa.table(columns, names=["row_id", "reason", "rule", "similarity", "match"])
