"""How far stored labels move the distillation loss and its gradient, at equal bytes, on a language model's vocabulary.

    python -m benchmarks.soft_label_loss MODEL        MODEL: a folder with SmolLM2-135M-Instruct

Teacher: the model. Student: the same without four of its thirty layers. Positions: tokens of human answers of
data/dolly_3k.parquet after their prompts. The truth is KL(teacher || student) over all 49,152 classes in float64, and
its gradient by the student's last hidden states, (q - p) W, which is what the rest of the student learns from.
Draws are repeated over seeds; top-k labels have no chance in them, so their error is all bias. Bytes are those of
ids, values and counts of a position, uncompressed.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.common import ROOT, record, table
from datapipe.distill.codec import SampledLabels, draw_points, encode, log_softmax
from datapipe.distill.header import SoftLabelHeader, Teacher
from datapipe.distill.losses import kd_loss, targets_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datapipe.distill.codec import SoftLabels

NAME = "soft_label_loss"
CLASSES = 49_152
SEEDS = 100
DRAWS = (10, 25, 50, 100, 250)
DROPPED = range(20, 24)
POSITIONS = 400


def answers(model: str, *, count: int, answer_tokens: int, prompt_tokens: int) -> tuple[list[Any], list[Any]]:
    """Token ids of prompt and answer, and which of them are of the answer; the last and the first so many of each."""
    import pyarrow.parquet as pq
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    rows = pq.read_table(ROOT / "data" / "dolly_3k.parquet").to_pylist()
    sequences, masks = [], []
    for row in rows[:count]:
        question = "\n".join(filter(None, [row["instruction"], row["input"]]))
        asked = tokenizer.encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n").ids[
            -prompt_tokens:
        ]
        given = tokenizer.encode(row["output"]).ids[:answer_tokens]
        sequences.append(np.array([*asked, *given], np.int32))
        masks.append(np.arange(len(asked) + len(given)) >= len(asked))
    return sequences, masks


def logits_of(model: str, sequences: list[Any], masks: list[Any], *, without: Any = ()) -> Iterator[Any]:
    """Logits that predict the tokens of each answer, float32 (tokens, classes)."""
    network = loaded(model, without)
    with torch.inference_mode():
        for ids, mask in zip(sequences, masks, strict=True):
            found = network(torch.from_numpy(ids).long()[None]).logits[0, :-1]
            yield found[torch.from_numpy(mask[1:])].float().numpy()


def loaded(model: str, without: Any) -> Any:
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True).eval()
    kept = [layer for at, layer in enumerate(network.model.layers) if at not in without]
    network.model.layers = torch.nn.ModuleList(kept)
    network.config.num_hidden_layers = len(kept)
    network.config.use_cache = False
    return network


class Case:
    """Teacher and student at some hundred positions, and the exact loss and gradient."""

    def __init__(self, model: str) -> None:
        sequences, masks = answers(model, count=16, answer_tokens=48, prompt_tokens=96)
        teacher = np.concatenate(list(logits_of(model, sequences, masks)))[:POSITIONS]
        student = np.concatenate(list(logits_of(model, sequences, masks, without=DROPPED)))[:POSITIONS]
        self.embeddings = loaded(model, ()).lm_head.weight.detach().numpy().astype(np.float32)
        self.teacher, self.student = teacher, student
        self.log_p, self.log_q = log_softmax(teacher), log_softmax(student)
        self.p, self.q = np.exp(self.log_p), np.exp(self.log_q)
        self.entropy = -(self.p * self.log_p).sum(axis=1)
        self.loss = -(self.p * self.log_q).sum(axis=1) - self.entropy
        self.pulled = self.p.astype(np.float32) @ self.embeddings
        self.gradient = self.q.astype(np.float32) @ self.embeddings - self.pulled
        self.running = np.cumsum(self.p, axis=1)
        self.ids = np.stack([np.arange(len(teacher), dtype=np.uint64)] * 2, axis=1)


def header_of(**options: Any) -> SoftLabelHeader:
    return SoftLabelHeader(
        level="token", classes=CLASSES, teachers=(Teacher("t", "d"),), preprocessing="p", tokenizer="t", **options
    )


def kept(case: Case, name: str, labels: SoftLabels, header: SoftLabelHeader, size: float) -> None:
    """Labels without chance: loss and gradient by `kd_loss` itself."""
    student = torch.from_numpy(case.student).requires_grad_()
    losses = kd_loss(student, targets_of(labels, header), None, alpha=1.0, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), student)
    pulled = gradient.numpy() @ case.embeddings
    error = pulled - case.gradient
    report(case, name, size, losses.detach().numpy()[None], error, 0.0, error.sum(axis=0)[None])


def renormalised(case: Case, labels: Any, k: int, size: float) -> None:
    """What many stores do: the k as if they were everything, and no bucket for the rest."""
    values = labels.log_probabilities.astype(np.float64)
    p = np.exp(values)
    p /= p.sum(axis=1, keepdims=True)
    log_q = np.take_along_axis(case.log_q, labels.ids.astype(np.int64), axis=1)
    losses = (p * (np.log(np.maximum(p, 1e-300)) - log_q)).sum(axis=1)
    pulled = np.einsum("nk,nkd->nd", p.astype(np.float32), case.embeddings[labels.ids])
    error = case.pulled - pulled
    report(case, f"top {k}, renormalised", size, losses[None], error, 0.0, error.sum(axis=0)[None])


def points_of(case: Case, way: str, draws: int, seed: int) -> Any:
    places = np.zeros(len(case.ids), np.int64)
    if way == "stratified":
        return draw_points(case.ids, places, draws=draws, seed=seed)
    draw = np.random.default_rng([seed, draws])
    if way == "free":
        return np.sort(draw.random((len(case.ids), draws)), axis=1)
    return (np.arange(draws) + draw.random((len(case.ids), 1))) / draws


def drawn(case: Case, way: str, draws: int) -> float:
    """Draws over seeds; returns the mean bytes of a position. The gradient's error is that of the shares alone."""
    losses, sizes, together = [], [], []
    total, square = np.zeros_like(case.gradient), 0.0
    for seed in range(SEEDS):
        points = points_of(case, way, draws, seed)
        found = np.stack(
            [np.searchsorted(sums, at * sums[-1], side="right") for sums, at in zip(case.running, points, strict=True)]
        )
        labels = SampledLabels.of_draws(np.minimum(found, CLASSES - 1), case.entropy)
        counts = np.diff(labels.offsets)
        row = np.repeat(np.arange(len(counts)), counts)
        share = labels.counts / draws
        value = np.bincount(row, -share * case.log_q[row, labels.ids], minlength=len(counts)) - case.entropy
        losses.append(value)
        pulled = np.add.reduceat(share[:, None].astype(np.float32) * case.embeddings[labels.ids], labels.offsets[:-1])
        error = case.pulled - pulled
        total += error
        together.append(error.sum(axis=0))
        square += float(np.square(error, dtype=np.float64).sum())
        sizes.append((labels.ids.size * (2 + 1 + (draws > 255)) / len(counts)) + 3 + (draws > 255))
        if seed == 0:
            agree(case, labels, draws, value)
    size = float(np.mean(sizes))
    name = f"{draws} draws, {way}"
    report(case, name, size, np.stack(losses), total / SEEDS, square / SEEDS, np.stack(together))
    return size


def agree(case: Case, labels: SampledLabels, draws: int, value: Any) -> None:
    """`kd_loss` says the same as the shortcut by which the seeds are counted."""
    targets = targets_of(labels, header_of(mode="sampled", draws=draws))
    losses = kd_loss(torch.from_numpy(case.student), targets, None, alpha=1.0, reduction="none")
    np.testing.assert_allclose(losses.numpy(), value, atol=0.01)


def report(case: Case, name: str, size: float, losses: Any, mean_error: Any, mean_square: float, of_sum: Any) -> None:
    """Record bias and root mean square error of the loss, in nats, and of the gradient, as a share of its length.

    Args:
        case: The truth.
        name: Of the labels.
        size: Bytes of a position.
        losses: Float (runs, positions).
        mean_error: Of the gradient, mean over the runs, float (positions, dim).
        mean_square: Squared length of that error, mean over the runs; without effect for one run.
        of_sum: Error of the gradient summed over the positions, as a step on all of them takes it, float (runs, dim).
    """
    runs = len(losses)
    norm = float(np.square(case.gradient, dtype=np.float64).sum())
    bias = float(np.square(mean_error, dtype=np.float64).sum())
    whole = mean_square if runs > 1 else bias
    # The mean over seeds still holds 1 / runs of the variance, which is no bias.
    unbiased = max(0.0, (bias - whole / runs) / (1 - 1 / runs)) if runs > 1 else bias
    errors = losses - case.loss
    of_batch = errors.mean(axis=1)
    row = {
        "bytes_a_position": size,
        "loss": float(losses.mean()),
        "exact_loss": float(case.loss.mean()),
        "loss_bias": float(errors.mean()),
        "loss_bias_error": float(of_batch.std() / np.sqrt(runs)),
        "loss_rmse_position": float(np.sqrt(np.square(errors).mean())),
        "loss_rmse_batch": float(np.sqrt(np.square(of_batch).mean())),
        "gradient_bias": float(np.sqrt(unbiased / norm)),
        "gradient_rmse": float(np.sqrt(whole / norm)),
        "summed_gradient_rmse": float(
            np.sqrt(np.square(of_sum).sum(axis=1).mean()) / np.linalg.norm(case.gradient.sum(axis=0))
        ),
    }
    row = {key: float(f"{value:.4g}") for key, value in row.items()}
    config = {"labels": name, "classes": CLASSES, "positions": len(case.loss), "seeds": runs}
    record(NAME, row, {**config, "teacher": "SmolLM2-135M-Instruct", "student": "the same without layers 20-23"})
    print(name, row, flush=True)


def main() -> None:
    torch.set_num_threads(2)
    case = Case(sys.argv[1])
    dense = header_of(mode="dense", wide=True)
    labels = encode(case.teacher, dense, row_ids=case.ids)
    kept(case, "dense, float16", labels, dense, 2.0 * CLASSES)
    for draws in DRAWS:
        sizes = {way: drawn(case, way, draws) for way in ("free", "systematic", "stratified")}
        k = max(1, round((sizes["stratified"] - 2) / 4))
        header = header_of(mode="topk", k=k)
        top = encode(case.teacher, header, row_ids=case.ids)
        kept(case, f"top {k} and the rest", top, header, 4.0 * k + 2)
        renormalised(case, top, k, 4.0 * k)
    shown = ["labels", "bytes_a_position", "loss_bias", "loss_rmse_batch", "loss_rmse_position", "gradient_bias"]
    print(table(NAME, [*shown, "gradient_rmse", "summed_gradient_rmse"]))


if __name__ == "__main__":
    main()
