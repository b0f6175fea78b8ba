"""Our own results as rows of the table that rules and advice rest on.

    results/pruning_settings.json, pruning_text.json (text), pruning_images.json, pruning_images_choice.json (images)
    -> the settings that are presets -> evidence_from -> datapipe/selection/evidence.json, results/pruning_gains.json

Run: python -m benchmarks.pruning_evidence. Rows of this origin are replaced, published ones stay as they are. What was
measured on a test split counts by that and, on text, by validation rows too; presets that were only tried on validation
images count there, against random rows of the same seed, as far as there are.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from benchmarks.common import RESULTS, record, rows
from benchmarks.image_plans import EARLIER, OURS, Setting
from datapipe.advisor.record import evidence_from
from datapipe.selection.evidence import PUBLISHED
from datapipe.selection.presets import DUAL_POWER, DUAL_SHARPNESS, get_preset

if TYPE_CHECKING:
    from datapipe.selection.evidence import Evidence

Row = dict[str, Any]

SOURCE = "own benchmark, pruning_settings"
IMAGES = "own benchmark, pruning_images"
VALIDATION = "own benchmark, pruning_images on validation images"
TESTED = "own benchmark, pruning_text"
CLASSES = {"trec6": 6, "banking77": 77, "dbpedia14_test": 14}
SIZES = {"cifar10": (50_000, 10), "fashion_mnist": (60_000, 10)}
"""Training rows and classes of the sets of images."""
(BY_RANK,) = EARLIER
_DUAL = f"window 10, power {DUAL_POWER:g}, sharpness {DUAL_SHARPNESS:g}"
TEXT: dict[str, dict[tuple[str, str], tuple[float, ...]]] = {
    "random": {("random", ""): (0.1, 0.3)},
    "ccs": {("ccs", "aum"): (0.1, 0.3)},
    "dual": {("dual", f"{_DUAL}, by mean probability"): (0.1, 0.3)},
    BY_RANK: {("dual", "window 10, power 5.5, sharpness 15"): (0.1, 0.3)},
    "elfs": {
        ("hardest by pseudo_label_aum", "trim 0.3"): (0.1,),
        ("hardest by pseudo_label_aum", "trim 0.1"): (0.3,),
    },
    "default_label_free": {("hardest by pseudo_label_aum", "trim 0.3"): (0.3,)},
    "default_labels": {
        ("hardest by aum, half of an equal share a class", "trim 0.3"): (0.1,),
        ("hardest by aum, half of an equal share a class", "trim 0.1"): (0.3,),
    },
    "sorscher_easy": {("easiest by prototypes", ""): (0.1, 0.3)},
}
"""The settings of each preset, or of what is none, at these fractions."""
TRIED = ("elfs", "zcore")
"""Presets that were tried on validation images and not on the test split."""


def main() -> None:
    """Write the table."""
    found = [replace(row, half_width=round(row.half_width, 3)) for row in (*text(), *tested_text(), *images())]
    known = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    kept = [row for row in known if not row["source"].startswith("own benchmark")]
    lines = [json.dumps(row, ensure_ascii=False) for row in [*kept, *map(asdict, found)]]
    PUBLISHED.write_text("[\n " + ",\n ".join(lines) + "\n]\n", encoding="utf-8")
    (RESULTS / "pruning_gains.json").unlink(missing_ok=True)
    for each in found:
        gain = round(each.accuracy - each.random, 2) if each.accuracy is not None and each.random is not None else None
        print(each.told(), each.method, gain, "±", each.half_width)
        if each.source == SOURCE:
            about = {"dataset": each.dataset, "fraction": each.fraction, "method": each.method}
            figures = {"random": each.random, "accuracy": each.accuracy, "gain": gain, "half_width": each.half_width}
            record("pruning_gains", figures, about)


def text() -> list[Evidence]:
    """Heads on vectors of text, on validation rows."""
    chosen: dict[str, list[Row]] = {}
    for row in rows("pruning_settings"):
        for preset, settings in TEXT.items():
            if row["fraction"] in settings.get((row["method"], row["setting"]), ()):
                chosen.setdefault(row["dataset"], []).append({**row, "method": preset})
    return [
        evidence
        for name, results in chosen.items()
        for evidence in evidence_from(
            results, rows=results[0]["rows"], classes=CLASSES[name], modality="text", source=SOURCE
        )
    ]


def tested_text() -> list[Evidence]:
    """Heads on vectors of text, on the test splits, as far as the settings are those of the presets today."""
    from benchmarks.text_sets import METHODS, told_setting

    measured = rows("pruning_text")
    sizes = {row["dataset"]: row["rows"] for row in measured if row["method"] == "full"}
    current = [
        row
        for row in measured
        if row["method"] == "full"
        or (row["method"] in METHODS and row["setting"] == told_setting(row["method"], row["fraction"]))
    ]
    found: list[Evidence] = []
    for name, size in sorted(sizes.items()):
        own = [row for row in current if row["dataset"] == name]
        # At the fractions at which it keeps random rows the default is no method of its own.
        own = [row for row in own if row["method"] not in OURS or row["setting"]["plan"]["order"] != "random"]
        found += evidence_from(own, rows=size, classes=CLASSES[name], modality="text", source=TESTED)
    return found


def images() -> list[Evidence]:
    """Networks on images: methods on the test split, and presets that were only tried on validation images."""
    tested = [{**row, "method": called(row)} for row in rows("pruning_images") if "trained_as" not in row]
    # Every encoder is compared with the same random rows.
    base = [row for row in tested if row["method"] == "random"]
    for encoder in sorted({row["encoder"] for row in tested} - {row["encoder"] for row in base}):
        tested += [{**row, "encoder": encoder} for row in base]
    found: list[Evidence] = []
    for source, results in ((IMAGES, tested), (VALIDATION, _tried())):
        for name in sorted({row["dataset"] for row in results}):
            count, classes = SIZES[name]
            own = [row for row in results if row["dataset"] == name]
            found += evidence_from(own, rows=count, classes=classes, source=source)
    return found


def called(row: Row) -> str:
    """The method of a row; a default whose setting is not that of the preset goes by the score that it cut by."""
    name: str = row["method"]
    if name in OURS and row["setting"] != _setting(name, row["fraction"], row["setting"]["score"]):
        return f"{row['setting']['score']}_window"
    # Its power of the pruned part is that of the authors for images, while the preset has that of text.
    return "dual_for_images" if name == "dual" else name


def _tried() -> list[Row]:
    measured = rows("pruning_images_choice")
    found: list[Row] = [
        {**row, "method": preset}
        for preset in TRIED
        for row in measured
        if row["setting"] == _setting(preset, row["fraction"], get_preset(preset).metric)
    ]
    recipes = [(row["fraction"], row["recipe"]) for row in found]
    for row in rows("pruning_images_tuning"):
        if (row["fraction"], row["recipe"]) in recipes:
            found += [{**row, "method": "random", "encoder": each} for each in {row["encoder"] for row in measured}]
    return found


def _setting(preset: str, fraction: float, score: str) -> Row | None:
    """The setting of a preset as a row tells it; None where it reads another score."""
    made = get_preset(preset)
    if made.metric != score:
        return None
    plan, group = made.settings(fraction, groups=("label",))
    told: Row = json.loads(json.dumps(Setting(score=score, plan=plan, group=group).as_dict()))
    return told


if __name__ == "__main__":
    main()
