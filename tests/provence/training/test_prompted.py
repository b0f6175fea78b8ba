"""Questions recovered from prompts: what each shape says, which sentence is gold, and what is never a label."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.provence_prompted import NONE, Prompt, among, answering, convert, recovered
from datapipe.errors import ColumnError, SourceError
from provence.evaluation.sets import read_examples

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PLOT = "Ada keeps a lighthouse. One night Tom rows to the lighthouse. He brings a broken clock. Ada mends the..."
DUORC = f"Please answer this.\n\nQuestion: Who rows to Ada?\nMovie plot title: The Lamp\nMovie plot: {PLOT}\n"
OTHER_DUORC = f"I direct.\n\nPlot title: The Lamp\nMovie plot: {PLOT}\nMy question: Who rows to Ada?\n"
FILM = Prompt("duorc", "Who rows to Ada?", "The Lamp", (PLOT,))


def qasc(number: int, first: str, second: str) -> tuple[str, str, str]:
    asked = (
        f'Given the two facts above, answer the question "Why {number}?" with the following options: \n- this\n - that'
    )
    return "qasc_qa_with_separated_facts_2", f"Fact 1: {first}\n\nFact 2: {second}\n\n{asked}\n", "this"


ROPES = (
    "ropes_background_new_situation_answer",
    (
        "I can use this background: Salt melts ice.\n\nNow, I have a new situation: Ann salts her path. Bo does not."
        "\n\nAnswer this question please: Whose path is icy?\n"
    ),
    "Bo's",
)
COSMOS = (
    "cosmos_qa_context_question_description_text",
    "I was late . The bus was gone .\nQuestion: Why did I walk ?\nThe answer to the above question:\n",
    "There was no bus .",
)
HOP = (
    "wiki_hop_original_generate_object",
    (
        "Information:\n\n- Ulm is a city in Germany.\n\n- Germany lies in Europe.\n\n\n\n"
        "What entity does 'ulm' has the relation 'continent' with?\n"
    ),
    "europe",
)
QUARTZ = (
    "quartz_answer_question_based_on",
    (
        "Answer the question based on the following text.\n\nQuestion:\n\n\nIs a longer wire better or worse? \n\n\n"
        "Text:\n\nLonger wires resist more.\n"
    ),
    "worse",
)


def written(folder: Path, rows: Sequence[tuple[str, str, str]]) -> Path:
    path = folder / "t0.parquet"
    pq.write_table(
        pa.table(dict(zip(("template", "prompt", "completion"), zip(*rows, strict=True), strict=True))), path
    )
    return path


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (("duorc_SelfRC_answer_question", DUORC, "Tom"), FILM),
        (("duorc_SelfRC_movie_director", OTHER_DUORC, "Tom"), FILM),
        (("duorc_ParaphraseRC_answer_question", DUORC, "Tom"), FILM._replace(set="duorc_free")),
        (ROPES, Prompt("ropes", "Whose path is icy?", "", ("Salt melts ice.", "Ann salts her path. Bo does not."))),
        (COSMOS, Prompt("cosmos_qa", "Why did I walk ?", "", ("I was late . The bus was gone .",))),
        (HOP, Prompt("wiki_hop", "ulm: continent", "", ("Ulm is a city in Germany.\n\nGermany lies in Europe.",))),
        (QUARTZ, Prompt("quartz", "Is a longer wire better or worse?", "", ("Longer wires resist more.",))),
        (qasc(1, "Bees fly.", "Wasps sting."), Prompt("qasc", "Why 1?", "", ("Bees fly.", "Wasps sting."))),
    ],
    ids=lambda value: value[0] if len(value) == 3 else "",
)
def test_a_prompt_says_its_question_and_its_document(row: tuple[str, str, str], expected: Prompt) -> None:
    assert recovered([row]) == {expected: [row[2]]}


def test_prompts_of_one_question_become_one_example_with_all_their_answers() -> None:
    rows = [("duorc_SelfRC_answer_question", DUORC, "Tom"), ("duorc_SelfRC_movie_director", OTHER_DUORC, "the rower")]
    assert recovered([*rows, rows[0]]) == {FILM: ["Tom", "the rower"]}


@pytest.mark.parametrize("completion", ["No answer", "Insufficient information to provide an answer."])
def test_a_question_without_an_answer_is_passed_over(completion: str) -> None:
    assert (
        recovered([("duorc_SelfRC_answer_question", DUORC, completion), ("ag_news_classify", "News.", "sport")]) == {}
    )


def test_gold_is_the_sentence_with_the_answer_and_most_words_of_the_question() -> None:
    text = "Tom is old. At night Tom rows to the harbour. Ada waits in the harbour."
    one = answering(Prompt("duorc", "Who rows at night?", "", (text,)), ["Tom"])
    assert [one.context[slice(*one.spans[place])] for place in one.gold] == ["At night Tom rows to the harbour."]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Tomas rows at night.", "Tom"),
        ("Ada sleeps. Tom is old.", "Tom"),
        ("Tom rows. Tom rows home. Tom rows back. Tom rows on.", "Tom"),
        ("No boat rows at night.", "No"),
    ],
    ids=["part of a word", "no word of the question", "in too many sentences", "no place"],
)
def test_an_answer_that_tells_no_place_gives_no_label(text: str, answer: str) -> None:
    one = answering(Prompt("duorc", "Who rows at night?", "", (text,)), [answer])
    assert (one.gold, one.kind) == (frozenset(), NONE)


def test_the_sentence_in_which_a_text_was_cut_off_is_left_out() -> None:
    assert answering(FILM, ["Tom"]).context.endswith("He brings a broken clock.")


def test_facts_that_may_answer_too_do_not_stand_around_the_gold() -> None:
    prompt = Prompt("qasc", "What do bees make?", "", ("Bees collect sweet nectar.",))
    facts = ["Bees collect sweet nectar.", "Wasps collect sweet nectar too.", "Honey is sticky.", "Granite is hard."]
    one = among(prompt, facts, ["honey"])
    assert "Granite" in one.context
    assert "Wasps" not in one.context
    assert "Honey" not in one.context


@given(st.lists(st.sampled_from("granite marble copper silver cotton velvet walnut cherry".split()), unique=True))  # noqa: SIM905
def test_the_gold_of_a_document_of_facts_is_all_of_its_own_facts_and_no_other(words: list[str]) -> None:
    own = ("Bees collect nectar. They fly far.", "Wasps sting.")
    facts = [*own, *(f"There is {word}." for word in words)]
    one = among(Prompt("qasc", "Why?", "", own), facts, ["this"])
    assert sorted(one.context[slice(*one.spans[place])] for place in one.gold) == [
        *("Bees collect nectar.", "They fly far.", "Wasps sting."),
    ]
    assert len(one.spans) == 3 + len(words)


def test_files_hold_what_a_training_source_needs_and_unlabelled_ones_no_gold(tmp_path: Path) -> None:
    rows = [
        *(ROPES, COSMOS, HOP, QUARTZ, qasc(1, "Bees fly.", "Wasps sting."), qasc(2, "Granite cracks.", "Frost bites.")),
        ("duorc_SelfRC_answer_question", DUORC, "Tom"),
        ("duorc_ParaphraseRC_answer_question", DUORC, "Tom"),
    ]
    out = tmp_path / "out"
    labelled = {"t0_duorc": 1, "t0_qasc": 2, "t0_quartz": 1}
    free = {"t0_duorc_free": 1, "t0_ropes": 1, "t0_cosmos_qa": 1, "t0_wiki_hop": 1}
    assert convert(written(tmp_path, rows), out) == labelled | free
    for name in labelled:
        assert all(e.relevant.any() for e in read_examples(out / f"{name}.parquet", split="train"))
    for name in free:
        assert not any(e.relevant.any() for e in read_examples(out / f"{name}.parquet", split="train"))
        assert set(pq.read_table(out / f"{name}.parquet")["label_kind"].to_pylist()) == {NONE}


def test_a_file_of_other_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="none of its 1 prompts has one of the known shapes"):
        convert(written(tmp_path, [("ag_news_classify", "News.", "sport")]), tmp_path / "out")


def test_a_file_without_prompts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"prompt": ["Why?"]}), path)
    with pytest.raises(ColumnError, match=r"no column completion, template\. It has prompt"):
        convert(path, tmp_path / "out")
