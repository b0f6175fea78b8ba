"""A small transformer with a fresh classification head, fine-tuned on texts with a fixed number of steps.

    texts -> tokens, once -> arms, seeds -> networks from the same checkpoint -> class of each test text, int64

The head reads the mean of the last hidden states. The table of token vectors is not trained: words that an arm lacks
keep their place beside those that it has. There is no dropout, so a seed means the head's start and the order of the
batches. A batch is drawn whatever the lengths of its texts; only then is it cut into pieces of like length, whose
gradients add up to that of the batch, so that little padding is computed. On a GPU several networks of one shape are
trained as one with stacked weights, in bfloat16 autocast, and the bits depend on its kernels; on the CPU networks are
trained in float32, one a thread, and repeat themselves. Raises `MetricError` for arms from which nothing can be learnt
and for a course that leaves the numbers, `ModelError` for a folder that holds no encoder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from datapipe.errors import MetricError, ModelError
from datapipe.proof.heads import batches, check_arms
from datapipe.proof.images import one_cycle
from datapipe.proxies.heads import each_head
from datapipe.workers.encoders.checkpoint import UNUSED_TENSORS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from datapipe.proof.networks import Networks
    from datapipe.storage.arrays import Int64
    from datapipe.workers.folder import ModelFolder

_SPARE = re.compile(rf"^(\w+\.)?({'|'.join(map(re.escape, UNUSED_TENSORS))})")
_STACKED = frozenset({"bert", "camembert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta"})
"""Architectures whose forward pass computes several networks with stacked weights."""
_TOGETHER = 15
_PIECES = {"cpu": 4, "cuda": 1}
_MULTIPLE = 8
_PREDICTED_AT_ONCE = 128
_WARM = 0.1


@dataclass(frozen=True, kw_only=True)
class TextRecipe:
    """How a network learns; the same for every arm.

    Attributes:
        steps: Updates, >= 1, whatever the number of rows.
        batch_rows: Texts of an update, drawn in a fresh order each pass over the arm's rows.
        learning_rate: Of AdamW for the encoder at its peak, after a tenth of the steps; then falls to zero in a line.
        head_rate: The same for the head.
        weight_decay: Decoupled, of matrices and not of norms and biases.
        max_length: Tokens after which a text is cut.
    """

    steps: int = 300
    batch_rows: int = 32
    learning_rate: float = 2e-4
    head_rate: float = 2e-3
    weight_decay: float = 0.01
    max_length: int = 128


class TextTrainer:
    """Texts as tokens, a checkpoint, and trainings of the same recipe on parts of the texts.

    Args:
        texts: To learn from.
        test: To predict.
        model: `default` (the embedder that comes with the package), `embedded:NAME`, a local folder, or a hub id.
        recipe: How to train.
        device: Where.
        threads: Host threads; None takes the CPUs this process may use. Does not change the result.
        together: Networks trained as one on a GPU; 0 takes 15 where the architecture allows it, else one.

    Raises:
        ItemError: A text is none; holds its index.
        ModelError: The model is no encoder, a tensor is missing, left over, or of another shape, or networks of its
            architecture are not trained as one.
        ModelNotFoundError: There is no such model.
    """

    def __init__(
        self,
        texts: Sequence[str],
        test: Sequence[str],
        *,
        model: str = "default",
        recipe: TextRecipe,
        device: str = "cpu",
        threads: int | None = None,
        together: int = 0,
    ) -> None:
        import torch

        from datapipe.workers.encoders.layout import SentenceLayout
        from datapipe.workers.encoders.library import config_of, positions_of
        from datapipe.workers.folder import resolve
        from datapipe.workers.spec import spec_of
        from datapipe.workers.tokenizer import TextTokenizer

        self.recipe, self._place, self._threads = recipe, torch.device(device), threads
        layout = SentenceLayout.of(resolve(spec_of(model)))
        self._folder, self._config = layout.encoder, config_of(layout.encoder)
        # Both ways of training, one network and several, then compute the same sums.
        self._config._attn_implementation = "eager"  # noqa: SLF001 - what transformers names it
        stackable = self._config.model_type in _STACKED
        if together > 1 and not stackable:
            raise ModelError(
                f"model {self._folder.name}: networks of model_type {self._config.model_type} are not trained as one; "
                f"those of {', '.join(sorted(_STACKED))} are, others with together=1"
            )
        self._together = together or (_TOGETHER if stackable and self._place.type != "cpu" else 1)
        self._piece = -(-recipe.batch_rows // _PIECES.get(self._place.type, 1))
        longest = min(recipe.max_length, positions_of(self._config))
        tokenizer = TextTokenizer(layout.encoder, max_length=longest, lower=layout.lower)
        self._train, self._test = (self._padded(tokenizer, each) for each in (texts, test))
        self._start = _encoder(self._folder, self._config).to(self._place)

    def train_many(self, labels: Int64, arms: Sequence[Int64], seeds: Sequence[int], *, classes: int) -> Int64:
        """Train once an arm, and return what each network predicts of every test text, int64 (arms, test texts).

        Args:
            labels: Class of each text, int64 (texts,) in [0, classes); other values in no arm.
            arms: Texts to learn from, one array a training.
            seeds: Of head and order, one a training.
            classes: Their number.

        Raises:
            MetricError: An arm has fewer than two classes, seeds and arms differ in number, or a training diverged.
        """
        check_arms(labels, arms, seeds)
        found = np.empty((len(arms), len(self._test.lengths)), np.int64)

        def work(group: int) -> None:
            part = slice(group * self._together, (group + 1) * self._together)
            found[part] = self._learn(labels, arms[part], seeds[part], classes)

        each_head(work, -(-len(arms) // self._together), device=self._place.type, threads=self._threads)
        return found

    def _learn(self, labels: Int64, arms: Sequence[Int64], seeds: Sequence[int], classes: int) -> Int64:
        import torch
        from torch.nn import functional

        from datapipe.proof.networks import open_networks

        recipe = self.recipe
        networks = open_networks(self._start, seeds, classes=classes)
        descent = torch.optim.AdamW(networks.groups(recipe.weight_decay), fused=True)
        truth = torch.from_numpy(np.maximum(labels, 0)).to(self._place)
        drawn, longest = self._order(arms, seeds)
        for step, (rows, widths) in enumerate(zip(drawn, longest, strict=True)):
            for piece, width in zip(rows.split(self._piece, 1), widths, strict=True):
                said = self._said(networks, *self._train.batch(piece, width))
                loss = functional.cross_entropy(said.flatten(0, 1), truth[piece].flatten(), reduction="sum")
                (loss / recipe.batch_rows).backward()  # type: ignore[no-untyped-call]
            share = one_cycle(step, recipe.steps, warm=_WARM)
            rates = (recipe.learning_rate, recipe.learning_rate, recipe.head_rate)
            for group, rate in zip(descent.param_groups, rates, strict=True):
                group["lr"] = share * rate
            descent.step()
            descent.zero_grad()
        return self._predicted(networks, seeds)

    def _said(self, networks: Networks, ids: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        import torch

        if self._place.type != "cuda":
            return networks.logits(ids, there)
        # Left again before the weights move: inside, autocast would go on with the copies that it has made of them.
        with torch.autocast("cuda", torch.bfloat16):
            return networks.logits(ids, there)

    def _order(self, arms: Sequence[Int64], seeds: Sequence[int]) -> tuple[torch.Tensor, list[list[int]]]:
        """Texts of each step, (steps, networks, batch), those of a batch by length, and the width of each piece."""
        import torch

        steps, size = self.recipe.steps, self.recipe.batch_rows
        each = [batches(rows, steps=steps, batch_rows=size, seed=seed) for rows, seed in zip(arms, seeds, strict=True)]
        drawn = np.stack(each, 1)
        lengths = self._train.lengths[drawn]
        order = np.argsort(lengths, axis=2, kind="stable")
        drawn, lengths = (np.take_along_axis(values, order, 2) for values in (drawn, lengths))
        last = np.minimum(np.arange(self._piece, size + self._piece, self._piece), size) - 1
        return torch.from_numpy(drawn).to(self._place), lengths[:, :, last].max(1).tolist()

    def _predicted(self, networks: Networks, seeds: Sequence[int]) -> Int64:
        import torch

        lengths = self._test.lengths
        order = np.argsort(lengths, kind="stable")
        found = np.empty((len(seeds), len(lengths)), np.int64)
        with torch.no_grad():
            for rows in np.array_split(order, -(-len(order) // _PREDICTED_AT_ONCE)):
                place = torch.from_numpy(rows).to(self._place).expand(len(seeds), -1)
                said = self._said(networks, *self._test.batch(place, int(lengths[rows].max())))
                if not bool(said.isfinite().all()):
                    raise MetricError(
                        f"a training with one of the seeds {list(seeds)} left the finite numbers; lower the learning "
                        f"rate, now {self.recipe.learning_rate:g}"
                    )
                found[:, rows] = said.argmax(2).cpu().numpy()
        return found

    def _padded(self, tokenizer: Any, texts: Sequence[str]) -> _Texts:
        ids = [each.ids for each in tokenizer.encode(texts)]
        lengths = np.array([len(each) for each in ids], np.int64)
        padded = np.full((len(ids), int(lengths.max(initial=1))), int(self._config.pad_token_id or 0), np.int64)
        padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate(ids) if ids else 0
        return _Texts(padded, lengths, self._place)


class _Texts:
    """Token ids of all texts on the device."""

    def __init__(self, padded: Int64, lengths: Int64, place: torch.device) -> None:
        import torch

        self.lengths = lengths
        self._ids, self._lengths = (torch.from_numpy(each).to(place) for each in (padded, lengths))

    def batch(self, rows: torch.Tensor, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids (…, texts, width) of some rows (…, texts), and which of them are no padding, bool of that shape."""
        import torch

        # Few widths, so that a GPU meets the same shapes again.
        width = min(-(-longest // _MULTIPLE) * _MULTIPLE, self._ids.shape[1])
        there = torch.arange(width, device=rows.device) < self._lengths[rows].unsqueeze(-1)
        return self._ids[:, :width][rows], there


def _encoder(folder: ModelFolder, config: Any) -> torch.nn.Module:
    import torch
    from transformers import MODEL_MAPPING

    from datapipe.workers.encoders.library import class_for, filled

    kind = class_for(folder, config, mapping=MODEL_MAPPING, purpose="encoder")
    model: torch.nn.Module = filled(kind, config, folder, dtype=torch.float32, spare=_SPARE)
    return model
