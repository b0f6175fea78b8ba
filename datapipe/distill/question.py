"""What is asked of teachers, and whether a run can answer it.

    options of `datapipe.soft_labels` + columns of the run -> Question: mode, content, causal or not

Raises `ConfigError` and `ColumnError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from datapipe.distill.head_teacher import HEAD
from datapipe.distill.header import DENSE_CLASSES
from datapipe.errors import ColumnError, ConfigError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from pathlib import Path

    from datapipe.distill.labels import LabelMap

__all__ = ["DRAWS", "TOP_K", "Question"]

TOP_K, DRAWS = 32, 64
"""Classes of a row, and draws of a token, that are stored by default where all would be too many."""

_CAUSAL = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked; see `datapipe.soft_labels`."""

    teachers: tuple[str, ...]
    top_k: int | None = None
    dense: bool = False
    sampled: int | None = None
    wide: bool = False
    rows: Literal["kept", "all"] = "kept"
    task: str = "auto"
    label_map: LabelMap | str | os.PathLike[str] | None = None
    prompt_column: str | None = None
    response_column: str | None = None
    tokenizer: str | None = None
    folds: int = 5
    device: str | None = None
    url: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.teachers or not all(self.teachers):
            raise ConfigError("name a teacher: head, a model's folder, or a cached hub id")
        if len(set(self.teachers)) < len(self.teachers):
            raise ConfigError(f"a teacher is named twice: {', '.join(self.teachers)}")
        modes = (("top_k", self.top_k is not None), ("dense", self.dense), ("sampled", self.sampled is not None))
        given = [name for name, there in modes if there]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} exclude each other: a store has one mode")
        if self.task not in {"auto", "classify", "causal"}:
            raise ConfigError(f"task must be auto, classify or causal, got {self.task!r}")
        if self.prompt_column is not None and self.response_column is None:
            raise ConfigError("prompt_column says what stands before the responses: name their column too")

    def check(self, folder: Path, columns: Mapping[str, str | None], *, causal: bool, vectors: bool) -> None:
        """Refuse what the run cannot give.

        Args:
            folder: Of the run, for messages.
            columns: The run's, by role.
            causal: Whether the teacher is a causal language model.
            vectors: Whether the run has vectors.

        Raises:
            ConfigError: Options do not go together.
            ColumnError: The run lacks texts, labels or vectors.
        """
        if causal:
            self._check_causal(columns)
            return
        if self.response_column is not None:
            raise ConfigError("prompt_column and response_column are for a causal teacher (task='causal')")
        if HEAD in self.teachers:
            if columns["label"] is None:
                raise ColumnError(f"the teacher head learns the run's labels, and {folder} has none")
            if not vectors:
                raise ColumnError(
                    f"the teacher head learns from vectors, and {folder} has none: curate with a metric that embeds, "
                    "such as prototypes, or name another teacher"
                )
        if self.content(columns, causal=False) == "vector" and set(self.teachers) != {HEAD}:
            raise ColumnError(f"{folder} has vectors alone, which no classifier takes: the teacher can be head")

    def _check_causal(self, columns: Mapping[str, str | None]) -> None:
        if HEAD in self.teachers:
            raise ConfigError("head tells classes apart, and a causal teacher tells tokens: they cannot be averaged")
        if len(self.teachers) > 1 and self.url is not None:
            raise ConfigError(
                f"{len(self.teachers)} causal teachers are averaged over whole vocabularies on their device: run them "
                "in this process, without workers, or give one"
            )
        if columns["text"] is None and self.response_column is None:
            raise ColumnError("a causal teacher needs texts, and the run has none: name the response_column")
        if self.response_column is not None and self.rows == "all":
            raise ConfigError("prompts and responses are read from kept.parquet: take rows='kept'")

    def content(self, columns: Mapping[str, str | None], *, causal: bool) -> str:
        """What the teachers see of the run's rows: `text`, `image` or `vector`."""
        if causal:
            return "text"
        if set(self.teachers) == {HEAD} or (columns["image"] is None and columns["text"] is None):
            return "vector"
        return "image" if columns["image"] is not None else "text"

    def is_causal(self, columns: Mapping[str, str | None]) -> bool:
        """Whether the teacher is a causal language model: as asked, or as its config.json says.

        Raises:
            ModelError: `task` is `auto` and there is no such model.
        """
        if self.task != "auto":
            return self.task == "causal"
        first = self.teachers[0]
        if first == HEAD or self.url is not None or columns["text"] is None:
            return False
        from datapipe.workers.folder import resolve
        from datapipe.workers.spec import spec_of

        config = resolve(spec_of(first)).json("config.json")
        named = (config.get("architectures") or []) if isinstance(config, dict) else []
        return any(str(name).endswith(_CAUSAL) for name in named)

    def mode(self, classes: int, level: str) -> dict[str, Any]:
        """Mode, k and draws of the header."""
        if self.top_k is not None:
            return {"mode": "topk", "k": self.top_k}
        if self.sampled is not None:
            return {"mode": "sampled", "draws": self.sampled}
        if self.dense or (level == "row" and classes <= DENSE_CLASSES):
            return {"mode": "dense", "wide": self.wide}
        return {"mode": "topk", "k": TOP_K} if level == "row" else {"mode": "sampled", "draws": DRAWS}
