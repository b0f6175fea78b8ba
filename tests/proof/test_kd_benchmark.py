"""Students of the distillation benchmark are arms of the image benchmark plus a teacher; fitted weights can be read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from benchmarks.common import rows
from benchmarks.image_plans import setting_of
from benchmarks.kd_plans import ALPHAS, METHODS, SWEEP_SEEDS, Student, Teacher, noisy
from benchmarks.kd_tables import fit_alpha, settle, shared, verdicts, weights_of
from datapipe.distill.alpha import read_curves
from datapipe.proof.images import ImageRecipe
from datapipe.storage.digest import digest_of

if TYPE_CHECKING:
    from pathlib import Path


def student(row: dict[str, Any], *, noise: float = 0.0) -> Student:
    fraction, method = row["fraction"], row["method"]
    return Student(
        dataset=row["dataset"],
        encoder=row["encoder"],
        fraction=fraction,
        method=method,
        seed=row["seed"],
        recipe=ImageRecipe(**row["recipe"]),
        setting=setting_of(method, fraction, {}).as_dict() if fraction < 1 else None,
        noise=noise,
    )


def measured() -> list[dict[str, Any]]:
    return [row for row in rows("pruning_images") if row["method"] in (*METHODS, "full")]


def test_a_student_without_teacher_is_the_row_of_the_image_benchmark_so_it_is_not_measured_again() -> None:
    assert len(measured()) >= 85
    for row in measured():
        assert digest_of(student(row).config()) == row["digest"], (row["method"], row["fraction"])


def test_a_teacher_or_noise_makes_another_training_and_a_teacher_of_weight_zero_is_none() -> None:
    one = student(measured()[0])
    taught, silent = one.taught(0.9, 2.0, "resnet64", "digest"), one.taught(0.0, 2.0, "resnet64", "digest")
    assert taught.items() >= {**one.config(), "kd": True, "alpha": 0.9, "temperature": 2.0, "noise": 0.0}.items()
    nobody = {"kd": False, "alpha": 0.0, "temperature": 1.0, "teacher": None, "teacher_digest": None, "noise": 0.0}
    assert silent == one.config() | nobody
    assert student(measured()[0], noise=0.2).config()["noise"] == 0.2


def test_the_name_of_a_teacher_tells_width_kind_and_noise() -> None:
    full = ImageRecipe(steps=100, width=64)
    teacher = Teacher(side="train", kind="long", width=128, noise=0.4)
    assert teacher.name == "resnet128-long-noise40"
    assert Teacher(side="part", kind="same", width=64).name == "resnet64"
    learnt = teacher.recipe(full)
    assert (learnt.steps, learnt.width, learnt.smoothing) == (300, 128, 0.0)


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.4])
def test_noise_changes_exactly_its_share_of_the_labels_to_other_classes(noise: float) -> None:
    labels = np.arange(1000, dtype=np.int64) % 10
    found = noisy(labels, noise, classes=10)
    assert (found != labels).sum() == 1000 * noise
    assert set(found.tolist()) <= set(range(10))
    assert (found == noisy(labels, noise, classes=10)).all()
    assert (labels == np.arange(1000) % 10).all()


def swept(best: float, *, spread: float, drop: float, fraction: float = 0.1) -> list[dict[str, Any]]:
    """A sweep whose accuracy falls with the distance from the best weight."""
    return [
        {"fraction": fraction, "alpha": alpha, "accuracy": 80 - drop * abs(alpha - best) + spread * (seed - 1)}
        for alpha in ALPHAS
        for seed in range(SWEEP_SEEDS)
    ]


def test_the_weight_is_the_best_and_its_ends_are_those_not_told_from_it() -> None:
    # Pooled spread 0.2, 12 degrees of freedom: a mean is told from the best if lower by 2.179 * 0.2 * (2/3)^.5.
    assert fit_alpha(swept(0.75, spread=0.2, drop=1.0)) == {"0.1": [0.75, 0.5, 1.0]}
    assert fit_alpha(swept(0.75, spread=0.2, drop=10.0)) == {"0.1": [0.75, 0.75, 0.75]}
    assert fit_alpha(swept(1.0, spread=0.2, drop=2.5)) == {"0.1": [1.0, 0.9, 1.0]}


def test_a_fraction_whose_sweep_is_not_whole_gets_no_weight() -> None:
    assert fit_alpha(swept(0.5, spread=0.1, drop=5.0)[:-1]) == {}
    assert fit_alpha(swept(0.5, spread=0.1, drop=5.0)[SWEEP_SEEDS:]) == {}


def test_the_fitted_file_is_one_that_the_package_reads_and_what_is_frozen_stays(tmp_path: Path) -> None:
    def write(found: list[dict[str, Any]]) -> None:
        told = [
            {**row, "digest": str(at), "dataset": "some", "teacher": "resnet64", "recipe": {"width": 64}}
            for at, row in enumerate(found)
        ]
        folder = tmp_path / "results-0"
        folder.mkdir(exist_ok=True)
        (folder / "kd_images_alpha.json").write_text(json.dumps({"rows": told}), encoding="utf-8")
        settle(tmp_path, classes=10)

    (tmp_path / "kd.json").write_text('{"kind": "same", "temperature": 2.0}', encoding="utf-8")
    few, half = (swept(best, spread=0.2, drop=10.0, fraction=part) for best, part in ((0.9, 0.1), (0.5, 0.5)))
    write(few)
    write([*swept(0.0, spread=0.2, drop=10.0), *half])
    (curve,) = read_curves(tmp_path / "kd_alpha.json")
    assert curve.fitted
    assert curve.points == ((0.1, 0.9, 0.9, 0.9), (0.5, 0.5, 0.5, 0.5))
    assert weights_of(tmp_path, classes=10) == {0.1: 0.9, 0.5: 0.5}
    assert weights_of(tmp_path, classes=10, noise=0.4) == {0.1: 0.94, 0.5: 0.7}


def test_random_rows_with_a_teacher_are_judged_against_the_best_without_one() -> None:
    taught = [
        {**row, **student(row).taught(0.9, 2.0, "resnet64", "digest"), "accuracy": row["accuracy"] + 20}
        for row in measured()
        if row["fraction"] == 0.05
    ]
    both = taught + shared(taught, measured())
    plain = [row for row in both if not row["kd"]]
    assert {row["fraction"] for row in plain} == {0.05, 1.0}
    found = {row["against"]: row for row in verdicts(both)}
    assert found["best without a teacher"]["method"] != "el2n"
    assert found["random without a teacher"]["difference"] == pytest.approx(20)
    assert found["best without a teacher"]["verdict"] == "win"
    assert found["all rows without a teacher"]["seeds"] == 5
