"""Silver labels end to end: real questions, a real server or a real (tiny) language model, tables on disk."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
import torch
import transformers
import typer
from pyarrow import parquet
from typer.testing import CliRunner

from datapipe.errors import (
    ColumnError,
    ConfigError,
    LockedError,
    ModelError,
    SourceError,
    UnsafeModelError,
    WorkerError,
)
from datapipe.weights import embedded_folder
from provence.evaluation.sets import read_examples
from provence.training.silver import make_labels
from provence.training.silver_answers import Passage, prompt_of
from provence.training.silver_command import labels
from provence.training.silver_endpoint import EndpointLabeller
from provence.training.silver_journal import Journal, Reply, key_of
from provence.training.silver_local import LocalLabeller
from provence.training.silver_report import Agreement, Tally
from provence.training.silver_source import Refused, rows_of
from tests.conftest import DATA
from tests.provence.training.silver_server import ChatServer, chat_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from provence.training.silver import Outcome

SQUAD = DATA / "squad20_dev.parquet"


class Fixed:
    """Answers by rule, and counts what it is asked."""

    name = "fixed"

    def __init__(self, answer: Any = lambda _: "It is so [1].", *, identity: str = "fixed") -> None:
        self.answer, self.identity = answer, identity
        self.asked: list[str] = []

    def replies(self, prompts: Sequence[str]) -> Iterator[tuple[int, Outcome]]:
        for place in reversed(range(len(prompts))):
            self.asked.append(prompts[place])
            answer = self.answer(prompts[place])
            yield place, answer if isinstance(answer, Reply) else Reply(answer)


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


ROW: dict[str, Any] = {"question": "When?", "context": "It was in 1897. Then it rained.", "title": "Aspirin"}


def test_labels_have_the_layout_of_their_source_and_carry_the_reply(tmp_path: Path) -> None:
    report = make_labels(SQUAD, Fixed(), out=tmp_path, limit=30)
    table, source = parquet.read_table(tmp_path / "labels.parquet"), parquet.read_table(SQUAD).slice(0, 30)
    assert table.schema.equals(source.schema)
    assert table["id"].to_pylist() == source["id"].to_pylist()
    first, given = table.to_pylist()[0], source.to_pylist()[0]
    assert first["relevant"] == [1, 0, 0, 0]
    assert (first["label_kind"], first["answers"]) == ("silver:fixed", given["answers"])
    assert json.loads(first["extra"]) == {
        "reply": "It is so [1].",
        "source": given["id"],
        "relevant": given["relevant"],
        "label_kind": given["label_kind"],
    }
    assert (report.labelled, report.parse_rate, report.rejected) == (30, 1.0, {})
    examples = read_examples(tmp_path / "labels.parquet")
    assert [example.id for example in examples] == table["id"].to_pylist()


def test_a_perfect_model_agrees_with_people(tmp_path: Path) -> None:
    human = {prompt_of(row.passage): row.human for row in rows_of(SQUAD, sentences=10) if not isinstance(row, Refused)}

    def answer(prompt: str) -> str:
        cited = "".join(f"[{place}]" for place, label in enumerate(human[prompt] or (), 1) if label)
        return f"It is so {cited}." if cited else "No answer"

    report = make_labels(SQUAD, Fixed(answer), out=tmp_path, limit=200)
    assert report.agreement is not None
    assert (report.agreement.f1, report.agreement.kappa, report.agreement.rows) == (1.0, 1.0, 200)


def test_agreement_is_as_computed_by_hand() -> None:
    tally = Tally()
    found = Agreement.of(tally.pairs, rows=0)
    assert (found.precision, found.recall, found.f1, found.kappa) == (0, 0, 0, 0)
    tally.pairs.update({(1, 1): 20, (1, 0): 10, (0, 1): 5, (0, 0): 15})  # Cohen 1960: p_o = .7, p_e = .5
    found = Agreement.of(tally.pairs, rows=1)
    assert found.precision == pytest.approx(20 / 30)
    assert found.recall == pytest.approx(20 / 25)
    assert found.kappa == pytest.approx(0.4)


def test_what_is_of_no_use_is_rejected_with_its_reason_and_reply(tmp_path: Path) -> None:
    answers = {"a?": "It is so.", "b?": "It is so [0].", "c?": "It is so [9].", "d?": Reply("It is [1", finished=False)}
    source = written(tmp_path / "in.jsonl", [ROW | {"question": question} for question in [*answers, " ", "e?"]])
    report = make_labels(source, Fixed(lambda p: answers.get(p[-2:], "It is [1][9].")), out=tmp_path / "out")
    rejected = parquet.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    reasons = ["uncited", "only_title", "out_of_range", "cut_off", "no_question"]
    assert [row["reason"] for row in rejected] == reasons
    assert rejected[0]["reply"] == "It is so."
    assert json.loads(rejected[0]["row"])["context"] == ROW["context"]
    assert report.rejected == dict.fromkeys(sorted(reasons), 1)
    assert (report.labelled, report.replies, report.out_of_range, report.citations) == (1, 5, 2, 4)
    assert report.parse_rate == pytest.approx(3 / 5)
    assert report.agreement is None


def test_a_long_context_is_cut_into_passages_of_whole_sentences(tmp_path: Path) -> None:
    whole = parquet.read_table(SQUAD).slice(0, 1).to_pylist()[0]
    make_labels(SQUAD, Fixed(), out=tmp_path, limit=2, sentences=3)
    rows = parquet.read_table(tmp_path / "labels.parquet").to_pylist()
    assert [row["id"] for row in rows] == [f"{whole['id']}#0", f"{whole['id']}#1"]
    assert rows[1]["context"] == whole["context"][whole["sent_start"][3] :]
    for row in rows:
        assert len(row["relevant"]) == len(row["sent_start"]) <= 3
        assert row["sent_end"][-1] == len(row["context"])


def test_a_row_without_sentences_is_split(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", [ROW])
    make_labels(source, Fixed(), out=tmp_path / "out")
    (row,) = parquet.read_table(tmp_path / "out" / "labels.parquet").to_pylist()
    assert [row["context"][s:e] for s, e in zip(row["sent_start"], row["sent_end"], strict=True)] == [
        "It was in 1897.",
        "Then it rained.",
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": None}, "no_question"),
        ({"context": " "}, "no_text"),
        ({"context": "\ud800 x"}, "not_unicode"),
        ({"sent_start": [0], "sent_end": [99]}, "bad_spans"),
        ({"sent_start": [0, 3], "sent_end": [5, 9]}, "bad_spans"),
        ({"sent_start": [0, 3], "sent_end": [2]}, "bad_spans"),
        ({"sent_start": [0], "sent_end": [15], "relevant": [1, 0]}, "bad_spans"),
    ],
)
def test_a_row_at_fault_is_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    (row,) = rows_of(written(tmp_path / "in.jsonl", [ROW | change]), sentences=10)
    assert isinstance(row, Refused)
    assert row.reason == reason
    assert make_labels(tmp_path / "in.jsonl", Fixed(), out=tmp_path / "out").rejected == {reason: 1}


def test_a_row_that_is_no_utf8_is_refused_and_the_others_are_labelled(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", [ROW, ROW | {"question": "Wo?"}])
    source.write_bytes(source.read_bytes().replace(b"Wo?", b"W\xf6?"))
    report = make_labels(source, Fixed(), out=tmp_path / "out")
    assert (report.labelled, report.rejected) == (1, {"not_unicode": 1})


def test_a_source_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(SourceError, match="is not a readable Parquet file"):
        make_labels(tmp_path / "x.parquet", Fixed(), out=tmp_path / "out")
    with pytest.raises(SourceError, match="is no file"):
        make_labels(tmp_path / "y.parquet", Fixed(), out=tmp_path / "out")
    (tmp_path / "x.csv").write_text("question")
    with pytest.raises(SourceError, match=r"must end with \.parquet"):
        make_labels(tmp_path / "x.csv", Fixed(), out=tmp_path / "out")
    (tmp_path / "x.jsonl").write_text('{"question": "a", "context": "b"}\n[')
    with pytest.raises(SourceError, match="line 2 is no JSON"):
        make_labels(tmp_path / "x.jsonl", Fixed(), out=tmp_path / "out")
    parquet.write_table(pa.table({"question": ["a"], "text": ["b"]}), tmp_path / "z.parquet")
    with pytest.raises(ColumnError, match="no column 'context'; there are: question, text"):
        make_labels(tmp_path / "z.parquet", Fixed(), out=tmp_path / "out")
    with pytest.raises(ConfigError, match="'sentences' parameter"):
        make_labels(SQUAD, Fixed(), out=tmp_path / "out", sentences=0)
    assert not (tmp_path / "out" / "labels.parquet").exists()


def test_a_run_that_was_broken_off_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    def failing(prompt: str) -> str:
        if len(broken.asked) == 13:
            raise WorkerError("gone")
        return "It is so [1]."

    broken, whole = Fixed(failing), Fixed()
    with pytest.raises(WorkerError, match="gone"):
        make_labels(SQUAD, broken, out=tmp_path, limit=40)
    assert not (tmp_path / "labels.parquet").exists()
    with (tmp_path / "replies.jsonl").open("ab") as file:
        file.write(b'{"key": "torn')
    report = make_labels(SQUAD, whole, out=tmp_path, limit=40)
    assert (report.asked, report.replies, report.labelled) == (28, 40, 40)
    assert set(whole.asked).isdisjoint(broken.asked[:12])
    first = (tmp_path / "labels.parquet").read_bytes()
    assert make_labels(SQUAD, whole, out=tmp_path, limit=40).asked == 0
    assert (tmp_path / "labels.parquet").read_bytes() == first


def test_a_damaged_line_of_the_journal_costs_its_own_reply_only(tmp_path: Path) -> None:
    model = Fixed()
    make_labels(SQUAD, model, out=tmp_path, limit=12)
    lines = (tmp_path / "replies.jsonl").read_bytes().splitlines(keepends=True)
    lines[4] = b"\x00" * 20 + b"\n"
    (tmp_path / "replies.jsonl").write_bytes(b"".join(lines))
    assert make_labels(SQUAD, model, out=tmp_path, limit=12).asked == 1


def test_another_model_is_asked_again(tmp_path: Path) -> None:
    make_labels(SQUAD, Fixed(identity="one"), out=tmp_path, limit=3)
    assert make_labels(SQUAD, Fixed(identity="two"), out=tmp_path, limit=3).asked == 3


def test_one_question_about_one_passage_is_asked_once(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", [ROW, ROW, ROW | {"question": "Where?"}])
    model = Fixed()
    report = make_labels(source, model, out=tmp_path / "out")
    assert (len(model.asked), report.labelled) == (2, 3)


def test_a_second_writer_is_kept_out(tmp_path: Path) -> None:
    with Journal(tmp_path / "replies.jsonl"), pytest.raises(LockedError, match="another process"):
        make_labels(SQUAD, Fixed(), out=tmp_path, limit=1)


def test_the_journal_gives_back_what_it_was_given(tmp_path: Path) -> None:
    replies = {key_of(text, identity="m"): Reply(text, finished=len(text) > 1) for text in ("a", "b\nc", "é\x00", "")}
    with Journal(tmp_path / "r.jsonl") as journal:
        journal.add(replies.items())
        journal.add(replies.items())
    with Journal(tmp_path / "r.jsonl") as journal:
        assert {key: journal[key] for key in replies} == replies
        assert len(journal) == len(replies)


# A real language model, small and random.


@pytest.fixture(scope="module")
def causal_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("causal") / "random-llama"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=30_522,
        max_position_embeddings=400,
        eos_token_id=102,
        bos_token_id=101,
        initializer_range=0.4,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    shutil.copy(embedded_folder("all-MiniLM-L6-v2") / "tokenizer.json", folder)
    return folder


PROMPTS = [prompt_of(Passage(f"Why {n}?", "", "word " * n, ((0, 5 * n - 1),))) for n in (3, 40, 11, 25, 60)]


def test_a_local_model_replies_the_same_alone_and_in_a_padded_batch(causal_folder: Path) -> None:
    together = LocalLabeller(str(causal_folder), dtype="float32", max_new_tokens=6)
    alone = LocalLabeller(str(causal_folder), dtype="float32", max_new_tokens=6, batch_tokens=1)
    batch = dict(together.replies(PROMPTS))
    assert sorted(batch) == list(range(len(PROMPTS)))
    assert batch == dict(alone.replies(PROMPTS))
    assert len({reply.text for reply in batch.values() if isinstance(reply, Reply)}) > 1


def test_greedy_is_the_likeliest_token_each_time(causal_folder: Path) -> None:
    model = transformers.LlamaForCausalLM.from_pretrained(causal_folder)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(causal_folder / "tokenizer.json"))
    ids = tokenizer(f"{PROMPTS[0]}\n\nAnswer:")["input_ids"]
    given = len(ids)
    with torch.inference_mode():
        for _ in range(6):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    (found,) = dict(LocalLabeller(str(causal_folder), dtype="float32", max_new_tokens=6).replies(PROMPTS[:1])).values()
    assert found == Reply(tokenizer.decode(ids[given:], skip_special_tokens=True), finished=False)


def test_a_chat_template_is_applied_and_its_absence_told(
    causal_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(causal_folder, tmp_path / "chat")
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'][-6:] }} so{% if 0 %}{% endif %}")
    plain = LocalLabeller(str(causal_folder), dtype="float32", max_new_tokens=4)
    assert "has no chat template, so it is asked in plain text" in caplog.text
    caplog.clear()
    chat = LocalLabeller(str(folder), dtype="float32", max_new_tokens=4)
    assert not caplog.text
    assert dict(chat.replies(PROMPTS)) != dict(plain.replies(PROMPTS))


def test_a_prompt_that_leaves_no_room_for_a_reply_is_refused(causal_folder: Path) -> None:
    model = LocalLabeller(str(causal_folder), dtype="float32", max_new_tokens=4)
    long = prompt_of(Passage("Why?", "", "word " * 500, ((0, 2499),)))
    found = dict(model.replies([long, PROMPTS[0]]))
    assert found[0] == "prompt_too_long"
    assert isinstance(found[1], Reply)


def test_a_batch_that_does_not_fit_is_halved(causal_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LocalLabeller(str(causal_folder), dtype="float32", max_new_tokens=4)
    expected, real = dict(model.replies(PROMPTS)), model._generate_at_once

    def full(batch: Sequence[list[int]]) -> list[Reply]:
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return real(batch)

    monkeypatch.setattr(model, "_generate_at_once", full)
    assert dict(model.replies(PROMPTS)) == expected


def test_pickled_weights_and_code_of_a_folder_are_not_used(causal_folder: Path, tmp_path: Path) -> None:
    pickled = shutil.copytree(causal_folder, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(UnsafeModelError, match=r"pytorch_model\.bin can run code"):
        LocalLabeller(str(pickled))
    coded = shutil.copytree(causal_folder, tmp_path / "coded")
    config = json.loads((coded / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}}
    (coded / "config.json").write_text(json.dumps(config))
    (coded / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match="knows no model_type 'evil'"):
        LocalLabeller(str(coded))
    assert not (tmp_path / "ran").exists()


# The command.


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with chat_server(lambda _: "It is so [1].") as state:
        yield state


def command(*arguments: object) -> Any:
    app = typer.Typer()
    app.command()(labels)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_labels_through_an_endpoint_and_prints_one_object(server: ChatServer, tmp_path: Path) -> None:
    options = ("--endpoint", server.address, "--model", "tiny", "--out", tmp_path, "--limit", 12, "--json")
    found = command(SQUAD, *options)
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert (report["model"], report["asked"], report["labelled"]) == ("tiny", 12, 12)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert 0 < report["agreement"]["recall"] < 1
    assert len(parquet.read_table(tmp_path / "labels.parquet")) == 12


def test_the_command_labels_with_a_local_model(causal_folder: Path, tmp_path: Path) -> None:
    options = ("--out", tmp_path, "--limit", 2, "--max-new-tokens", 3, "--sentences", 1)
    found = command(SQUAD, "--model", causal_folder, *options)
    assert found.exit_code == 0, found.output
    assert "of 2 passages labelled by random-llama" in found.stdout
    assert "replies that could be read" in found.stdout


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ([], "give --model, or --endpoint with --model"),
        (["--endpoint", "http://host/v1"], "name the model that it serves"),
        (["--endpoint", "http://host/v1", "--model", "m", "--device", "cpu"], "--device is for a local model"),
    ],
)
def test_options_that_do_not_go_together_are_refused_by_name(tmp_path: Path, options: list[str], error: str) -> None:
    found = command(SQUAD, "--out", tmp_path, *options)
    assert isinstance(found.exception, ConfigError)
    assert error in str(found.exception)


def test_a_source_that_cannot_be_read_is_found_before_the_model_is_loaded(tmp_path: Path) -> None:
    none, odd = tmp_path / "none.parquet", tmp_path / "odd.jsonl"
    odd.write_text('{"question": "Who?", "text": "Anna."}')
    for source, error in ((none, "is no file"), (odd, "has no column 'context'; there are: question, text")):
        found = command(source, "--model", tmp_path / "no-model", "--out", tmp_path / "out")
        assert error in str(found.exception)
        assert not (tmp_path / "out").exists()


def test_an_endpoint_labeller_resumes_under_the_same_name_only(server: ChatServer) -> None:
    one, same = EndpointLabeller(server.address, "m"), EndpointLabeller(f"{server.address}/", "m")
    assert one.identity == same.identity != EndpointLabeller(server.address, "n").identity
