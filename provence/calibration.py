"""How low a threshold must be, so that no more of the evidence is lost than was asked for: conformal risk control.

    probabilities of the units that answer each question -> calibrate -> Calibration (a JSON file) -> threshold_for

Angelopoulos et al., arXiv 2208.02814. The loss of a question at threshold t is the share of its answering units with a
probability below t; it grows with t and is at most 1. Over n questions with mean loss R(t), the largest t of a grid,
fixed in advance, with

    n / (n + 1) * R(t) + 1 / (n + 1) <= 1 - recall                                       (their eq. 4, B = 1)

keeps, of a further question drawn as the n were, an expected share of at least `recall` of its answering units. It says
nothing of other domains, of other models, of one single question, or of texts that are cut or shown in another way: the
measuring protocol of `provence.evaluation` shows sentences of passages of about 300 tokens. Raises `ConfigError`.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from datapipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from datapipe.storage.arrays import Float32

__all__ = ["FORMAT", "Calibration", "calibrate"]

FORMAT = 1

_LOGITS = (-14.0, 14.0)
_STEPS = 1400
"""Logits of the grid are a fiftieth apart: at a probability of a half thresholds differ by .005."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a calibration set says of thresholds, for one model and one domain.

    Attributes:
        model: Name of the model, for messages.
        digest: SHA-256 of the model's files (`Pruner.digest`).
        domain: What the questions are about or where they are from; free text.
        rule: What the thresholds are compared with; `mean`, the mean keep probability of a unit.
        joint: Whether the texts of a question shared windows.
        titles: Whether the model was shown titles.
        questions: Questions that have answering units, n.
        thresholds: The grid, ascending; the first is 0.
        risks: Mean loss of the questions at each, 0-1, never falling; the first is 0.

    Raises:
        ConfigError: Fields contradict each other.
    """

    model: str
    digest: str
    domain: str
    rule: str = "mean"
    joint: bool = False
    titles: bool = False
    questions: int
    thresholds: tuple[float, ...]
    risks: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.rule != "mean":
            raise ConfigError(f"a calibration is for the rule 'mean'. Got {self.rule!r}")
        if self.questions < 1:
            raise ConfigError(f"a calibration needs at least one question. Got {self.questions}")
        if len(self.thresholds) != len(self.risks) or not self.thresholds:
            raise ConfigError(
                f"a calibration needs one risk a threshold. Got {len(self.thresholds)} thresholds and "
                f"{len(self.risks)} risks"
            )
        for name in ("joint", "titles"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} of a calibration must be true or false. Got {getattr(self, name)!r}")
        for name, values in (("thresholds", self.thresholds), ("risks", self.risks)):
            if values[0] != 0 or not all(0 <= value <= 1 for value in values) or list(values) != sorted(values):
                raise ConfigError(f"the {name} of a calibration must begin at 0, never fall, and end at most at 1")

    def threshold_for(self, recall: float) -> float:
        """The highest threshold at which the expected share of answering units kept is at least `recall`.

        A unit is kept if its probability is above what is returned, which is just below a value of the grid.

        Raises:
            ConfigError: `recall` is not between 0 and 1, or so near 1 that this many questions cannot promise it.
        """
        import numpy as np

        if not 0 < recall < 1:
            raise ConfigError(f"target_recall must lie between 0 and 1. Got {recall}")
        n, loss = self.questions, 1 - recall
        bounds = n / (n + 1) * np.array(self.risks) + 1 / (n + 1)
        fitting = np.flatnonzero(bounds <= loss + 1e-12)
        if not len(fitting):
            raise ConfigError(
                f"a target_recall of {recall:g} needs a calibration on at least {math.ceil(1 / loss - 1e-9) - 1} "
                f"questions. That of {self.domain!r} has {n}: ask for at most {n / (n + 1):.4f}, or calibrate on more"
            )
        return float(np.nextafter(np.float32(self.thresholds[fitting[-1]]), np.float32(-1)))

    def check(self, digest: str) -> None:
        """Raise `ConfigError` unless it was made with the model of that digest."""
        if digest != self.digest:
            raise ConfigError(
                f"the calibration of {self.domain!r} was made with {self.model} of digest {self.digest[:12]}…, but the "
                f"model in use has digest {digest[:12]}…; calibrate again with this model (provence calibrate)"
            )

    def check_shown(self, *, joint: bool, titles: bool) -> None:
        """Raise `ConfigError` unless texts were shown to the model as these are: in windows of their own, with titles.

        Args:
            joint: Whether the texts share windows.
            titles: Whether any of them has a title.
        """
        for option, made, found in (("joint", self.joint, joint), ("titles", self.titles, titles)):
            if made != found:
                told = ("with", "without") if made else ("without", "with")
                advice = f"give {option}" if made else f"leave {option} out"
                command = "provence calibrate" + ("" if made else f" --{option}")
                raise ConfigError(
                    f"the calibration of {self.domain!r} was made {told[0]} {option}, and says nothing of texts "
                    f"{told[1]}; {advice}, or calibrate again {told[1]} ({command})"
                )

    def as_dict(self) -> dict[str, Any]:
        """The fields and the format, as JSON has them."""
        return {"format": FORMAT, **asdict(self)}

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        Path(path).write_text(json.dumps(self.as_dict()) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote. Raises `ConfigError` if there is no such file, or it is none of these."""
        try:
            found: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"the calibration {path} cannot be read ({error.strerror}); make it with provence calibrate"
            ) from error
        except ValueError as error:
            raise ConfigError(f"the calibration {path} is not valid JSON ({error})") from error
        return cls.of(found, name=str(path))

    @classmethod
    def of(cls, told: Any, *, name: str) -> Self:
        """Read what `as_dict` gives, `name` for messages. Raises `ConfigError` if it is none of these."""
        found = dict(told) if isinstance(told, dict) else {}
        version = found.pop("format", None)
        if version != FORMAT:
            raise ConfigError(f"the calibration {name} must be an object of format {FORMAT}. Got format {version!r}")
        try:
            for values in ("thresholds", "risks"):
                found[values] = tuple(float(value) for value in found[values])
            return cls(**found)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"the calibration {name} is damaged ({error})") from error


def calibrate(
    gold: Iterable[Sequence[float] | Float32],
    *,
    model: str,
    digest: str,
    domain: str,
    joint: bool = False,
    titles: bool = False,
) -> Calibration:
    """Make a calibration from questions whose answers are known.

    Args:
        gold: Of each question, the mean keep probabilities of the units that answer it, over all its texts. Questions
            without any say nothing of recall and are left out.
        model: Name of the model that gave them.
        digest: SHA-256 of its files.
        domain: What the questions are about or where they are from.
        joint: Whether the texts of a question shared windows.
        titles: Whether the model was shown titles.

    Raises:
        ConfigError: No question has an answering unit, or a probability is not between 0 and 1.
    """
    import numpy as np

    logits = np.linspace(*_LOGITS, _STEPS + 1)
    grid = np.concatenate([[0], 1 / (1 + np.exp(-logits))]).astype(np.float32)
    losses = np.zeros(len(grid))
    questions = 0
    for place, probabilities in enumerate(gold):
        values = np.sort(np.asarray(probabilities, np.float32))
        if not len(values):
            continue
        if not (values[0] >= 0 and values[-1] <= 1):
            raise ConfigError(f"the probabilities of question {place} must lie between 0 and 1. Got {values}")
        losses += np.searchsorted(values, grid, side="left") / len(values)
        questions += 1
    if not questions:
        raise ConfigError("no question has a unit that answers it, so there is nothing to calibrate on")
    return Calibration(
        model=model,
        digest=digest,
        domain=domain,
        joint=joint,
        titles=titles,
        questions=questions,
        thresholds=tuple(float(value) for value in grid),
        risks=tuple(float(value) for value in losses / questions),
    )
