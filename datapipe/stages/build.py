"""Which stages a run has, from its options and its source.

ingest -> [embed | tokens] -> [screen] -> the metric's family (its last stage: score) -> select -> export -> report
"""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from datapipe.config import SCORES_OPTIONS, CurateConfig, budget_of
from datapipe.errors import ColumnError
from datapipe.metrics.base import get_metric
from datapipe.stages.changes import Changes
from datapipe.stages.columns import resolve_columns
from datapipe.stages.drift import continued
from datapipe.stages.duplicates import DuplicatesConfig, FindDuplicates
from datapipe.stages.embed import Embed
from datapipe.stages.embed_images import EmbedImages
from datapipe.stages.embedder import Embedder, arithmetic_bits
from datapipe.stages.evaluation import Evaluation
from datapipe.stages.export import Export
from datapipe.stages.images import check_image_model, image_files
from datapipe.stages.ingest import Ingest
from datapipe.stages.ingest_more import ingest_of_update
from datapipe.stages.report import Report, ReportConfig
from datapipe.stages.scoring import ScoreFamily, ScoreInputs, family_of
from datapipe.stages.screen import Screen, ScreenConfig
from datapipe.stages.select import Select, SelectConfig
from datapipe.stages.tokens import CountTokens
from datapipe.storage.digest import plain

if TYPE_CHECKING:
    from datapipe.metrics.base import Metric
    from datapipe.pipeline import Stage
    from datapipe.settings import Settings
    from datapipe.stages.history import History
    from datapipe.storage.images import ImageFiles
    from datapipe.storage.ingest import IngestSpec
    from datapipe.storage.source import Source


def metric_of(config: CurateConfig) -> Metric:
    """The declaration of the run's metric; that of imported scores has the direction that the options tell."""
    if config.metric != "imported":
        return get_metric(config.metric)
    from datapipe.metrics.imported import declared

    return declared(config.scores_higher)


class Wiring:
    """A run's columns, model and stages.

    Args:
        config: The options.
        source: The opened source.
        settings: The machine's settings.
        history: The run that this one brings up to date; None for a run of its own.

    Raises:
        ColumnError: A column that the run needs is not there.
    """

    def __init__(
        self, config: CurateConfig, source: Source, *, settings: Settings, history: History | None = None
    ) -> None:
        self.config, self.source, self.settings, self.history = config, source, settings, history
        self.columns = resolve_columns(config, source.schema)
        self.metric = metric_of(config)
        self.needs = frozenset() if config.dynamics is not None else self.metric.needs
        if "labels" in self.needs and self.columns.label is None:
            raise ColumnError(f"the metric {self.metric.name} needs labels: name their column with label_column")
        if self.columns.image is not None:
            check_image_model(config.model, column=self.columns.image, embeds=self.embeds)
        self.family: ScoreFamily = family_of(self.metric.name)
        self.digests: tuple[str, ...] = ()

    @cached_property
    def embedder(self) -> Embedder:
        """The run's embedder, loaded when it is first asked for."""
        task = "embed" if self.columns.image is None else "embed_image"
        return Embedder(self.config.model, device=self.config.device or self.settings.device, task=task)

    @cached_property
    def images(self) -> ImageFiles | None:
        """The reader of the image column; None where the run has none."""
        name = self.columns.image
        return image_files(self.source, name, settings=self.settings) if name is not None else None

    @property
    def embeds(self) -> bool:
        """Whether rows have to be embedded: the metric or near matches need vectors, and the source brings none."""
        compares = self.config.protect is not None or self.config.dedup == "semantic"
        wanted = "vectors" in self.needs or compares
        given = (self.columns.text, self.columns.image)
        return wanted and self.columns.vector is None and given != (None, None)

    @property
    def vectors(self) -> str | None:
        """Where the stages find vectors; None where the run has none."""
        if self.columns.vector is not None:
            return "ingest/rows"
        return "embed" if self.embeds else None

    @property
    def tokens(self) -> str | None:
        """The stage that counts tokens; None where the budget does not need them."""
        if self.config.keep_tokens is None:
            return None
        return "embed" if self.embeds and self.config.tokenizer is None else "tokens"

    @property
    def screens(self) -> bool:
        """Whether rows may be taken out before the selection."""
        taken_out = self.config.dedup != "none" or self.columns.split is not None
        return self.config.protect is not None or taken_out

    @property
    def stage_names(self) -> list[str]:
        """The names of the stages, in order."""
        optional = {
            "embed": self.embeds,
            "tokens": self.tokens == "tokens",
            "duplicates": self.config.dedup == "semantic",
            "screen": self.screens,
            "changes": self.history is not None,
        }
        own = self.family.stages
        order = ("ingest", "embed", "tokens", "duplicates", "screen", *own, "select", "changes", "export", "report")
        return [name for name in order if optional.get(name, True)]

    @property
    def model_facts(self) -> dict[str, Any] | None:
        """Name, digest and platform of the embedder, for the manifest; None where the run has none."""
        if not self.embeds:
            return None
        return {"name": self.embedder.name, "digest": self.embedder.digest, "platform": dict(self.embedder.bits)}

    def stages(self, digests: tuple[str, ...]) -> list[Stage]:
        """Make the stages over a source with these file digests."""
        self.digests = digests
        makers = {
            "ingest": lambda: self._ingest(digests),
            "embed": self._embed,
            "tokens": self._count_tokens,
            "duplicates": self._duplicates,
            "screen": self._screen,
            "select": self._select,
            "export": lambda: Export(self.source, digests, self.metric.name),
            "report": self._report,
        }
        own = dict(zip(self.family.stages, self.family.make(self._score_inputs()), strict=True))
        if self.history is not None:
            makers["changes"] = partial(Changes.of, self.metric.name, self.history)
            own |= {name: continued(stage, self.history) for name, stage in own.items()}
        return [own[name] if name in own else makers[name]() for name in self.stage_names]

    def _ingest(self, digests: tuple[str, ...]) -> Stage:
        whole = Ingest(self.source, digests, self._ingest_spec(), self.images)
        return whole if self.history is None else ingest_of_update(whole, self.history)

    def _ingest_spec(self) -> IngestSpec:
        from datapipe.storage.ingest import IngestSpec

        return IngestSpec(
            text_column=self.columns.text,
            vector_column=self.columns.vector,
            label_column=self.columns.label,
            split_column=self.columns.split,
            group_column=self.columns.balance,
            image_column=self.columns.image,
            id_column=self.columns.id,
            shard_rows=self.config.shard_rows,
            max_cell_bytes=self.settings.limits.max_cell_bytes,
        )

    def _embed(self) -> Stage:
        model = self.embedder
        if self.images is not None:
            return EmbedImages(
                images=self.images,
                files=self.digests,
                worker=model.worker,
                model=model.name,
                digest=model.digest,
                dim=model.dim,
                batch=model.batch,
                bits=model.bits,
            )
        return Embed(worker=model.worker, model=model.name, digest=model.digest, dim=model.dim, bits=model.bits)

    def _count_tokens(self) -> Stage:
        from datapipe.embedding.text import tokenizer_digest

        model = self.config.tokenizer or self.config.model
        return CountTokens(model, tokenizer_digest(model))

    def _device(self) -> tuple[str, dict[str, str]]:
        from datapipe.workers.device import resolve_devices

        device = str(resolve_devices(self.config.device or self.settings.device)[0])
        return device, arithmetic_bits(device)

    def _score_inputs(self) -> ScoreInputs:
        device, bits = self._device() if self.needs - {"scores"} else ("cpu", {})
        return ScoreInputs(
            metric=self.metric.name,
            vectors=self.vectors,
            labelled=self.columns.label is not None,
            screened=self.screens,
            prototypes=self.config.prototypes,
            seed=self.config.seed,
            device=device,
            bits=bits,
            options={name: getattr(self.config, name) for name in ("dynamics", *SCORES_OPTIONS)},
        )

    def _select(self) -> Stage:
        return Select(
            SelectConfig(
                metric=self.metric.name,
                higher=self.metric.higher,
                clusters=self.family.clusters,
                strategy=self.config.strategy,
                budget=budget_of(self.config),
                labelled=self.columns.label is not None,
                balanced=self.columns.balance is not None,
                tokens=self.tokens,
                screened=self.screens,
                seed=self.config.seed,
                preset=self.config.preset,
                window_start=self.config.window_start,
            )
        )

    @property
    def _content(self) -> str:
        if self.columns.image is not None:
            return "image"
        return "text" if self.columns.text is not None else "vector"

    def _duplicates(self) -> Stage:
        if self.vectors is None:
            raise ColumnError("dedup='semantic' compares vectors: name the text_column or the embedding_column")
        if self.config.dedup_keep == "longest" and self._content != "text":
            raise ColumnError("dedup_keep='longest' compares lengths of texts: name the text_column")
        device, bits = self._device()
        settings = DuplicatesConfig(
            vectors=self.vectors,
            content=self._content,
            threshold=self.config.dedup_threshold,
            keep=self.config.dedup_keep,
            split=self.config.split if self.columns.split is not None else None,
            seed=self.config.seed,
        )
        return FindDuplicates(settings, device, bits)

    def _screen(self) -> Stage:
        config = self.config
        content = self._content
        split = config.split if self.columns.split is not None else None
        if config.protect is None:
            near = split is not None and config.leaks == "near"
            threshold = config.protect_threshold if near else 1.0
            settings = ScreenConfig(
                dedup=config.dedup, threshold=threshold, content=content, split=split, leaks=config.leaks
            )
            return Screen(settings, self.vectors if near else None, None)
        evaluation = Evaluation(self)
        settings = ScreenConfig(
            dedup=config.dedup,
            evaluation=evaluation.source.digests(),
            threshold=config.protect_threshold,
            content=content,
            split=split,
            leaks=config.leaks,
        )
        models = (self.embedder.digest,) if self.embeds else ()
        return Screen(settings, self.vectors, evaluation.load, models)

    def _report(self) -> Stage:
        from datapipe.runs import versions

        label = "label" if self.columns.label is not None else "group" if self.columns.balance is not None else None
        return Report(
            ReportConfig(
                title=PurePosixPath(self.source.files[0].uri).name if len(self.source.files) == 1 else self._title(),
                options=plain(self.config),
                versions=versions(),
                seed=self.config.seed,
                model=self.embedder.name if self.embeds else None,
                model_digest=self.embedder.digest if self.embeds else None,
                metric=self.metric.name,
                higher=self.metric.higher,
                label=label,
                label_name=self.columns.label or self.columns.balance,
                vectors=self.vectors,
                texts=self.columns.text is not None,
                screened=self.screens,
            ),
            self.images,
        )

    def _title(self) -> str:
        first = PurePosixPath(self.source.files[0].uri)
        return f"{first.parent.name or first.name} ({len(self.source.files):,} files)"
