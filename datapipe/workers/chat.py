"""What a chat model's folder says of the form of a conversation, and of the tokens that end an answer.

folder -> ChatFormat -> render(system, prompt, history) -> the text that the model continues

The template is chat_template.jinja, else `chat_template` in tokenizer_config.json; it runs in the sandbox of
transformers, which gives it neither files nor Python. Raises `ModelError` for a template that does not run.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from datapipe.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datapipe.workers.folder import ModelFolder

__all__ = ["ChatFormat"]

_TEMPLATE = "chat_template.jinja"
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


class ChatFormat:
    """The form of a conversation with one model.

    Args:
        folder: Of the model.

    Attributes:
        template: Jinja source; None for a model that was not trained to chat.
        special: Special tokens by name (`bos_token` ...), as templates ask for them.
        stop_ids: Ids of the tokens that end an answer, ascending; perhaps none.
        stop_tokens: The same as text, where the folder names them as text.

    Raises:
        ModelError: A JSON file of the folder is damaged.
    """

    def __init__(self, folder: ModelFolder) -> None:
        self._name = folder.name
        settings = folder.json("tokenizer_config.json") or {}
        self.special = {name: _text(settings[name]) for name in _SPECIAL if settings.get(name)}
        self.template = _template(folder, settings)
        stated = [(folder.json(name) or {}).get("eos_token_id") for name in ("generation_config.json", "config.json")]
        self.stop_ids = tuple(sorted({int(each) for ids in stated for each in _many(ids)}))
        self.stop_tokens = (self.special["eos_token"],) if "eos_token" in self.special else ()

    @property
    def digest(self) -> str:
        """SHA-256 of all that this class knows, 64 hex digits; a model's own digest covers neither file."""
        told = [self.template, self.special, self.stop_ids]
        return hashlib.sha256(json.dumps(told, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    def render(self, system: str, prompt: str, history: Sequence[Mapping[str, str]] = ()) -> str:
        """The conversation up to where the answer begins.

        Without a template: the contents of all messages, with an empty line between two.

        Args:
            system: What the model is told before; empty for nothing, and then a template may put in words of its own.
            prompt: What the user says.
            history: What was said before, messages of `role` and `content`; a system message may come first.

        Raises:
            ModelError: The template does not run.
        """
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": each["role"], "content": each["content"]} for each in history]
        messages.append({"role": "user", "content": prompt})
        if self.template is None:
            return "\n\n".join(message["content"] for message in messages)
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            rendered, _ = render_jinja_template(
                [messages], chat_template=self.template, add_generation_prompt=True, **self.special
            )
        except Exception as error:  # a template may raise whatever it likes
            roles = " and a ".join(dict.fromkeys(message["role"] for message in messages))
            raise ModelError(
                f"model {self._name}: its chat template does not take a {roles} message ({error}); "
                f"mend {_TEMPLATE} in its folder"
            ) from error
        return str(rendered[0])


def _template(folder: ModelFolder, settings: dict[str, Any]) -> str | None:
    path = folder.path(_TEMPLATE)
    if path.is_file():
        return path.read_text(encoding="utf-8")
    stated = settings.get("chat_template")
    if isinstance(stated, list):  # several by name
        stated = next((each.get("template") for each in stated if each.get("name") == "default"), None)
    return stated if isinstance(stated, str) else None


def _text(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _many(ids: Any) -> list[int]:
    return [] if ids is None else list(ids) if isinstance(ids, list) else [ids]
