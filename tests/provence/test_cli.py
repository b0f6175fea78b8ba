"""`provence prune`: what it prints, where, and with which exit status."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from datapipe.workers import LocalWorker, ModelSpec
from provence import cli
from provence.calibration import calibrate
from tests.provence.conftest import write_pruner
from tests.provence.faces import QUESTION, passages, served
from tests.runs import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from provence.pruner import Pruner


class Done:
    """What a command printed, and how it ended."""

    def __init__(self, status: int, out: bytes, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.out)
        return value


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Run `provence` in this process; `given` is standard input, `environment` is added to its own."""

    def call(*arguments: object, given: bytes = b"", **environment: str) -> Done:
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="") for _ in range(2))
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["provence", *map(str, arguments)])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), encoding="utf-8"))
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            for name, value in environment.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                cli.main()
        for stream in (out, err):
            stream.flush()
        status = ended.value.code
        return Done(status if isinstance(status, int) else 0, out.buffer.getvalue(), err.buffer.getvalue().decode())

    return call


@pytest.fixture(scope="module")
def model(pruner_worker: LocalWorker, pruner_spec: ModelSpec) -> Iterator[list[str]]:
    """Options by which the model is reached at a server, so that it is loaded once."""
    with served(pruner_worker, pruner_spec) as url:
        yield ["--server", url]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Real passages as files, of which one has the line ends of another system and no plain letters."""
    found = []
    for place, passage in enumerate(passages(3)):
        path = tmp_path / f"passage-{place}.txt"
        path.write_bytes(passage["context"].replace(". ", ".\r\n").replace("oil", "öl").encode())
        found.append(path)
    return found


def texts_of(files: list[Path]) -> list[str]:
    return [path.read_bytes().decode() for path in files]


def test_in_a_pipe_it_prints_what_is_kept_as_it_stands(
    run: Callable[..., Done], model: list[str], files: list[Path], pruner: Pruner
) -> None:
    contexts = pruner.prune(QUESTION, texts_of(files))
    done = run("prune", "-q", QUESTION, *model, *files)
    assert done.status == 0, done.err
    assert done.out.decode() == "\n\n".join(context.text for context in contexts if context.text) + "\n"
    ended = run("prune", "-q", QUESTION, *model, "--threshold", 0, given=b"Roses need sun.\r\n")
    assert ended.out == b"Roses need sun.\r\n"
    assert run("prune", "-q", QUESTION, *model, "--threshold", 1, *files).out == b""


def test_standard_input_is_a_document_too(run: Callable[..., Done], model: list[str], files: list[Path]) -> None:
    text = files[0].read_bytes()
    want = run("prune", "-q", QUESTION, *model, files[0]).out
    assert run("prune", "-q", QUESTION, *model, given=text).out == want
    assert run("prune", "-q", QUESTION, *model, "-", given=text).out == want
    both = run("prune", "-q", QUESTION, *model, "--json", files[1], "-", given=text)
    assert [result["source"] for result in both.json["results"]] == [str(files[1]), "standard input"]


def test_json_is_one_object_in_the_words_of_the_server(
    run: Callable[..., Done], model: list[str], files: list[Path], pruner: Pruner
) -> None:
    told = run("prune", "--question", QUESTION, *model, "--threshold", 0.5, "--top-n", 2, "--json", *files).json
    contexts = pruner.prune(QUESTION, texts_of(files), threshold=0.5, top_n=2)
    assert told["question"] == QUESTION
    assert [result["index"] for result in told["results"]] == [context.index for context in contexts]
    for result, context in zip(told["results"], contexts, strict=True):
        text = texts_of(files)[context.index]
        assert result["source"] == str(files[context.index])
        assert result["pruned_text"] == context.text == "".join(text[start:end] for start, end in result["kept_spans"])
        assert [part["kept"] for part in result["sentences"]] == [part.kept for part in context.sentences]
        assert result["compression"] == context.compression


def test_in_a_terminal_the_whole_text_is_shown_and_what_is_kept_stands_out(
    run: Callable[..., Done], model: list[str], files: list[Path], pruner: Pruner
) -> None:
    (context,) = pruner.prune(QUESTION, texts_of(files[:1]))
    screen = run("prune", "-q", QUESTION, *model, files[0], FORCE_COLOR="1", COLUMNS="120", TERM="xterm").out.decode()
    text = texts_of(files)[0]
    for part in context.sentences:
        shown = text[part.start : part.end].replace("\r\n", "\n")
        assert f"\x1b[{'1;32' if part.kept else '2'}m{shown}\x1b[0m" in screen
    kept = sum(part.kept for part in context.sentences)
    assert f"{kept} of {len(context.sentences)} parts kept" in screen


def test_a_page_is_written_beside_what_is_printed(
    run: Callable[..., Done], model: list[str], files: list[Path], tmp_path: Path
) -> None:
    done = run("prune", "-q", QUESTION, *model, "--html", tmp_path / "page.html", *files)
    assert done.out == run("prune", "-q", QUESTION, *model, *files).out
    page = (tmp_path / "page.html").read_text()
    assert page.count("<article>") == 3
    assert "<mark" in page
    assert "<s " in page
    refused = run("prune", "-q", QUESTION, *model, "--html", tmp_path / "none" / "page.html", *files)
    assert refused.status == 1
    assert "none/page.html cannot be written: there is no folder" in refused.err


def test_options_reach_the_pruner(run: Callable[..., Done], model: list[str], files: list[Path]) -> None:
    def results(*options: object) -> list[dict[str, Any]]:
        return list(run("prune", "-q", QUESTION, *model, "--json", *options, *files).json["results"])

    plain, titled = results(), results("--title", "a", "--title", "b", "--title", "c")
    assert [found["relevance_score"] for found in titled] != [found["relevance_score"] for found in plain]
    assert all(found["pruned_text"] for found in results("--threshold", 1, "--min-keep", 1))
    assert results("--threshold", 1, "--always-keep-first")[0]["sentences"][0]["reason"] == "first"
    assert not any(found["pruned_text"] for found in results("--budget-tokens", 1))
    assert {part["kind"] for found in results("--kind", "log") for part in found["sentences"]} == {"line"}


def test_the_name_of_a_file_says_how_it_is_read(run: Callable[..., Done], model: list[str], tmp_path: Path) -> None:
    path = tmp_path / "service.log"
    path.write_text("The server has started.\nA request took 3 s. It was refused.\n")
    (result,) = run("prune", "-q", QUESTION, *model, "--json", path).json["results"]
    assert [part["kind"] for part in result["sentences"]] == ["line", "line"]


def test_a_model_in_process_gives_the_same_as_one_at_a_server(
    run: Callable[..., Done], model: list[str], files: list[Path], pruner_folder: Path, pruner_spec: ModelSpec
) -> None:
    here = run("prune", "-q", QUESTION, "--model", pruner_folder, "--device", "cpu", *files)
    assert here.status == 0, here.err
    assert run("prune", "-q", QUESTION, *model, *files).out == here.out
    assert run("prune", "-q", QUESTION, *model, "--model", pruner_spec.name, *files).out == here.out
    unknown = run("prune", "-q", QUESTION, *model, "--model", "other", *files)
    assert unknown.status == 1
    assert "not served here" in unknown.err
    for option in (["--device", "cpu"], ["--backend", "onnx"]):
        assert (
            f"{option[0]} and --server exclude each other" in run("prune", "-q", QUESTION, *model, *option, *files).err
        )


def test_an_error_of_a_text_names_its_file_and_what_to_type(
    run: Callable[..., Done], model: list[str], files: list[Path]
) -> None:
    long = "Why does the river rise in spring? " * 200
    done = run("prune", "-q", long, *model, files[0])
    assert done.status == 1
    assert done.err.startswith("error: the question has ")
    assert "pass --cut-question to use its first" in done.err
    assert run("prune", "-q", long, *model, "--cut-question", files[0]).status == 0
    half = run("prune", "-q", QUESTION, *model, "--title", "a", "--title", "\ud800", *files[:2])
    assert half.err.startswith(f"error: {files[1]}: 'title' must be")


def test_a_calibration_makes_a_recall_possible(
    run: Callable[..., Done], model: list[str], files: list[Path], pruner: Pruner, tmp_path: Path
) -> None:
    scores = [found.probabilities for found in pruner.scores(QUESTION, texts_of(files))]
    path = tmp_path / "made.json"
    calibrate(scores * 10, model="random-pruner", digest=pruner.digest, domain="SQuAD").save(path)
    options = ["prune", "-q", QUESTION, *model, "--target-recall", 0.9, "--json"]
    told = run(*options, "--calibration", path, *files).json
    assert {part["reason"] for found in told["results"] for part in found["sentences"]} <= {"recall", ""}
    assert any(found["pruned_text"] for found in told["results"])
    missing = " ".join(run(*options, *files).err.split())
    assert "--target-recall needs a calibration" in missing
    assert "pass it as --calibration" in missing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one.txt"], "the question is missing: give it with --question"),
        (["-q", " ", "one.txt"], "the question is empty: give it with --question"),
        (["-q", "a", "none.txt"], "none.txt cannot be read: No such file or directory"),
        (["-q", "a", "."], ". cannot be read: Is a directory"),
        (["-q", "a", "picture.txt"], "picture.txt is not UTF-8 text: byte 2 is wrong"),
        (["-q", "a", "-", "-"], "standard input can be read once; - is given several times"),
        (["-q", "a", "--title", "b", "--title", "c", "one.txt"], "--title is given once for each file. Got 2 for 1"),
        (
            ["-q", "a", "--threshold", "0.5", "--budget-tokens", "5", "one.txt"],
            "--threshold and --budget-tokens",
        ),
        (["-q", "a", "--threshold", "7", "one.txt"], "the --threshold option of pruning must lie between 0 and 1"),
        (["-q", "a", "--top-n", "0", "one.txt"], "the --top-n option of pruning must be a whole number of at least 1"),
        (["-q", "a", "--kind", "html", "one.txt"], "--kind must be one of auto, prose, markdown, code, json, log. Got"),
        (["-q", "a", "--calibration", "none.json", "one.txt"], "--calibration is for --target-recall, which is not"),
        (["-q", "a", "--backend", "jax", "one.txt"], "backend must be one of torch, onnx. Got 'jax'"),
        (["-q", "a", "--model", "/no/such/folder", "one.txt"], "/no/such/folder"),
        (["-q", "a", "--server", "nowhere", "one.txt"], "the URL of a server looks like http://127.0.0.1:8000"),
    ],
)
def test_what_is_wrong_is_one_line_on_standard_error_and_exit_1(
    run: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.txt").write_text("Roses need sun.")
    (tmp_path / "picture.txt").write_bytes(b"ab\xff\xfe")
    done = run("prune", *arguments)
    assert done.status == 1
    assert done.out == b""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert message in done.err


def test_a_server_has_the_calibration_of_its_model(run: Callable[..., Done], files: list[Path], tmp_path: Path) -> None:
    folder = write_pruner(tmp_path / "calibrated", seed=3)
    spec = ModelSpec(name="calibrated", source=str(folder), task="prune")
    with LocalWorker([spec], device="cpu") as worker, served(worker, spec) as url:
        digest = worker.load("calibrated", task="prune").digest
        calibrate([[0.01]] * 30, model="calibrated", digest=digest, domain="d").save(folder / "calibration.json")
        where = ["--server", url, "--model", "calibrated"]
        told = run("prune", "-q", QUESTION, *where, "--target-recall", 0.9, "--json", *files)
    assert {part["reason"] for found in told.json["results"] for part in found["sentences"]} == {"recall"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["calibrate", "--limit", "0"], "--limit must be at least 1 question, or left out for all. Got 0"),
        (["calibrate", "--split", "dev"], "no row of --split 'dev'"),
        (["calibrate", "--backend", "jax"], "--backend must be one of torch, onnx. Got 'jax'"),
        (["calibrate", "--backend", "onnx", "--device", "cuda"], "leave --device out"),
        (["evaluate", "--baselines", "tfidf"], "--baselines has no baseline tfidf. There are keep_all"),
        (["evaluate", "--model", "none", "--baselines", "none"], "leave nothing to measure"),
    ],
)
def test_other_commands_say_their_options_as_they_are_typed(
    run: Callable[..., Done], data: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    command, *options = arguments
    given = [data / "squad20_dev.parquet", *options]
    done = run(command, *given, *(["--out", tmp_path / "made.json"] if command == "calibrate" else ["--model", "none"]))
    assert done.status == 1
    assert message in done.err


def test_the_command_is_one_process_and_every_subcommand_is_there(files: list[Path], pruner_folder: Path) -> None:
    def provence(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "provence.cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=ROOT)

    done = provence("prune", "-q", QUESTION, "--model", pruner_folder, "--min-keep", 1, files[0])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert done.stderr == ""
    listed = provence("--help").stdout
    assert all(name in listed for name in ("prune", "train", "labels", "calibrate", "evaluate", "export"))


@pytest.mark.parametrize("name", ["train", "labels", "calibrate", "evaluate", "export"])
def test_a_command_of_another_room_tells_its_options(run: Callable[..., Done], name: str) -> None:
    done = run(name, "--help")
    assert done.status == 0, done.err
    assert f"provence {name}" in done.out.decode()


def test_pruning_imports_nothing_of_training_and_help_no_model() -> None:
    code = (
        "import sys; from provence import cli\n"
        "sys.argv = ['provence', 'prune', '--help']\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "heavy = ['torch', 'numpy', 'transformers', 'provence.training', 'provence.evaluation', 'provence.pruner']\n"
        "assert not [name for name in heavy if name in sys.modules]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=os.environ, cwd=ROOT)
