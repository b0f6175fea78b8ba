"""What one run has to say, as plain data: what the page, the terminal table and the notebook summary are made from.

Equal facts give equal bytes, so nothing here knows the time, the host or a path outside the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping  # noqa: TC003 (pydantic reads the field types)
from dataclasses import dataclass, field
from typing import NamedTuple

from datapipe.errors import StageError

__all__ = [
    "ClassBalance",
    "Example",
    "MapFacts",
    "MapPoint",
    "MatchFacts",
    "RowCounts",
    "RunFacts",
    "RunIdentity",
    "ScoreHistogram",
    "StrategyFacts",
    "StratumExamples",
    "StratumFacts",
    "balance_score",
    "facts_from_json",
    "facts_to_json",
]


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """Which run this is.

    Attributes:
        source: Title of the page, such as the source's file name; no path.
        digest: Digest of the run, hexadecimal.
        seed: Seed of every seeded choice.
        model: Name of the embedding model; None where the vectors were given.
        model_digest: Digest of its files.
        config: Options of the run; values print as JSON.
        versions: Package name to version.
    """

    source: str
    digest: str
    seed: int
    model: str | None = None
    model_digest: str | None = None
    config: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RowCounts:
    """Where every row went: `rows_in == accepted + rejected`, `accepted == kept + dropped`.

    Attributes:
        rows_in: Rows read from the source.
        kept: Rows in the result.
        rejected: Reason to rows that could not be read, scored or identified.
        dropped: Reason to rows that were accepted and pruned.
        truncated: Accepted texts that were longer than the model reads.
        duplicates: Accepted rows that another row repeats, whether or not they were dropped for it.
        tokens: Tokens of the accepted rows, if counted.
        tokens_kept: Tokens of the kept rows, if counted.
    """

    rows_in: int
    kept: int
    rejected: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    truncated: int = 0
    duplicates: int = 0
    tokens: int | None = None
    tokens_kept: int | None = None

    def __post_init__(self) -> None:
        total = self.kept + sum(self.dropped.values()) + sum(self.rejected.values())
        if total != self.rows_in:
            raise StageError(
                f"{self.kept:,} rows kept, {sum(self.dropped.values()):,} dropped and {sum(self.rejected.values()):,} "
                f"rejected make {total:,}, but {self.rows_in:,} came in. This is a bug: a stage lost or made up rows"
            )

    @property
    def accepted(self) -> int:
        """Rows that could be chosen from."""
        return self.kept + sum(self.dropped.values())


@dataclass(frozen=True, kw_only=True)
class StrategyFacts:
    """How the choice was made.

    Attributes:
        name: Such as `strata` or `auto: random`.
        budget: What was asked for, in words, such as `30 % of the accepted rows`.
        why: One sentence of evidence each.
        warnings: One sentence each; shown with emphasis.
    """

    name: str
    budget: str
    why: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ScoreHistogram:
    """Scores of the accepted rows, counted in bins.

    Attributes:
        metric: Name of the score.
        higher: What a high score means: `harder`, `rarer` or `better`.
        edges: Ascending, one more than the bins; a bin holds its lower edge, the last one both.
        kept: Kept rows a bin.
        dropped: Dropped rows a bin.
        cuts: Scores where the choice cuts, if it does.
        missing: Accepted rows without a finite score.
    """

    metric: str
    higher: str
    edges: tuple[float, ...]
    kept: tuple[int, ...]
    dropped: tuple[int, ...]
    cuts: tuple[float, ...] = ()
    missing: int = 0


@dataclass(frozen=True, kw_only=True)
class StratumFacts:
    """One stratum: a class, a cluster, a bin of scores, or `all`.

    Attributes:
        name: What users call it.
        total: Accepted rows in it.
        kept: Kept rows in it.
        mean_score: Mean score of its accepted rows, if there is a score.
        scores: Kept rows and dropped rows a bin of the run's histogram, if counted.
    """

    name: str
    total: int
    kept: int
    mean_score: float | None = None
    scores: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    @property
    def dropped(self) -> int:
        """Accepted rows that were pruned."""
        return self.total - self.kept


@dataclass(frozen=True, kw_only=True)
class ClassBalance:
    """Rows a class among the accepted and among the kept rows; both name every class."""

    column: str
    before: Mapping[str, int]
    after: Mapping[str, int]

    @property
    def score_before(self) -> float:
        """Balance score of the accepted rows, see `balance_score`."""
        return balance_score(self.before.values())

    @property
    def score_after(self) -> float:
        """Balance score of the kept rows, see `balance_score`."""
        return balance_score(self.after.values())


def balance_score(counts: Iterable[int]) -> float:
    """Return the mean over all pairs of classes of the smaller size over the larger, in [0, 1].

    1 means that all classes are of one size. A pair with an empty class counts 0; fewer than two classes give 1. The
    measure of Sorscher et al. (arXiv 2206.14486). Time classes * log classes.
    """
    sizes = sorted(counts)
    if len(sizes) < 2:  # noqa: PLR2004
        return 1.0
    # Sorted, the sum over pairs i < j of n_i / n_j is the sum over j of (n_0 + ... + n_{j-1}) / n_j.
    below, total = 0, 0.0
    for size in sizes:
        total += below / size if size else 0.0
        below += size
    return total / (len(sizes) * (len(sizes) - 1) / 2)


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row to read, or to look at. The page cuts its text at 240 characters.

    Attributes:
        row_id: Its id.
        text: Its text; empty where the run has none.
        score: Its score, if there is one.
        image: A small JPEG of its image in base64, if it has one.
    """

    row_id: str
    text: str
    score: float | None = None
    image: str | None = None


@dataclass(frozen=True, kw_only=True)
class StratumExamples:
    """Some kept and some dropped rows of a stratum."""

    stratum: str
    kept: tuple[Example, ...] = ()
    dropped: tuple[Example, ...] = ()


class MapPoint(NamedTuple):
    """One row on the map; `x` and `y` in any unit."""

    x: float
    y: float
    kept: bool
    stratum: str
    score: float | None


@dataclass(frozen=True, kw_only=True)
class MapFacts:
    """A sample of the rows in two dimensions.

    Attributes:
        method: `UMAP` or `PCA`.
        note: Which rows these are, in a few words, such as `every row`.
        points: Up to about 4,000.
    """

    method: str
    note: str
    points: tuple[MapPoint, ...]


@dataclass(frozen=True, kw_only=True)
class MatchFacts:
    """One row that was taken out for another one: a duplicate, or a row of an evaluation set.

    Attributes:
        rule: `exact`, `near`, `contained`, or the name of another rule.
        text: The row taken out.
        other: The row that it matches.
        row_id: Id of the row taken out.
        similarity: Similarity by that rule, 0 to 1.
        image: A small JPEG of the row taken out in base64, where rows have images.
        other_image: The same of the row that it matches, where that is a row of the run.
    """

    rule: str
    text: str
    other: str
    row_id: str
    similarity: float
    image: str | None = None
    other_image: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Everything the report shows. What is None or empty is left out of the page, or said to be absent.

    `matches` are a few of the `matched` rows that were taken out for another one.
    """

    identity: RunIdentity
    counts: RowCounts
    strategy: StrategyFacts
    scores: ScoreHistogram | None = None
    strata: tuple[StratumFacts, ...] = ()
    balance: ClassBalance | None = None
    map: MapFacts | None = None
    matches: tuple[MatchFacts, ...] = ()
    matched: int = 0
    examples: tuple[StratumExamples, ...] = ()


def facts_to_json(facts: RunFacts) -> bytes:
    """Return the facts as JSON: what `datapipe report` builds the page from again."""
    from pydantic import TypeAdapter

    return TypeAdapter(RunFacts).dump_json(facts)


def facts_from_json(data: bytes) -> RunFacts:
    """Return the facts that `facts_to_json` wrote."""
    from pydantic import TypeAdapter

    return TypeAdapter(RunFacts).validate_json(data)
