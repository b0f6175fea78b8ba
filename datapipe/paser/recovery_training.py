"""The loop that heals a model: next-token loss on answers, all weights or low-rank updates, in place.

    model, lessons, recipe -> steps of about equal tokens -> packed bins, no row sees another -> AdamW -> Course

Weights, their moments and the updates are float32; on a GPU the products are bfloat16 (half precision without that is
what makes a published "full data" recovery collapse). Loss of a step is the mean over its answers' tokens, in nats.
Raises `ConfigError` and `MetricError`, which names the step at which a loss was not finite.
"""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from datapipe.errors import ConfigError, MetricError, MissingExtraError, ModelError
from datapipe.paser.lesson_batches import packed, steps_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np
    import torch

    from datapipe.paser.lesson_batches import Packed
    from datapipe.paser.lessons import Lessons

_RATES = {"full": 2e-4, "lora": 5e-4}
_WIDTH = 512
"""Tokens of a bin where no row is longer: wide enough to fill, narrow enough that its mask is cheap."""
_LOOK_EVERY = 16
"""Steps between looks at the losses: each look waits for the device."""
_MOMENTS = (0.9, 0.95)


@dataclass(frozen=True, kw_only=True)
class RecoveryRecipe:
    """How a damaged model learns.

    Attributes:
        tokens: To read in all, prompts included; None takes `epochs` passes over the set.
        epochs: Passes, > 0; without effect where `tokens` is given.
        lora: Rank of the updates of every projection, >= 1; None learns all weights.
        learning_rate: The greatest; None takes 2e-4 for all weights and 5e-4 for low-rank updates.
        batch_tokens: About so many a step, >= max_length.
        micro_tokens: At most so many at once, bins counted whole; less memory, the same result up to rounding.
        max_length: Tokens that a row is cut to.
        warmup: Part of the steps in which the rate rises from zero, 0 ... 1; then it falls as a cosine to zero.
        clip: Greatest norm of the gradient, > 0.
        weight_decay: Of AdamW, >= 0.
        seed: Of the order of rows, and of the updates' start.
    """

    tokens: int | None = None
    epochs: float = 2.0
    lora: int | None = None
    learning_rate: float | None = None
    batch_tokens: int = 8192
    micro_tokens: int = 8192
    max_length: int = 1024
    warmup: float = 0.05
    clip: float = 1.0
    weight_decay: float = 0.0
    seed: int = 0

    @property
    def rate(self) -> float:
        """The greatest learning rate."""
        return self.learning_rate or _RATES["full" if self.lora is None else "lora"]

    def check(self) -> None:
        """Raise `ConfigError` where a field is out of its range."""
        least = {"tokens": 1, "lora": 1, "batch_tokens": self.max_length, "micro_tokens": 1, "max_length": 2}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{name} must be {low:,} or more; got {value}")
        for name in ("epochs", "rate", "clip"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"{name.replace('rate', 'learning_rate')} must be above 0; got {getattr(self, name)}")
        if not 0.0 <= self.warmup <= 1.0 or self.weight_decay < 0:
            raise ConfigError(
                f"warmup is a part of the steps, 0 ... 1, and weight_decay not negative; got {self.warmup} and "
                f"{self.weight_decay}"
            )


@dataclass(frozen=True, eq=False)
class Course:
    """How a training went.

    Attributes:
        losses: Of each step before its update, in nats a token.
        tokens: Read, padding not counted.
        answer_tokens: Learnt.
        epochs: Passes over the set.
        seconds: It took.
    """

    losses: tuple[float, ...]
    tokens: int
    answer_tokens: int
    epochs: float
    seconds: float

    @property
    def steps(self) -> int:
        """Updates."""
        return len(self.losses)


def train(
    model: Any,
    lessons: Lessons,
    recipe: RecoveryRecipe,
    *,
    device: torch.device,
    watch: Callable[[int, int], None] | None = None,
) -> Course:
    """Let a causal language model of transformers learn answers, in place.

    Args:
        model: On the device; the weights that shall learn require gradients and are float32.
        lessons: What it learns.
        recipe: How; `lora` is read by `with_updates`.
        device: Where.
        watch: Called after each step with the rows it read, repeats included, and those of all steps.

    Raises:
        ConfigError: The recipe is out of range or does not fit the rows.
        MetricError: A loss or gradient is not finite; names the step.
    """
    import torch

    recipe.check()
    tokens = recipe.tokens or max(1, round(recipe.epochs * int(lessons.lengths.sum())))
    plan = steps_of(lessons.lengths, tokens=tokens, batch_tokens=recipe.batch_tokens, seed=recipe.seed)
    learning = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(
        learning, lr=recipe.rate, betas=_MOMENTS, weight_decay=recipe.weight_decay, fused=device.type == "cuda"
    )
    started, told, read, learnt = time.perf_counter(), [], 0, 0
    planned = sum(len(rows) for rows in plan)
    model.train()
    with _Answers(model) as answers:
        for number, rows in enumerate(plan):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * rate_at(number, len(plan), warmup=recipe.warmup)
            loss, count = _accumulate(model, answers, packed(lessons, rows, width=_WIDTH), recipe.micro_tokens, device)
            norm = torch.nn.utils.clip_grad_norm_(learning, recipe.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            told.append(torch.stack([loss, norm.detach()]))
            read, learnt = read + int(lessons.lengths[rows].sum()), learnt + count
            if (number + 1) % _LOOK_EVERY == 0 or number + 1 == len(plan):
                _refuse_infinite(told[-_LOOK_EVERY:], first=max(0, len(told) - _LOOK_EVERY))
            if watch is not None:
                watch(len(rows), planned)
    model.eval()
    losses = tuple(float(each) for each in torch.stack(told)[:, 0].tolist())
    return Course(losses, read, learnt, planned / len(lessons), time.perf_counter() - started)


def rate_at(step: int, steps: int, *, warmup: float) -> float:
    """Part of the greatest rate at a step, counted from 0: a line up to it, then a cosine that ends at zero."""
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def with_updates(model: Any, recipe: RecoveryRecipe, *, device: torch.device) -> Any:
    """Say what of a model learns: all its weights, or low-rank updates (Hu et al. 2021, arXiv 2106.09685).

    Updates of rank r are scaled by 2, after alpha = 2 r, and stand beside every linear map but the head.

    Args:
        model: Of `datapipe.workers.encoders.library.filled`, on the device; its modules are changed.
        recipe: Says which.
        device: Of the model; the start of the updates is drawn there.

    Returns:
        The model to train.

    Raises:
        MissingExtraError: peft is not installed.
    """
    import torch

    if recipe.lora is None:
        return model.requires_grad_(requires_grad=True)
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingExtraError.of("peft", extra="train", purpose="low-rank updates") from error
    config = LoraConfig(r=recipe.lora, lora_alpha=2 * recipe.lora, target_modules="all-linear", task_type="CAUSAL_LM")
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        # peft asks transformers for an attribute by its old name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        torch.manual_seed(recipe.seed)
        return get_peft_model(model, config)


def learnt_weights(trained: Any, stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a trained model under the names and in the precisions that they were stored with, on the host.

    Low-rank updates are added to the stored weights themselves, in float32: a base that was rounded to train beside
    stays out of the result.

    Args:
        trained: Of `with_updates`, after `train`.
        stored: Tensors of the folder that the model was read from.

    Raises:
        ModelError: The folder holds no tensor for one that was learnt.
    """
    updates = {name: module for name, module in trained.named_modules() if hasattr(module, "get_delta_weight")}
    found: dict[str, Any] = dict(stored)
    if updates:
        for name, module in updates.items():
            own = _stored_name(name, stored)
            added = module.get_delta_weight("default").detach().float().cpu()
            found[own] = (stored[own].float() + added).to(stored[own].dtype)
        return found
    left = {id(weight): name for name, weight in trained.named_parameters()}
    for name, weight in trained.state_dict(keep_vars=True).items():
        if name in stored:  # of tied weights one name is stored
            found[name] = weight.detach().to(device="cpu", dtype=stored[name].dtype)
            left.pop(id(weight), None)
    if left:
        raise _unstored(next(iter(left.values())))
    return found


def _stored_name(module: str, stored: Mapping[str, torch.Tensor]) -> str:
    own = f"{module.removeprefix('base_model.model.')}.weight"
    if own not in stored:
        raise _unstored(own)
    return own


def _unstored(name: str) -> ModelError:
    return ModelError(f"{name} was learnt, but the model's folder holds no tensor of that name to put it in place of")


class _Answers:
    """Lets the head of a model see the states before tokens of answers alone: the logits of all would fill a GPU."""

    def __init__(self, model: Any) -> None:
        self._body = model.get_decoder()
        self.places: torch.Tensor | None = None

    def __enter__(self) -> Self:
        self._hook = self._body.register_forward_hook(self._only)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _only(self, _module: Any, _inputs: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[self.places].unsqueeze(0)
        return output


def _accumulate(
    model: Any, answers: _Answers, batch: Packed, micro_tokens: int, device: torch.device
) -> tuple[torch.Tensor, int]:
    """Add the gradients of a step; its loss, and the number of tokens learnt."""
    import torch

    count = len(batch.targets)
    total = torch.zeros((), device=device)
    for part in _parts(batch, micro_tokens):
        ids, places, segments, asked, targets = _sent(part, device)
        if not len(asked):
            continue
        answers.places = asked
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(input_ids=ids, attention_mask=_mask(segments), position_ids=places, use_cache=False).logits[
                0
            ]
        loss = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum") / count
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return total, count


def _parts(batch: Packed, micro_tokens: int) -> Iterator[Packed]:
    bins, width = batch.ids.shape
    step = max(1, micro_tokens // width)
    return (batch.bins(at, min(at + step, bins)) for at in range(0, bins, step))


def _sent(part: Packed, device: torch.device) -> list[torch.Tensor]:
    """Everything in one copy."""
    import numpy as np
    import torch

    from datapipe.workers.encoders.transfer import to_device

    arrays: list[np.ndarray[Any, Any]] = [part.ids, part.places, part.segments, part.asked, part.targets]
    sent = to_device(np.concatenate([each.ravel() for each in arrays]), device)
    pieces = torch.split(sent, [each.size for each in arrays])
    return [piece.view(each.shape) for piece, each in zip(pieces, arrays, strict=True)]


def _mask(segments: torch.Tensor) -> torch.Tensor:
    """Who sees whom, bool (bins, 1, width, width): what stands before in the same row."""
    same = segments.unsqueeze(2) == segments.unsqueeze(1)
    return same.tril_().unsqueeze(1)


def _refuse_infinite(told: list[torch.Tensor], *, first: int) -> None:
    import torch

    wrong = (~torch.stack(told).isfinite()).any(1).nonzero()
    if len(wrong):
        at = int(wrong[0])
        loss, norm = (float(each) for each in told[at].tolist())
        raise MetricError(
            f"step {first + at + 1} has loss {loss} and a gradient of norm {norm}: the model has weights that are not "
            "numbers, or the learning rate is too high"
        )
