"""What the README and the notebooks say can be run as it stands."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import jupytext
import pytest

from benchmarks.readme import filled
from tests.runs import ROOT

if TYPE_CHECKING:
    from pathlib import Path

README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize(
    "code", [pytest.param(code, id=code.split("\n")[0]) for code in EXAMPLES if "flows." not in code]
)
def test_an_example_of_the_readme_runs_and_prints_what_it_says(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102
    printed = capsys.readouterr().out
    for promised in re.findall(r"print\(.*\)\s+# ([{\d].*)", code):
        assert promised in printed


def test_the_tables_of_the_readme_are_those_of_the_results() -> None:
    assert filled(README) == README, "run `python -m benchmarks.readme`"


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda path: path.stem)
def test_a_notebook_runs_from_start_to_end(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = jupytext.read(path)
    target = tmp_path / f"{path.stem}.ipynb"
    jupytext.write(notebook, target)
    (tmp_path / "data").symlink_to(ROOT / "data")
    import subprocess
    import sys

    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--nbmake",
            "--nbmake-timeout=280",
            "-p",
            "no:cacheprovider",
            "-q",
            str(target),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout[-4000:]
