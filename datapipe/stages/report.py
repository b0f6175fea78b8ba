"""The run's page.

Reads what the stages before it put out: counts from facts, and one pass over scores, choice, labels, texts and vectors.
Writes `report.html` and `facts.json`, the plain data behind the page. Memory: the strata, and a hash-order sample of
rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.pipeline import Context, SetStage, StageOutput
from datapipe.stages.report_sample import Sample, examples_of, rows_in
from datapipe.stages.select import read_selection
from datapipe.stages.thumbnails import pictured

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pyarrow as pa

    from datapipe.report.facts import MapFacts, MatchFacts, RowCounts, RunFacts
    from datapipe.report.tally import Tally
    from datapipe.storage.arrays import Ids
    from datapipe.storage.images import ImageFiles
    from datapipe.storage.stage import StageDir

PAGE = "report.html"
FACTS = "facts.json"
SAMPLE_ROWS = 4_000
SHOWN_MATCHES = 20
LEAST_MAPPED = 3


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What the page says that no stage knows.

    Attributes:
        title: The source's name.
        options: The run's options.
        versions: Package name to version.
        seed: Seeds sample and map.
        model: Name of the embedder; None where vectors were given or not needed.
        model_digest: Digest of its files.
        metric: The score column.
        higher: What a high score means.
        label: `label`, `group`, or None: the column whose balance is shown.
        label_name: That column's name in the source.
        vectors: Where the vectors are; None for no map.
        texts: Whether rows have texts to show.
        screened: Whether rows were screened.
    """

    title: str
    options: Mapping[str, Any]
    versions: Mapping[str, str]
    seed: int
    model: str | None
    model_digest: str | None
    metric: str
    higher: str
    label: str | None
    label_name: str | None
    vectors: str | None
    texts: bool
    screened: bool


@dataclass(frozen=True)
class Report(SetStage):
    """Gather the facts of the run and draw its page.

    Attributes:
        settings: The frozen config.
        images: Reads the image column; None where the run has none.
    """

    name: ClassVar[str] = "report"
    version: ClassVar[int] = 4

    settings: ReportConfig
    images: ImageFiles | None = None

    @property
    def config(self) -> ReportConfig:
        """The frozen config."""
        return self.settings

    @property
    def needs(self) -> tuple[str, ...]:
        """Everything that the page shows."""
        asked = ["ingest/rows", "score", "select"]
        if self.settings.vectors not in {None, "ingest/rows"}:
            asked.append(str(self.settings.vectors))
        if self.settings.screened:
            asked.append("screen/excluded")
        if self.images is not None:
            asked.append("ingest/places")
        return tuple(asked)

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Draw the page."""
        from datapipe.report.facts import facts_to_json
        from datapipe.report.page import build_report

        facts = _Gatherer(self.settings, inputs, context, self.images).facts()
        out.write_bytes(FACTS, facts_to_json(facts))
        out.write_bytes(PAGE, build_report(facts).encode())
        return [PAGE, FACTS], {"rows": facts.counts.rows_in}


class _Gatherer:
    """One pass over the aligned shards."""

    def __init__(
        self,
        settings: ReportConfig,
        inputs: Mapping[str, StageOutput],
        context: Context,
        images: ImageFiles | None = None,
    ) -> None:
        self._settings, self._inputs, self._context, self._images = settings, inputs, context, images

    def facts(self) -> RunFacts:
        from datapipe.report.facts import RunFacts, RunIdentity, StrategyFacts
        from datapipe.report.tally import Tally

        settings, select = self._settings, self._inputs["select"].facts
        tally = Tally(self._edges())
        sample = self._pass(tally)
        shows = settings.texts or self._images is not None
        examples, matches = (examples_of(sample), self._matches()) if shows else ((), ())
        if self._images is not None:
            scratch = self._context.scratch / "places"
            examples, matches = pictured(examples, matches, self._inputs["ingest"], self._images, scratch=scratch)
        cuts = sorted({stratum["cut"] for stratum in select["strata"] if "cut" in stratum})
        return RunFacts(
            identity=RunIdentity(
                source=settings.title,
                digest=self._inputs["select"].digest,
                seed=settings.seed,
                model=settings.model,
                model_digest=settings.model_digest,
                config=settings.options,
                versions=settings.versions,
            ),
            counts=self._counts(),
            strategy=StrategyFacts(
                name=str(settings.options.get("preset") or settings.options["strategy"]),
                budget=budget_in_words(select["budget"], screened=settings.screened),
                why=tuple(select["reasons"]),
                warnings=tuple(select["warnings"]),
            ),
            scores=tally.histogram(metric=settings.metric, higher=settings.higher, cuts=cuts if len(cuts) == 1 else ()),
            strata=tally.strata(),
            balance=tally.balance(column=settings.label_name or "label"),
            map=self._map(sample),
            matches=matches,
            matched=self._inputs["screen"].manifest.rows if settings.screened else 0,
            examples=examples,
        )

    def _counts(self) -> RowCounts:
        from datapipe.report.facts import RowCounts

        ingest, select = self._inputs["ingest"].facts, self._inputs["select"].facts
        reasons = dict(select["counts"])
        embed = self._inputs["embed"].facts if "embed" in self._inputs else {}
        return RowCounts(
            rows_in=int(ingest["rows_in"]),
            kept=reasons.pop("kept", 0),
            rejected=dict(ingest["rejected"]),
            dropped=reasons,
            truncated=int(embed.get("truncated", 0)),
            duplicates=int(ingest["duplicates"]),
            tokens=int(embed["tokens"]) if "tokens" in embed else None,
            tokens_kept=select.get("kept_tokens"),
        )

    def _edges(self) -> tuple[float, ...]:
        import pyarrow.compute as pc

        from datapipe.report.measure import nice_edges

        low, high = float("inf"), float("-inf")
        for table in self._inputs["score"].tables(columns=[self._settings.metric]):
            if table.num_rows:
                ends = pc.min_max(table[self._settings.metric]).as_py()
                low, high = min(low, ends["min"]), max(high, ends["max"])
        return nice_edges(low, high)

    def _pass(self, tally: Tally) -> Sample:
        """Count everything, and remember the rows of the sample, in row_id order."""
        import numpy as np

        settings, inputs = self._settings, self._inputs
        wanted = self._wanted()
        vectors = self._vector_tables()
        rows = inputs["ingest"].tables("rows", columns=[name for name in (settings.label, self._text) if name])
        chosen = read_selection(inputs["select"], inputs["score"].shards())
        sample = Sample()
        for table in inputs["score"].tables(columns=["row_id", settings.metric]):
            choice, own, beside = next(chosen), next(rows), next(vectors) if vectors is not None else None
            scores, kept = table[settings.metric].to_numpy(), choice["kept"].to_numpy()
            labels = own[settings.label] if settings.label else None
            tally.add(scores, np.asarray(kept, np.bool_), choice["stratum"], labels=labels)
            sample.add(rows_in(table["row_id"], wanted), table["row_id"], scores, choice, own, beside)
            self._context.tick(table.num_rows)
        return sample

    @property
    def _text(self) -> str | None:
        return "text" if self._settings.texts else None

    def _wanted(self) -> Ids:
        from datapipe.storage.order import seed_for, smallest
        from datapipe.storage.rowid import ids_from_arrow

        ids = (ids_from_arrow(table["row_id"]) for table in self._inputs["score"].tables(columns=["row_id"]))
        return smallest(ids, SAMPLE_ROWS, seed_for("report", self._settings.seed))

    def _vector_tables(self) -> Iterator[pa.Table] | None:
        if self._settings.vectors is None:
            return None
        name, _, family = self._settings.vectors.partition("/")
        return self._inputs[name].tables(family or None, columns=["vector"])

    def _map(self, sample: Sample) -> MapFacts | None:
        import numpy as np

        from datapipe.report.facts import MapFacts
        from datapipe.report.map2d import map_2d
        from datapipe.report.measure import map_points

        if not sample.vectors or len(sample.ids) < LEAST_MAPPED:
            return None
        xy, method = map_2d(np.concatenate(sample.vectors), seed=self._settings.seed)
        total = self._inputs["score"].manifest.rows
        note = (
            "every row" if len(sample.ids) == total else f"{len(sample.ids):,} of {total:,} rows, drawn by hash order"
        )
        kept, scores = np.array(sample.kept, np.bool_), np.array(sample.scores, np.float32)
        return MapFacts(method=method, note=note, points=map_points(xy, kept, sample.strata, scores=scores))

    def _matches(self) -> tuple[MatchFacts, ...]:
        if not self._settings.screened:
            return ()
        import pyarrow.compute as pc

        from datapipe.report.facts import MatchFacts

        found: list[MatchFacts] = []
        asked = [name for name in ("row_id", self._text) if name is not None]
        rows = self._inputs["ingest"].tables("rows", columns=asked)
        for table in self._inputs["screen"].tables("excluded"):
            own, weakest = next(rows), table.sort_by("similarity").slice(0, SHOWN_MATCHES)
            places = pc.index_in(weakest["row_id"], value_set=own["row_id"].combine_chunks())
            texts = own["text"].take(places).to_pylist() if self._text is not None else [""] * len(places)
            found += [
                MatchFacts(
                    rule=match["rule"],
                    text=text,
                    other=match["match"],
                    row_id=match["row_id"].hex(),
                    similarity=match["similarity"],
                )
                for match, text in zip(weakest.to_pylist(), texts, strict=True)
            ]
            found = sorted(found, key=lambda match: (match.similarity, match.row_id))[:SHOWN_MATCHES]
        return tuple(found)


def budget_in_words(budget: Mapping[str, Any], *, screened: bool) -> str:
    """Say a budget: `30 % of the accepted rows`, `1,000 rows`, `at most 50,000 tokens`."""
    if "fraction" in budget:
        rows = "the rows left after screening" if screened else "the accepted rows"
        return f"{100 * budget['fraction']:g} % of {rows}"
    if "rows" in budget:
        return f"{budget['rows']:,} rows"
    return f"at most {budget['tokens']:,} tokens"
