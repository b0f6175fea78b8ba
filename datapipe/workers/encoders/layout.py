"""What a sentence-transformers folder says around its encoder: where it lies, pooling, normalisation, length, prompt.

Read from modules.json, POOLING/config.json, sentence_bert_config.json, tokenizer_config.json and
config_sentence_transformers.json. Settings that we do not compute are refused, never skipped: a vector that silently
differs from the model's own is worse than none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datapipe.errors import ModelError
from datapipe.workers.encoders.pooling import POOLING_MODES, PoolingMode

if TYPE_CHECKING:
    from datapipe.workers.folder import ModelFolder

__all__ = ["SentenceLayout"]

_LEGACY_MODES: dict[str, str] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")
_NO_LIMIT = 1 << 30
"""Tokenizers without a limit state a huge number."""


@dataclass(frozen=True)
class SentenceLayout:
    """How an encoder's hidden states become a text's vector.

    Attributes:
        encoder: The folder of the encoder and its tokenizer.
        pooling: How a text's hidden states become one vector.
        normalised: Whether vectors are scaled to unit length.
        max_length: Tokens that the model was made for; None if it does not say.
        lower: Whether texts are lower-cased first.
        prefix: The model's default prompt, put before every text.
    """

    encoder: ModelFolder
    pooling: PoolingMode = "mean"
    normalised: bool = True
    max_length: int | None = None
    lower: bool = False
    prefix: str = ""

    @classmethod
    def of(cls, folder: ModelFolder) -> SentenceLayout:
        """Read the layout of `folder`; one without modules.json is a bare encoder: mean pooling, unit length.

        Raises:
            ModelError: A module or a pooling mode is one that we do not compute.
        """
        modules = folder.json("modules.json")
        if modules is None:
            return cls(folder, max_length=_max_length(folder))
        paths = _module_paths(folder, modules)
        encoder = folder.within(paths["Transformer"])
        settings = encoder.json("sentence_bert_config.json") or {}
        pooling = folder.within(paths["Pooling"]).json("config.json") or {}
        prefix = _default_prompt(folder)
        if prefix and not pooling.get("include_prompt", True):
            raise ModelError(
                f"model {folder.name}: pooling without the prompt (include_prompt: false) is not supported"
            )
        return cls(
            encoder,
            pooling=_mode(folder, pooling),
            normalised="Normalize" in paths,
            max_length=_max_length(encoder),
            lower=bool(settings.get("do_lower_case", False)),
            prefix=prefix,
        )


def _module_paths(folder: ModelFolder, modules: Any) -> dict[str, str]:
    try:
        paths = {str(module["type"]).rpartition(".")[2]: str(module["path"]) for module in modules}
    except (TypeError, KeyError) as error:
        raise ModelError(f"model {folder.name}: modules.json is not a list of modules with type and path") from error
    for kind in paths:
        if kind not in _KNOWN_MODULES:
            raise ModelError(
                f"model {folder.name}: modules.json names the module {kind}, which is not supported; "
                f"supported are {', '.join(_KNOWN_MODULES)}"
            )
    for kind in ("Transformer", "Pooling"):
        if kind not in paths:
            raise ModelError(f"model {folder.name}: modules.json names no {kind}")
    return paths


def _mode(folder: ModelFolder, settings: dict[str, Any]) -> PoolingMode:
    given = settings.get("pooling_mode", [mode for key, mode in _LEGACY_MODES.items() if settings.get(key)])
    modes = [given] if isinstance(given, str) else list(given)
    for mode in POOLING_MODES:
        if modes == [mode]:
            return mode
    raise ModelError(
        f"model {folder.name}: pooling {' + '.join(map(str, modes)) or 'none'} is not supported; "
        f"supported is one of {', '.join(POOLING_MODES)}"
    )


def _max_length(encoder: ModelFolder) -> int | None:
    for file, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        limit = (encoder.json(file) or {}).get(key)
        if isinstance(limit, int | float) and 0 < limit < _NO_LIMIT:
            return int(limit)
    return None


def _default_prompt(folder: ModelFolder) -> str:
    settings = folder.json("config_sentence_transformers.json") or {}
    name = settings.get("default_prompt_name")
    if name is None:
        return ""
    prompts = settings.get("prompts") or {}
    if name not in prompts:
        raise ModelError(f"model {folder.name}: its default prompt {name!r} is not among its prompts")
    return str(prompts[name])
