"""Which models a server offers, and which of them a request means.

--model NAME=SOURCE,task=T -> parse_model -> ModelSpec        no --model -> embedded_models -> ModelSpecs
request's model (a name, `default`, nothing) + task -> Offer.find -> ModelSpec
"""

from __future__ import annotations

import re
from dataclasses import MISSING, fields, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datapipe.errors import ConfigError
from datapipe.workers.http.errors import ModelNotServedError, NotServedError
from datapipe.workers.spec import DEFAULT_EMBEDDER, EMBEDDED_PREFIX, ModelSpec
from datapipe.workers.tasks.lookup import find_task

if TYPE_CHECKING:
    from collections.abc import Iterable

    from datapipe.workers.protocol import Task

__all__ = ["DEFAULT_NAME", "ENTRY_POINT_GROUP", "Offer", "embedded_models", "parse_model", "probe_item", "task_of"]

ENTRY_POINT_GROUP = "datapipe.models"
"""Entry points that are a `ModelSpec`, served where no `--model` is given, after the embedder."""

DEFAULT_NAME = "default"
RERANK = "rerank"

_OPTION = re.compile(r",(task|revision|digest|dtype|max_length)=([^,]*)$")
_NAMED = re.compile(r"([^/\\:=]+)=(.+)", re.DOTALL)


class Offer:
    """The models of a server, in the order in which they are listed.

    Args:
        specs: At least one.

    Raises:
        ConfigError: There is none, two share a name, or a task is unknown.
    """

    def __init__(self, specs: Iterable[ModelSpec]) -> None:
        given = list(specs)
        self.specs = {spec.name: spec for spec in given}
        if not given or len(given) != len(self.specs):
            names = ", ".join(spec.name for spec in given) or "none"
            raise ConfigError(f"a server needs at least one model, and one name for each. Got {names}")
        for spec in given:
            find_task(spec.task)

    def find(self, task: str, name: str | None = None) -> ModelSpec:
        """The model that a request means; see `RouteContext.model_for`."""
        able = [spec for spec in self.specs.values() if _can(spec, task)]
        if name is not None and name in self.specs:
            spec = self.specs[name]
            if spec not in able:
                raise ConfigError(f"model {spec.name} is for the task {spec.task!r}, not for {task!r}")
            return spec
        if name not in {None, DEFAULT_NAME}:
            raise ModelNotServedError(
                f"this model is not served here; served are {', '.join(self.specs)}", param="model"
            )
        if not able:
            raise ModelNotServedError(f"no model for the task {task!r} is served here", param="model")
        return able[0]

    def reranker(self, name: str | None = None) -> tuple[str, ModelSpec]:
        """Task and model that score documents: a model that does by itself, before an embedder compared by cosine."""
        able = {each.name: task for each in self.specs.values() if (task := _reranking(each)) is not None}
        if name is None or name == DEFAULT_NAME:
            name = next(iter(able), name)
        return (able[name], self.specs[name]) if name in able else (RERANK, self.find(RERANK, name))

    def aliases(self, spec: ModelSpec) -> list[str]:
        """Other names that a request may use."""
        return [DEFAULT_NAME] if spec is self.find(spec.task) and DEFAULT_NAME not in self.specs else []


def task_of(name: str) -> type[Task]:
    """The task of that name. Raises `NotServedError`."""
    try:
        return find_task(name)
    except ConfigError as error:
        raise NotServedError("there is no such task here", param="task") from error


def parse_model(text: str) -> ModelSpec:
    """Read `SOURCE` or `NAME=SOURCE`, followed by `,task=T`, `,dtype=D`, `,max_length=N`, `,revision=R`, `,digest=H`.

    Without a name, a folder is called by its last part, an embedded model by its own name, a hub id by itself.

    Raises:
        ConfigError: The text is none of these.
    """
    options: dict[str, Any] = {}
    while (found := _OPTION.search(text)) is not None:
        options[found[1]], text = found[2], text[: found.start()]
    if "max_length" in options:
        if not options["max_length"].isdigit():
            raise ConfigError(f"max_length of a model must be a number. Got {options['max_length']!r}")
        options["max_length"] = int(options["max_length"])
    named = _NAMED.fullmatch(text)
    name, source = (named[1], named[2]) if named else ("", text)
    if source == DEFAULT_NAME:
        return replace(DEFAULT_EMBEDDER, name=name or DEFAULT_EMBEDDER.name, **options)
    return ModelSpec(name=name or _name_of(source), source=source, **options)


def embedded_models() -> list[ModelSpec]:
    """The embedder of this package, then the models that other installed packages bring.

    Raises:
        ConfigError: An entry point is no `ModelSpec`.
    """
    specs = [DEFAULT_EMBEDDER]
    for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name):
        brought = point.load()
        if not isinstance(brought, ModelSpec):
            raise ConfigError(f"entry point {point.name!r} of {ENTRY_POINT_GROUP} must be a ModelSpec. Got {brought!r}")
        specs.append(brought)
    return specs


def probe_item(task: type[Task]) -> Any | None:
    """A small item of a task whose items need nothing but texts; None for any other task."""
    texts = [field.type in {"str", str} for field in fields(task.item_type) if field.default is MISSING]
    return task.item_type(*["ready?"] * len(texts)) if all(texts) else None


def _name_of(source: str) -> str:
    if source.startswith(EMBEDDED_PREFIX):
        return source.removeprefix(EMBEDDED_PREFIX)
    folder = Path(source).expanduser()
    return folder.resolve().name if folder.is_dir() else source


def _can(spec: ModelSpec, task: str) -> bool:
    return task == spec.task or getattr(find_task(task), "derives_from", None) == spec.task


def _reranking(spec: ModelSpec) -> str | None:
    """The task by which the model scores pairs itself: its own, or the one that its own names as `reranker`."""
    task = find_task(spec.task)
    return spec.task if getattr(task, "reranks", False) else getattr(task, "reranker", None)
