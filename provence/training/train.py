"""The loop: batches of like length, bf16 on a GPU, warm-up and cosine, running mean of the weights, resumable.

    epoch -> Store -> plan -> Batch -> loss -> AdamW -> log (a line of JSON every so often), checkpoint, validation

A run stopped at a checkpoint and resumed makes the same updates as one that was not (on the CPU, to the bit).
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from datapipe.errors import ConfigError, IntegrityError
from provence.training.loss import gold_score_loss, keep_loss, teacher_score_loss, unit_means
from provence.training.network import HEADS
from provence.training.store import plan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from provence.training.config import OptimiserConfig
    from provence.training.network import PrunerNetwork
    from provence.training.store import Store

__all__ = ["Loop", "Predictions", "predict"]

_LOG_EVERY = 50


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a network says of a store.

    Attributes:
        keep: Mean keep probability of each unit, float32 (units,), on the device.
        score: Score logit of each window, float32 (windows,), on the device.
    """

    keep: torch.Tensor
    score: torch.Tensor


def predict(network: PrunerNetwork, store: Store, *, batch_tokens: int = 131_072) -> Predictions:
    """Both heads over all windows; the network is left in evaluation mode."""
    network.eval()
    keep, score = torch.zeros_like(store.target), torch.zeros_like(store.score)
    with torch.inference_mode():
        for chosen in plan(store.lengths, batch_tokens=batch_tokens, rng=None):
            batch = store.batch(chosen)
            outputs = network(batch.ids, batch.lengths)
            keep[batch.order] = unit_means(outputs.keep.sigmoid(), batch.unit, len(batch.target))
            score[torch.from_numpy(chosen).to(score.device)] = outputs.score
    return Predictions(keep.clone(), score.clone())


@dataclass(eq=False)
class Loop:
    """A training run.

    Attributes:
        network: Trained in place, on its device.
        config: How.
        epoch: The windows of an epoch, by its number.
        log: Where lines of JSON go; None for nowhere.
        identity: What else the run depends on; a checkpoint of another is refused.
        checkpoint: File that the state is written to; None for never.
        checkpoint_every: Updates between two checkpoints.
        straight: What the forward pass uses in place of weights, by name, from update `straight_from` on.
        straight_from: Share of the schedule from which `straight` is in use.
        validate: Figures that are logged every `validate_every` updates.
        validate_every: 0 for never.
    """

    network: PrunerNetwork
    config: OptimiserConfig
    epoch: Callable[[int], Store]
    log: Path | None = None
    identity: str = ""
    checkpoint: Path | None = None
    checkpoint_every: int = 500
    straight: Callable[[PrunerNetwork], Mapping[str, torch.Tensor]] | None = None
    straight_from: float = 1.0
    validate: Callable[[PrunerNetwork], Mapping[str, float]] | None = None
    validate_every: int = 0
    step: int = 0
    _number: int = 0
    _place: int = 0
    _spent: float = 0.0
    _mean: dict[str, torch.Tensor] = field(default_factory=dict)
    _lines: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        frozen = self.config.frozen
        for name, weight in self.network.named_weights():
            weight.requires_grad_(not name.startswith(frozen) if frozen else True)
        self._trained = {name: weight for name, weight in self.network.named_weights() if weight.requires_grad}
        self._optimiser = torch.optim.AdamW(self._groups(), lr=0.0, betas=(0.9, 0.98), eps=1e-6, fused=self._fused)
        if self.config.average:
            self._mean = {name: weight.detach().clone() for name, weight in self._trained.items()}

    def run(self, *, until: int | None = None) -> None:
        """Make the updates that are left, or those up to `until`; with a checkpoint there, go on from it first."""
        if self.checkpoint is not None and self.checkpoint.is_file() and not self.step:
            self._load(self.checkpoint)
        last = self.config.steps if until is None else min(until, self.config.steps)
        begun = time.monotonic() - self._spent
        while self.step < last and self._progress < 1:
            store = self.epoch(self._number)
            rng = np.random.default_rng([self.config.seed, self._number])
            batches = plan(store.lengths, batch_tokens=self.config.batch_tokens, rng=rng)
            while self._place < len(batches) and self.step < last and self._progress < 1:
                self._update(store, batches[self._place])
                self._spent = time.monotonic() - begun
                self._after()
            if self._place >= len(batches):
                self._number, self._place = self._number + 1, 0
        if self._done and self._mean:
            with torch.no_grad():
                for name, weight in self._trained.items():
                    weight.copy_(self._mean[name])

    @property
    def _run(self) -> str:
        """What the updates depend on, as a checkpoint states it."""
        return json.dumps({"identity": self.identity, "optimiser": asdict(self.config)})

    @property
    def _done(self) -> bool:
        return self.step >= self.config.steps or self._progress >= 1

    @property
    def _progress(self) -> float:
        timed = self._spent / self.config.seconds if self.config.seconds else 0.0
        return max(self.step / self.config.steps, timed)

    @property
    def _device(self) -> torch.device:
        return next(iter(self._trained.values())).device

    @property
    def _fused(self) -> bool:
        return self._device.type == "cuda"

    def _groups(self) -> list[dict[str, Any]]:
        """Matrices with decay, vectors without, heads at a rate of their own."""
        config = self.config
        matrices = [w for n, w in self._trained.items() if w.ndim == 2 and n not in HEADS]  # noqa: PLR2004
        vectors = [w for n, w in self._trained.items() if w.ndim != 2 and n not in HEADS]  # noqa: PLR2004
        heads = [w for n, w in self._trained.items() if n in HEADS]
        return [
            {"params": matrices, "weight_decay": config.weight_decay, "peak": config.learning_rate},
            {"params": vectors, "weight_decay": 0.0, "peak": config.learning_rate},
            {"params": heads, "weight_decay": 0.0, "peak": config.head_rate},
        ]

    def _update(self, store: Store, chosen: np.ndarray) -> None:
        rate = _rate(self._progress, self.config.warmup)
        for group in self._optimiser.param_groups:
            group["lr"] = group["peak"] * rate
        self.network.train()
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)  # a resumed run draws the same dropout
        batch = store.batch(chosen)
        if self.straight is not None and self._progress >= self.straight_from:
            self.network.instead = self.straight(self.network)
        outputs = self.network(batch.ids, batch.lengths)
        self.network.instead = {}
        kept = keep_loss(outputs.keep, batch.unit, batch.target)
        scored = (teacher_score_loss if store.soft_score else gold_score_loss)(outputs.score, batch.score)
        loss = kept + self.config.score_weight * scored
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(list(self._trained.values()), self.config.clip)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self.step, self._place = self.step + 1, self._place + 1
        self._average()
        if self.step % _LOG_EVERY == 0 or self.step == 1:
            self._write(loss=loss, keep_loss=kept, score_loss=scored, norm=norm, rate=rate, windows=len(chosen))

    def _average(self) -> None:
        if self._mean:
            decay = min(self.config.average, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(list(self._mean.values()), list(self._trained.values()), 1 - decay)

    def _after(self) -> None:
        if self.validate is not None and self.validate_every and self.step % self.validate_every == 0:
            self._write(**self.validate(self.network))
        if self.checkpoint is not None and self.step % self.checkpoint_every == 0:
            self._save(self.checkpoint)

    def _write(self, **values: Any) -> None:
        line = {"step": self.step, "epoch": self._number, "seconds": round(self._spent, 1)}
        line |= {name: round(float(torch.as_tensor(value).detach()), 6) for name, value in values.items()}
        if not all(math.isfinite(value) for value in line.values()):
            raise FloatingPointError(f"training diverged at update {self.step}: {line}; lower the learning rate")
        if self.log is not None:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _save(self, path: Path) -> None:
        from safetensors.torch import save_file

        state = {f"weights.{name}": weight.detach() for name, weight in self.network.named_weights()}
        state |= {f"mean.{name}": mean for name, mean in self._mean.items()}
        for name, weight in self._trained.items():
            state |= {f"optimiser.{key}.{name}": value for key, value in self._optimiser.state[weight].items()}
        at = [self.step, self._number, self._place, self._spent]
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.partial")
        save_file(state, temporary, metadata={"run": self._run, "at": json.dumps(at)})
        temporary.replace(path)

    def _load(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt", device=str(self._device)) as file:
                about = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            at, run = json.loads(about["at"]), about["run"]
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise IntegrityError(f"{path} is no checkpoint of a training run: {error}") from error
        if run != self._run:
            raise ConfigError(f"{path} belongs to a run with another config; remove it, or restore the config")
        with torch.no_grad():
            for name, weight in self.network.named_weights():
                weight.copy_(state[f"weights.{name}"])
        for name, weight in self._trained.items():
            keys = ("step", "exp_avg", "exp_avg_sq")
            self._optimiser.state[weight] = {key: state[f"optimiser.{key}.{name}"] for key in keys}
        self._mean = {name: state[f"mean.{name}"] for name in self._mean}
        self.step, self._number, self._place, self._spent = at


def _rate(progress: float, warmup: float) -> float:
    """Share of the peak rate: linear to 1, then along a cosine to 0."""
    if progress < warmup:
        return (progress + 1e-4) / (warmup + 1e-4)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / max(1e-9, 1 - warmup))))
