"""Fine-tuned networks that also learn soft labels, and teachers that say what they think of texts.

    texts, teachers' log-probabilities, arms with alpha and temperature -> SoftTextTrainer -> classes of the test texts
    texts, arms -> SoftTextTrainer.tell -> log-probabilities of the test texts

All but the loss is `datapipe.proof.text`: (1 - a) CE + a T^2 KL(teacher || student). Each network has its own a, T and
teacher.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from datapipe.proof.heads import check_arms
from datapipe.proof.images import one_cycle
from datapipe.proof.text import TextTrainer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from datapipe.storage.arrays import Float32, Int64

WARM = 0.1
AT_ONCE = 128


class SoftTextTrainer(TextTrainer):
    """A `TextTrainer` whose networks learn soft labels beside the labels."""

    _soft: torch.Tensor | None = None

    def learn_many(
        self,
        labels: Int64,
        arms: Sequence[Int64],
        seeds: Sequence[int],
        *,
        classes: int,
        soft: Float32,
        how: Sequence[tuple[int, float, float]],
    ) -> Int64:
        """Train once an arm, and return what each network predicts of every test text, int64 (arms, test texts).

        Args:
            labels: Class of each text, int64 (texts,).
            arms: Texts to learn from.
            seeds: Of head and order.
            classes: Their number.
            soft: Log-probabilities of every text by every teacher, float32 (teachers, texts, classes).
            how: Teacher, alpha and temperature of each arm.
        """
        import torch

        check_arms(labels, arms, seeds)
        self._soft = torch.from_numpy(np.ascontiguousarray(soft)).to(self._place)
        found = np.empty((len(arms), len(self._test.lengths)), np.int64)
        for start in range(0, len(arms), self._together):
            part = slice(start, start + self._together)
            told = self._course(labels, arms[part], seeds[part], classes, how[part])
            found[part] = told.argmax(2)
        return found

    def tell(self, labels: Int64, arms: Sequence[Int64], seeds: Sequence[int], *, classes: int) -> Float32:
        """Train teachers on labels alone; log-probabilities of every test text, float32 (arms, test texts, classes)."""
        check_arms(labels, arms, seeds)
        self._soft = None
        told = []
        for start in range(0, len(arms), self._together):
            part = slice(start, start + self._together)
            told.append(self._course(labels, arms[part], seeds[part], classes, [(0, 0.0, 1.0)] * len(arms[part])))
        return np.concatenate(told)

    def _course(
        self,
        labels: Int64,
        arms: Sequence[Int64],
        seeds: Sequence[int],
        classes: int,
        how: Sequence[tuple[int, float, float]],
    ) -> Float32:
        import torch

        from datapipe.proof.networks import open_networks

        recipe = self.recipe
        networks = open_networks(self._start, seeds, classes=classes)
        descent = torch.optim.AdamW(networks.groups(recipe.weight_decay), fused=True)
        truth = torch.from_numpy(np.maximum(labels, 0)).to(self._place)
        teacher = torch.tensor([each[0] for each in how], device=self._place)[:, None]
        alpha, temperature = (
            torch.tensor([each[at] for each in how], dtype=torch.float32, device=self._place)[:, None, None]
            for at in (1, 2)
        )
        drawn, longest = self._order(arms, seeds)
        for step, (rows, widths) in enumerate(zip(drawn, longest, strict=True)):
            for piece, width in zip(rows.split(self._piece, 1), widths, strict=True):
                said = self._said(networks, *self._train.batch(piece, width)).float()
                soft = self._soft[teacher, piece] if self._soft is not None else None
                loss = losses(said, truth[piece], soft, alpha=alpha, temperature=temperature).sum()
                (loss / recipe.batch_rows).backward()  # type: ignore[no-untyped-call]
            share = one_cycle(step, recipe.steps, warm=WARM)
            rates = (recipe.learning_rate, recipe.learning_rate, recipe.head_rate)
            for group, rate in zip(descent.param_groups, rates, strict=True):
                group["lr"] = share * rate
            descent.step()
            descent.zero_grad()
        return self._told(networks, len(seeds), classes)

    def _told(self, networks: Any, count: int, classes: int) -> Float32:
        import torch

        lengths = self._test.lengths
        order = np.argsort(lengths, kind="stable")
        found = np.empty((count, len(lengths), classes), np.float32)
        with torch.no_grad():
            for rows in np.array_split(order, -(-len(order) // AT_ONCE)):
                place = torch.from_numpy(rows).to(self._place).expand(count, -1)
                said = self._said(networks, *self._test.batch(place, int(lengths[rows].max()))).float()
                found[:, rows] = said.log_softmax(2).cpu().numpy()
        if not np.isfinite(found).all():
            raise FloatingPointError(f"a training left the finite numbers at rate {self.recipe.learning_rate:g}")
        return found


def losses(
    said: torch.Tensor,
    truth: torch.Tensor,
    soft: torch.Tensor | None,
    *,
    alpha: torch.Tensor,
    temperature: torch.Tensor,
) -> torch.Tensor:
    """Loss of each text, (networks, texts).

    Args:
        said: Logits, float32 (networks, texts, classes).
        truth: int64 (networks, texts).
        soft: Log-probabilities of the teachers, (networks, texts, classes); None for labels alone.
        alpha: (networks, 1, 1).
        temperature: (networks, 1, 1).
    """
    hard = -said.log_softmax(2).gather(2, truth[:, :, None]).squeeze(2)
    if soft is None:
        return hard
    teacher, student = (soft / temperature).log_softmax(2), (said / temperature).log_softmax(2)
    kind = (teacher.exp() * (teacher - student)).sum(2) * temperature.squeeze(2) ** 2
    return (1.0 - alpha.squeeze(2)) * hard + alpha.squeeze(2) * kind
