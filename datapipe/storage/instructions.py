"""A pool of instructions, whatever its shape, as instruction, input, response and what was said before.

    a batch of a source -> columns_of (shapes) -> read_pairs -> instruction, input, response, history | refused rows

Shapes: Alpaca and its like (instruction, input, output; question, answer; prompt, completion), chats of `messages`
(role, content) and of `conversations` as ShareGPT has them (from, value); several files of a pool may differ in shape.
Of a chat the last turn is read, a user's and the answer to it, and what stands before becomes its history; or, with
`turns="one"`, chats of one turn only. Reasons for refusal: `null_text`, `empty_text`, `text_too_long`, `no_turns`,
`several_turns`, `turns_out_of_order`. Raises `ColumnError` where the source has none of these shapes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from datapipe.errors import ColumnError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    Refused: TypeAlias = dict[int, tuple[str, str]]
    """Reason and detail of each refused row, by its position in the batch."""
    Message: TypeAlias = Mapping[str, str]
    """`role` (system, user, assistant) and `content`."""

__all__ = ["Pair", "PoolColumns", "Turns", "columns_of", "read_pairs"]

Turns: TypeAlias = Literal["last", "one"]
"""What is read of a chat: its last turn and the history before it, or chats of one turn only."""

_NAMES = {
    "instruction": ("instruction", "question", "prompt"),
    "input": ("input", "context"),
    "response": ("response", "output", "answer", "completion"),
    "messages": ("messages", "conversations", "conversation"),
}
_SOURCE = "source"
_SOURCE_CHARS = 200
_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}
_TURN = ["user", "assistant"]


@dataclass(frozen=True, kw_only=True)
class PoolColumns:
    """Which column is what; either `messages`, or `instruction` and `response`, and `input` where there is one.

    Attributes:
        instruction: What is asked for.
        response: The human answer.
        input: What it is asked about; may be null or empty in a row.
        messages: Whole conversations.
        source: Where a row comes from, read as it prints; None for the name of its file.
        others: Shapes of other files of the pool, for rows in which these columns are null.
    """

    instruction: str | None = None
    response: str | None = None
    input: str | None = None
    messages: str | None = None
    source: str | None = None
    others: tuple[PoolColumns, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns that must hold strings."""
        return tuple(name for name in (self.instruction, self.input, self.response) if name is not None)

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns of which none may be null for a row to have this shape."""
        return (self.messages,) if self.messages is not None else (str(self.instruction), str(self.response))


@dataclass(frozen=True)
class Pair:
    """An instruction with its answer.

    Attributes:
        instruction: What is asked for.
        input: What it is asked about, perhaps empty.
        response: The answer.
        source: Where the row comes from.
        history: What was said before, a system message first.
    """

    instruction: str
    input: str
    response: str
    source: str = ""
    history: tuple[Message, ...] = ()


def columns_of(names: Sequence[str], asked: PoolColumns | None = None) -> PoolColumns:
    """Find the columns of a pool by the names that are usual.

    Args:
        names: Of the source's columns.
        asked: Columns named by the user; these are taken, and the rest is looked for. A column `source` says where
            rows come from.

    Raises:
        ColumnError: A named column is absent, or there are neither instructions and responses nor conversations.
    """
    given = asked or PoolColumns()
    for role in (*_NAMES, _SOURCE):
        name = getattr(given, role)
        if name is not None and name not in names:
            raise ColumnError(f"{role} column {name!r} is not in the pool; its columns are {', '.join(names)}")
    found = {role: _usual(getattr(given, role), usual, names) for role, usual in _NAMES.items()}
    pairs = itertools.zip_longest(found["instruction"], found["response"], found["input"])
    shapes = [
        PoolColumns(instruction=asking, response=answer, input=about)
        for asking, answer, about in pairs
        if asking is not None and answer is not None
    ]
    talks = [PoolColumns(messages=name) for name in found["messages"]]
    source = given.source or (_SOURCE if _SOURCE in names else None)
    if given.messages is not None:
        return replace(talks[0], source=source)
    if not shapes and not talks:
        raise ColumnError(
            f"the pool has no instructions with responses and no conversations; its columns are {', '.join(names)}. "
            "Name them: --instruction-column and --response-column, or --messages-column"
        )
    first, *others = [*shapes, *talks]
    return replace(first, source=source, others=tuple(others))


def _usual(asked: str | None, usual: Sequence[str], names: Sequence[str]) -> list[str]:
    return [asked] if asked is not None else [name for name in usual if name in names]


def read_pairs(
    table: pa.Table, columns: PoolColumns, *, max_chars: int, turns: Turns = "last", source: str = ""
) -> tuple[list[Pair], Refused]:
    """Read the rows of a batch; the pairs of those that are not refused, in row order.

    Args:
        table: Rows of the source.
        columns: Of `columns_of`.
        max_chars: Characters of instruction, input and response together; rows with more are refused. History does
            not count: what is too long for a model loses its beginning.
        turns: What is read of a chat.
        source: Where rows come from that do not say it themselves.

    Raises:
        ColumnError: A column holds neither strings nor, where it should, conversations.
    """
    shapes = (columns, *columns.others)
    for shape in shapes:
        _check_types(table.schema, shape)
    wanted = dict.fromkeys(name for each in shapes for name in (*each.texts, *each.needed))
    if columns.source is not None:
        wanted[columns.source] = None
    pairs: list[Pair] = []
    refused: Refused = {}
    for place, row in enumerate(table.select(list(wanted)).to_pylist()):
        shape = next((each for each in shapes if all(row[name] is not None for name in each.needed)), columns)
        found = _pair(row, shape, turns=turns)
        told = found if isinstance(found, tuple) else _flaw(found, max_chars)
        if told is not None:
            refused[place] = told
        elif isinstance(found, Pair):
            stated = row[columns.source] if columns.source is not None else None
            pairs.append(replace(found, source=source if stated is None else str(stated)[:_SOURCE_CHARS]))
    return pairs, refused


def _flaw(pair: Pair, most: int) -> tuple[str, str] | None:
    for name in ("instruction", "response"):
        if not getattr(pair, name).strip():
            return "empty_text", f"the {name} holds white space only"
    length = len(pair.instruction) + len(pair.input) + len(pair.response)
    if length > most:
        return "text_too_long", f"instruction, input and response hold {length:,} characters, more than {most:,}"
    return None


def _check_types(schema: pa.Schema, columns: PoolColumns) -> None:
    import pyarrow as pa

    for name in columns.texts:
        kind = schema.field(name).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
            raise ColumnError(f"column {name!r} of the pool is {kind}; it must hold strings")
    if columns.messages is not None:
        kind = schema.field(columns.messages).type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_struct(kind.value_type):
            raise ColumnError(
                f"column {columns.messages!r} of the pool is {kind}; it must hold lists of messages (role, content)"
            )


def _pair(row: Mapping[str, Any], columns: PoolColumns, *, turns: Turns) -> Pair | tuple[str, str]:
    if columns.messages is not None:
        return _turn(row[columns.messages], columns.messages, turns)
    absent = next((name for name in columns.needed if row[name] is None), None)
    if absent is not None:
        return "null_text", f"column {absent!r} is null"
    about = row[columns.input] if columns.input is not None else None
    return Pair(row[str(columns.instruction)], about or "", row[str(columns.response)])


def _turn(messages: list[Mapping[str, Any] | None] | None, name: str, turns: Turns) -> Pair | tuple[str, str]:
    said: list[tuple[str, str]] = []
    for message in messages or ():
        role = (message or {}).get("role") or (message or {}).get("from")
        text = (message or {}).get("content") if (message or {}).get("role") else (message or {}).get("value")
        if role not in _ROLES or not isinstance(text, str):
            return "no_turns", f"column {name!r} holds a message of role {role!r} with {type(text).__name__} content"
        said.append((_ROLES[str(role)], text))
    system = [text for role, text in said if role == "system"]
    talk = [(role, text) for role, text in said if role != "system"]
    told = ", ".join(role for role, _ in said) or "nothing"
    if turns == "one":
        if [role for role, _ in talk] == _TURN:
            return Pair("\n\n".join([*system, talk[0][1]]), "", talk[1][1])
        reason = "several_turns" if len(talk) > len(_TURN) else "no_turns"
        return reason, f"column {name!r} must hold a user message and the answer to it. It holds {told}"
    if talk and talk[-1][0] == "user":
        talk.pop()  # a question without an answer
    if len(talk) < len(_TURN):
        return "no_turns", f"column {name!r} must hold a user message and the answer to it. It holds {told}"
    if [role for role, _ in talk] != _TURN * (len(talk) // 2):
        return "turns_out_of_order", f"column {name!r} must hold user and assistant messages by turns. It holds {told}"
    before = [("system", "\n\n".join(system))] if system else []
    history = tuple({"role": role, "content": text} for role, text in (*before, *talk[:-2]))
    return Pair(talk[-2][1], "", talk[-1][1], history=history)
