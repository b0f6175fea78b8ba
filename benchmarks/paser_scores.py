"""What the recovery benchmark knows of its rows before it trains: tokens, vectors, clusters, damage by each model.

    data.parquet, original -> damaged models -> tokens.npz, vectors.npz, clusters.npz -> scores/VARIANT.npz -> Prepared

Every file is made once. Nothing needs Polars, so it runs on a bare GPU host; the functions are those of the pipeline.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import paser_data
from benchmarks.paser_plans import ORIGINAL, VARIANTS
from datapipe.paser.conflicts import asked_keys
from datapipe.paser.lessons import Lessons, lessons_of, positions
from datapipe.paser.pick_config import PickRows
from datapipe.workers.folder import ModelFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import torch

    from datapipe.storage.arrays import Float32, Int64

DATA = "data.parquet"
PARTS = ("pool", "answers", "validation", "test")
"""Lessons: `pool` to train on, with the token that ends an answer; the others without it, as damage is measured."""
EMBEDDER = "all-MiniLM-L6-v2"
_AT_ONCE = {"cpu": 64, "cuda": 2048}
"""Rows whose states are held at a time."""
_TEXTS = 128
"""Rows of the pool on which blocks and neurons are measured."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """Rows, with everything but their damage.

    Attributes:
        data: Their texts.
        lessons: By part.
        rows: The pool as a choice sees it, without order and damage.
        places: Cluster of each validation row, int64.
        names: Of the clusters.
    """

    data: paser_data.Data
    lessons: dict[str, Lessons]
    rows: dict[str, Any]
    places: Int64
    names: tuple[str, ...]

    @property
    def pool_tokens(self) -> int:
        """Prompt and response tokens of the pool: what a budget is a part of."""
        return int((self.rows["tokens"] + self.rows["prompt_tokens"]).sum())

    def sources(self, part: str) -> list[str]:
        """Source of each held-out row."""
        return [row["source"] for row in getattr(self.data, part)]

    def pick_rows(self, scores: Mapping[str, Any], *, seed: int) -> PickRows:
        """The pool with the damage of a variant, in the random order of a seed."""
        order = np.random.Generator(np.random.Philox(key=[seed, 77])).permutation(len(self.rows["labels"]))
        known = {name: scores[name].astype(np.float64) for name in ("nll", "alone")}
        return PickRows(order=order, jsd=scores["jsd_mean"].astype(np.float64), **known, **self.rows)


def model_folder(work: Path, name: str) -> ModelFolder:
    """The original or a variant."""
    return ModelFolder(name, work / "models" / name)


def prepare(work: Path, *, max_length: int, device: str, clusters: int | None = None) -> None:
    """Make everything but the damage."""
    data = paser_data.read(work / DATA)
    _damage(work, data, device)
    _once(work / "tokens.npz", lambda: _tokens(work, data, max_length))
    _once(work / "vectors.npz", lambda: _vectors(data, device))
    _once(work / "clusters.npz", lambda: _clusters(work, data, device, clusters))


def load(work: Path) -> Prepared:
    """What `prepare` made."""
    data = paser_data.read(work / DATA)
    with np.load(work / "tokens.npz") as found:
        lessons = {part: Lessons(*(found[f"{part} {name}"] for name in _LESSON)) for part in PARTS}
    with np.load(work / "vectors.npz") as found:
        answers = _unit(found["answers"])
    with np.load(work / "clusters.npz") as found:
        labels, places, names = found["labels"], found["places"], tuple(found["names"].tolist())
    texts = [(row["instruction"], row["input"], row["response"]) for row in data.pool]
    rows = {
        "labels": labels,
        "clusters": len(names),
        "tokens": lessons["answers"].answers,
        "prompt_tokens": lessons["answers"].prompts,
        "answers": answers,
        "texts": texts,
        "asked": asked_keys((instruction, about) for instruction, about, _ in texts),
    }
    return Prepared(data, lessons, rows, places, names)


def score(work: Path, variant: str, *, device: str) -> None:
    """Measure the damage of every row of the pool by one variant, once."""
    path = work / "scores" / f"{variant}.npz"
    if path.is_file():
        return
    import torch

    started = time.perf_counter()
    lessons = load(work).lessons["answers"]
    where = torch.device(device)
    one, other = (open_scorer(work, name, where) for name in (ORIGINAL, variant))
    found = _compared(one, other, lessons, where)
    found["alone"] = _alone(work, other, lessons, where)
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(path, found)
    print(f"scores of {variant}: {len(lessons)} rows, {time.perf_counter() - started:.1f} s", flush=True)


def scores_of(work: Path, variant: str) -> dict[str, Any]:
    """What `score` measured."""
    with np.load(work / "scores" / f"{variant}.npz") as found:
        return {name: found[name] for name in found.files}


def open_scorer(work: Path, name: str, device: torch.device) -> Any:
    """A model as the worker has it: bfloat16 on a GPU."""
    import torch

    from datapipe.workers.encoders.causal import CausalModel

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return CausalModel(model_folder(work, name), device=device, dtype=dtype)


def _once(path: Path, make: Callable[[], dict[str, Any]]) -> None:
    if path.is_file():
        return
    started = time.perf_counter()
    _save(path, make())
    print(f"{path.stem}: {time.perf_counter() - started:.1f} s", flush=True)


def _damage(work: Path, data: paser_data.Data, device: str) -> None:
    from datapipe.paser.damage import drop_blocks, narrow, round_weights

    source = work / "models" / ORIGINAL
    texts = [
        f"{row['instruction']}\n{row['input']}\n{row['response']}" for row in data.pool[:: len(data.pool) // _TEXTS]
    ]
    for name, how in VARIANTS.items():
        out = work / "models" / name
        if out.is_dir():
            continue
        if "blocks" in how:
            done = drop_blocks(source, out, keep=int(how["blocks"]), texts=texts, device=device)
        elif "width" in how:
            done = narrow(source, out, keep=how["width"], texts=texts, device=device)
        else:
            done = round_weights(source, out, bits=int(how["bits"]))
        print(f"{name}: {done.parameters:,} -> {done.left:,}, without blocks {done.removed}", flush=True)


_LESSON = ("ids", "lengths", "prompts")


def _tokens(work: Path, data: paser_data.Data, max_length: int) -> dict[str, Any]:
    from datapipe.paser.recovery import rendered
    from datapipe.storage.instructions import Pair

    folder = model_folder(work, ORIGINAL)
    found: dict[str, Any] = {}
    for part in PARTS:
        rows = data.pool if part == "answers" else getattr(data, part)
        pairs = [Pair(row["instruction"], row["input"], row["response"]) for row in rows]
        prompts, answers = rendered(pairs, folder)
        made = lessons_of(prompts, answers, folder=folder, max_length=max_length, ended=part == "pool")
        print(f"{part}: {len(made)} rows, {len(made.ids):,} tokens, {made.truncated} truncated", flush=True)
        found |= {f"{part} {name}": getattr(made, name) for name in _LESSON}
    return found


def _vectors(data: paser_data.Data, device: str) -> dict[str, Any]:
    from datapipe.embedding.text import embed_texts
    from datapipe.workers import LocalWorker

    with LocalWorker(device=device) as worker:

        def embedded(texts: list[str]) -> Any:
            return embed_texts(worker, texts, model=EMBEDDER).vectors.astype(np.float16)

        return {
            "questions": embedded([_question(row) for row in data.pool]),
            "answers": embedded([row["response"] for row in data.pool]),
            "validation": embedded([_question(row) for row in data.validation]),
        }


def _question(row: Mapping[str, Any]) -> str:
    return f"{row['instruction']}\n{row['input']}" if row["input"] else str(row["instruction"])


def _clusters(work: Path, data: paser_data.Data, device: str, k: int | None) -> dict[str, Any]:
    from datapipe.paser.clusters import ClusterConfig, cluster
    from datapipe.paser.names import cluster_names

    with np.load(work / "vectors.npz") as found:
        vectors, held = _unit(found["questions"]), _unit(found["validation"])
    made = cluster(vectors, ClusterConfig(k=k), device=device)
    names = cluster_names([_question(row) for row in data.pool], made.labels)
    told = [" ".join(words[:4]) for words in names]
    sources = np.array([row["source"] for row in data.pool])
    for number, name in enumerate(told):
        own, counts = np.unique(sources[made.labels == number], return_counts=True)
        print(number, name, dict(zip(own.tolist(), counts.tolist(), strict=True)), flush=True)
    return {"labels": made.labels, "places": made.assign(held)[0], "names": np.array(told)}


def _compared(one: Any, other: Any, lessons: Lessons, device: torch.device) -> dict[str, Any]:
    import torch

    from datapipe.paser.divergence import columns, token_divergence
    from datapipe.paser.evaluation import answer_states, answer_tokens
    from datapipe.paser.rows import row_numbers

    parts = []
    step = _AT_ONCE[device.type]
    for at in range(0, len(lessons), step):
        some = lessons.take(np.arange(at, min(at + step, len(lessons))))
        states, others = (answer_states(model, some, device=device) for model in (one, other))
        targets = torch.from_numpy(answer_tokens(some)).to(device)
        found = token_divergence(one, other, states, others, targets)
        numbers = torch.stack([getattr(found, name) for name in columns()], dim=1).cpu().numpy()
        parts.append(row_numbers(numbers, some.answers))
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {**whole, "nll": whole["nll_p"]}


def _alone(work: Path, model: Any, lessons: Lessons, device: torch.device) -> Float32:
    """Mean loss of each answer that follows nothing but the token that begins a text."""
    from datapipe.paser.evaluation import answer_losses
    from datapipe.workers.chat import ChatFormat
    from datapipe.workers.tasks.causal import PlainTokenizer

    folder = model_folder(work, ORIGINAL)
    first = PlainTokenizer(folder).token_id(ChatFormat(folder).special.get("bos_token", ""))
    begin = np.int32(0 if first is None else first)
    starts, found = lessons.starts + lessons.prompts, []
    step = _AT_ONCE[device.type]
    for at in range(0, len(lessons), step):
        own = np.arange(at, min(at + step, len(lessons)))
        sizes = lessons.answers[own]
        ids = np.full(int(sizes.sum()) + len(own), begin, np.int32)
        ids[positions(np.cumsum(sizes + 1) - sizes, sizes)] = lessons.ids[positions(starts[own], sizes)]
        found.append(answer_losses(model, Lessons(ids, sizes + 1, np.ones(len(own), np.int64)), device=device) / sizes)
    whole: Float32 = np.concatenate(found).astype(np.float32)
    return whole


def _unit(vectors: Any) -> Float32:
    wide = vectors.astype(np.float32)
    found: Float32 = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return found


def _save(path: Path, arrays: Mapping[str, Any]) -> None:
    partial = path.with_name(f"{path.stem}.partial.npz")
    np.savez(partial, **arrays)
    partial.replace(path)
