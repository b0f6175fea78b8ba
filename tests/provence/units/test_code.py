"""Source code: signatures stand for themselves and over what is in their block."""

from __future__ import annotations

from tests.provence.units.readings import parents, read

PYTHON = '''\
import os
import sys

LIMIT = 3


@cache
def first(
    a: int,
) -> int:
    """Doc."""
    if a:
        return 1

    return a


class Thing(Base):
    size = 1

    # Says it.
    def method(self):
        return self
'''

SCRIPT = """\
// Top.
import x from "y";

export class A extends B {
  constructor(x) {
    super(x);
  }

  get size() { return 1; }
}

int main(void)
{
    return 0;
}
"""


def test_python_is_cut_at_definitions_and_blank_lines() -> None:
    signature = "@cache\ndef first(\n    a: int,\n) -> int:"
    method = "# Says it.\n    def method(self):"
    assert read(PYTHON, "code") == [
        ("code", "import os\nimport sys", None),
        ("code", "LIMIT = 3", None),
        ("code", signature, None),
        ("code", '"""Doc."""\n    if a:\n        return 1', signature),
        ("code", "return a", signature),
        ("code", "class Thing(Base):", None),
        ("code", "size = 1", "class Thing(Base):"),
        ("code", method, "class Thing(Base):"),
        ("code", "return self", method),
    ]


def test_braces_belong_to_what_they_close() -> None:
    outer, inner = "export class A extends B {", "constructor(x) {"
    assert read(SCRIPT, "code") == [
        ("code", '// Top.\nimport x from "y";', None),
        ("code", outer, None),
        ("code", inner, outer),
        ("code", "super(x);\n  }", inner),
        ("code", "get size() { return 1; }\n}", outer),
        ("code", "int main(void)\n{\n    return 0;\n}", None),
    ]


def test_auto_takes_them_for_code() -> None:
    assert read(PYTHON, "auto") == read(PYTHON, "code")
    assert read(SCRIPT, "auto") == read(SCRIPT, "code")


def test_a_long_block_is_cut_between_its_lines() -> None:
    body = "".join(f"    call_number({place}, 'with some argument')\n" for place in range(40))
    found = parents("def f():\n" + body, "code")
    assert len(found) > 3
    assert all(told == "def f():" or (told.startswith("call") and told.endswith(")")) for told in found)
    assert {parent for told, parent in found.items() if told != "def f():"} == {"def f():"}
