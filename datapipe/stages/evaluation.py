"""The rows of an evaluation file, by the same columns as the run's: what `protect` compares a run with.

    file -> columns -> texts, vectors or keys of images -> EvaluationSet

Raises `ColumnError` where the file has neither the content nor the vectors of the run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from datapipe.config import CurateConfig
from datapipe.errors import ColumnError
from datapipe.stages.columns import DEFAULT_TEXT, resolve_columns
from datapipe.stages.images import image_files, load_evaluation_images
from datapipe.stages.matching import EvaluationSet

if TYPE_CHECKING:
    from datapipe.stages.build import Wiring
    from datapipe.storage.arrays import Float32


class Evaluation:
    """The evaluation file of a run, opened.

    Args:
        wiring: The run: its columns, limits and embedder.
    """

    def __init__(self, wiring: Wiring) -> None:
        from datapipe.storage.source import open_source

        self._wiring = wiring
        asked = wiring.columns
        self.source = open_source(
            str(wiring.config.protect),
            limits=wiring.settings.limits.as_limits(),
            text_columns=tuple(name for name in (asked.text, asked.image, DEFAULT_TEXT) if name is not None),
        )
        there = self.source.schema.names
        self._column = asked.text if asked.text in there else None
        if asked.text is not None and self._column is None:
            self._column = resolve_columns(CurateConfig(), self.source.schema).text
        self._vector = asked.vector if asked.vector in there else None
        self._image = asked.image if asked.image in there else None
        if (self._column, self._vector, self._image) == (None, None, None):
            own = "image" if asked.image is not None else "text"
            raise ColumnError(
                f"{wiring.config.protect} has neither the {own} nor the vector column of the run; "
                f"its columns are {', '.join(there)}"
            )

    def load(self) -> EvaluationSet:
        """Read the rows, and embed them where the run embeds."""
        from datapipe.embedding.text import embed_texts

        vectors = self._given()
        if self._image is not None:
            files = image_files(self.source, self._image, settings=self._wiring.settings)
            found = load_evaluation_images(files, self._wiring.embedder if self._wiring.embeds else None)
            return found if vectors is None else replace(found, vectors=vectors)
        texts: list[str] = []
        for batch in self.source.batches([self._column]) if self._column is not None else ():
            texts += [text or "" for text in batch.table[self._column].to_pylist()]
        if self._wiring.embeds and self._column is not None:
            embedder = self._wiring.embedder
            vectors = embed_texts(embedder.worker(), texts, model=embedder.name)[0]
        return EvaluationSet(texts=texts if self._column is not None else None, vectors=vectors)

    def _given(self) -> Float32 | None:
        """The vectors that the file brings, of unit length."""
        import numpy as np

        from datapipe.storage.vectors import normalise, to_matrix

        if self._vector is None:
            return None
        batches = self.source.batches([self._vector])
        return np.concatenate([normalise(to_matrix(batch.table[self._vector]))[0] for batch in batches])
