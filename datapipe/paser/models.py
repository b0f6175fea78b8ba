"""The original model and its damaged versions, by name, in one worker.

    folders or hub ids -> checks at the door (one vocabulary, finite weights) -> Models -> worker "causal", heads

Models are loaded when a stage first asks for them, never for a stage that is done: digests and platform facts are read
without. Raises `ModelError` for models that cannot be compared, `ConfigError` for options out of range.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from datapipe.errors import ConfigError
from datapipe.paser.heads import Heads, refuse_not_finite, refuse_other_tokens
from datapipe.paser.rendering import leading_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datapipe.workers.chat import ChatFormat
    from datapipe.workers.registry import LoadedModel
    from datapipe.workers.spec import DtypeName
    from datapipe.workers.tasks.causal import PlainTokenizer
    from datapipe.workers.worker import LocalWorker

__all__ = ["MAX_LENGTH", "ORIGINAL", "Models", "labels_of"]

ORIGINAL = "original"
"""Name of the original at the worker; its damaged versions have their labels."""

MAX_LENGTH = 2048
"""Tokens that a row is cut to unless said otherwise."""


class Models:
    """The original and what was made of it, in one worker; a context manager.

    Args:
        original: Folder or cached hub id.
        pruned: The same of each damaged version; at least one.
        device: `auto`, `cpu`, `cuda`, `cuda:1`; of several, bodies run on all and heads on the first.
        dtype: Precision of the bodies and heads; logits and all after them are float32.
        max_length: Tokens of prompt and answer; longer rows lose the beginning of the prompt first. Never more than the
            models have positions.
        token_budget: Tokens of a batch; None takes the worker's own.

    Attributes:
        labels: Names of the damaged versions, as the worker knows them.
        max_length: Tokens that a row is cut to.
        tokenizer: Of the original.
        chat: The form of a conversation with the original; all models read it.
        leading: What `prompt_and_text` takes off a prompt.
        bits: Platform facts of the worker.

    Raises:
        ConfigError: No damaged version is named, or the length is below 2.
        ModelError: A model is not there or no causal one, its weights are not finite, or its tokens are others than
            the original's.
    """

    def __init__(
        self,
        original: str,
        pruned: Sequence[str],
        *,
        device: str = "auto",
        dtype: DtypeName = "auto",
        max_length: int = MAX_LENGTH,
        token_budget: int | None = None,
    ) -> None:
        from datapipe.workers.device import resolve_devices
        from datapipe.workers.spec import ModelSpec

        if not pruned:
            raise ConfigError("name at least one pruned model: damage is what sets it apart from the original")
        if max_length < 2:  # noqa: PLR2004 - a token, and one that follows
            raise ConfigError(f"max_length must be at least 2 tokens, got {max_length}")
        self.labels = labels_of(pruned)
        self._device, self._dtype, self._budget = resolve_devices(device)[0], dtype, token_budget
        self._named = device
        sources = dict(zip((ORIGINAL, *self.labels), (original, *pruned), strict=True))
        self._specs = {name: ModelSpec(name, source, task="causal", dtype=dtype) for name, source in sources.items()}
        self._heads: dict[str, Heads] = {}
        self._check(max_length)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the models."""
        self._close_heads()
        if "worker" in self.__dict__:
            self.worker.close()

    @cached_property
    def worker(self) -> LocalWorker:
        """Runs the bodies. It keeps two models and gives up the one that was asked for longest ago."""
        from datapipe.workers.worker import LocalWorker

        sizes = {name: sum(path.stat().st_size for path in folder.weight_files()) for name, folder in self._dirs}
        largest = sizes[ORIGINAL] + max(sizes[label] for label in self.labels)
        # Files may hold half the bytes that the tensors take in memory.
        return LocalWorker(
            self._specs.values(), device=self._named, token_budget=self._budget, memory_bytes=2 * largest
        )

    @cached_property
    def bits(self) -> Mapping[str, str]:
        """What changes the last bits of a state, read off the machine without loading anything."""
        from datapipe.workers.device import arithmetic, resolve_dtype
        from datapipe.workers.worker import MAX_ITEMS, TOKEN_BUDGET

        budget = self._budget or TOKEN_BUDGET[self._device.type]
        facts = arithmetic(self._device, resolve_dtype(self._dtype, self._device))
        return {**facts, "batch": f"{budget} tokens, {MAX_ITEMS} items"}

    def digest(self, name: str) -> str:
        """Digest of a model's files."""
        return dict(self._dirs)[name].digest

    def load(self, name: str) -> LoadedModel:
        """A model on the first device; its name is `ORIGINAL` or a label."""
        return self.worker.load(name, task="causal")

    def heads(self, label: str) -> Heads:
        """The heads of the original and of one damaged version; those of the version before are closed."""
        if label not in self._heads:
            self._close_heads()
            self._heads[label] = Heads(self.load(ORIGINAL), self.load(label))
        return self._heads[label]

    @property
    def facts(self) -> dict[str, dict[str, str]]:
        """Folder name and digest of each model by its name, for a manifest."""
        return {name: {"name": folder.root.resolve().name, "digest": folder.digest} for name, folder in self._dirs}

    def _close_heads(self) -> None:
        for heads in self._heads.values():
            heads.close()
        self._heads.clear()

    def _check(self, max_length: int) -> None:
        from datapipe.workers.chat import ChatFormat
        from datapipe.workers.encoders.library import config_of, max_length_of, positions_of
        from datapipe.workers.folder import resolve
        from datapipe.workers.tasks.causal import PlainTokenizer

        self._dirs = tuple((name, resolve(spec)) for name, spec in self._specs.items())
        lengths, first = [], self._dirs[0][1]
        for _, folder in self._dirs:
            config = config_of(folder)
            lengths.append(max_length_of(folder, asked=max_length, positions=positions_of(config)))
            refuse_not_finite(folder)
            refuse_other_tokens(first, folder)
        self.max_length = min(lengths)
        self._specs = {name: replace(spec, max_length=self.max_length) for name, spec in self._specs.items()}
        self.tokenizer: PlainTokenizer = PlainTokenizer(first)
        self.chat: ChatFormat = ChatFormat(first)
        self.leading = leading_text(self.chat, self.tokenizer)


def labels_of(pruned: Sequence[str]) -> tuple[str, ...]:
    """A name for each damaged version: the last part of its path, numbered where two are alike."""
    names = [ORIGINAL]
    for source in pruned:
        plain = re.sub(r"[^\w.-]+", "_", Path(source).name) or "pruned"
        numbered = (f"{plain}-{number}" for number in itertools.count(2))
        names.append(next(name for name in itertools.chain([plain], numbered) if name not in names))
    return tuple(names[1:])
