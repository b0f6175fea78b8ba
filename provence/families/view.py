"""The encoder inside a pruner's checkpoint, shown as a model folder of its own.

    ModelFolder -> tensors (each file read once) -> FolderView (other names, other config) -> open_encoder

So the readers of `datapipe.workers.encoders` compute the encoder of any family, and refuse its tensors by name.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from datapipe.errors import ModelError
from datapipe.workers.folder import ModelFolder

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

__all__ = ["FolderView", "tensor_names", "under"]


@dataclass(frozen=True)
class FolderView(ModelFolder):
    """A folder of which config.json and the tensors are replaced.

    Attributes:
        settings: Stands for config.json.
        given: Stand for the safetensors.
    """

    settings: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    given: Mapping[str, torch.Tensor] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, folder: ModelFolder, *, settings: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> FolderView:
        """See `folder` with this config and these tensors."""
        return cls(folder.name, folder.root, settings, tensors)

    def json(self, relative: str) -> Any | None:
        """The settings for config.json; other files as they lie in the folder."""
        return copy.deepcopy(dict(self.settings)) if relative == "config.json" else super().json(relative)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors given."""
        return dict(self.given)


def under(tensors: Mapping[str, torch.Tensor], prefix: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Split tensors into those under `prefix`, by their names without it, and the others."""
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return inside, {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}


def tensor_names(folder: ModelFolder) -> frozenset[str]:
    """Names of a folder's tensors, from the headers of its files alone.

    Raises:
        ModelNotFoundError: There are no safetensors.
        UnsafeModelError: Weights are there as pickles only.
        ModelError: A file is damaged; names it.
    """
    from safetensors import SafetensorError, safe_open

    names: set[str] = set()
    for path in folder.weight_files():
        try:
            with safe_open(path, framework="np") as file:
                names.update(file.keys())
        except (SafetensorError, OSError) as error:
            raise ModelError(f"model {folder.name}: {path} is not a readable safetensors file ({error})") from error
    return frozenset(names)
