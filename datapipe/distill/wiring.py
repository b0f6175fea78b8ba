"""Which teachers see what of a finished run, and the stage that asks them.

    RUN/manifest.json + Question -> Lesson: columns, classes, teachers, header -> TeachRows | TeachTokens

Everything that can be refused is refused here, before a row is judged. Raises `ConfigError`, `ColumnError`,
`SoftLabelError`, `ModelError`.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from datapipe.distill.earlier import need_digest, wider_stage
from datapipe.distill.head_teacher import HEAD, HeadSettings, HeadTeacher
from datapipe.distill.header import SoftLabelHeader, Teacher
from datapipe.distill.labels import read_label_map
from datapipe.distill.teachers import ClassifierTeacher, open_causal, open_worker
from datapipe.errors import ColumnError, SoftLabelError
from datapipe.pipeline import StageOutput
from datapipe.stages.proxy import RowInputs, class_names
from datapipe.stages.teach import TeachConfig, TeachRows
from datapipe.stages.teach_tokens import KEPT, TOKEN_PART_ROWS, TeachTokens
from datapipe.storage.digest import digest_of, plain
from datapipe.storage.stage import Manifest
from datapipe.storage.verify import read_run_manifest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from datapipe.distill.labels import LabelMap
    from datapipe.distill.question import Question
    from datapipe.distill.teachers import RowTeacher
    from datapipe.stages.teach import TeachStage
    from datapipe.storage.images import ImageFiles

__all__ = ["Lesson"]

TEXT_ROWS = {"cpu": 1024, "cuda": 8192}
TOKEN_ROWS = {"cpu": 128, "cuda": 1024}
IMAGE_ROWS = 512
VECTOR_ROWS = 4096
"""Rows that go to a teacher in one call."""

_OWN = ("teach", "soft_labels")


class Lesson:
    """A finished run and the teachers that are to judge its rows.

    Args:
        folder: Of the run.
        question: What is asked.

    Attributes:
        folder: Of the run.
        question: What is asked.
        manifest: Of the run.
        outputs: Its stages by name, without those of earlier soft labels.
        header: What will be stored.

    Raises:
        SourceError: There is no finished run.
        ConfigError: Options do not go together.
        ColumnError: The run has not what a teacher needs.
        SoftLabelError: A teacher's classes are not the run's.
        ModelError: A teacher cannot be loaded.
    """

    def __init__(self, folder: Path, question: Question) -> None:
        from datapipe.settings import Settings

        self.folder, self.question = folder, question
        self.manifest = read_run_manifest(folder)
        self._settings = Settings()
        entries = [entry for entry in self.manifest["stages"] if entry["name"] not in _OWN]
        self.outputs = {entry["name"]: _opened(folder, entry) for entry in entries}
        self._columns: dict[str, str | None] = self.manifest["columns"]
        self._worker: Any = None
        self._causal = question.is_causal(self._columns)
        question.check(folder, self._columns, causal=self._causal, vectors=self._vector_stage is not None)
        self._teachers: tuple[RowTeacher, ...] = ()
        self._loaded: Any = None
        self._model = ""
        try:
            self.header = self._token_header() if self._causal else self._row_header()
        except BaseException:
            self.close()
            raise

    @property
    def fraction(self) -> float:
        """Kept rows by accepted rows, as far as alpha knows: at least a millionth."""
        counts = {name: rows for name, rows in self.manifest["counts"].items() if not name.startswith("rejected_")}
        return float(max(counts.get("kept", 0) / max(1, sum(counts.values())), 1e-6))

    @property
    def ordered(self) -> bool:
        """Whether the parts come in row_id order."""
        return self._content != "image"

    @property
    def threads(self) -> int | None:
        """Host threads; None for one a core."""
        return self._settings.workers

    def stage(self) -> TeachStage:
        """The stage that asks."""
        if self._causal:
            return self._token_stage()
        labels = {"label": str(self._columns["label"])} if self._columns["label"] is not None else {}
        settings = TeachConfig(
            header=self.header,
            rows=self.question.rows,
            content=self._content,
            slice_rows=self._slice_rows,
            columns=labels,
            files=self._files if self._content == "image" else (),
        )
        return TeachRows(
            settings=settings,
            digests=tuple(teacher.digest for teacher in self._teachers),
            bits=_platform([teacher.platform for teacher in self._teachers]),
            teachers=self._teachers,
            vectors=self._vectors if HEAD in self.question.teachers else None,
            images=self._images if self._content == "image" else None,
        )

    def wider(self) -> StageOutput | None:
        """A finished stage of the same teachers over more rows, unless the stage itself is there."""
        return wider_stage(self.folder, self.outputs, self.stage())

    def close(self) -> None:
        """Let go of the teachers."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    @property
    def _content(self) -> str:
        return self.question.content(self._columns, causal=self._causal)

    @property
    def _vector_stage(self) -> str | None:
        if "embed" in self.outputs:
            return "embed"
        return "ingest/rows" if self._columns["vector"] is not None else None

    @cached_property
    def _vectors(self) -> RowInputs:
        return RowInputs(vectors=str(self._vector_stage), labelled=True, screened="screen" in self.outputs)

    @property
    def _files(self) -> tuple[str, ...]:
        return tuple(file["sha256"] for file in self.manifest["source"]["files"])

    @property
    def _device(self) -> str:
        return self.question.device or self._settings.device

    @cached_property
    def _images(self) -> ImageFiles:
        from datapipe.stages.images import image_files
        from datapipe.storage.source import open_source

        column = str(self._columns["image"])
        names = [file["name"] for file in self.manifest["source"]["files"]]
        limits = self._settings.limits.as_limits()
        source = open_source(names, limits=limits, text_columns=(column,))
        return image_files(source, column, settings=self._settings)

    @property
    def _slice_rows(self) -> int:
        if self._content == "vector":
            return VECTOR_ROWS
        if self._content == "image":
            return IMAGE_ROWS
        return TEXT_ROWS[self._kind()]

    def _kind(self) -> str:
        """`cpu` or `cuda`, where the teachers run."""
        platforms = [dict(self._loaded.bits)] if self._loaded is not None else [t.platform for t in self._teachers]
        return "cuda" if any(platform.get("device") not in {None, "cpu"} for platform in platforms) else "cpu"

    def _row_header(self) -> SoftLabelHeader:
        asked = self.question
        names = class_names(self.outputs["ingest"]) if self._columns["label"] is not None else None
        mapping: Any = asked.label_map
        if mapping is not None and not isinstance(mapping, (dict, list, tuple)):
            mapping = read_label_map(mapping)
        teachers: list[RowTeacher] = []
        for model in asked.teachers:
            if model == HEAD:
                teachers.append(self._head())
                continue
            taught = self._classifier(model, names, list(mapping) if isinstance(mapping, tuple) else mapping)
            names = list(taught.classes)
            teachers.append(taught)
        self._teachers = tuple(teachers)
        classes = names or []
        if len(classes) < 2:  # noqa: PLR2004 - one class needs no teacher
            raise SoftLabelError(
                f"a teacher tells classes apart, and {self.folder} has {len(classes)}, {classes}: was it given the "
                "right label column?"
            )
        about = {"content": self._content, "teachers": [teacher.digest for teacher in teachers]}
        return SoftLabelHeader(
            level="row",
            classes=len(classes),
            teachers=tuple(Teacher(teacher.name, teacher.digest) for teacher in teachers),
            preprocessing=digest_of(about),
            class_names=tuple(classes),
            seed=asked.seed,
            **asked.mode(len(classes), "row"),
        )

    def _classifier(self, model: str, names: list[str] | None, mapping: LabelMap | None) -> ClassifierTeacher:
        images = self._content == "image"
        if self._worker is None:
            self._worker = open_worker(
                self.question.url, device=self._device, images=images, threads=self._settings.threads
            )
        return ClassifierTeacher(model, worker=self._worker, images=images, classes=names, mapping=mapping)

    def _head(self) -> HeadTeacher:
        from datapipe.stages.embedder import arithmetic_bits
        from datapipe.workers.device import resolve_devices

        settings = HeadSettings(folds=self.question.folds, seed=self.question.seed)
        inputs = [need_digest(self.outputs, need) for need in self._vectors.needs]
        device = str(resolve_devices(self._device)[0])
        return HeadTeacher(
            settings=settings,
            digest=digest_of({"head": plain(settings), "learns": inputs}),
            device=device,
            platform=arithmetic_bits(device),
        )

    def _token_header(self) -> SoftLabelHeader:
        from datapipe.embedding.text import tokenizer_digest

        asked, threads = self.question, self._settings.threads
        found = open_causal(asked.teachers, url=asked.url, device=self._device, threads=threads)
        self._worker, self._loaded, self._model = found.worker, found.loaded, found.model
        return SoftLabelHeader(
            level="token",
            classes=int(self._loaded.dim),
            teachers=found.teachers,
            preprocessing=digest_of({"content": "tokens", "columns": self._own_columns()}),
            tokenizer=tokenizer_digest(asked.tokenizer or asked.teachers[0]),
            seed=asked.seed,
            **asked.mode(int(self._loaded.dim), "token"),
        )

    def _own_columns(self) -> dict[str, str]:
        """The source's columns of prompts and responses, by role; none where the run's texts are taught whole."""
        import pyarrow.parquet as pq

        asked = self.question
        roles = {"prompt": asked.prompt_column, "response": asked.response_column}
        columns = {role: name for role, name in roles.items() if name is not None}
        if not columns:
            return {}
        there = pq.read_schema(self.outputs["export"].path / KEPT).names
        for role, name in columns.items():
            if name not in there:
                raise ColumnError(f"{role}_column {name!r} is not in kept.parquet; its columns are {', '.join(there)}")
        return columns

    def _token_stage(self) -> TeachTokens:
        columns = self._own_columns()
        settings = TeachConfig(
            header=self.header,
            rows=self.question.rows,
            content="text",
            slice_rows=TOKEN_ROWS[self._kind()],
            part_rows=TOKEN_PART_ROWS,
            columns=columns,
            files=self._files if columns else (),
        )
        return TeachTokens(
            settings=settings,
            digests=(str(self._loaded.digest),),
            bits=dict(self._loaded.bits),
            worker=self._worker,
            model=self._model,
        )


def _opened(folder: Path, entry: Mapping[str, Any]) -> StageOutput:
    path = folder / "stages" / entry["key"]
    manifest = Manifest.read(path / entry["manifest"])
    return StageOutput(name=entry["name"], path=path, manifest_name=entry["manifest"], manifest=manifest)


def _platform(platforms: list[Mapping[str, str]]) -> dict[str, str]:
    """Of one teacher its own; of several each under its number."""
    if len(platforms) == 1:
        return dict(platforms[0])
    return {f"{at}.{name}": value for at, each in enumerate(platforms) for name, value in each.items()}
