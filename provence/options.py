"""What the adapters have in common: a pruner's settings as checked fields, and the pruner, opened when first used.

    fields -> Policy (checked when constructed) ; fields -> Pruner.load, once -> prune / aprune with the policy's fields

An option that is wrong raises pydantic's `ValidationError`, a `ValueError`, with the words of the `ConfigError`.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from provence.loading import Backend
from provence.policy import OPTIONS, EmptyPolicy, Pin, Policy, RuleName
from provence.units.unit import TextKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from provence.pruner import Pruner
    from provence.results import PrunedContext

__all__ = ["PruneOptions"]

_ENGINE = ("model", "device", "dtype", "max_length", "backend", "calibration", "worker")
_opening = threading.Lock()


class PruneOptions(BaseModel):
    """Which model prunes, and what it keeps.

    Copies share the pruner until they name another model, device or worker. Pickling leaves the pruner behind, and the
    copy opens its own; a `worker` is pickled with the rest, so it must be one that can be, such as `HttpWorker`.

    Attributes:
        model: `default`, a folder, a hub id, or with `worker` the name of a model there.
        threshold: Keep probability above which a sentence is kept, 0-1; None is the model's own.
        target_recall: Share of the needed sentences that is to be kept, 0-1; needs `calibration`.
        budget_tokens: Most tokens kept, over all documents of a call.
        rule: What a threshold is compared with: `own`, as the model's family does; `mean`, the mean keep probability.
        top_n: Documents given, best first; None gives all in their order.
        min_keep: Sentences kept of each document at least.
        always_keep_first: Whether the first sentence of each document is kept.
        pin: What is kept with the sentences that need it, such as `headings` and `table_headers`.
        repair: Whether a kept sentence that opens with a pronoun or connective brings the one before it.
        empty: What becomes of a document of which nothing is kept: left out, given whole, or given as an empty text.
        title_key: Metadata key of a title that the model reads before the text; None: no titles.
        kind: How texts are read; `auto` looks at each.
        joint: Whether the texts of a call share windows, so that evidence in several of them is seen together.
        cut_question: Whether a question too long for the model is cut; otherwise it is refused.
        details: Whether the metadata key `provence` tells the kept spans and every sentence's score.
        device: Where the model runs: `auto`, `cpu`, `cuda:0`; without meaning for a `worker`.
        dtype: Precision; None is what suits the device and the model.
        max_length: Tokens of a window; None is the model's own.
        backend: `torch`, or `onnx` for int8 on the CPU without torch.
        calibration: File of `provence calibrate`.
        worker: Where the model runs instead: a `LocalWorker`, `HttpWorker` or `RayWorker`; never part of a dump.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    model: str = "default"
    threshold: float | None = None
    target_recall: float | None = None
    budget_tokens: int | None = None
    rule: RuleName = "own"
    top_n: int | None = None
    min_keep: int = 0
    always_keep_first: bool = False
    pin: tuple[Pin, ...] = ()
    repair: bool = False
    empty: EmptyPolicy = "drop"
    title_key: str | None = None
    kind: TextKind = "auto"
    joint: bool = False
    cut_question: bool = False
    details: bool = False
    device: str = "auto"
    dtype: str | None = None
    max_length: int | None = None
    backend: Backend = "torch"
    calibration: str | None = None
    worker: Any = Field(default=None, exclude=True, repr=False)

    _opened: tuple[tuple[Any, ...], Any] | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _check_policy(self) -> Self:
        Policy(**self._policy())
        return self

    def __getstate__(self) -> dict[Any, Any]:
        """Everything but the pruner, which opens again where it is used."""
        bare = self.__copy__()
        bare._opened = None  # noqa: SLF001 - a copy of its own
        return super(PruneOptions, bare).__getstate__()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """The same as a copy: the fields are values, and worker and pruner hold threads and tensors, so are shared."""
        return self.__copy__()

    def close(self) -> None:
        """Close the pruner that was opened here, with its model; a `worker` stays open. May be called again.

        A call after that opens another.
        """
        opened, self._opened = self._opened, None
        if opened is not None:
            opened[1].close()

    def prune(self, question: str, texts: Sequence[str], titles: Sequence[str | None]) -> list[PrunedContext]:
        """Prune texts as the fields say; raises what `Pruner.prune` raises."""
        pruner = self._open_pruner() or self._loaded()
        return pruner.prune(question, texts, **self._call(titles))

    async def aprune(self, question: str, texts: Sequence[str], titles: Sequence[str | None]) -> list[PrunedContext]:
        """The same without blocking the event loop."""
        pruner = self._open_pruner()
        if pruner is None:
            pruner = await asyncio.to_thread(self._loaded)
        return await pruner.aprune(question, texts, **self._call(titles))

    def title_of(self, metadata: Mapping[str, Any]) -> str | None:
        """The title of a document, if its metadata has one under `title_key`."""
        title = metadata.get(self.title_key) if self.title_key is not None else None
        return None if title is None else str(title)

    def _open_pruner(self) -> Pruner | None:
        """The pruner, if it is open and of the model that the fields name now."""
        opened = self._opened
        return opened[1] if opened is not None and opened[0] == self._wanted() else None

    def _loaded(self) -> Pruner:
        from provence.pruner import Pruner

        with _opening:
            pruner = self._open_pruner()
            if pruner is None:
                pruner = Pruner.load(**{name: getattr(self, name) for name in _ENGINE})
                self._opened = self._wanted(), pruner
            return pruner

    def _wanted(self) -> tuple[Any, ...]:
        return tuple(id(self.worker) if name == "worker" else getattr(self, name) for name in _ENGINE)

    def _call(self, titles: Sequence[str | None]) -> dict[str, Any]:
        shown = titles if self.title_key is not None else None
        return {
            "titles": shown,
            "kinds": self.kind,
            "joint": self.joint,
            "cut_question": self.cut_question,
            **self._policy(),
        }

    def _policy(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in OPTIONS}
