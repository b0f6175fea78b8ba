"""Questions for training a pruner, recovered from prompts that T0 was trained on.

    T0.parquet (template, prompt, completion) -> recovered, one a question and document -> labelled -> OUT/t0_*.parquet

    python -m benchmarks.provence_prompted T0.parquet OUT

Files are in the layout that `provence.evaluation.sets` reads, one a kind of gold: `t0_duorc` (the sentence of the
answer string), `t0_qasc` and `t0_quartz` (the annotated facts, among facts of other questions), and, with `label_kind`
"none" and no positive label, `t0_duorc_free`, `t0_ropes`, `t0_cosmos_qa` and `t0_wiki_hop`. Nobody marked evidence in
the latter: they are for a teacher to label and no negatives. DuoRC's ParaphraseRC is among them: its questions were
asked of another text about the same film. Left out are AdversarialQA and Quoref, whose prompts hold the questions of
the test set adversarialqa_quoref and no others; SciQ and DREAM, which are not for commercial use; and WIQA, whose
licence is unknown. Raises `SourceError` and `ColumnError` for a file that is no such set.
"""

from __future__ import annotations

import argparse
import json
import re
from bisect import bisect
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from datapipe.errors import ColumnError, SourceError
from provence.evaluation.sets import hash_order
from provence.units import split

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

COLUMNS = ("template", "prompt", "completion")

ANSWER, FACTS, NONE = "answer string occurs in sentence", "annotated facts", "none"
"""Kinds of labels."""

MOST_PLACES = 3
"""Sentences that may hold an answer string; of one that stands in more, it is unclear where it answers."""

GAP = "\n\n"
"""Between the parts of a document."""

FACTS_AROUND = 8
"""Facts of other questions in a document that is made of facts."""

SHAPES = {
    "duorc": {
        "answer_question": "{}Question: {question}\nMovie plot title: {title}\nMovie plot: {first}",
        "decide_worth_it": "{}Question: {question}\nMovie title: {title}\nMovie plot: {first}",
        "extract_answer": "{}Question: {question}\nTitle: {title}\nMovie plot: {first}",
        "movie_director": "{}Plot title: {title}\nMovie plot: {first}\nMy question: {question}",
        "question_answering": "Question: {question}\nIf there is no answer{}\nMovie title: {title}\nContext: {first}",
    },
    "ropes": {
        "background_new_situation_answer": (
            "I can use this background: {first}\nNow, I have a new situation: {second}\n"
            "Answer this question please: {question}"
        ),
    },
    "cosmos_qa": {
        "context_question_description_text": "{first}\nQuestion: {question}\nThe answer to the above question:",
    },
    "qasc": {
        "qa_with_separated_facts_2": (
            "Fact 1: {first}\nFact 2: {second}\nGiven the two facts above, answer the question "
            '"{question}" with the following options:{}'
        ),
    },
    "quartz": {
        "answer_question_based_on": (
            "Answer the question based on the following text.\nQuestion:\n{question}\nText:\n{first}"
        ),
    },
    "wiki_hop": {
        "original_generate_object": (
            "Information:\n{first}\nWhat entity does '{question}' has the relation '{second}' with?"
        ),
    },
}
SHAPES["duorc_free"] = SHAPES["duorc"]
"""Prompts by set and end of the template's name; any white space stands for any other. All templates of a set hold the
same questions, but those of DuoRC were completed with different answers."""

NO_ANSWER = {
    *("no answer", "no i can't", "can't answer", "not answerable", "insufficient information to provide an answer"),
}
"""Completions of prompts whose text does not answer."""

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "split", "question", "title", "context")),
        *((name, pa.list_(pa.int32())) for name in ("sent_start", "sent_end")),
        ("relevant", pa.list_(pa.int8())),
        ("answers", pa.list_(pa.string())),
        ("answerable", pa.bool_()),
        *((name, pa.string()) for name in ("label_kind", "extra")),
    ]
)


class Prompt(NamedTuple):
    """A set of `SHAPES`, a question (or subject and relation), a title or "", and a document: texts or facts."""

    set: str
    question: str
    title: str
    parts: tuple[str, ...]


class Labelled(NamedTuple):
    """A document, start and end of each sentence, which of them answer, and where these labels come from."""

    context: str
    spans: tuple[tuple[int, int], ...]
    gold: frozenset[int]
    kind: str


def recovered(rows: Iterable[tuple[str, str, str]]) -> dict[Prompt, list[str]]:
    """Each question and document once, with the answers that its prompts were completed with.

    Args:
        rows: Template, prompt and completion. Templates without a shape and prompts without an answer are passed over.
    """
    found: dict[Prompt, list[str]] = {}
    for template, prompt, completion in rows:
        known = _SHAPES.get(template)
        matched = known and known[1].fullmatch(prompt.strip())
        answer = completion.strip()
        if not known or not matched or answer.lower().rstrip(".") in NO_ANSWER:
            continue
        told = {name: value.strip() for name, value in matched.groupdict().items()}
        answers = found.setdefault(_prompt(known[0], told), [])
        if answer and answer not in answers:
            answers.append(answer)
    return found


def labelled(prompts: dict[Prompt, list[str]]) -> Iterator[tuple[str, Prompt, Labelled]]:
    """The documents with their labels, and the file that each belongs in, in the order of the prompts."""
    facts = {name: list(dict.fromkeys(f for p in prompts if p.set == name for f in p.parts)) for name in SHAPES}
    for prompt, answers in prompts.items():
        match prompt.set:
            case "qasc" | "quartz":
                yield f"t0_{prompt.set}", prompt, among(prompt, facts[prompt.set], answers)
            case "duorc":
                one = answering(prompt, answers)
                yield "t0_duorc" if one.gold else "t0_duorc_free", prompt, one
            case _:
                context = _whole(GAP.join(prompt.parts))
                yield f"t0_{prompt.set}", prompt, Labelled(context, _spans(context), frozenset(), NONE)


def answering(prompt: Prompt, answers: Sequence[str]) -> Labelled:
    """Label the sentence that holds an answer string.

    Of several such sentences that with most words of the question counts. None counts if the string stands in more than
    `MOST_PLACES` or if the best shares no word with the question.
    """
    context = _whole(prompt.parts[0])
    spans = _spans(context)
    texts = [context[start:end] for start, end in spans]
    for answer in sorted(answers, key=len, reverse=True):
        sought = re.compile(rf"(?<!\w){re.escape(answer.rstrip('.'))}(?!\w)", re.IGNORECASE)
        places = [place for place, text in enumerate(texts) if sought.search(text)]
        asked = _stems(prompt.question) - _stems(answer)
        shared = {place: len(asked & _stems(texts[place])) for place in places}
        best = max(shared.values(), default=0)
        if best and len(places) <= MOST_PLACES and answer.lower() not in {"yes", "no"}:
            return Labelled(context, spans, frozenset(p for p in places if shared[p] == best), ANSWER)
    return Labelled(context, spans, frozenset(), NONE)


def among(prompt: Prompt, facts: Sequence[str], answers: Sequence[str]) -> Labelled:
    """A document of the question's facts and `FACTS_AROUND` of others, in an order that depends on the question alone.

    Facts that share half of their words with the question's, or a word with the answers, may answer too and are not
    taken.
    """
    own = [_stems(part) for part in prompt.parts]
    told = set().union(*(_stems(answer) for answer in answers))
    others = [
        fact
        for fact in facts
        if (words := _stems(fact))
        and not words & told
        and not any(2 * len(words & mine) >= min(len(words), len(mine)) for mine in own)
    ]
    others.sort(key=lambda fact: hash_order(0, prompt.question, fact))
    chosen = sorted([*prompt.parts, *others[:FACTS_AROUND]], key=lambda fact: hash_order(1, prompt.question, fact))
    context, gold = GAP.join(chosen), set(prompt.parts)
    spans, begins = _spans(context), list(accumulate((len(fact) + len(GAP) for fact in chosen), initial=0))
    owner = (chosen[bisect(begins, start) - 1] for start, _ in spans)
    return Labelled(context, spans, frozenset(n for n, fact in enumerate(owner) if fact in gold), FACTS)


def convert(path: Path, out: Path) -> dict[str, int]:
    """Write the files of this module's head. Returns the questions of each.

    Raises:
        SourceError: The file cannot be read, or holds no prompt of these shapes.
        ColumnError: It lacks a column.
    """
    try:
        stored = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"{path}: not a readable Parquet file of prompts: {error}") from error
    if missing := set(COLUMNS) - set(stored.column_names):
        raise ColumnError(f"{path}: no column {', '.join(sorted(missing))}. It has {', '.join(stored.column_names)}")
    prompts = recovered(zip(*(stored[name].to_pylist() for name in COLUMNS), strict=True))
    if not prompts:
        raise SourceError(f"{path}: none of its {stored.num_rows} prompts has one of the known shapes")
    files: dict[str, list[dict[str, object]]] = {}
    for name, prompt, one in labelled(prompts):
        rows = files.setdefault(name, [])
        rows.append(_row(f"{name}-{len(rows)}", prompt, one, prompts[prompt]))
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), out / f"{name}.parquet", compression="zstd")
    return {name: len(rows) for name, rows in files.items()}


def _row(name: str, prompt: Prompt, one: Labelled, answers: list[str]) -> dict[str, object]:
    return {
        "id": name,
        "split": "train",
        "question": prompt.question,
        "title": prompt.title,
        "context": one.context,
        "sent_start": [start for start, _ in one.spans],
        "sent_end": [end for _, end in one.spans],
        "relevant": [int(place in one.gold) for place in range(len(one.spans))],
        "answers": answers,
        "answerable": True,
        "label_kind": one.kind,
        "extra": json.dumps({"set": prompt.set}),
    }


def _prompt(name: str, told: dict[str, str]) -> Prompt:
    """What a matched prompt says; a relation joins its subject, and paragraphs lose their dashes."""
    question, parts = " ".join(told["question"].split()), [told["first"], told.get("second", "")]
    if name == "wiki_hop":
        question, parts = f"{question}: {parts[1]}", [re.sub(r"(?m)^- +", "", parts[0])]
    return Prompt(name, question, told.get("title", ""), tuple(part for part in parts if part))


def _spans(text: str) -> tuple[tuple[int, int], ...]:
    return tuple((unit.start, unit.end) for unit in split(text, kind="prose"))


def _whole(text: str) -> str:
    """A text without the sentence in which it was cut off."""
    spans = _spans(text)
    return text[: spans[-2][1]] if text.endswith("...") and len(spans) > 1 else text


def _stems(text: str) -> set[str]:
    """Beginnings of the words that are long enough to mean something."""
    return {word[:5] for word in re.findall(r"\w{4,}", text.lower())} - _COMMON


_COMMON = set("what when where which whose that this with from does have were them they into".split())  # noqa: SIM905


def _shape(text: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w*)\}", text)
    for place, piece in enumerate(pieces):
        if place % 2:
            pieces[place] = f"(?P<{piece}>.*?)" if piece else ".*?"
        else:
            pieces[place] = r"\s+".join(re.escape(word) for word in re.split(r"\s+", piece))
    return re.compile("".join(pieces), re.DOTALL)


_TEMPLATES = {"duorc": "duorc_SelfRC", "duorc_free": "duorc_ParaphraseRC"}
_SHAPES = {
    f"{_TEMPLATES.get(name, name)}_{end}": (name, _shape(text))
    for name, shapes in SHAPES.items()
    for end, text in shapes.items()
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=Path, help="Parquet of templates, prompts and completions")
    parser.add_argument("out", type=Path, help="folder of the files written")
    options = parser.parse_args()
    found = convert(options.prompts, options.out)
    for name, count in found.items():
        print(name, count)


if __name__ == "__main__":
    main()
