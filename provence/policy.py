"""What is to be kept: the options of a decision, checked when they are stated. Raises `ConfigError`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypedDict, get_args

from datapipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from provence.units.unit import UnitKind

__all__ = ["AIMS", "OPTIONS", "PINS", "EmptyPolicy", "Pin", "Policy", "PolicyOptions", "RuleName", "pin_of"]

Pin: TypeAlias = Literal["headings", "table_headers", "lead_ins", "signatures", "title"]
RuleName: TypeAlias = Literal["own", "mean"]
EmptyPolicy: TypeAlias = Literal["empty", "drop", "keep"]

PINS: tuple[Pin, ...] = get_args(Pin)

_PIN_OF: dict[str, Pin] = {
    "heading": "headings",
    "table_header": "table_headers",
    "sentence": "lead_ins",
    "item": "lead_ins",
    "code": "signatures",
    "line": "signatures",
    "value": "signatures",
}
AIMS = ("threshold", "target_recall", "budget_tokens")
"""Options of which one at most is stated."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Which units are kept. Left as it is, it decides as the model's authors do.

    Attributes:
        threshold: A unit is kept if it is above, 0-1; None takes the model's own, unless another aim is stated.
        target_recall: Expected share of the needed units that is kept, between 0 and 1; the threshold that promises it
            comes from a calibration. Compared with mean probabilities, whatever the rule. Units of texts that `top_n`
            leaves out do not count. The promise is for sentences of passages like those that were calibrated on, of
            about 300 tokens; units of Markdown, code or JSON, and much longer or shorter texts, come without one.
        budget_tokens: Tokens kept at most, over all texts of a question, in the model's own count: the most probable
            units that fit.
        rule: What a threshold is compared with: `own`, as the model's family does; `mean`, the mean keep probability.
        min_keep: Units kept of each text at least, the most probable first.
        always_keep_first: Whether the first unit of each text is kept.
        pin: What a kept unit brings along. `headings`, `table_headers`, `lead_ins` (of lists), `signatures` (of blocks
            of code, of nested values, of stack traces): those that it stands under. `title`: the first unit of its
            text.
        repair: Whether a kept unit that opens with a pronoun or a connective brings the unit before it, if that is
            short.
        empty: What becomes of a text of which nothing is kept: `empty` gives an empty one, `drop` leaves it out of the
            results, `keep` keeps it whole.
        top_n: Texts that are kept at most, by relevance; best first in the results. None keeps all, in their order.

    Raises:
        ConfigError: An option is out of range, or two contradict each other.
    """

    threshold: float | None = None
    target_recall: float | None = None
    budget_tokens: int | None = None
    rule: RuleName = "own"
    min_keep: int = 0
    always_keep_first: bool = False
    pin: tuple[Pin, ...] = ()
    repair: bool = False
    empty: EmptyPolicy = "empty"
    top_n: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "pin", _pins(self.pin))
        stated = [name for name in AIMS if getattr(self, name) is not None]
        if len(stated) > 1:
            raise ConfigError(
                f"{' and '.join(stated)} exclude each other: threshold cuts at a probability, target_recall at the one "
                "that a calibration finds, budget_tokens at a number of tokens"
            )
        _check_share("threshold", self.threshold, ends=True)
        _check_share("target_recall", self.target_recall, ends=False)
        for name, least in (("budget_tokens", 1), ("min_keep", 0), ("top_n", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, Integral) or value < least):
                raise _wrong(name, f"be a whole number of at least {least}", value)
        for name, values in (("rule", get_args(RuleName)), ("empty", get_args(EmptyPolicy))):
            if getattr(self, name) not in values:
                raise _wrong(name, f"be one of {', '.join(values)}", getattr(self, name))
        if self.budget_tokens is not None and self.empty == "keep":
            raise ConfigError("empty='keep' keeps whole texts, which budget_tokens does not allow; use empty or drop")

    @classmethod
    def of(cls, options: Mapping[str, object], *, beside: Sequence[str] = ()) -> Self:
        """The policy of these options; a name that is none is refused with those there are, `beside` among them."""
        strange = sorted(options.keys() - set(OPTIONS))
        if strange:
            raise ConfigError(f"there is no option {strange[0]!r}; there are {', '.join([*OPTIONS, *beside])}")
        return cls(**options)  # type: ignore[arg-type]


OPTIONS = tuple(field.name for field in fields(Policy))
"""Names of the options, as `Policy` has them."""


class PolicyOptions(TypedDict, total=False):
    """The fields of `Policy` as keyword arguments."""

    threshold: float | None
    target_recall: float | None
    budget_tokens: int | None
    rule: RuleName
    min_keep: int
    always_keep_first: bool
    pin: Sequence[Pin]
    repair: bool
    empty: EmptyPolicy
    top_n: int | None


def pin_of(kind: UnitKind) -> Pin | None:
    """By which pin a unit of that kind is kept for the sake of what stands under it; None if by none."""
    return _PIN_OF.get(kind)


def _pins(given: Sequence[str]) -> tuple[str, ...]:
    pins = (given,) if isinstance(given, str) else tuple(given)
    strange = [pin for pin in pins if pin not in PINS]
    if strange:
        raise _wrong("pin", f"hold nothing but {', '.join(PINS)}", strange[0])
    return tuple(pin for pin in PINS if pin in pins)


def _check_share(name: str, value: Any, *, ends: bool) -> None:
    """Refuse what is no number between 0 and 1, or is one of the two and `ends` are not allowed."""
    if value is None or (_is_number(value) and (0 < value < 1 or (ends and value in {0, 1}))):
        return
    raise _wrong(name, "lie between 0 and 1" if _is_number(value) else "be a number", value)


def _is_number(value: object) -> bool:
    return isinstance(value, Real)


def _wrong(name: str, rule: str, value: object) -> ConfigError:
    return ConfigError(f"the {name!r} option of pruning must {rule}. Got {value!r}")
