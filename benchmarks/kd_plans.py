"""What the benchmark of distillation on images trains: teachers, and students by method, weight, teacher and noise.

options, soft labels, alpha curve -> Teacher, Student -> configs of `kd_trainings.Task`

A student with a teacher keeps the rows, recipe and seed that the same method has without one in `pruning_images`, so
that the two differ in the loss alone. Its config adds alpha, temperature, the teacher and the digest of what it said.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datapipe.proof.images import ImageRecipe
    from datapipe.storage.arrays import Int64

FRACTIONS = (0.05, 0.1, 0.5, 0.3, 0.7, 0.2)
"""In the order in which they are measured: the table is useful before it is whole."""
METHODS = ("random", "dual", "ccs", "el2n", "prototypes_hard")
"""Of `image_plans.METHODS`. Of the two ways with prototypes the harder rows lead at every fraction of `pruning_images`,
so the rival is the better one."""
ALPHAS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
TEMPERATURES = (1.0, 2.0, 4.0)
TRIED_ALPHA = 0.9
"""Weight at which kinds of teachers and temperatures are compared."""
TRIED_FRACTIONS = (0.1, 0.5)
SWEEP_SEEDS = 3
SIZED_FRACTIONS = (0.1, 0.3, 0.7)
NOISES = (0.2, 0.4)
NOISY_FRACTIONS = (0.1, 0.5)
NOISY_METHODS = ("random", "el2n")
KINDS: dict[str, dict[str, float]] = {
    "same": {},
    "sharp": {"smoothing": 0.0},
    "long": {"smoothing": 0.0, "longer": 3},
}
"""Teachers to choose from on validation images: as the student; without smoothing, which blurs what a teacher knows of
the likeness of classes (Müller et al. 2019, arXiv 1906.02629); and that for more steps."""
_TEACHER_SEED = 500


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A network whose soft labels are stored.

    Attributes:
        side: `part`, training rows without the validation rows, or `train`, all of them.
        kind: One of `KINDS`.
        width: Channels of its first stage.
        noise: Share of the labels that it learnt from that are wrong.
    """

    side: str
    kind: str
    width: int
    noise: float = 0.0

    @property
    def name(self) -> str:
        """Slug, such as `resnet64-long` or `resnet64-long-noise20`."""
        kind = "" if self.kind == "same" else f"-{self.kind}"
        noise = f"-noise{round(100 * self.noise)}" if self.noise else ""
        return f"resnet{self.width}{kind}{noise}"

    @property
    def seed(self) -> int:
        """Of its training; no student has it."""
        return _TEACHER_SEED

    def recipe(self, full: ImageRecipe) -> ImageRecipe:
        """How it learns, from the recipe for all rows."""
        changed = KINDS[self.kind]
        steps = round(full.steps * changed.get("longer", 1))
        return replace(full, steps=steps, width=self.width, smoothing=changed.get("smoothing", full.smoothing))


@dataclass(frozen=True, kw_only=True)
class Student:
    """A training to measure.

    Attributes:
        dataset: Its name.
        encoder: Of the vectors of methods that read them.
        fraction: Of the rows that are kept.
        method: One of `METHODS`, or `full`.
        seed: Of rows, weights and order.
        recipe: How it learns.
        setting: How rows are chosen, as plain values; None for all.
        noise: Share of wrong labels among those that the student learns from.
    """

    dataset: str
    encoder: str
    fraction: float
    method: str
    seed: int
    recipe: ImageRecipe
    setting: dict[str, Any] | None
    noise: float = 0.0

    def config(self) -> dict[str, Any]:
        """What decides the training without a teacher: on right labels the config of `pruning_images`."""
        found: dict[str, Any] = {
            "dataset": self.dataset,
            "encoder": self.encoder,
            "fraction": self.fraction,
            "method": self.method,
            "seed": self.seed,
            "recipe": asdict(self.recipe),
            "setting": self.setting,
        }
        return found | told(noise=self.noise) if self.noise else found

    def taught(self, alpha: float, temperature: float, teacher: str, digest: str) -> dict[str, Any]:
        """What decides it with a teacher that counts so much; one that counts nothing is none."""
        if not alpha:
            return self.config() | told(noise=self.noise)
        return self.config() | told(alpha, temperature, teacher, digest, noise=self.noise)


def told(
    alpha: float = 0.0,
    temperature: float = 1.0,
    teacher: str | None = None,
    digest: str | None = None,
    *,
    noise: float = 0.0,
) -> dict[str, Any]:
    """The part of a row about its teacher and the noise of its labels; by default there is neither."""
    named = {"alpha": alpha, "temperature": temperature, "teacher": teacher, "teacher_digest": digest}
    return {"kd": teacher is not None, **named, "noise": noise}


def noisy(labels: Int64, noise: float, *, classes: int) -> Int64:
    """Labels of which a share, drawn once for each share, names another class, each of the others as likely.

    Args:
        labels: int64 (rows,) in [0, classes).
        noise: Share, in [0, 1); exactly round(noise * rows) labels change.
        classes: Their number.
    """
    if not noise:
        return labels
    draws = np.random.Generator(np.random.Philox(key=[round(1000 * noise), 3]))
    wrong = draws.permutation(len(labels))[: round(noise * len(labels))]
    found = labels.copy()
    found[wrong] = (labels[wrong] + draws.integers(1, classes, len(wrong))) % classes
    return found
