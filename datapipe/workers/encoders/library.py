"""Models of transformers with tensors that we have read: which class, which settings, and whether everything fits.

    folder -> config_of -> class_for -> filled -> the model, on the CPU

The class follows from `model_type` and the task alone, so neither code nor an adapter that a folder names is ever
loaded, and settings that would fetch or run anything are left out. transformers translates the names of tensors, which
differ between its versions; what does not fit afterwards is refused by the names of its tensors (`ModelError`).
"""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from datapipe.errors import ModelError
from datapipe.workers.encoders.checkpoint import refuse_difference

if TYPE_CHECKING:
    import re
    from collections.abc import Iterator, Mapping

    import torch

    from datapipe.workers.folder import ModelFolder

__all__ = ["class_for", "config_of", "filled", "labels_of", "max_length_of", "nbytes_of", "positions_of"]

_UNLIMITED = 1 << 30
"""Positions of an architecture that states no limit; tokenizers without one state more."""

_LEFT_OUT = frozenset(
    {
        "_attn_implementation",
        "attn_implementation",
        "auto_map",
        "dtype",
        "experts_implementation",
        "fusion_config",
        "kernel_config",
        "quantization_config",
        "torch_dtype",
        "transformers_weights",
    }
)
"""Settings that choose a precision, a file, or code to fetch: all of that is decided here."""

_COUNT_FROM_PADDING = frozenset({"camembert", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl"})
"""Architectures whose first position follows the padding id: so many rows of their table stand for no token."""

_loading = threading.Lock()


def config_of(folder: ModelFolder) -> Any:
    """The transformers config in config.json.

    Raises:
        ModelError: transformers does not know its `model_type`, or it is damaged.
    """
    from transformers import CONFIG_MAPPING

    settings = _plain(folder.config())
    kind = settings.pop("model_type")
    if kind not in CONFIG_MAPPING:
        raise ModelError(
            f"model {folder.name}: transformers knows no model_type {kind!r}; code of the model's own is never run"
        )
    try:
        return CONFIG_MAPPING[kind].from_dict(settings)
    except Exception as error:  # what a damaged config raises is up to its class
        raise ModelError(f"model {folder.name}: {folder.root / 'config.json'} is no {kind} config ({error})") from error


def class_for(folder: ModelFolder, config: Any, *, mapping: Mapping[type, Any], purpose: str) -> Any:
    """The model class for a config; where there are several, the one that config.json names.

    Args:
        folder: For messages.
        config: Of `config_of`.
        mapping: One of transformers' `MODEL_..._MAPPING`.
        purpose: What the class is for, for messages.

    Raises:
        ModelError: transformers has no such class for this architecture.
    """
    try:
        found = mapping[type(config)]
    except (KeyError, ImportError) as error:
        raise ModelError(f"model {folder.name}: {config.model_type} has no {purpose} in transformers") from error
    if not isinstance(found, tuple | list):
        return found
    named = [kind for kind in found if kind.__name__ in (config.architectures or ())]
    return named[0] if named else found[0]


def filled(
    kind: Any, config: Any, folder: ModelFolder, *, dtype: torch.dtype, spare: re.Pattern[str] | None = None
) -> Any:
    """A model of class `kind` on the CPU, every tensor of it read from the folder; ready to compute, not to train.

    Args:
        kind: Of `class_for`.
        config: Of `config_of`.
        folder: Where the safetensors lie.
        dtype: In which precision the model computes.
        spare: Matches names of tensors that the result does not depend on: they may be missing or left over.

    Raises:
        ModelError: A tensor is missing, left over, or of another shape; names it.
    """
    import torch

    tensors = folder.tensors()
    with _quiet_loading(), torch.random.fork_rng(devices=[]):  # missing tensors are drawn before they are reported
        try:
            model, report = kind.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except Exception as error:  # what a config that contradicts itself raises is up to its class
            message = f"model {folder.name}: {folder.root} does not load as {kind.__name__} ({error})"
            raise ModelError(message) from error

    def counts(name: str) -> bool:
        return spare is None or spare.search(name) is None

    expected = {name: () for name in report["missing_keys"] if counts(name)}
    given = {name: torch.empty(()) for name in report["unexpected_keys"] if counts(name)}
    for name, found, wanted in report["mismatched_keys"]:
        expected[name], given[name] = tuple(wanted), torch.empty(found, device="meta")
    refuse_difference(folder, expected, given)
    return model.eval().requires_grad_(requires_grad=False)


def labels_of(folder: ModelFolder, config: Any, classes: int) -> tuple[str, ...]:
    """Names of the classes in the order of the logits. Raises `ModelError` unless `id2label` names each of them."""
    given = {int(index): str(label) for index, label in config.id2label.items()}
    if given.keys() != set(range(classes)):
        raise ModelError(f"model {folder.name}: id2label in config.json names {len(given)} classes of {classes}")
    return tuple(given[index] for index in range(classes))


def positions_of(config: Any) -> int:
    """Tokens that a text may have."""
    positions = int(getattr(config, "max_position_embeddings", 0) or _UNLIMITED)
    return positions - (int(config.pad_token_id or 0) + 1 if config.model_type in _COUNT_FROM_PADDING else 0)


def max_length_of(folder: ModelFolder, *, asked: int | None, positions: int) -> int:
    """Tokens after which a text is cut: those asked for, else those that its tokenizer states; at most `positions`."""
    stated = (folder.json("tokenizer_config.json") or {}).get("model_max_length")
    if asked is None and isinstance(stated, int | float) and 0 < stated < _UNLIMITED:
        asked = int(stated)
    return min(asked or positions, positions)


def nbytes_of(model: torch.nn.Module) -> int:
    """Memory that the parameters and buffers of a model hold; shared ones count once."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _plain(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if key not in _LEFT_OUT
    }


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Keep transformers' progress bar and its report off stderr: what it reports is raised."""
    from transformers.utils import logging as theirs

    def drop(_: logging.LogRecord) -> bool:
        return False

    logger = logging.getLogger("transformers.modeling_utils")
    with _loading:
        shown = theirs.is_progress_bar_enabled()
        if shown:
            theirs.disable_progress_bar()
        logger.addFilter(drop)
        try:
            yield
        finally:
            logger.removeFilter(drop)
            if shown:
                theirs.enable_progress_bar()
