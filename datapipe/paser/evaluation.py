"""How well a damaged or healed model does: held-out answers, distance to the original, multiple choice.

    lessons -> body, longest rows first -> states before answers' tokens -> head, in chunks -> numbers by group

A model is `datapipe.workers.encoders.causal.CausalModel`, or `Live` for one that is in memory. No row is generated:
everything is read off the probabilities of given texts. Raises `MetricError`, `ModelError` and `ConfigError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from datapipe.errors import ConfigError, ModelError
from datapipe.paser.divergence import Head, token_divergence
from datapipe.paser.lessons import Lessons, lessons_of, positions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from datapipe.storage.arrays import Float64, Int32, Int64
    from datapipe.workers.folder import ModelFolder

_LOGIT_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
_BATCH_TOKENS = {"cpu": 2048, "cuda": 32_768}
_MOST_ROWS = 512
_TRIAL = 4


class Scorer(Head, Protocol):
    """What gives states and their logits."""

    def hidden(self, batch: Sequence[Int32]) -> torch.Tensor:
        """States that the head reads, (tokens of all texts, dim), text after text, on the device."""
        ...


class Live:
    """A model of transformers in memory, such as one in training; on a GPU it computes in bfloat16.

    Args:
        model: On its device. Weights may change between calls; `refresh` tells so.

    Attributes:
        vocabulary, chunk_rows: See `Head`.

    Raises:
        ModelError: Its head is more than the product with its output embeddings: write it to a folder, and open that
            with `CausalModel`.
    """

    def __init__(self, model: Any) -> None:
        import torch

        self._model, self._body, self._product = model, model.get_decoder(), model.get_output_embeddings()
        weight = self._product.weight
        self._device: torch.device = weight.device
        self.vocabulary = int(weight.shape[0])
        self.chunk_rows = max(16, _LOGIT_BYTES[self._device.type] // (4 * self.vocabulary))
        self._dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        self.refresh()
        self._try()

    def refresh(self) -> None:
        """Read the weights of the head again."""
        self._weight = self._product.weight.detach().to(self._dtype)
        bias = getattr(self._product, "bias", None)
        self._bias = None if bias is None else bias.detach().float()

    def hidden(self, batch: Sequence[Int32]) -> torch.Tensor:
        """States of all tokens, in the precision of the head; texts are padded behind their ends."""
        import torch

        from datapipe.workers.encoders.transfer import to_device

        lengths = np.array([len(ids) for ids in batch])
        there = np.arange(int(lengths.max())) < lengths[:, None]
        ids = np.zeros(there.shape, np.int64)
        ids[there] = np.concatenate(batch)
        sent = to_device(np.concatenate([ids.ravel(), np.flatnonzero(there)]), self._device)
        with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16, enabled=self._on_gpu):
            states = self._body(input_ids=sent[: ids.size].view(ids.shape), use_cache=False).last_hidden_state
            found: torch.Tensor = states.flatten(0, 1)[sent[ids.size :]].to(self._dtype)
        return found

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Logits after each state, float32 (rows, vocabulary)."""
        import torch

        with torch.inference_mode():
            if self._on_gpu:
                logits = torch.mm(states, self._weight.t(), out_dtype=torch.float32)
            else:
                logits = states @ self._weight.t()
            return logits if self._bias is None else logits.add_(self._bias)

    @property
    def _on_gpu(self) -> bool:
        return self._device.type == "cuda"

    def _try(self) -> None:
        import torch

        ids = np.arange(_TRIAL, dtype=np.int32) % self.vocabulary
        given = torch.from_numpy(ids.astype(np.int64)).to(self._device)[None]
        with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16, enabled=self._on_gpu):
            whole = self._model(input_ids=given, use_cache=False).logits[0].float()
        apart = self.logits(self.hidden([ids]))
        tolerance = 3e-2 if self._on_gpu else 1e-4
        # Weights that are no numbers are for those to refuse who measure with them.
        if bool(((apart - whole).abs() > tolerance * whole.abs().max()).any()):
            raise ModelError(
                f"the head of a {type(self._model).__name__} is more than a product: write the model to a folder and "
                "open that"
            )


def answer_states(model: Scorer, lessons: Lessons, *, device: torch.device) -> torch.Tensor:
    """The state before each token of each answer, (tokens of all answers, dim), in row order, on the device.

    Args:
        model: Whose states.
        lessons: Rows, at least one.
        device: Of the model.
    """
    import torch

    from datapipe.workers.pack import pack

    found: torch.Tensor | None = None
    starts, answers = lessons.starts, lessons.answers
    into = np.cumsum(answers) - answers
    budget = _BATCH_TOKENS[device.type]
    for batch in pack(lessons.lengths.tolist(), token_budget=budget, max_items=_MOST_ROWS):
        rows = np.array(batch)
        sizes = lessons.lengths[rows]
        states = model.hidden([lessons.ids[starts[row] : starts[row] + lessons.lengths[row]] for row in batch])
        before = positions(np.cumsum(sizes) - sizes + lessons.prompts[rows] - 1, answers[rows])
        places = positions(into[rows], answers[rows])
        if found is None:
            found = states.new_empty((int(answers.sum()), states.shape[1]))
        found[torch.from_numpy(places).to(device)] = states[torch.from_numpy(before).to(device)]
    if found is None:
        raise ConfigError("there are no rows to score")
    return found


def answer_tokens(lessons: Lessons) -> Int64:
    """The tokens of each answer, int64 (tokens of all answers,), in row order."""
    places = positions(lessons.starts + lessons.prompts, lessons.answers)
    return lessons.ids[places].astype(np.int64)


@dataclass(frozen=True)
class HeldOut:
    """A model on held-out answers; means over tokens within a group, then over groups, in nats.

    Attributes:
        nll: Of the answers' tokens by the model.
        nll_original: The same by the original.
        jsd: To the original.
        by_group: `nll`, `nll_original` and `jsd` of each group.
    """

    nll: float
    nll_original: float
    jsd: float
    by_group: dict[str, dict[str, float]]


def held_out(
    original: Head,
    states: torch.Tensor,
    model: Scorer,
    lessons: Lessons,
    groups: Sequence[str],
    *,
    device: torch.device,
) -> HeldOut:
    """Score a model beside the original, whose states are computed once for many models.

    Args:
        original: Head of the original.
        states: Its `answer_states` of the same rows.
        model: The other.
        lessons: Held-out rows.
        groups: Of each row; a source, say.
        device: Of both models.

    Raises:
        MetricError: The models know different tokens, or a number is not finite.
        ConfigError: There are not as many groups as rows.
    """
    import torch

    if len(groups) != len(lessons):
        raise ConfigError(f"{len(lessons)} rows, but groups of {len(groups)}")
    own = answer_states(model, lessons, device=device)
    targets = torch.from_numpy(answer_tokens(lessons)).to(device)
    found = token_divergence(original, model, states, own, targets)
    numbers = {
        "nll": found.nll_p.double().cpu().numpy(),
        "nll_original": found.nll_o.double().cpu().numpy(),
        "jsd": found.jsd.double().cpu().numpy(),
    }
    names, place = np.unique(np.array(groups), return_inverse=True)
    of_tokens = np.repeat(place, lessons.answers)
    told: dict[str, dict[str, float]] = {}
    for number, name in enumerate(names.tolist()):
        told[name] = {key: float(values[of_tokens == number].mean()) for key, values in numbers.items()}
    whole = {key: float(np.mean([each[key] for each in told.values()])) for key in numbers}
    return HeldOut(whole["nll"], whole["nll_original"], whole["jsd"], told)


@dataclass(frozen=True, eq=False)
class Choices:
    """Multiple-choice questions as rows to score.

    Attributes:
        lessons: Question and option, a row each, options of a question one after the other.
        counts: Options of each question, int64 (questions,).
        sizes: UTF-8 bytes of each option, int64 (options,).
        labels: The right option of each question, from 0, int64 (questions,).
        groups: Task of each question.
    """

    lessons: Lessons
    counts: Int64
    sizes: Int64
    labels: Int64
    groups: tuple[str, ...]


def choices_of(questions: Sequence[Mapping[str, Any]], *, folder: ModelFolder, max_length: int) -> Choices:
    """Tokenise questions as `PASSAGE, empty line, Question: ... Answer:` and each option after a space.

    Args:
        questions: `task`, `passage` (perhaps empty), `question`, `choices` and `label`.
        folder: Of the model whose tokenizer reads them.
        max_length: Tokens that a row is cut to; passages lose their beginning.

    Raises:
        ConfigError: There are no questions, or a label names none of its options.
    """
    if not questions:
        raise ConfigError("there are no questions")
    prompts, options, labels = [], [], []
    for at, each in enumerate(questions):
        if not 0 <= int(each["label"]) < len(each["choices"]):
            raise ConfigError(f"question {at} has {len(each['choices'])} choices, and its label is {each['label']}")
        asked = "\n\n".join(part for part in (each["passage"], f"Question: {each['question']}\nAnswer:") if part)
        prompts += [asked] * len(each["choices"])
        options += [f" {choice}" for choice in each["choices"]]
        labels.append(int(each["label"]))
    lessons = lessons_of(prompts, options, folder=folder, max_length=max_length, ended=False)
    return Choices(
        lessons=lessons,
        counts=np.array([len(each["choices"]) for each in questions], np.int64),
        sizes=np.array([len(option.encode()) - 1 for option in options], np.int64),
        labels=np.array(labels, np.int64),
        groups=tuple(str(each["task"]) for each in questions),
    )


def choice_accuracy(model: Scorer, choices: Choices, *, device: torch.device) -> dict[str, float]:
    """Part of the questions whose right option has the greatest log probability a byte, by task, 0 ... 1.

    That is `acc_norm` of lm-evaluation-harness. The first of equal options counts.

    Args:
        model: Who answers.
        choices: What is asked.
        device: Of the model.

    Raises:
        MetricError: A probability is not finite.
    """
    scores = -answer_losses(model, choices.lessons, device=device) / np.maximum(choices.sizes, 1)
    ends = np.cumsum(choices.counts)
    right = np.array(
        [
            int(scores[end - count : end].argmax()) == label
            for end, count, label in zip(ends.tolist(), choices.counts.tolist(), choices.labels.tolist(), strict=True)
        ]
    )
    groups = np.array(choices.groups)
    return {str(name): float(right[groups == name].mean()) for name in np.unique(groups)}


def answer_losses(model: Scorer, lessons: Lessons, *, device: torch.device) -> Float64:
    """Negative log probability of each whole answer in nats, float64 (rows,).

    Raises:
        MetricError: One is not finite.
    """
    import torch

    from datapipe.errors import MetricError

    states = answer_states(model, lessons, device=device)
    targets = torch.from_numpy(answer_tokens(lessons)).to(device)
    parts = []
    with torch.inference_mode():
        for at in range(0, len(targets), model.chunk_rows):
            logits = model.logits(states[at : at + model.chunk_rows])
            picked = logits.gather(1, targets[at : at + model.chunk_rows, None]).squeeze(1)
            parts.append(logits.logsumexp(1) - picked)
        found = torch.cat(parts).double().cpu().numpy()
    if not np.isfinite(found).all():
        raise MetricError(f"the loss of token {int((~np.isfinite(found)).argmax())} is not a finite number")
    answers = lessons.answers
    sums: Float64 = np.add.reduceat(found, np.cumsum(answers) - answers)
    return sums
