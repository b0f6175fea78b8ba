"""Causal language models in two halves: the body gives hidden states, the head their logits, a few rows at a time.

    token ids -> hidden (tokens, dim) -> logits (rows, vocabulary), float32 -> log probabilities

A text of n tokens has n x vocabulary logits, far more than anybody keeps: so the body runs once, and the head over
chunks of rows whose logits lie in one buffer. Everything between the last state and the logits (biases, scales, caps)
is the architecture's own code, run with the body taken out. Both halves are tried at load against the whole model.
"""

from __future__ import annotations

import copy
import inspect
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from datapipe.errors import ModelError
from datapipe.workers.encoders.library import class_for, config_of, filled, nbytes_of, positions_of
from datapipe.workers.encoders.transfer import to_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from datapipe.storage.arrays import Int32
    from datapipe.workers.folder import ModelFolder

__all__ = ["CausalModel"]

_LOGIT_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
"""Logits at a time. More rows a product are faster until the buffer leaves the cache (CPU) or fills the device."""

_TRIAL = 4
"""Tokens of the trial at load."""


class CausalModel:
    """A causal language model of transformers on its device.

    Args:
        folder: Where config.json and the safetensors lie.
        device: Where it computes.
        dtype: In which precision; logits are float32 in any case.

    Attributes:
        dim: Width of a hidden state.
        vocabulary: Token ids that it knows.
        positions: Tokens that a text may have.
        padded: Whether a batch costs as if each text were as long as the longest.
        nbytes: Memory that the tensors hold.
        chunk_rows: Rows of logits that are computed at a time.

    Raises:
        ModelError: transformers knows no causal model of this architecture, a tensor is missing, left over or of
            another shape, the model also reads backwards, or its head does not come apart from its body.
    """

    padded = True

    def __init__(self, folder: ModelFolder, *, device: torch.device, dtype: torch.dtype) -> None:
        import transformers

        config = config_of(folder)
        mapping = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
        kind = class_for(folder, config, mapping=mapping, purpose="causal language model")
        model = filled(kind, config, folder, dtype=dtype).to(device)
        self._body, product = model.get_decoder(), model.get_output_embeddings()
        self._takes_places = "position_ids" in inspect.signature(self._body.forward).parameters
        self.vocabulary, self.dim = (int(size) for size in product.weight.shape)
        self.positions, self.nbytes, self._device = positions_of(config), nbytes_of(model), device
        self.chunk_rows = max(16, _LOGIT_BYTES[device.type] // (4 * self.vocabulary))
        try:
            self._head = _without_body(model, self._body, product)
            self._try(folder, model)
        except ModelError:
            raise
        except Exception as error:  # what an architecture put together otherwise raises is up to it
            message = f"model {folder.name}: the head of a {kind.__name__} does not come apart from its body ({error})"
            raise ModelError(message) from error

    def hidden(self, batch: Sequence[Int32]) -> torch.Tensor:
        """Hidden states that the head reads, (tokens of all texts, dim), on the device, text after text.

        Texts are padded behind their ends, where no token that counts looks.
        """
        import torch

        lengths = [len(ids) for ids in batch]
        longest = max(lengths)
        there = np.arange(longest) < np.array(lengths)[:, None]
        ids = np.zeros(there.shape, dtype=np.int64)
        ids[there] = np.concatenate(batch)
        sent = to_device(np.concatenate([ids.ravel(), np.flatnonzero(there)]), self._device)
        with torch.inference_mode():
            given = sent[: ids.size].view(ids.shape)
            states: torch.Tensor = self._body(input_ids=given, use_cache=False).last_hidden_state
            return states.flatten(0, 1)[sent[ids.size :]]

    def advance(
        self, ids: torch.Tensor, *, mask: torch.Tensor, places: torch.Tensor, cache: Any
    ) -> tuple[torch.Tensor, Any]:
        """Read on, and return the state after the last token of each row, (rows, dim), and the cache grown by it.

        Args:
            ids: What is new, int64 (rows, new); the same number of tokens in each row.
            mask: 1 for tokens, 0 for padding on the left, int64 (rows, read before + new).
            places: Position of each new token in its own text, int64 (rows, new).
            cache: Of the call before; None at first. It is changed.
        """
        import torch

        with torch.inference_mode():
            own = {"position_ids": places} if self._takes_places else {}
            out = self._body(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **own)
            return out.last_hidden_state[:, -1], out.past_key_values

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Logits of the token after each state, float32 (rows, vocabulary), on the device.

        Args:
            states: Of `hidden`, (rows, dim); `chunk_rows` of them are a good number.

        Returns:
            Memory that the next call in this thread may write over.
        """
        import torch

        with torch.inference_mode():
            logits: torch.Tensor = self._head(inputs_embeds=states.unsqueeze(0), use_cache=False).logits
            return logits[0].float()

    def log_probabilities(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Log probability of one token after each state in nats, float32 (rows,), on the device.

        Args:
            states: Of `hidden`, (rows, dim), at least one.
            targets: Ids of the tokens, int64 (rows,), on the device.
        """
        import torch

        with torch.inference_mode():
            chunks = [slice(at, at + self.chunk_rows) for at in range(0, len(states), self.chunk_rows)]
            return torch.cat([self._picked(states[chunk], targets[chunk]) for chunk in chunks])

    def _picked(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = self.logits(states)
        logits -= logits.amax(1, keepdim=True)
        chosen = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
        return chosen - logits.exp_().sum(1).log_()

    def _try(self, folder: ModelFolder, model: Any) -> None:
        """Raise `ModelError` if states know what follows, `ValueError` if the halves do not make the whole."""
        import torch

        ids = np.arange(_TRIAL, dtype=np.int32) % self.vocabulary
        other = ids.copy()
        other[-1] = _TRIAL % self.vocabulary
        states, changed = self.hidden([ids]), self.hidden([other])
        scale = float(states.abs().max())
        if not torch.allclose(states[:-1], changed[:-1], rtol=0, atol=1e-3 * scale):
            raise ModelError(
                f"model {folder.name}: a {type(model).__name__} with this config.json also reads backwards, so it "
                "gives no probabilities of what follows"
            )
        with torch.inference_mode():
            given = torch.from_numpy(ids).long().to(self._device)
            whole = model(input_ids=given.unsqueeze(0), use_cache=False).logits[0].float()
        apart = self.logits(states)
        tolerance = 1e-4 if states.dtype == torch.float32 else 3e-2
        if not torch.allclose(apart, whole, rtol=0, atol=tolerance * float(whole.abs().max())):
            raise ValueError("its logits differ")


def _without_body(model: Any, body: Any, product: Any) -> Any:
    """The model with its body taken out: shallow copies of what lies around it, so every tensor is shared."""
    names = {id(module): name for name, module in model.named_modules()}
    return _with(_with(model, names[id(body)], _given_states()), names[id(product)], _wide_product(product))


def _with(module: Any, path: str, other: Any) -> Any:
    first, _, rest = path.partition(".")
    copied = copy.copy(module)
    children = module._modules  # noqa: SLF001 - a module offers no way to copy it without its children
    replaced = other if not rest else _with(children[first], rest, other)
    copied.__dict__["_modules"] = {**children, first: replaced}
    return copied


class _States(tuple[Any, ...]):
    """What a body returns, with its last states alone."""

    __slots__ = ()

    @property
    def last_hidden_state(self) -> torch.Tensor:
        states: torch.Tensor = self[0]
        return states

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _given_states() -> torch.nn.Module:
    import torch

    class Given(torch.nn.Module):
        """A body that returns the states it is given."""

        def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> _States:
            return _States((inputs_embeds,))

    return Given()


def _wide_product(linear: Any) -> torch.nn.Module:
    import torch

    class Wide(torch.nn.Module):
        """The product with the output embeddings, in float32 and into memory that stays."""

        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = linear.weight, getattr(linear, "bias", None)
            self.kept = threading.local()

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            rows = states.flatten(0, -2)
            out = self._buffer(len(rows))
            if self.weight.dtype == torch.float32:
                torch.mm(rows, self.weight.t(), out=out)
            elif rows.is_cuda:
                torch.mm(rows, self.weight.t(), out_dtype=torch.float32, out=out)
            else:
                out.copy_(torch.mm(rows, self.weight.t()))
            if self.bias is not None:
                out += self.bias
            return out.view(*states.shape[:-1], -1)

        def _buffer(self, rows: int) -> torch.Tensor:
            buffer: torch.Tensor | None = getattr(self.kept, "buffer", None)
            if buffer is None or len(buffer) < rows:
                size = (rows, len(self.weight))
                buffer = self.kept.buffer = torch.empty(size, dtype=torch.float32, device=self.weight.device)
            return buffer[:rows]

    return Wide()
