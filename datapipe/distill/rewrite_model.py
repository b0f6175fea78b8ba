"""The original model of a rewriting where it runs: in this process, or behind the URL of a server.

    name, device or URL -> OriginalModel -> stage(settings) -> RewriteAnswers

Raises `ConfigError`, `ModelError` and `WorkerError`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from datapipe.distill.rewrite_stages import RewriteAnswers
from datapipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from datapipe.distill.rewrite_stages import RewriteConfig

__all__ = ["OriginalModel"]

TOKEN_BUDGET = 16_384
"""Tokens of a batch on the CPU: a step of decoding reads all weights, whatever the number of answers."""


class OriginalModel:
    """The original model; a context manager that closes what it opened.

    Args:
        model: A folder or a cached hub id, or a name at the server.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        url: Of a server; None for this process.
        tokenizer: Model whose tokenizer counts tokens; None for the model itself.
        token_budget: Tokens of a batch, prompts and answers; None takes 16,384 on the CPU and the worker's own on CUDA.

    Raises:
        ConfigError: A URL is given and no tokenizer.
    """

    def __init__(
        self, model: str, *, device: str, url: str | None, tokenizer: str | None, token_budget: int | None
    ) -> None:
        if url is not None and tokenizer is None:
            raise ConfigError("tokens of answers are counted here: name the model's folder or hub id as tokenizer too")
        self.name, self._device, self._url, self._budget = model, device, url, token_budget
        self._tokenizer = tokenizer or model

    def __enter__(self) -> Self:
        self._worker = self._opened()
        try:
            loaded = self._worker.load(self.name, task="generate")
            self.digest, self.bits = str(loaded.digest), dict(loaded.bits)
            chat = getattr(getattr(loaded, "task", None), "chat", None)
            self.chat = chat.digest if chat is not None else ""
            self._count = _counts(self._tokenizer)
        except BaseException:
            self._worker.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.close()

    @property
    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        folder = Path(self.name).expanduser()
        shown = folder.resolve().name if folder.is_dir() else self.name
        return {"name": shown, "digest": self.digest, "chat": self.chat, "bits": self.bits}

    def stage(self, settings: RewriteConfig) -> RewriteAnswers:
        """The stage that asks it."""
        return RewriteAnswers(
            worker=lambda: self._worker,
            count=self._count,
            model=self.name,
            digest=self.digest,
            bits=self.bits,
            settings=settings,
        )

    def _opened(self) -> Any:
        if self._url is not None:
            from datapipe.workers.http.client import HttpWorker

            return HttpWorker(self._url)
        from datapipe.workers.device import resolve_device
        from datapipe.workers.spec import ModelSpec
        from datapipe.workers.worker import LocalWorker

        if resolve_device(self._device).type != "cpu":
            return LocalWorker(device=self._device, token_budget=self._budget)
        # A step of decoding multiplies few rows, for which a CPU in bfloat16 takes twice as long.
        spec = ModelSpec(self.name, self.name, task="causal", dtype="float32")
        return LocalWorker([spec], device=self._device, token_budget=self._budget or TOKEN_BUDGET)


def _counts(tokenizer: str) -> Callable[[Sequence[str]], list[int]]:
    from datapipe.workers.folder import resolve
    from datapipe.workers.spec import spec_of
    from datapipe.workers.tasks.causal import PlainTokenizer

    plain_tokens = PlainTokenizer(resolve(spec_of(tokenizer, task="causal")))
    return lambda texts: [len(ids) for ids in plain_tokens.plain(texts, first=0)]
