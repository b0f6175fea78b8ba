"""The Python face: a question and texts in, pruned contexts out, whichever worker computes.

    prune(question, texts) -> Request -> items -> worker.run("prune") -> PruneScores -> contexts -> [PrunedContext]

One worker call carries all texts of a call, so they share batches. Decisions are taken here, on the scores that come
back; another policy needs no other pass. Raises `ConfigError` for options that are out of range or contradict each
other or an empty question, `ItemError` for an unusable text or question (its index counts the texts of the call),
`WorkerStoppedError` once it is closed, and what the worker raises.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Self, Unpack

from datapipe.workers.protocol import Priority
from provence.asking import answers, how, placed
from provence.assemble import Request, asked, asked_batch, contexts
from provence.decide import relevance_order
from provence.home import opened
from provence.loading import DEFAULT, read_calibration
from provence.policy import Policy
from provence.recall import Promise
from provence.results import Ranked
from provence.stream import one_by_one

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence
    from pathlib import Path
    from types import TracebackType

    from datapipe.workers.protocol import Worker
    from datapipe.workers.spec import DtypeName
    from provence.assemble import BatchArguments, PruneArguments
    from provence.calibration import Calibration
    from provence.home import Home
    from provence.loading import Backend
    from provence.results import PrunedContext
    from provence.task import PruneScores

__all__ = ["Pruner"]

STREAM_AHEAD = 8


class Pruner:
    """Prunes texts for questions; made by `Pruner.load`. Several threads and event loops may use one.

    It is a context manager that closes itself at the end, and can be pickled: a copy with a remote worker uses the same
    server, a copy without loads its model again when it is first used.

    Args:
        home: The model and where it runs.
        calibration: Where `target_recall` finds its thresholds; None looks beside the model.
    """

    def __init__(self, home: Home, *, calibration: Calibration | None = None) -> None:
        self._home, self._promise = home, Promise(home, calibration)

    @classmethod
    def load(
        cls,
        model: str | Path = DEFAULT,
        *,
        device: str = "auto",
        dtype: DtypeName | None = None,
        max_length: int | None = None,
        backend: Backend = "torch",
        worker: Worker | None = None,
        calibration: Calibration | str | Path | None = None,
    ) -> Self:
        """Load a model, or name one that a worker has.

        Args:
            model: `default`, a folder, or a hub id (of any family); with `worker` the name that it has there.
            device: `auto`, `cpu`, `cuda`, `cuda:N`; not with `worker`.
            dtype: Precision. None follows the hardware, but takes float32 on the CPU for models of other families.
                Not with `worker`.
            max_length: Tokens of a window at most, no more than the model can take; None takes its own. Not with
                `worker`.
            backend: `torch`, or `onnx` for int8 on the CPU by onnxruntime, without torch: for models of our own layout,
                and for those that `provence export` wrote. Not with `worker`.
            worker: Where the model runs; None makes one in this process.
            calibration: A calibration or its file; None takes calibration.json in the model's folder, also where a
                `LocalWorker` or a server has it, but not for `onnx`, whose probabilities differ.

        Raises:
            ModelError: There is no such model, or it cannot be loaded.
            ConfigError: An option is out of range, or stated beside `worker`.
        """
        home, folder = opened(
            str(model), device=device, dtype=dtype, max_length=max_length, backend=backend, worker=worker
        )
        pruner = cls(home, calibration=read_calibration(calibration, folder))
        if worker is None:
            _ = home.digest  # loads it
        return pruner

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Pruner({self._home!r})"

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._home.model

    @property
    def digest(self) -> str:
        """SHA-256 of the model's files, to which a calibration is bound. Raises `ConfigError` if none can be told."""
        return self._home.digest

    def prune(
        self,
        question: str,
        texts: Sequence[str],
        *,
        priority: Priority | None = None,
        deadline: float | None = None,
        **options: Unpack[PruneArguments],
    ) -> list[PrunedContext]:
        """Cut from each text what the question does not need.

        Args:
            question: Any text but white space alone.
            texts: Any number.
            priority: Whose batches go first; None is `ONLINE`, `BULK` above 1,024 texts or 65,536 characters.
            deadline: Seconds from now after which nothing more begins, also of a long text; None waits for ever.
            options: How the texts are read, fields of `Request`: `titles` (one a text, shown to the model), `kinds`
                (`auto`, `prose`, `markdown`, `code`, `json`, `log`), `spans` (own units of each text), `joint` (texts
                share windows; a text's relevance is then its most probable unit's probability), `cut_question`. What
                is kept of them, fields of `Policy`: `threshold`, `target_recall`, `budget_tokens`, `rule`, `min_keep`,
                `always_keep_first`, `pin`, `repair`, `empty`, `top_n`.

        Returns:
            One a text, in their order; with `top_n` the best first, with `empty="drop"` only those with something left.
        """
        request, policy = asked(question, texts, options)
        worker = self._ready(policy, [request])
        with placed(request):
            found = worker.run("prune", request.items, model=self.model, **how(priority, deadline, texts))
        return self._contexts(request, found, policy)

    async def aprune(
        self,
        question: str,
        texts: Sequence[str],
        *,
        priority: Priority | None = None,
        deadline: float | None = None,
        **options: Unpack[PruneArguments],
    ) -> list[PrunedContext]:
        """The same as `prune`, without blocking the event loop; cancelling it takes what waits of it off the queue."""
        request, policy = asked(question, texts, options)
        worker = await self._aready(policy, [request])
        with placed(request):
            items = await asyncio.to_thread(lambda: request.items)
            found = await worker.arun("prune", items, model=self.model, **how(priority, deadline, texts))
        return await asyncio.to_thread(self._contexts, request, found, policy)

    def prune_batch(
        self,
        pairs: Iterable[tuple[str, Sequence[str]]],
        *,
        titles: Sequence[Sequence[str | None] | None] | None = None,
        spans: Sequence[Sequence[Sequence[tuple[int, int]] | None] | None] | None = None,
        priority: Priority = Priority.BULK,
        deadline: float | None = None,
        **options: Unpack[BatchArguments],
    ) -> list[list[PrunedContext]]:
        """Prune for many questions in one call of the worker.

        Args:
            pairs: Questions, each with its texts.
            titles: Of the texts of each question; see `Request`.
            spans: Of the texts of each question; see `Request`.
            priority: Whose batches go first. Bulk work gives the same bits whatever else the worker does.
            deadline: Seconds from now after which nothing more begins.
            options: As `prune` takes them, `titles` and `spans` excepted; the same for all. A budget and `top_n` are
                for each question by itself.

        Returns:
            A list a question, as `prune` gives it. An `ItemError` names question and text; its index counts the texts
            of all questions.
        """
        policy, requests = asked_batch(pairs, titles, spans, options)
        worker = self._ready(policy, requests)
        found = answers(requests, worker, model=self.model, priority=priority, deadline=deadline)
        calibration = self._promise.of(policy)
        return [
            contexts(request.texts, scores, policy, calibration=calibration)
            for request, scores in zip(requests, found, strict=True)
        ]

    def scores(
        self,
        question: str,
        texts: Sequence[str],
        *,
        priority: Priority | None = None,
        deadline: float | None = None,
        **options: Unpack[PruneArguments],
    ) -> list[PruneScores]:
        """What the model says of each text, without a decision; arguments as in `prune`."""
        request, _ = asked(question, texts, options)
        return self._scores(request, priority, deadline)

    def scores_batch(
        self,
        pairs: Iterable[tuple[str, Sequence[str]]],
        *,
        titles: Sequence[Sequence[str | None] | None] | None = None,
        spans: Sequence[Sequence[Sequence[tuple[int, int]] | None] | None] | None = None,
        priority: Priority = Priority.BULK,
        deadline: float | None = None,
        **options: Unpack[BatchArguments],
    ) -> list[list[PruneScores]]:
        """What the model says of each text of each question, without a decision; arguments as in `prune_batch`."""
        _, requests = asked_batch(pairs, titles, spans, options)
        return answers(requests, self._home.worker, model=self.model, priority=priority, deadline=deadline)

    async def stream(
        self,
        question: str,
        texts: AsyncIterable[str],
        *,
        ahead: int = STREAM_AHEAD,
        **options: Unpack[BatchArguments],
    ) -> AsyncGenerator[PrunedContext, None]:
        """Prune texts as they arrive, each by itself; pruned contexts come in the order of the texts.

        Args:
            question: Any text.
            texts: Any number; the next is asked for while earlier ones are computed.
            ahead: Texts that are computed at a time.
            options: As `prune` takes them; `budget_tokens`, `top_n` and `joint` are refused, for they need all texts.
        """
        found = one_by_one(texts, lambda text: self.aprune(question, [text], **options), ahead=ahead, options=options)
        async with aclosing(found) as pruned:
            async for context in pruned:
                yield context

    def rerank(
        self,
        question: str,
        texts: Sequence[str],
        *,
        top_n: int | None = None,
        priority: Priority | None = None,
        deadline: float | None = None,
    ) -> list[Ranked]:
        """The texts by relevance, best first, ties in their order; a question too long for the model is cut.

        Scores are on the model's own scale: of the default model logits, of which `/v1/rerank` gives the sigmoid. Texts
        of white space alone come last, with a score of -10,000.

        Args:
            question: Any text but white space alone.
            texts: Any number.
            top_n: The best so many, at least 1; None gives all.
            priority: As in `prune`.
            deadline: As in `prune`.
        """
        _ = Policy(top_n=top_n)  # refuses what is no number of texts
        found = self._scores(Request(question=question, texts=texts, cut_question=True), priority, deadline)
        order = sorted(range(len(found)), key=lambda index: relevance_order(found[index]))
        return [Ranked(index, float(found[index].score)) for index in order[:top_n]]

    def close(self) -> None:
        """Close the worker that `load` made, and refuse to prune after; a worker that was given stays open.

        May be called again; `with Pruner.load() as pruner:` does it at the end.
        """
        self._home.close()

    def _ready(self, policy: Policy, requests: Sequence[Request]) -> Worker:
        """The worker, once it is sure that the calibration is of its model and of texts shown as these are."""
        self._promise.check(policy, requests)
        return self._home.worker

    async def _aready(self, policy: Policy, requests: Sequence[Request]) -> Worker:
        if self._promise.settled(policy) and self._home.open is not None:
            return self._ready(policy, requests)
        return await asyncio.to_thread(self._ready, policy, requests)

    def _scores(self, request: Request, priority: Priority | None, deadline: float | None) -> list[PruneScores]:
        told = how(priority, deadline, request.texts)
        with placed(request):
            return request.scores(self._home.worker.run("prune", request.items, model=self.model, **told))

    def _contexts(self, request: Request, found: Sequence[PruneScores], policy: Policy) -> list[PrunedContext]:
        return contexts(request.texts, request.scores(found), policy, calibration=self._promise.of(policy))
