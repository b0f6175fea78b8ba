"""The user's own loop, recorded and given back to a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
import torch

import datapipe
from datapipe.errors import MetricError
from datapipe.metrics.dynamics import aum
from datapipe.proxies import DynamicsRecorder
from datapipe.proxies.recorder import read_dynamics

if TYPE_CHECKING:
    from pathlib import Path

IDS = [f"row {i}" for i in range(6)]
LABELS = [0, 1, 2, 0, 1, 2]


def recorded(epochs: int = 3, skip: int | None = None) -> tuple[DynamicsRecorder, Any]:
    """Random logits of six rows; `skip` is left out of every epoch."""
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(epochs, 6, 3)))
    recorder = DynamicsRecorder(IDS, classes=3)
    rows = [i for i in range(6) if i != skip]
    for epoch in range(epochs):
        recorder.epoch()
        for part in (rows[:4], rows[4:]):
            recorder.log([IDS[i] for i in part], logits=logits[epoch, part], labels=[LABELS[i] for i in part])
    return recorder, logits.softmax(2).numpy()


def test_a_loop_of_three_lines_gives_the_metrics_of_a_run(tmp_path: Path) -> None:
    recorder, p = recorded(skip=5)
    recorder.save(tmp_path / "dynamics.parquet")
    source = pl.DataFrame({"name": IDS, "text": [f"text of {each}" for each in IDS]})
    result = datapipe.curate(
        source,
        out=tmp_path / "run",
        metric="aum",
        dynamics=str(tmp_path / "dynamics.parquet"),
        id_column="name",
        keep_rows=2,
    )
    assert result.counts == {"kept": 2, "over_budget": 3, "unscored": 1}
    own = np.take_along_axis(p, np.array(LABELS)[None, :, None], 2)[..., 0]
    others = p.copy()
    np.put_along_axis(others, np.array(LABELS)[None, :, None], 0, 2)
    expected = aum(own - others.max(2))[:5]
    _, metrics = read_dynamics(tmp_path / "dynamics.parquet")
    assert np.sort(metrics["aum"][np.isfinite(metrics["aum"])]) == pytest.approx(np.sort(expected), abs=1e-3)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"row_ids": ["row 9"]}, "the row id 'row 9' is not one of the recorder's row_ids"),
        ({"row_ids": ["row 0"]}, "the row 'row 0' was logged twice in epoch 1"),
        ({"logits": [[0.0, float("nan"), 0.0]]}, "the scores of row 'row 1' are not finite in epoch 1"),
        ({"logits": [[0.0, 1.0]]}, r"the shape \(1, 2\); 1 rows of 3 classes have \(1, 3\)"),
        ({"labels": [3]}, "the label of row 'row 1' is 3; classes go from 0 to 2"),
        ({"logits": None, "probabilities": [[3.0, 1.0, 1.0]]}, "sum to 5 or one is negative"),
        ({"probabilities": [[1.0, 0.0, 0.0]]}, "log either logits or probabilities"),
    ],
)
def test_what_is_logged_wrongly_is_refused_by_row(wrong: dict[str, Any], text: str) -> None:
    recorder = DynamicsRecorder(IDS, classes=3)
    recorder.epoch()
    recorder.log(["row 0"], logits=[[1.0, 0.0, 0.0]], labels=[0])
    given: dict[str, Any] = {"row_ids": ["row 1"], "logits": [[0.0, 1.0, 0.0]], "labels": [1], **wrong}
    with pytest.raises(MetricError, match=text):
        recorder.log(given.pop("row_ids"), **given)


def test_nothing_recorded_is_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(MetricError, match="nothing was logged"):
        DynamicsRecorder(IDS, classes=3).save(tmp_path / "dynamics.parquet")
    with pytest.raises(MetricError, match="the row id 'a' occurs twice"):
        DynamicsRecorder(["a", "a"], classes=3)


def test_another_file_is_not_taken_for_dynamics(tmp_path: Path) -> None:
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(MetricError, match="was not written by DynamicsRecorder"):
        read_dynamics(tmp_path / "other.parquet")


def test_the_preset_dual_draws_from_recorded_dynamics(tmp_path: Path) -> None:
    recorder, p = recorded(skip=5)
    recorder.save(tmp_path / "dynamics.parquet")
    source = pl.DataFrame({"name": IDS, "text": [f"text of {each}" for each in IDS]})
    result = datapipe.curate(
        source,
        out=tmp_path / "run",
        preset="dual",
        dynamics=str(tmp_path / "dynamics.parquet"),
        id_column="name",
        keep_rows=2,
    )
    assert result.counts == {"kept": 2, "over_budget": 3, "unscored": 1}
    _, metrics = read_dynamics(tmp_path / "dynamics.parquet")
    means = np.take_along_axis(p, np.array(LABELS)[None, :, None], 2)[..., 0].mean(0)[:5]
    found = metrics["mean_probability"]
    assert np.sort(found[np.isfinite(found)]) == pytest.approx(np.sort(means), abs=1e-3)
