"""Vision models: pictures to features, or to the logits of classes.

    uint8 pixels -> normalised -> backbone -> pooled -> float32 (pictures, dim)

EfficientNet-Lite0 by our own forward pass, every other architecture by that of transformers (`library`). What stands
for a picture, decided by family:

- `vit`, `deit`, `vit_msn`: the class token after the last norm. Their poolers are random in most checkpoints.
- `ijepa`: the mean of the patches; it has no class token.
- `clip`: the projected embedding of the vision tower; `siglip`: its attention head. The text towers are not read.
- all others: what their own `pooler_output` is, from weights that the checkpoint must hold: the class token (`dinov2`,
  `dinov2_with_registers`, `clip_vision_model`), an attention head (`siglip_vision_model`), the mean over places
  (`resnet`, `regnet`, `convnext`, `convnextv2`, `swin`, `bit`, ...), or of the patches (`beit`).

A model that pools nothing, draws at random (`vit_mae`) or wants more than pixels is refused by a trial at load.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Protocol

from datapipe.errors import ModelError, ModelNotFoundError
from datapipe.workers.encoders.efficientnet import VARIANTS, EfficientNetLite0
from datapipe.workers.encoders.library import class_for, config_of, filled, labels_of, nbytes_of
from datapipe.workers.encoders.preprocess import Preprocessing

if TYPE_CHECKING:
    import torch

    from datapipe.workers.folder import ModelFolder

__all__ = ["LibraryVision", "VisionModel", "open_vision"]

_CLASS_TOKEN = frozenset({"deit", "vit", "vit_msn"})
_MEAN_OF_PATCHES = frozenset({"ijepa"})
_TOWERS = {"clip": "CLIPVisionModelWithProjection", "siglip": "SiglipVisionModel"}

_HEADS = r"^(classifier|cls_classifier|distillation_classifier)\."
_TEXT_TOWER = r"^(text_model|text_projection)\.|^logit_(scale|bias)$"
_POOLER = r"(^|\.)pooler\."


class VisionModel(Protocol):
    """A vision model on its device.

    Attributes:
        dim: Length of an output.
        labels: Names of the classes, in the order of the outputs; empty for features.
        nbytes: Memory that the tensors hold.
        preprocessing: How a picture becomes its input.
    """

    dim: int
    labels: tuple[str, ...]
    nbytes: int
    preprocessing: Preprocessing

    def outputs(self, pixels: torch.Tensor) -> torch.Tensor:
        """Float32 (pictures, dim), on the device, of uint8 (pictures, height, width, 3) there."""


def open_vision(folder: ModelFolder, *, device: torch.device, dtype: torch.dtype, classes: bool = False) -> VisionModel:
    """Load the vision model in `folder`.

    Args:
        folder: Where config.json, preprocessor_config.json and the safetensors lie.
        device: Where it computes.
        dtype: In which precision.
        classes: Whether outputs are the logits of its classes, not its features.

    Raises:
        ModelError: The architecture is unknown or of no use here, or tensors or settings do not fit.
    """
    config = folder.json("config.json")
    if config is None:
        raise ModelNotFoundError(f"model {folder.name}: {folder.root} has no config.json")
    if isinstance(config, dict) and "model_type" not in config:
        if config.get("architecture") not in VARIANTS:
            raise ModelError(
                f"model {folder.name}: {folder.root / 'config.json'} states no model_type, and its architecture "
                f"{config.get('architecture')!r} is none of {', '.join(VARIANTS)}"
            )
        return EfficientNetLite0(folder, device=device, dtype=dtype, classes=classes)
    return LibraryVision(folder, device=device, dtype=dtype, classes=classes)


class LibraryVision:
    """A vision model of transformers on its device.

    Args:
        folder: Where config.json, preprocessor_config.json and the safetensors lie.
        device: Where it computes.
        dtype: In which precision.
        classes: Whether `outputs` gives the logits of its classes, not its features.

    Raises:
        ModelError: The architecture is unknown or of no use here, or tensors or settings do not fit.
    """

    def __init__(self, folder: ModelFolder, *, device: torch.device, dtype: torch.dtype, classes: bool = False) -> None:
        import torch

        self.preprocessing = Preprocessing.of(folder)
        self._device, self._dtype, self._classes = device, dtype, classes
        config = config_of(folder)
        self._kind = config.model_type
        model = _classifier(folder, config, dtype) if classes else _backbone(folder, config, dtype)
        self._model = model.to(device=device, memory_format=torch.channels_last)
        self.nbytes = nbytes_of(model)
        self.dim = self._tried(folder)
        self.labels = labels_of(folder, config, self.dim) if classes else ()

    def outputs(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features or logits, float32 (pictures, dim), on the device.

        Args:
            pixels: uint8 (pictures, height, width, 3), on the device.
        """
        given = self._model(pixel_values=self.preprocessing.normalised(pixels, dtype=self._dtype))
        found = self._logits(given) if self._classes else self._pooled(given)
        return found.float()

    def _logits(self, given: Any) -> torch.Tensor:
        logits: torch.Tensor = given.logits
        return logits

    def _pooled(self, given: Any) -> torch.Tensor:
        states: torch.Tensor = given.last_hidden_state
        if self._kind in _CLASS_TOKEN:
            return states[:, 0]
        if self._kind in _MEAN_OF_PATCHES:
            return states.float().mean(1)
        pooled: torch.Tensor | None = getattr(given, "image_embeds", None)
        if pooled is None:
            pooled = getattr(given, "pooler_output", None)
        if pooled is None:
            raise TypeError("it pools nothing, and which of its states stands for a picture is not known")
        return pooled.flatten(1)

    def _tried(self, folder: ModelFolder) -> int:
        """Width of an output, found by running one grey picture twice."""
        import torch

        height, width = self.preprocessing.size
        grey = torch.full((1, height, width, 3), 127, dtype=torch.uint8, device=self._device)
        try:
            with torch.inference_mode(), torch.random.fork_rng(devices=[]):
                once, again = self.outputs(grey), self.outputs(grey)
        except Exception as error:  # what a model raises that wants something else is up to its class
            message = f"model {folder.name}: its {self._kind} cannot take pictures of {height} x {width} ({error})"
            raise ModelError(message) from error
        if not once.isfinite().all():
            raise ModelError(f"model {folder.name}: its {self._kind} gives outputs that are not finite")
        if not torch.equal(once, again):
            raise ModelError(f"model {folder.name}: its {self._kind} draws at random, so its outputs mean nothing here")
        return once.shape[1]


def _backbone(folder: ModelFolder, config: Any, dtype: torch.dtype) -> Any:
    import transformers

    tower = _TOWERS.get(config.model_type)
    if tower is not None:
        spare = re.compile(_TEXT_TOWER)
        return filled(getattr(transformers, tower), config.vision_config, folder, dtype=dtype, spare=spare)
    kind = class_for(folder, config, mapping=transformers.MODEL_MAPPING, purpose="backbone")
    unused = config.model_type in _CLASS_TOKEN | _MEAN_OF_PATCHES
    model = filled(kind, config, folder, dtype=dtype, spare=re.compile(f"{_HEADS}|{_POOLER}" if unused else _HEADS))
    if unused and hasattr(model, "pooler"):
        model.pooler = None
    return model


def _classifier(folder: ModelFolder, config: Any, dtype: torch.dtype) -> Any:
    import transformers

    mapping = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    return filled(class_for(folder, config, mapping=mapping, purpose="image classifier"), config, folder, dtype=dtype)
