"""A conversation in a model's own form, with what was said before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from datapipe.errors import ModelError
from datapipe.workers.chat import ChatFormat
from datapipe.workers.folder import ModelFolder

if TYPE_CHECKING:
    from pathlib import Path

HISTORY = (
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "when"},
    {"role": "assistant", "content": "in winter"},
)
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' and m.content == 'bad' %}{{ raise_exception('no') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def chat(tmp_path: Path) -> ChatFormat:
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    return ChatFormat(ModelFolder("small", tmp_path))


def test_history_stands_before_the_prompt_in_its_own_roles(chat: ChatFormat) -> None:
    assert chat.render("", "why", HISTORY) == "<system>be brief<user>when<assistant>in winter<user>why<assistant>"
    assert chat.render("be kind", "why", HISTORY[1:]).startswith("<system>be kind<user>when")
    assert chat.render("", "why") == "<user>why<assistant>"


def test_without_a_template_messages_stand_one_below_the_other(tmp_path: Path) -> None:
    plain = ChatFormat(ModelFolder("small", tmp_path))
    assert plain.render("", "why", HISTORY) == "be brief\n\nwhen\n\nin winter\n\nwhy"


def test_a_template_that_takes_no_such_conversation_names_the_roles(chat: ChatFormat) -> None:
    with pytest.raises(ModelError, match=r"small: its chat template does not take a system and a user and a assistant"):
        chat.render("", "bad", HISTORY)
