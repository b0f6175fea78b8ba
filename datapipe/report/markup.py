"""HTML and SVG from small functions. A plain string is text and is escaped; only `Html` goes out as it is."""

from __future__ import annotations

import math
import re
from typing import TypeAlias

__all__ = ["Html", "breakable", "count", "cut", "escape", "join", "number", "percent", "plain", "short", "tag"]

_VOID = frozenset({"br", "col", "hr", "img", "input", "link", "meta"})
# What XML cannot hold, what hides text, and the overrides that show text in another order than it has.
_UNSHOWN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"})


class Html(str):
    """Markup that is safe already."""

    __slots__ = ()


Child: TypeAlias = "Html | str | None"
Attribute: TypeAlias = "str | float | bool | None"


def escape(text: str) -> Html:
    """Return any text as HTML; characters that cannot be shown become U+FFFD."""
    return Html(plain(text).translate(_ESCAPES))


def plain(text: str) -> str:
    """Return any text without the characters that cannot be shown: control, surrogate, bidirectional override."""
    return _UNSHOWN.sub("\ufffd", text)


def join(*children: Child) -> Html:
    """Return markup in a row; plain strings are escaped, None is nothing."""
    return Html("".join(child if isinstance(child, Html) else escape(child) for child in children if child is not None))


def tag(name: str, /, *children: Child, **attributes: Attribute) -> Html:
    """Return an element. `class_` is `class`, `aria_label` is `aria-label`; None and False leave an attribute out."""
    parts = [name]
    for key, value in attributes.items():
        label = key.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(label)
        elif value is not None and value is not False:
            shown = escape(value) if isinstance(value, str) else escape(f"{value:.6g}")
            parts.append(f'{label}="{shown}"')
    opening = f"<{' '.join(parts)}>"
    return Html(opening) if name in _VOID else Html(f"{opening}{join(*children)}</{name}>")


def count(rows: int) -> str:
    """Return a whole number with separators: `13,083`."""
    return f"{rows:,}"


def percent(part: float, whole: float) -> str:
    """Return a share with one decimal, `30.0 %`; never 0 or 100 for what is neither, and a dash of nothing."""
    if not whole:
        return "\u2013"
    share = 100 * part / whole
    if 0 < share < 0.05:  # noqa: PLR2004
        return "< 0.1 %"
    if 99.95 <= share < 100:  # noqa: PLR2004
        return "> 99.9 %"
    return f"{share:.1f} %"


def number(value: float | None, *, digits: int = 3) -> str:
    """Return a number with so many significant decimals: `0.412`, `12.4`, `1,204`; a dash for none."""
    if value is None or not math.isfinite(value):
        return "\u2013"
    size = abs(value)
    if 0 < size < 10.0**-digits:
        return f"{value:.1e}".replace("-", "\u2212")
    decimals = max(0, digits - max(0, math.floor(math.log10(size)) + 1)) if size else digits
    return f"{value:,.{decimals}f}".replace("-", "\u2212")


def breakable(name: str) -> Html:
    """Return a name as markup that may break after its underscores, dots and slashes."""
    return Html(re.sub(r"(?<=[_./])(?=\w)", "<wbr>", escape(name)))


def short(value: float) -> str:
    """Return a number of a round kind without needless zeros: `0.05`, `250`, `1,200`."""
    shown = f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"  # noqa: PLR2004
    return shown.replace("-", "\u2212")


def cut(text: str, *, limit: int = 240) -> str:
    """Return text on one line, cut between words where possible, with an ellipsis where something is missing."""
    line = " ".join(text[: 4 * limit].split())
    if len(line) <= limit and len(text) <= 4 * limit:
        return line
    head = line[:limit]
    space = head.rfind(" ")
    return (head[:space] if space > 0.8 * limit else head).rstrip() + "\u2026"
