"""A pool of instructions, whatever its shape, as instruction, input and response.

    a batch of a source -> columns_of (which shape) -> Pairs.read -> instruction, input, response | refused rows

Shapes: Alpaca and its like (instruction, input, output; question, answer; prompt, completion), chats of `messages`
(role, content) and of `conversations` as ShareGPT has them (from, value). Of a chat one turn is read, a user's and the
answer to it; a system message stands before the instruction. Reasons for refusal: `null_text`, `empty_text`,
`text_too_long`, `no_turns`, `several_turns`. Raises `ColumnError` where the source has none of these shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from datapipe.errors import ColumnError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    Refused: TypeAlias = dict[int, tuple[str, str]]
    """Reason and detail of each refused row, by its position in the batch."""

__all__ = ["Pair", "PoolColumns", "columns_of", "read_pairs"]

_NAMES = {
    "instruction": ("instruction", "question", "prompt"),
    "input": ("input", "context"),
    "response": ("response", "output", "answer", "completion"),
    "messages": ("messages", "conversations", "conversation"),
}
_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}


@dataclass(frozen=True, kw_only=True)
class PoolColumns:
    """Which column is what; either `messages`, or `instruction` and `response`, and `input` where there is one.

    Attributes:
        instruction: What is asked for.
        response: The human answer.
        input: What it is asked about; may be null or empty in a row.
        messages: Whole conversations.
    """

    instruction: str | None = None
    response: str | None = None
    input: str | None = None
    messages: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns that must hold strings."""
        return tuple(name for name in (self.instruction, self.input, self.response) if name is not None)


@dataclass(frozen=True)
class Pair:
    """An instruction with its answer."""

    instruction: str
    input: str
    response: str


def columns_of(names: Sequence[str], asked: PoolColumns | None = None) -> PoolColumns:
    """Find the columns of a pool by the names that are usual.

    Args:
        names: Of the source's columns.
        asked: Columns named by the user; these are taken, and the rest is looked for.

    Raises:
        ColumnError: A named column is absent, or there are neither instructions and responses nor conversations.
    """
    given = asked or PoolColumns()
    for role in _NAMES:
        name = getattr(given, role)
        if name is not None and name not in names:
            raise ColumnError(f"{role} column {name!r} is not in the pool; its columns are {', '.join(names)}")
    found = {
        role: getattr(given, role) or next((n for n in usual if n in names), None) for role, usual in _NAMES.items()
    }
    paired = found["instruction"] is not None and found["response"] is not None
    if given.messages is not None or (not paired and found["messages"] is not None):
        return PoolColumns(messages=found["messages"])
    if not paired:
        raise ColumnError(
            f"the pool has no instructions with responses and no conversations; its columns are {', '.join(names)}. "
            "Name them: --instruction-column and --response-column, or --messages-column"
        )
    return PoolColumns(**{role: name for role, name in found.items() if role != "messages"})


def read_pairs(table: pa.Table, columns: PoolColumns, *, max_chars: int) -> tuple[list[Pair], Refused]:
    """Read the rows of a batch; the pairs of those that are not refused, in row order.

    Args:
        table: Rows of the source.
        columns: Of `columns_of`.
        max_chars: Characters of instruction, input and response together; rows with more are refused.

    Raises:
        ColumnError: A column holds neither strings nor, where it should, conversations.
    """
    pairs: list[Pair] = []
    refused: Refused = {}
    rows = _conversations(table, columns.messages) if columns.messages is not None else _texts(table, columns)
    for place, found in enumerate(rows):
        told = found if isinstance(found, tuple) else _flaw(found, max_chars)
        if told is not None:
            refused[place] = told
        elif isinstance(found, Pair):
            pairs.append(found)
    return pairs, refused


def _flaw(pair: Pair, most: int) -> tuple[str, str] | None:
    for name in ("instruction", "response"):
        if not getattr(pair, name).strip():
            return "empty_text", f"the {name} holds white space only"
    length = len(pair.instruction) + len(pair.input) + len(pair.response)
    if length > most:
        return "text_too_long", f"instruction, input and response hold {length:,} characters, more than {most:,}"
    return None


def _texts(table: pa.Table, columns: PoolColumns) -> list[Pair | tuple[str, str]]:
    import pyarrow as pa

    for name in columns.texts:
        kind = table.schema.field(name).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
            raise ColumnError(f"column {name!r} of the pool is {kind}; it must hold strings")
    found: list[Pair | tuple[str, str]] = []
    for row in table.select(list(columns.texts)).to_pylist():
        absent = next((name for name in (columns.instruction, columns.response) if row[str(name)] is None), None)
        if absent is not None:
            found.append(("null_text", f"column {absent!r} is null"))
            continue
        given = row[columns.input] if columns.input is not None else None
        found.append(Pair(row[str(columns.instruction)], given or "", row[str(columns.response)]))
    return found


def _conversations(table: pa.Table, name: str) -> list[Pair | tuple[str, str]]:
    import pyarrow as pa

    kind = table.schema.field(name).type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_struct(kind.value_type):
        raise ColumnError(f"column {name!r} of the pool is {kind}; it must hold lists of messages (role, content)")
    return [_turn(row, name) for row in table[name].to_pylist()]


def _turn(messages: list[Mapping[str, Any] | None] | None, name: str) -> Pair | tuple[str, str]:
    said: list[tuple[str, str]] = []
    for message in messages or ():
        role = (message or {}).get("role", (message or {}).get("from"))
        text = (message or {}).get("content", (message or {}).get("value"))
        if role not in _ROLES or not isinstance(text, str):
            return "no_turns", f"column {name!r} holds a message of role {role!r} with {type(text).__name__} content"
        said.append((_ROLES[str(role)], text))
    system = [text for role, text in said if role == "system"]
    turns = [(role, text) for role, text in said if role != "system"]
    if [role for role, _ in turns] != ["user", "assistant"]:
        told = ", ".join(role for role, _ in said) or "nothing"
        reason = "several_turns" if len(turns) > 2 else "no_turns"  # noqa: PLR2004 - a user's and its answer
        return reason, f"column {name!r} must hold a user message and the answer to it. It holds {told}"
    return Pair("\n\n".join([*system, turns[0][1]]), "", turns[1][1])
