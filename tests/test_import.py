"""Importing the packages is cheap: what is heavy is loaded where it is used."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

HEAVY = ["torch", "polars", "transformers", "prefect", "ray", "langchain_core", "umap", "sklearn", "fastapi", "numpy"]


def loaded(statement: str) -> set[str]:
    code = f"import json, sys\n{statement}\nprint(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "statement",
    [
        "import datapipe",
        "import provence",
        "import datapipe.cli",
        "import provence.cli",
        "import datapipe.workers",
        "dir(__import__('datapipe'))",
    ],
)
def test_importing_pulls_in_nothing_heavy(statement: str) -> None:
    assert loaded(statement) == set()


def test_the_workers_and_the_arithmetic_need_no_polars() -> None:
    statement = (
        "import sys\nsys.modules['polars'] = sys.modules['prefect'] = None\n"
        "import datapipe.workers.worker, datapipe.workers.tasks.embed, datapipe.embedding.text\n"
        "import datapipe.metrics.prototypes, datapipe.metrics.kmeans, datapipe.dedup.protect"
    )
    assert "transformers" not in loaded(statement)


def test_pruning_needs_no_polars_and_no_web() -> None:
    statement = (
        "import sys\nsys.modules.update(dict.fromkeys(['polars', 'prefect', 'fastapi', 'langchain_core', 'typer']))\n"
        "import provence.pruner, provence.task, provence.evaluation.run, provence.training.pipeline"
    )
    assert "transformers" not in loaded(statement)


@pytest.mark.parametrize("module", ["datapipe", "datapipe.workers", "provence"])
def test_every_public_name_is_there(module: str) -> None:
    package = importlib.import_module(module)
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert sorted(package.__all__) == dir(package)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_prefect_imports_beside_the_installed_fastapi() -> None:
    subprocess.run([sys.executable, "-c", "import prefect.testing.utilities"], check=True, capture_output=True)
