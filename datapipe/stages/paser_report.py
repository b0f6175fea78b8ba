"""The page of a selection for recovery.

Reads `pool/rows`, `skills`, `vectors`, `pick` and `atlas`. Writes `report.html`, and `facts.json`, what every run's
page is built from. Memory: a few numbers a row, and a hash-order sample of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from datapipe.pipeline import Context, SetStage, StageOutput, read_shard
from datapipe.stages.atlas import DAMAGE, WHOLE
from datapipe.stages.report_sample import Sample, examples_of, rows_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from datapipe.report.facts import MapFacts, RowCounts, RunFacts
    from datapipe.report.paser_facts import CurveFacts, RecoveryFacts, SkillFacts, VariantFacts
    from datapipe.report.tally import Tally
    from datapipe.storage.stage import StageDir

__all__ = ["FACTS", "PAGE", "RecoveryReport", "RecoveryReportConfig"]

PAGE = "report.html"
FACTS = "facts.json"
SAMPLE_ROWS = 4_000
LEAST_MAPPED = 3
BY_SKILL = ("ours", "paper")
"""Methods that rank the rows of each skill by themselves."""
BUDGETS = (0.0, 0.01, 0.02, 0.05, *(each / 20 for each in range(2, 21)))
SELECTION, CLUSTERS = "selection.parquet", "clusters.parquet"
INSTRUCTION_CHARACTERS = 120
"""Of the instruction in an example, so that something of the response is seen too."""


@dataclass(frozen=True, kw_only=True)
class RecoveryReportConfig:
    """What the page says that no stage knows.

    Attributes:
        title: The pool's name.
        options: The run's options.
        versions: Package name to version.
        seed: Seeds sample and map.
        method: How rows are chosen.
        budget: What was asked for, in words.
        reasons: How rows are chosen, a sentence each.
        unit: What the budget counts.
        original: Name of the original model.
        original_digest: Digest of its files.
        variants: Labels of the pruned models; the first decides.
        states: Whether the original has read all rows, and so counted those that it did not see whole.
    """

    title: str
    options: Mapping[str, Any]
    versions: Mapping[str, str]
    seed: int
    method: str
    budget: str
    reasons: tuple[str, ...]
    unit: Literal["rows", "tokens"]
    original: str
    original_digest: str
    variants: tuple[str, ...]
    states: bool


@dataclass(frozen=True)
class RecoveryReport(SetStage):
    """Gather the facts of the run and draw its page."""

    name: ClassVar[str] = "paser_report"
    version: ClassVar[int] = 1

    settings: RecoveryReportConfig

    @property
    def config(self) -> RecoveryReportConfig:
        """See `RecoveryReportConfig`."""
        return self.settings

    @property
    def needs(self) -> tuple[str, ...]:
        """Everything that the page shows."""
        return ("pool/rows", "skills", "vectors", "pick", "atlas", *(["states"] if self.settings.states else []))

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Draw the page."""
        from datapipe.report.facts import facts_to_json
        from datapipe.report.paser import build_recovery_report

        facts = _Gatherer(self.settings, inputs, context).facts()
        out.write_bytes(FACTS, facts_to_json(facts.run))
        out.write_bytes(PAGE, build_recovery_report(facts).encode())
        return [PAGE, FACTS], {"rows": facts.run.counts.rows_in}


class _Gatherer:
    """One pass over the aligned shards of the pool; the choice is held whole."""

    def __init__(self, settings: RecoveryReportConfig, inputs: Mapping[str, StageOutput], context: Context) -> None:
        self._settings, self._inputs, self._context = settings, inputs, context
        self._choice = read_shard(inputs["pick"].path / SELECTION)
        self._atlas = read_shard(inputs["atlas"].path / DAMAGE)

    def facts(self) -> RecoveryFacts:
        from datapipe.report.paser_facts import RecoveryFacts

        skills = self._skills()
        found = self._inputs["skills"].facts
        return RecoveryFacts(
            run=self._run([skill.name for skill in skills]),
            unit=self._settings.unit,
            original=self._settings.original,
            skills=skills,
            variants=tuple(self._variant(label) for label in self._settings.variants),
            stability={int(k): float(index) for k, index in dict(found.get("stability") or {}).items()},
            recall=found.get("recall"),
            curve=self._curve(skills),
        )

    def _skills(self) -> tuple[SkillFacts, ...]:
        from datapipe.report.paser_facts import SkillFacts

        told = self._inputs["skills"].facts
        rows = sorted(read_shard(self._inputs["pick"].path / CLUSTERS).to_pylist(), key=lambda row: int(row["cluster"]))
        return tuple(
            SkillFacts(
                cluster=row["cluster"],
                words=tuple(told["names"][row["cluster"]]),
                rows=row["rows"],
                measured=row["measured"],
                damage=row["cds"],
                low=row["low"],
                high=row["high"],
                share=row["share"],
                budget=None if row["budget"] is None else round(row["budget"]),
                taken=row["taken"],
                tokens_taken=row["tokens_taken"],
                acceptance=row["acceptance"],
                examples=tuple(_instruction(each) for each in told["examples"][row["cluster"]]),
            )
            for row in rows
        )

    def _variant(self, label: str) -> VariantFacts:
        import pyarrow.compute as pc

        from datapipe.report.paser_facts import VariantFacts

        own = self._atlas.filter(pc.equal(self._atlas["variant"], label)).to_pylist()
        whole = next(row for row in own if row["cluster"] == WHOLE)
        skills = sorted((row for row in own if row["cluster"] != WHOLE), key=lambda row: int(row["cluster"]))
        return VariantFacts(
            label=label,
            damage=tuple(row["cds"] if row["measured"] else None for row in skills),
            mean=whole["jsd_mean"],
            disagree=whole["disagree"],
        )

    def _run(self, names: list[str]) -> RunFacts:
        from datapipe.report.facts import RunFacts, RunIdentity, StrategyFacts
        from datapipe.report.tally import Tally

        settings, pick = self._settings, self._inputs["pick"].facts
        tally = Tally(self._edges())
        sample = self._pass(tally, names)
        balance = tally.balance(column="source")
        return RunFacts(
            identity=RunIdentity(
                source=settings.title,
                digest=self._inputs["pick"].digest,
                seed=settings.seed,
                model=settings.original,
                model_digest=settings.original_digest,
                config=settings.options,
                versions=settings.versions,
            ),
            counts=self._counts(),
            strategy=StrategyFacts(
                name=settings.method,
                budget=settings.budget,
                why=settings.reasons,
                warnings=tuple(pick.get("warnings") or ()),
            ),
            scores=tally.histogram(metric="damage", higher="more damage"),
            strata=tally.strata(),
            balance=balance if balance is not None and len(balance.before) > 1 else None,
            map=self._map(sample),
            examples=examples_of(sample),
        )

    def _counts(self) -> RowCounts:
        from datapipe.report.facts import RowCounts

        pool = self._inputs["pool"].facts
        reasons = dict(self._inputs["pick"].facts["counts"])
        rejected = dict(pool["rejected"])
        tokens, kept = self._choice["tokens"].to_numpy(), self._choice["kept"].to_numpy()
        return RowCounts(
            rows_in=int(pool["rows"]) + sum(rejected.values()),
            kept=reasons.pop("kept", 0),
            rejected=rejected,
            dropped=reasons,
            truncated=int(self._inputs["states"].facts["truncated"]) if self._settings.states else 0,
            duplicates=int(pool.get("duplicates", 0)),
            tokens=int(tokens.sum()),
            tokens_kept=int(tokens[kept].sum()),
        )

    def _edges(self) -> tuple[float, ...]:
        import numpy as np

        from datapipe.report.measure import nice_edges

        damage = self._choice["jsd_mean"].to_numpy()
        known = damage[np.isfinite(damage)]
        return nice_edges(float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)

    def _pass(self, tally: Tally, names: list[str]) -> Sample:
        """Count everything, and remember the rows of the sample, in row_id order."""
        import numpy as np
        import pyarrow as pa

        from datapipe.storage.order import seed_for, smallest
        from datapipe.storage.rowid import ids_from_arrow

        ids = ids_from_arrow(self._choice["row_id"])
        wanted = smallest(iter([ids]), SAMPLE_ROWS, seed_for("paser_report", self._settings.seed))
        vectors = self._inputs["vectors"].tables(columns=["question"])
        shown, at, sample = pa.array(names, pa.string()), 0, Sample()
        for rows in self._inputs["pool"].tables("rows", columns=["row_id", "instruction", "response", "source"]):
            own = self._choice.slice(at, rows.num_rows)
            at += rows.num_rows
            damage = own["jsd_mean"].to_numpy().astype(np.float32)
            strata = pa.chunked_array([shown.take(own["cluster"].combine_chunks())])
            tally.add(damage, np.asarray(own["kept"].to_numpy(), np.bool_), strata, labels=rows["source"])
            places = rows_in(rows["row_id"], wanted)
            choice = pa.table({"kept": own["kept"], "stratum": strata})
            beside = next(vectors).rename_columns(["vector"])
            sample.add(places, rows["row_id"], damage, choice, _texts(rows, places), beside)
            self._context.tick(rows.num_rows)
        return sample

    def _map(self, sample: Sample) -> MapFacts | None:
        import numpy as np

        from datapipe.report.facts import MapFacts
        from datapipe.report.map2d import map_2d
        from datapipe.report.measure import map_points

        if not sample.vectors or len(sample.ids) < LEAST_MAPPED:
            return None
        xy, method = map_2d(np.concatenate(sample.vectors), seed=self._settings.seed)
        total = self._choice.num_rows
        drawn = f"{len(sample.ids):,} of {total:,} rows, drawn by hash order"
        kept, scores = np.array(sample.kept, np.bool_), np.array(sample.scores, np.float32)
        points = map_points(xy, kept, sample.strata, scores=scores)
        return MapFacts(method=method, note="every row" if len(sample.ids) == total else drawn, points=points)

    def _curve(self, skills: tuple[SkillFacts, ...]) -> CurveFacts | None:
        import numpy as np

        from datapipe.paser.curve import held_damage
        from datapipe.report.paser_facts import CurveFacts

        own = self._choice
        damage = own["jsd_mean"].to_numpy().astype(np.float64)
        if not np.nansum(damage) > 0:
            return None
        tokens = own["tokens"].to_numpy().astype(np.int64)
        costs = np.maximum(tokens, 1) if self._settings.unit == "tokens" else np.ones(len(tokens), np.int64)
        kept = np.asarray(own["kept"].to_numpy(), np.bool_)
        at = float(costs[kept].sum() / costs.sum())
        budgets = np.unique(np.append(BUDGETS, at))
        labels, shares = own["cluster"].to_numpy().astype(np.int64), [skill.share for skill in skills]
        if None in shares or self._settings.method not in BY_SKILL:  # ranks are those of the pool
            labels, shares = np.zeros_like(labels), [1.0]
        ranks = own["rank"].to_numpy().astype(np.int64)
        held = held_damage(damage, costs, labels, ranks, np.array(shares), budgets=budgets)
        return CurveFacts(
            budgets=tuple(budgets.tolist()),
            chosen=tuple(held.chosen.tolist()),
            random=tuple(budgets.tolist()),
            most=tuple(held.most.tolist()),
            at=at,
        )


def _texts(rows: pa.Table, places: Any) -> pa.Table:
    """Instruction and response of the rows at `places` in one text; nothing of the others."""
    import pyarrow as pa

    from datapipe.report.markup import cut

    texts: list[str | None] = [None] * rows.num_rows
    for place, row in zip(places.tolist(), rows.take(pa.array(places)).to_pylist(), strict=True):
        texts[place] = f"{cut(row['instruction'], limit=INSTRUCTION_CHARACTERS)} \u2192 {row['response']}"
    return pa.table({"text": pa.array(texts, pa.string())})


def _instruction(example: Any) -> str:
    return str(example["instruction"] if isinstance(example, dict) else example[-1])
