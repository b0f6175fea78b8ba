"""A changed model as a folder that loads as any: its weights, its settings, and what lies beside them.

    folder of the original + config + tensors -> OUT.part -> OUT

Nothing is seen at OUT before all of it is there. Raises `ConfigError` where OUT exists.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from datapipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from datapipe.workers.folder import ModelFolder

_BESIDE = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"),
    *("generation_config.json", "vocab.json", "merges.txt", "LICENSE", "LICENSE.txt"),
)


def refuse_existing(out: Path) -> None:
    """Raise `ConfigError` where something is at `out`: a model is never written over another."""
    if out.exists():
        raise ConfigError(f"{out} exists; a model is written to a new folder")


def write_model(
    out: Path,
    folder: ModelFolder,
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    *,
    told: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write a model made from another.

    Args:
        out: Folder to be made.
        folder: The other, whose tokenizer, chat template and licence go along.
        config: Settings of the new model.
        tensors: Its weights, on the host.
        told: Further JSON files by name.

    Raises:
        ConfigError: `out` exists.
    """
    from safetensors.torch import save_file

    refuse_existing(out)
    made = out.with_name(out.name + ".part")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    ordered = {name: tensors[name].contiguous() for name in sorted(tensors)}
    save_file(ordered, made / "model.safetensors", {"format": "pt"})
    for name, content in {"config.json": config, **(told or {})}.items():
        (made / name).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for name in _BESIDE:
        if (folder.root / name).is_file():
            shutil.copyfile(folder.root / name, made / name)
    made.rename(out)
