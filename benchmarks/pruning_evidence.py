"""Our own results as rows of the table that rules and advice rest on.

    results/pruning_settings.json -> the settings that are presets -> evidence_from -> datapipe/selection/evidence.json
                                                                                    -> results/pruning_gains.json

Run: python -m benchmarks.pruning_evidence. Rows of this origin are replaced, published ones stay as they are.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from benchmarks.common import record, rows
from datapipe.advisor.record import evidence_from
from datapipe.selection.evidence import PUBLISHED

SOURCE = "own benchmark, pruning_settings"
CLASSES = {"trec6": 6, "banking77": 77}
PRESETS: dict[str, dict[tuple[str, str], tuple[float, ...]]] = {
    "random": {("random", ""): (0.1, 0.3)},
    "ccs": {("ccs", "aum"): (0.1, 0.3)},
    "dual": {("dual", "window 10, power 5.5, sharpness 15"): (0.1, 0.3)},
    "elfs": {
        ("hardest by pseudo_label_aum", "trim 0.3"): (0.1,),
        ("hardest by pseudo_label_aum", "trim 0.1"): (0.3,),
    },
    "default_labels": {
        ("hardest by aum, half of an equal share a class", "trim 0.4"): (0.1,),
        ("hardest by aum, half of an equal share a class", "trim 0.1"): (0.3,),
    },
    "sorscher_easy": {("easiest by prototypes", ""): (0.1, 0.3)},
}
"""The settings of each preset at these fractions; `default_label_free` is that of `elfs`."""


def main() -> None:
    """Write the table."""
    chosen: dict[str, list[dict[str, Any]]] = {name: [] for name in CLASSES}
    for row in rows("pruning_settings"):
        for preset, settings in PRESETS.items():
            if row["fraction"] in settings.get((row["method"], row["setting"]), ()):
                chosen[row["dataset"]].append({**row, "method": preset})
                if preset == "elfs":
                    chosen[row["dataset"]].append({**row, "method": "default_label_free"})
    found = [
        evidence
        for name, results in chosen.items()
        for evidence in evidence_from(
            results, rows=results[0]["rows"], classes=CLASSES[name], modality="text", source=SOURCE
        )
    ]
    kept = [row for row in json.loads(PUBLISHED.read_text(encoding="utf-8")) if row["source"] != SOURCE]
    lines = [json.dumps(row, ensure_ascii=False) for row in [*kept, *map(asdict, found)]]
    PUBLISHED.write_text("[\n " + ",\n ".join(lines) + "\n]\n", encoding="utf-8")
    for each in found:
        about = {"dataset": each.dataset, "fraction": each.fraction, "method": each.method}
        gain = round(each.accuracy - each.random, 2) if each.accuracy is not None and each.random is not None else None
        figures = {"random": each.random, "accuracy": each.accuracy, "gain": gain, "half_width": each.half_width}
        record("pruning_gains", figures, about)
        print(each.told(), each.method, gain, "±", each.half_width)


if __name__ == "__main__":
    main()
