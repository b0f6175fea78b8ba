"""A pruner made ready for new labelled questions: trained again or not, calibrated anew, and checked on others.

    config.toml, data -> retrain    -> OUT/model
    sets              -> recalibrate -> calibration.json, what it keeps and cuts on a split that it did not see

Raises what training, calibration and the pruner raise.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datapipe.errors import OutputError
from provence.evaluation.pruned import PrunerScorer
from provence.evaluation.recall import achieved, calibrate_pruner
from provence.evaluation.run import scored
from provence.loading import CALIBRATION
from provence.pruner import Pruner

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["recalibrate", "retrain"]


def retrain(config: Path | str, data: Path | str, out: Path | str, *, device: str = "auto") -> dict[str, Any]:
    """Train what a config describes; the same as `provence train CONFIG --data DATA --out OUT`.

    Returns:
        `model`, its folder, and `held_out`, the figures of each trained model; what is done already is not done again.
    """
    from datapipe.workers.device import resolve_devices
    from provence.training.config import load_config
    from provence.training.pipeline import Host, run_training

    host = Host(Path(out))
    held = run_training(load_config(Path(config)), Path(data), host, device=resolve_devices(device)[0])
    return {"model": str(host.out / "model"), "held_out": held}


def recalibrate(
    model: str,
    paths: Sequence[Path | str],
    out: Path | str,
    *,
    split: str = "train",
    check_split: str = "test",
    recall: float = 0.9,
    limit: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Calibrate a model on a split of sets, write `out`/calibration.json, and read on another what the promise gives.

    Args:
        model: As `Pruner.load` takes it.
        paths: Sets; their questions are pooled to calibrate, and checked set by set.
        out: Folder, made if it is not there; that of the model, if it is to be the model's own calibration.
        split: Calibrated on.
        check_split: Checked on.
        recall: Share of the gold sentences whose threshold is checked.
        limit: Questions of a set and split, at most.
        device: Where the model runs.

    Returns:
        `model`, its `digest`, `calibration` (the file), `questions`, `recall`, `threshold`, and `checked`: of each set
        what was achieved.

    Raises:
        ConfigError: So few questions cannot promise the recall.
        OutputError: The file cannot be written.
    """
    path = Path(out) / CALIBRATION
    with Pruner.load(model, device=device) as pruner:
        made = calibrate_pruner(pruner, paths, split=split, limit=limit)
        threshold = made.threshold_for(recall)
        scorer = PrunerScorer(pruner)
        checked = {
            Path(each).stem: asdict(achieved(scored(scorer, each, split=check_split, limit=limit), threshold))
            for each in paths
        }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made.save(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    return {
        "model": model,
        "digest": made.digest,
        "calibration": str(path),
        "questions": made.questions,
        "recall": recall,
        "threshold": threshold,
        "checked": checked,
    }
