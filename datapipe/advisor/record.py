"""Results of our own benchmarks as rows of the evidence.

    {dataset, encoder, fraction, method, seed, accuracy, ...} a run -> pairs by seed -> Evidence a method and fraction

A difference is paired with random of the same data set, encoder, fraction and seed. Raises `ConfigError` for rows that
lack a field or have no random beside them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from datapipe.advisor.interval import paired
from datapipe.errors import ConfigError
from datapipe.selection.evidence import Evidence

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from datapipe.selection.evidence import Modality

PRESET_OF = {"prototypes_hard": "sorscher_hard", "prototypes_easy": "sorscher_easy"}
"""Names of benchmark methods that are presets under another name."""
_FIELDS = ("dataset", "encoder", "fraction", "method", "seed", "accuracy")


def evidence_from(
    results: Iterable[Mapping[str, Any]],
    *,
    rows: int,
    classes: int,
    modality: Modality = "images",
    source: str = "own benchmark",
) -> tuple[Evidence, ...]:
    """Return one row of evidence for each method and fraction of a data set and encoder.

    Args:
        results: Result rows with the fields dataset, encoder, fraction, method, seed, accuracy (percent); the method
            "random" is what the others are compared with, "full" (any fraction) is all rows.
        rows: Training rows of the full set.
        classes: Its classes.
        modality: What its rows are.
        source: What the rows are called in reasons.

    Raises:
        ConfigError: A field is missing, a seed is there twice, or a method has no seed in common with random.
    """
    runs: dict[tuple[str, str, float, str], dict[int, float]] = {}
    full: dict[tuple[str, str], list[float]] = {}
    for at, result in enumerate(results, 1):
        missing = [name for name in _FIELDS if name not in result]
        if missing:
            raise ConfigError(f"result row {at} lacks {', '.join(missing)}; a row has {', '.join(_FIELDS)}")
        dataset, encoder, fraction, method, seed, accuracy = (result[name] for name in _FIELDS)
        if method == "full":
            full.setdefault((dataset, encoder), []).append(accuracy)
            continue
        seeds = runs.setdefault((dataset, encoder, fraction, method), {})
        if seed in seeds:
            raise ConfigError(f"result row {at}: {method} at {fraction} on {dataset} has the seed {seed} twice")
        seeds[seed] = accuracy
    found = []
    for (dataset, encoder, fraction, method), seeds in sorted(runs.items()):
        if method == "random":
            continue
        random = runs.get((dataset, encoder, fraction, "random"), {})
        common = sorted(set(seeds) & set(random))
        if not common:
            raise ConfigError(f"{method} at {fraction} on {dataset}, {encoder}, has no seed in common with random")
        interval = paired([seeds[seed] - random[seed] for seed in common])
        all_rows = full.get((dataset, encoder))
        found.append(
            Evidence(
                source=source,
                kind="measured",
                dataset=dataset,
                modality=modality,
                rows=rows,
                classes=classes,
                setting=encoder,
                fraction=fraction,
                method=PRESET_OF.get(method, method),
                accuracy=_mean([seeds[seed] for seed in common]),
                # One seed has no interval; such a row neither wins nor loses.
                half_width=interval.half_width if math.isfinite(interval.half_width) else 100.0,
                random=_mean([random[seed] for seed in common]),
                full=_mean(all_rows) if all_rows else None,
            )
        )
    return tuple(found)


def _mean(values: list[float]) -> float:
    return round(math.fsum(values) / len(values), 3)
