"""Text to units: sentences, headings, list items, table rows, blocks of code, values, lines, with exact offsets.

    split(text, kind) -> detect (if `auto`) -> prose | markdown | code | structured | lines -> list[Unit]

Every reader takes time in proportion to the text and reads any text. See `Unit` for what holds for all.
"""

from __future__ import annotations

from datapipe.errors import ConfigError
from provence.units.code import add_code
from provence.units.detect import detect
from provence.units.lines import add_log
from provence.units.markdown import add_markdown
from provence.units.prose import add_prose
from provence.units.spans import Collector
from provence.units.structured import add_json
from provence.units.unit import TEXT_KINDS, TextKind, Unit, UnitKind

__all__ = ["TextKind", "Unit", "UnitKind", "split"]


def split(text: str, *, kind: TextKind = "auto") -> list[Unit]:
    """Cut a text into units, in order, none longer than 1,200 characters.

    Raises:
        ConfigError: There is no such kind.
    """
    if kind not in TEXT_KINDS:
        raise ConfigError(f"kind is {kind!r}: a text is read as one of {', '.join(TEXT_KINDS)}")
    to = Collector(text)
    match detect(text) if kind == "auto" else kind:
        case "markdown":
            add_markdown(to, to.start, len(text))
        case "code":
            add_code(to, to.start, len(text))
        case "json":
            add_json(to, to.start, len(text))
        case "log":
            add_log(to, to.start, len(text))
        case _:
            add_prose(to, to.start, len(text), None)
    if not to.units:
        to.add(0, to.start, "sentence")  # nothing but byte order marks
    return to.units
