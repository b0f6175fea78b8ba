"""`POST /v1/prune`: documents without what a query does not need, and their relevance.

    {"query", "documents", ...} -> PruneItem -> worker -> scores -> decisions -> kept text, spans and sentences
    POST /v1/prune/calibration: {"model"} -> the calibration beside a model, for clients that decide

Served by `datapipe serve`, which finds `ROUTES` among its entry points. Raises `InvalidRequestError`, which names the
field at fault, and what the worker raises.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from datapipe.errors import ConfigError
from datapipe.workers.folder import resolve
from datapipe.workers.http.errors import InvalidRequestError
from datapipe.workers.http.route import Route
from provence.asking import how, placed
from provence.assemble import Request, contexts
from provence.calibration import Calibration
from provence.home import CALIBRATION_PATH
from provence.loading import CALIBRATION
from provence.policy import AIMS, OPTIONS, EmptyPolicy, Pin, Policy, RuleName
from provence.render import values
from provence.units.unit import TextKind

if TYPE_CHECKING:
    from datapipe.workers.http.service import Call
    from datapipe.workers.spec import ModelSpec
    from provence.results import PrunedContext

__all__ = [
    "CALIBRATED",
    "PRUNE",
    "ROUTES",
    "CalibrationRequest",
    "CalibrationResponse",
    "PruneRequest",
    "PruneResponse",
]

Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Count: TypeAlias = Annotated[int, Field(ge=0, le=1 << 31)]


class PruneDocument(BaseModel):
    """A text in an object, with its title if it has one."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str
    title: str | None = None


def _documents(value: Any) -> Any:
    """Say what is wrong with the documents in one sentence, where a union of types would say it in two."""
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("documents", "must be a list of at least one document")
    for place, entry in enumerate(value):
        if not isinstance(entry, str) and not _is_document(entry):
            raise PydanticCustomError(
                "documents",
                'document {place} must be a text, or an object {"text": "…", "title": "…"}',
                {"place": place},
            )
    return value


def _is_document(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and {"text"} <= entry.keys() <= {"text", "title"}
        and isinstance(entry["text"], str)
        and isinstance(entry.get("title"), str | None)
    )


class PruneRequest(BaseModel):
    """A query, and documents to prune for it; of `threshold`, `target_recall` and `budget_tokens` one at most."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    query: str = Field(description="Any text but white space alone.")
    documents: Annotated[
        list[str | PruneDocument],
        BeforeValidator(_documents),
        Field(min_length=1, description='Texts, or objects {"text": …, "title": …}.'),
    ]
    model: Annotated[str | None, Field(description="A served pruner; left out or `default`: the first.")] = None
    threshold: Share | None = Field(
        None, description="Keep probability above which a sentence is kept; left out: the model's own."
    )
    target_recall: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Share of the needed sentences of passages to keep; needs a model calibrated on such passages.",
    )
    budget_tokens: Annotated[int, Field(ge=1, le=1 << 31)] | None = Field(
        None, description="Most tokens kept of all documents together, in the model's own count."
    )
    rule: RuleName = Field(
        "own", description="What a threshold is compared with: what the model's family does, or the mean probability."
    )
    top_n: Annotated[int, Field(ge=1, le=1 << 31)] | None = Field(
        None, description="How many of the best to give, best first; left out: all, in the order of the request."
    )
    titles: list[str | None] | None = Field(
        None, description="One a document, or null; read with each part of it, never pruned."
    )
    kind: TextKind = Field("auto", description="How texts are cut into parts; `auto` looks at each.")
    min_keep: Count = Field(0, description="Sentences kept of each document at least.")
    always_keep_first: bool = Field(default=False, description="Keep the first sentence of each document.")
    pin: list[Pin] = Field([], description="What is kept with the parts that need it.")
    repair: bool = Field(default=False, description="Keep what a kept sentence refers to with its first word.")
    empty: EmptyPolicy = Field(
        "empty", description="A document of which nothing is kept: an empty text, the whole text, or no result."
    )
    joint: bool = Field(
        default=False, description="Documents share windows, so that evidence in several of them is seen together."
    )
    cut_question: bool = Field(default=False, description="Cut a query too long for the model, instead of refusing it.")


class PrunedSentence(BaseModel):
    """A part of a document; offsets count Unicode code points of the document's text."""

    start: int
    end: int
    keep_probability: float
    kept: bool
    reason: str = Field(description="threshold, recall, budget, min_keep, first, pinned, repair, whole; empty if cut.")
    kind: str = Field(description="What it is, such as sentence, heading or table_row.")


class PruneResult(BaseModel):
    """A document without what the query does not need."""

    index: int = Field(description="Place of the document in the request.")
    relevance_score: float = Field(
        description="On the model's own scale, higher is better: of the default pruner a logit, whose sigmoid lies in "
        "0-1. Empty documents have -10,000; joint ones their best sentence's probability."
    )
    pruned_text: str = Field(description="The kept spans of the document, one after another.")
    kept_spans: list[tuple[int, int]] = Field(description="Offsets, in Unicode code points, of what is kept.")
    sentences: list[PrunedSentence]
    compression: float = Field(description="Share of the characters that is cut, 0-1.")


class PruneUsage(BaseModel):
    """Tokens that the model read: documents, titles, and the query with each."""

    prompt_tokens: int
    total_tokens: int


class PruneResponse(BaseModel):
    """Results: in the order of the request, or with `top_n` best first."""

    results: list[PruneResult]
    model: str
    usage: PruneUsage
    truncated: bool = Field(description="Whether the model saw only the beginning of the query.")


class CalibrationRequest(BaseModel):
    """Whose calibration is asked for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: Annotated[str | None, Field(description="A served pruner; left out or `default`: the first.")] = None


class CalibrationResponse(BaseModel):
    """A model's calibration."""

    model: str
    calibration: dict[str, Any] = Field(description="What `provence calibrate` writes.")


async def prune(request: PruneRequest, call: Call) -> dict[str, Any]:
    """Documents without the sentences that a query does not need."""
    asked, policy = _asked(request), _policy(request)
    spec = call.service.offer.find("prune", request.model)
    calibration = await asyncio.to_thread(_calibration, call, spec) if policy.target_recall is not None else None
    if calibration is not None:
        _check(asked, calibration)
    with placed(asked):
        items = await asyncio.to_thread(lambda: asked.items)
        priority = how(None, None, asked.texts)["priority"]
        found = await call.run("prune", items, model=spec.name, priority=priority)
    told = await asyncio.to_thread(
        lambda: contexts(asked.texts, asked.scores(found), policy, calibration=calibration),
    )
    tokens = sum(scores.tokens for scores in found)
    return {
        "results": [_result(context) for context in told],
        "model": spec.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "truncated": found[0].truncated,
    }


async def calibration(request: CalibrationRequest, call: Call) -> dict[str, Any]:
    """The thresholds behind target_recall, for clients that decide themselves."""
    spec = call.service.offer.find("prune", request.model)
    found = await asyncio.to_thread(_calibration, call, spec)
    return {"model": spec.name, "calibration": found.as_dict()}


def _asked(request: PruneRequest) -> Request:
    """Texts with their titles. Raises `InvalidRequestError`."""
    if not request.query.strip():
        raise InvalidRequestError("query must hold more than white space", param="query")
    documents = [PruneDocument(text=found) if isinstance(found, str) else found for found in request.documents]
    titles = [document.title for document in documents]
    if request.titles is not None:
        if len(request.titles) != len(documents):
            raise InvalidRequestError(
                f"titles must hold one title, or null, a document. Got {len(request.titles)} for {len(documents)}",
                param="titles",
            )
        if any(title is not None for title in titles):
            raise InvalidRequestError("titles stand in titles or in the documents, not in both", param="titles")
        titles = request.titles
    return Request(
        question=request.query,
        texts=[document.text for document in documents],
        titles=titles,
        kinds=request.kind,
        joint=request.joint,
        cut_question=request.cut_question,
        share_at=request.threshold if request.rule == "own" else None,
    )


def _policy(request: PruneRequest) -> Policy:
    """What is to be kept; what no field could say alone is found here. Raises `InvalidRequestError`."""
    try:
        return Policy(**{name: getattr(request, name) for name in OPTIONS})
    except ConfigError as error:
        stated = [name for name in AIMS if getattr(request, name) is not None]
        raise InvalidRequestError(str(error), param=stated[-1]) from error


def _calibration(call: Call, spec: ModelSpec) -> Calibration:
    """The calibration that lies beside a model's weights.

    Raises:
        InvalidRequestError: There is none.
        ConfigError: It was made with other weights.
    """
    path = resolve(spec).root / CALIBRATION
    if not path.is_file():
        raise InvalidRequestError(
            f"model {spec.name} is not calibrated, so target_recall cannot be promised: its folder has no "
            f"{CALIBRATION} (provence calibrate makes it)",
            param="target_recall",
        )
    stat = path.stat()
    calibration = _read(str(path), stat.st_mtime_ns, stat.st_size)
    calibration.check(call.service.worker.load(spec.name, task="prune").digest)
    return calibration


@lru_cache(maxsize=16)
def _read(path: str, _changed: int, _size: int) -> Calibration:
    """Read once as long as the file stays as it is."""
    return Calibration.load(path)


def _check(asked: Request, calibration: Calibration) -> None:
    """Raise `InvalidRequestError` unless the texts are shown to the model as those that were calibrated on."""
    try:
        asked.check(calibration)
    except ConfigError as error:
        raise InvalidRequestError(str(error), param="target_recall") from error


def _result(context: PrunedContext) -> dict[str, Any]:
    return {name: value for name, value in values(context).items() if name in PruneResult.model_fields}


PRUNE = Route("/v1/prune", PruneRequest, PruneResponse, prune)

CALIBRATED = Route(CALIBRATION_PATH, CalibrationRequest, CalibrationResponse, calibration)

ROUTES = (PRUNE, CALIBRATED)
"""What this package adds to a server."""
