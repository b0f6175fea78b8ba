"""What all benchmarks share: results as JSON with their circumstances, and tables made from them.

    method's config -> finished()? -> measure -> record() -> benchmarks/results/NAME.json -> table()

A row is one measurement: its config, the digest of that config, what was measured, commit, hardware, versions. A
finished row of the same digest is not measured again, so a long table can be made in several short runs. Imports
nothing of the project but its digests, so that it also runs where only torch, transformers, numpy and pyarrow are.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datapipe.storage.digest import digest_of

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(os.environ.get("BENCHMARK_RESULTS", ROOT / "benchmarks" / "results"))
"""Where results lie; BENCHMARK_RESULTS names another folder, on a machine whose working tree does not come back."""

PACKAGES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "tokenizers",
    "numpy",
    "pyarrow",
    "polars",
    "scikit-learn",
)

Row = dict[str, Any]


@cache
def environment() -> Row:
    """Commit, hardware and versions of this process."""
    return {"commit": _commit(), "hardware": _hardware(), "versions": _versions()}


def with_the_processors_own_blas() -> None:
    """Start this program again where the environment names another kernel for OpenBLAS than that of this processor.

    numpy and scikit-learn would run on it several times slower, and be no rival worth beating.
    """
    chosen = {"OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"} & os.environ.keys()
    if chosen:
        rest = {name: value for name, value in os.environ.items() if name not in chosen}
        os.execve(sys.executable, sys.orig_argv, rest)  # noqa: S606


def blas_kernels() -> str:
    """The kernels on which the BLAS libraries of this process run, such as `SkylakeX`."""
    from threadpoolctl import threadpool_info

    return ", ".join(sorted({library["architecture"] for library in threadpool_info() if "architecture" in library}))


def peak_memory() -> int:
    """The most memory that this program has held, in bytes; ru_maxrss would count the process that started it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) << 10


def finished(name: str, config: Row) -> Row | None:
    """The row of `benchmarks/results/NAME.json` that was measured with that config, if there is one."""
    digest = digest_of(config)
    return next((row for row in rows(name) if row["digest"] == digest), None)


def record(name: str, row: Row, config: Row) -> Row:
    """Write what was measured with a config; an earlier row of the same config is replaced. Returns the whole row.

    Args:
        name: Of the benchmark; the results lie in NAME.json.
        row: What was measured.
        config: What decides it: method, data, sizes, device. Equal configs mean the same measurement.
    """
    digest = digest_of(config)
    whole = {**config, **row, "digest": digest, **environment()}
    kept = [known for known in rows(name) if known["digest"] != digest]
    write_rows(name, [*kept, whole])
    return whole


def write_rows(name: str, rows: Sequence[Row]) -> None:
    """Make these all the rows of a benchmark, at once, a row a line. No rows leave what is there."""
    if not rows:
        return
    lines = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path = _path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    temporary.write_text(f'{{\n "name": {json.dumps(name)},\n "rows": [\n  {lines}\n ]\n}}\n', encoding="utf-8")
    temporary.replace(path)


def rows(name: str) -> list[Row]:
    """All rows of a benchmark, in the order in which they were recorded."""
    path = _path(name)
    if not path.is_file():
        return []
    found: list[Row] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return found


def outcome(predicted: Any, truth: Any, *, classes: int, rows: int, seconds: float) -> Row:
    """What a row says of one training: `rows`, `accuracy` and `worst_class` in percent, `seconds`.

    Args:
        predicted: Class of each asked row, int64 (asked,).
        truth: The true one, int64 (asked,).
        classes: Their number.
        rows: Learnt from.
        seconds: Of this training.
    """
    from datapipe.proof.statistics import worst_class

    return {
        "rows": rows,
        "accuracy": 100 * float((predicted == truth).mean()),
        "worst_class": 100 * worst_class(predicted, truth, classes=classes),
        "seconds": seconds,
    }


def table(name: str, columns: list[str] | None = None, *, only: Row | None = None) -> str:
    """A benchmark's rows as a Markdown table.

    Args:
        name: Of the benchmark.
        columns: Keys to show, in that order; None shows all that are no lists or objects.
        only: Shows the rows that have these values; None shows all.
    """
    found = [row for row in rows(name) if all(str(row.get(key)) == str(value) for key, value in (only or {}).items())]
    if columns is None:
        hidden = {"digest", "commit"}
        columns = list(dict.fromkeys(k for row in found for k, v in row.items() if not isinstance(v, dict | list)))
        columns = [column for column in columns if column not in hidden]
    lines = [[column.replace("_", " ") for column in columns], ["---"] * len(columns)]
    lines += [[_shown(row.get(column)) for column in columns] for row in found]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.5g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else str(value)


def _path(name: str) -> Path:
    return RESULTS / f"{name}.json"


def _commit() -> str:
    try:
        head = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("BENCHMARK_COMMIT", "unknown")
    return head + ("+changes" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _hardware() -> Row:
    found: Row = {"machine": platform.machine(), "cores": os.cpu_count(), "cpu": processor()}
    try:
        import torch
    except ImportError:
        return found
    found["instructions"] = torch.backends.cpu.get_cpu_capability()
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def processor() -> str:
    """The name of the processor, as the system states it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
