"""Lines of JSON to Python objects: what is a record, what is blank, and what is wrong with the rest."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from datapipe.storage.formats.shapes import depth

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["JSON_NAMES", "decoded", "json_text"]

JSON_NAMES: dict[type, str] = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "an array",
    dict: "an object",
    str: "a string",
    type(None): "null",
}
"""What a Python value is called in JSON."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_HALF_PAIR = "a string holds half of a surrogate pair"
# `json.loads` without its checks of the argument, which cost as much as parsing a short line.
_scan: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


def decoded(data: bytes, *, max_depth: int) -> list[dict[str, Any] | str | None]:
    """Decode lines. Each gives its object, None if it is blank, or a str that says what is wrong with it.

    Args:
        data: Whole lines.
        max_depth: Levels of lists and objects, the record included; a deeper one is wrong.
    """
    found = [_object(line) for line in _lines(data)]
    if _SURROGATE.search(data):
        found = [_HALF_PAIR if isinstance(record, dict) and _is_half(record) else record for record in found]
    if depth(found) > max_depth:
        deep = f"nested deeper than max_depth={max_depth}"
        found = [deep if isinstance(record, dict) and depth([record]) > max_depth else record for record in found]
    return found


def json_text(value: Any) -> str:
    """JSON of a value: one text for equal values."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _lines(data: bytes) -> list[str] | list[bytes]:
    """Lines as text, or as bytes where some of them are no UTF-8."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return data.removesuffix(b"\n").split(b"\n")
    return text.removesuffix("\n").split("\n")


def _object(line: str | bytes) -> dict[str, Any] | str | None:
    try:
        text = line.decode() if isinstance(line, bytes) else line
    except UnicodeDecodeError:
        return "not UTF-8"
    try:
        record, end = _scan(text, 0)
    except (StopIteration, ValueError, RecursionError):
        return _slowly(text)
    if type(record) is dict and (end == len(text) or text[end:].isspace()):
        return record
    return _slowly(text)


def _slowly(text: str) -> dict[str, Any] | str | None:
    """What the quick way could not take, with the reason."""
    if not text.strip():
        return None
    try:
        record = json.loads(text)
    except RecursionError:
        return "nested too deep"
    except ValueError as error:
        return f"not JSON: {error}"
    return record if isinstance(record, dict) else f"{JSON_NAMES[type(record)]}, no JSON object"


def _is_half(record: dict[str, Any]) -> bool:
    try:
        json_text(record).encode()
    except UnicodeEncodeError:
        return True
    except RecursionError:
        return False
    return False
