"""What the student learns from: the teacher's word on far more pairs of question and passage than have labels.

    Bank -> pairs (several epochs of windows, none twice) -> teachers -> Store with soft targets -> Loop (student)

The student's target for a sentence is soft * (the teacher's mean keep probability) + (1 - soft) * label, and for a
window the teacher's raw score. In the last part of its training the forward pass sees the weights as they will be
stored, while gradients pass through the rounding unchanged (straight-through, Bengio et al., arXiv 1308.3432).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from provence.training.store import Store
from provence.training.train import Predictions
from provence.training.windows import Windows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from provence.families.delta import Bits
    from provence.training.bank import Bank
    from provence.training.epochs import EpochDrawer
    from provence.training.network import PrunerNetwork
    from provence.training.windows import Template

__all__ = ["RoundedDelta", "joined_windows", "mean_of", "pair_windows", "taught"]


def pair_windows(drawer: EpochDrawer, *, pairs: int, seed: int) -> Windows:
    """Windows for the teacher to label: as many epochs as it takes, cut to `pairs` at random, none twice."""
    epochs: list[Windows] = []
    count = 0
    while count < pairs:
        epochs.append(drawer.windows(len(epochs)))
        if not len(epochs[-1]):
            break
        count += len(epochs[-1])
    return joined_windows(epochs, most=pairs, seed=seed)


def joined_windows(parts: Sequence[Windows], *, most: int, seed: int) -> Windows:
    """Windows of several epochs, each once; `most` of them drawn at random, in order."""
    known: set[bytes] = set()
    chosen: list[tuple[int, int]] = []
    for number, part in enumerate(parts):
        for place in range(len(part)):
            units = part.sentence[part.at[place] : part.at[place + 1]]
            key = units.tobytes() + part.question[place].tobytes() + part.title[place].tobytes()
            if key not in known:
                known.add(key)
                chosen.append((number, place))
    keep = np.sort(np.random.default_rng(seed).permutation(len(chosen))[:most])
    picked = [chosen[place] for place in keep.tolist()]
    spans = [(parts[n], int(parts[n].at[p]), int(parts[n].at[p + 1])) for n, p in picked]
    lengths = [end - begin for _, begin, end in spans]
    return Windows(
        question=np.array([parts[n].question[p] for n, p in picked], dtype=np.int32),
        title=np.array([parts[n].title[p] for n, p in picked], dtype=np.int32),
        sentence=np.concatenate([np.zeros(0, np.int32), *(part.sentence[a:b] for part, a, b in spans)]),
        label=np.concatenate([np.zeros(0, np.uint8), *(part.label[a:b] for part, a, b in spans)]),
        at=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def mean_of(said: Sequence[Predictions]) -> Predictions:
    """The word of several teachers of the same windows: means of their probabilities and of their scores."""
    keep = torch.stack([each.keep for each in said]).mean(0)
    return Predictions(keep, torch.stack([each.score for each in said]).mean(0))


def taught(
    bank: Bank, windows: Windows, template: Template, said: Predictions, *, soft: float, device: torch.device
) -> Store:
    """The student's store.

    Args:
        bank: Where the windows come from.
        windows: Of any questions.
        template: The student's.
        said: Of these windows, by the teacher or several.
        soft: Weight of that against the labels.
        device: Where the student is trained.
    """
    mine = Store.of(bank, windows, template, device=device)
    return mine.taught(said.keep.to(device), said.score.to(device), soft=soft)


class RoundedDelta:
    """The student's weights as they will be stored: base plus rounded difference, gradients passed through.

    Args:
        base: Weights of the base by name, on the device.
        names: Those of them that are trained and stored as rounded differences: matrices.
        bits: 4 or 8.
        group: Columns that share a step.
    """

    def __init__(self, base: Mapping[str, torch.Tensor], names: Sequence[str], *, bits: int, group: int) -> None:
        self._base, self._names, self._bits, self._group = base, list(names), _bits(bits), group

    @classmethod
    def of(
        cls, network: PrunerNetwork, *, bits: int, group: int
    ) -> Callable[[PrunerNetwork], Mapping[str, torch.Tensor]]:
        """Against the network's present weights, for the matrices of its layers."""
        base = {name: weight.detach().clone() for name, weight in network.named_weights()}
        names = [n for n, weight in base.items() if n.startswith("encoder.") and weight.ndim == 2]  # noqa: PLR2004
        return cls({name: base[name] for name in names}, names, bits=bits, group=group)

    def __call__(self, network: PrunerNetwork) -> Mapping[str, torch.Tensor]:
        """What the forward pass uses in place of the matrices."""
        from provence.families.delta import pack_tensors, unpack_tensors

        weights = dict(network.named_weights())
        with torch.no_grad():
            # All matrices as rows of one group each: the same rounding, in a few large steps.
            shapes = {name: weights[name].shape for name in self._names}
            whole = torch.cat([(weights[name] - self._base[name]).reshape(-1, self._group) for name in self._names])
            rounded = unpack_tensors(pack_tensors({"all": whole}, bits=self._bits, group=self._group))["all"]
            parts = torch.split(rounded, [shape.numel() // self._group for shape in shapes.values()])
            stored = {n: self._base[n] + part.reshape(shapes[n]) for n, part in zip(self._names, parts, strict=True)}
        return {name: weights[name] + (value - weights[name]).detach() for name, value in stored.items()}


def _bits(bits: int) -> Bits:
    return 8 if bits == 8 else 4  # noqa: PLR2004 - the two there are
