"""From a question and its texts to a worker's items, and from its scores to pruned contexts. Knows no worker.

    Request -> items -> (worker) -> PruneScores -> Request.scores -> contexts (top_n, decide, spans) -> PrunedContext

Raises `ConfigError` for titles, kinds or spans that are not one a text, `ItemError` for spans that are no pairs, and
whatever `decide` raises.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Self

from datapipe.errors import ConfigError, ItemError
from provence.decide import decide, ranked
from provence.joint import Part, join, part
from provence.policy import Policy, PolicyOptions
from provence.results import PrunedContext, ScoredSentence
from provence.sliced import Slice, slices, whole
from provence.task import PruneItem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from provence.calibration import Calibration
    from provence.task import PruneScores
    from provence.units.unit import TextKind

__all__ = ["BatchArguments", "PruneArguments", "Request", "asked", "asked_batch", "contexts", "kept_spans"]


_READING = ("titles", "kinds", "spans", "joint", "cut_question")


class BatchArguments(PolicyOptions, total=False):
    """How texts are read, as `Request` states it, and what is kept of them."""

    kinds: TextKind | Sequence[TextKind]
    joint: bool
    cut_question: bool


class PruneArguments(BatchArguments, total=False):
    """The same with what is one a text."""

    titles: Sequence[str | None] | None
    spans: Sequence[Sequence[tuple[int, int]] | None] | None


@dataclass(frozen=True, kw_only=True)
class Request:
    """A question with its texts.

    Attributes:
        question: Any text but white space alone.
        texts: Any number.
        titles: One a text, or None where it has none; None if none has.
        kinds: How the texts are read: one for all, or one a text.
        spans: The caller's own units of each text, (start, end), or None where it is to be split; None splits all.
        joint: Whether the texts share windows, one after another; those beyond some 32,000 characters begin anew.
        cut_question: Whether a question too long for the model is cut; otherwise it is refused.
        share_at: Token threshold of the `share` rule; None takes the model's own.

    Raises:
        ConfigError: The question is empty, texts are one string, or titles, kinds or spans are not as many as texts.
    """

    question: str
    texts: Sequence[str]
    titles: Sequence[str | None] | None = None
    kinds: TextKind | Sequence[TextKind] = "auto"
    spans: Sequence[Sequence[tuple[int, int]] | None] | None = None
    joint: bool = False
    cut_question: bool = False
    share_at: float | None = None

    def __post_init__(self) -> None:
        if _is_blank(self.question):
            raise ConfigError(f"the question is empty, so no text can be pruned for it. Got {self.question!r:.40}")
        if isinstance(self.texts, str):
            raise ConfigError("texts must be a list of texts, also where there is only one. Got one string")
        for name in ("titles", "kinds", "spans"):
            given = getattr(self, name)
            if given is None or (name == "kinds" and isinstance(given, str)):
                continue
            if isinstance(given, str) or len(given) != len(self.texts):
                found = "one string" if isinstance(given, str) else len(given)
                raise ConfigError(f"{name} must be one a text, so {len(self.texts)}. Got {found}")

    @property
    def items(self) -> list[PruneItem]:
        """What a worker is asked. Raises `ItemError` where spans do not cover a text that is long or joint."""
        return [item for laid in self._laid for item in laid.items]

    @property
    def owners(self) -> list[int]:
        """Of each item the place of its text, or of its first where several share it."""
        return [laid.place for laid in self._laid for _ in laid.items]

    def scores(self, found: Sequence[PruneScores]) -> list[PruneScores]:
        """What the worker said of each text. Of a joint request a text's score is that of its most probable unit."""
        rest = iter(found)
        return [each for laid in self._laid for each in laid.scores(list(islice(rest, len(laid.items))))]

    def check(self, calibration: Calibration) -> None:
        """Raise `ConfigError` unless the calibration is for texts that are shown to the model as these are."""
        if self.texts:
            titles = any(isinstance(title, str) and title.strip() for title in self.titles or ())
            calibration.check_shown(joint=self.joint, titles=titles)

    @cached_property
    def _laid(self) -> list[_Laid]:
        alone = [self._item(place, text) for place, text in enumerate(self.texts)]
        if not self.joint:
            return [_Laid.of(item, place) for place, item in enumerate(alone)]
        laid: list[_Laid] = []
        place = 0
        for item, parts in join(alone):
            laid.append(_Laid.of(item, place, parts))
            place += len(parts)
        return laid

    def _item(self, place: int, text: str) -> PruneItem:
        starts, ends = (None, None) if self.spans is None else _bounds(self.spans[place], place)
        return PruneItem(
            question=self.question,
            text=text,
            title=None if self.titles is None else self.titles[place],
            kind=self.kinds if isinstance(self.kinds, str) else self.kinds[place],
            starts=starts,
            ends=ends,
            cut_question=self.cut_question,
            share_at=self.share_at,
        )


@dataclass(frozen=True, slots=True)
class _Laid:
    """A text, or several in shared windows, and the items that ask about it.

    Attributes:
        place: Of the text, or of the first.
        items: At least one.
        slices: Of which part of the text each item is; none if one item has all of it.
        parts: Where each of several texts lies.
    """

    place: int
    items: list[PruneItem]
    slices: list[Slice]
    parts: list[Part] | None

    @classmethod
    def of(cls, item: PruneItem, place: int, parts: list[Part] | None = None) -> Self:
        cut = slices(item, place)
        return cls(place, [each.item for each in cut] or [item], cut, parts)

    def scores(self, found: Sequence[PruneScores]) -> list[PruneScores]:
        """What was said of each text."""
        one = whole(found, self.slices) if self.slices else found[0]
        return [one] if self.parts is None else part(one, self.parts)


def _is_blank(text: object) -> bool:
    return isinstance(text, str) and not text.strip()


def _bounds(spans: Sequence[tuple[int, int]] | None, place: int) -> tuple[list[int] | None, list[int] | None]:
    """Where the units of a text begin and where they end; raises `ItemError` for what is no pair."""
    if spans is None:
        return None, None
    try:
        pairs = [(start, end) for start, end in spans]
    except (TypeError, ValueError) as error:
        raise ItemError(
            f"the spans of item {place} must be pairs of offsets, [(start, end), …]. Got {spans!r:.80}", index=place
        ) from error
    return [start for start, _ in pairs], [end for _, end in pairs]


def asked(question: str, texts: Sequence[str], options: Mapping[str, object]) -> tuple[Request, Policy]:
    """Options apart: how the texts are read, and what is kept of them. Raises `ConfigError`."""
    reading = {name: value for name, value in options.items() if name in _READING}
    policy = _policy(options)
    share_at = policy.threshold if policy.rule == "own" else None
    return Request(question=question, texts=texts, share_at=share_at, **reading), policy  # type: ignore[arg-type]


def _policy(options: Mapping[str, object]) -> Policy:
    return Policy.of({name: value for name, value in options.items() if name not in _READING}, beside=_READING)


def asked_batch(
    pairs: Iterable[tuple[str, Sequence[str]]],
    titles: Sequence[Sequence[str | None] | None] | None,
    spans: Sequence[Sequence[Sequence[tuple[int, int]] | None] | None] | None,
    options: Mapping[str, object],
) -> tuple[Policy, list[Request]]:
    """The same for many questions with their texts; the policy is one for all. Raises `ConfigError`."""
    given = list(pairs)
    for name, values in (("titles", titles), ("spans", spans)):
        if values is not None and len(values) != len(given):
            raise ConfigError(f"{name} must be one list a question, so {len(given)}. Got {len(values)}")
    policy = _policy(options)
    requests = []
    for place, (question, texts) in enumerate(given):
        own = {
            **options,
            "titles": None if titles is None else titles[place],
            "spans": None if spans is None else spans[place],
        }
        try:
            requests.append(asked(question, texts, own)[0])
        except ConfigError as error:
            raise ConfigError(f"question {place}: {error}") from error
    return policy, requests


def contexts(
    texts: Sequence[str], scores: Sequence[PruneScores], policy: Policy, *, calibration: Calibration | None = None
) -> list[PrunedContext]:
    """What is left of each text of one question; with `top_n` the best first, with `empty="drop"` perhaps fewer.

    Args:
        texts: Of the question.
        scores: Of each text.
        policy: What is wanted.
        calibration: Where `target_recall` finds its threshold.

    Raises:
        ConfigError: `target_recall` without a calibration, or more than it can promise.
    """
    places = ranked(scores, policy.top_n)
    decisions = decide(
        [texts[place] for place in places], [scores[place] for place in places], policy, calibration=calibration
    )
    found = []
    for place, decision in zip(places, decisions, strict=True):
        reasons = decision.reasons
        whole = policy.empty == "keep" and not any(reasons)
        if policy.empty == "drop" and not any(reasons):
            continue
        found.append(
            _context(place, texts[place], scores[place], ("whole",) * len(reasons) if whole else reasons, whole=whole)
        )
    return found


def kept_spans(
    text: str, starts: Sequence[int], ends: Sequence[int], kept: Sequence[bool]
) -> tuple[tuple[int, int], ...]:
    """The parts of a text that are left, one a run of kept units; the whole text if nothing is cut.

    The white space between two units belongs to the first up to its last line break, and what follows that, the
    indentation, to the second. A run has that of its units, but the last one ends with its last visible character.
    """
    if not any(kept):
        return ()
    if all(kept):
        return ((0, len(text)),)
    begins = [_begin(text, end, start) for end, start in zip([0, *ends], starts, strict=False)]
    runs: list[tuple[int, int]] = []
    for unit in (unit for unit, keep in enumerate(kept) if keep):
        begin = runs.pop()[0] if unit and kept[unit - 1] else begins[unit]
        runs.append((begin, begins[unit + 1] if unit + 1 < len(begins) else ends[unit]))
    last = max(unit for unit, keep in enumerate(kept) if keep)
    return (*runs[:-1], (runs[-1][0], ends[last]))


def _begin(text: str, end: int, start: int) -> int:
    """Where a unit begins with its indentation; nothing but white space lies between `end` and its `start`."""
    line = text.rfind("\n", end, start) + 1
    return line or (start if end else 0)


def _context(place: int, text: str, scores: PruneScores, reasons: Sequence[str], *, whole: bool) -> PrunedContext:
    """`whole` keeps a text without units too: there may be white space alone."""
    starts, ends = scores.starts.tolist(), scores.ends.tolist()
    everything = ((0, len(text)),) if text else ()
    spans = everything if whole else kept_spans(text, starts, ends, [bool(reason) for reason in reasons])
    pruned = "".join(text[start:end] for start, end in spans)
    rows = zip(starts, ends, scores.probabilities.tolist(), reasons, scores.kinds, strict=True)
    return PrunedContext(
        index=place,
        text=pruned,
        kept_spans=spans,
        sentences=tuple(
            ScoredSentence(start, end, probability, bool(reason), reason, kind)
            for start, end, probability, reason, kind in rows
        ),
        relevance_score=scores.score,
        compression=(len(text) - len(pruned)) / len(text) if text else 0.0,
        tokens=int(scores.lengths.sum()),
        truncated=scores.truncated,
    )
