"""Our own forward pass of EfficientNet-Lite0 (Tan and Le, arXiv 1905.11946).

The Lite networks have no squeeze-and-excitation, and ReLU6 in place of swish (tensorflow/tpu,
models/official/efficientnet/lite).

    pixels -> stem -> 16 inverted bottlenecks -> head -> mean over places -> 1280 features [-> classes]

Each batch norm is folded into the convolution before it. Activations lie with channels last, which is what convolutions
read fastest, on the CPU and on CUDA. Read from `config.json` with one of the names of `VARIANTS` as "architecture":
the layout of the reference weights, or that of timm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from datapipe.errors import ModelError
from datapipe.workers.encoders.checkpoint import refuse_difference
from datapipe.workers.encoders.preprocess import Preprocessing

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from datapipe.workers.folder import ModelFolder

__all__ = ["VARIANTS", "EfficientNetLite0"]

FEATURES = 1280
_STEM = 32


class _Stage(NamedTuple):
    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


@dataclass(frozen=True)
class _Variant:
    """How a checkpoint is spelt and was trained.

    Attributes:
        names: Of its tensors.
        epsilon: Of its batch norms.
        same: Whether borders are padded as TensorFlow does, one more at the end, or by half a kernel all round.
    """

    names: Literal["reference", "timm"]
    epsilon: float
    same: bool


VARIANTS = {
    "efficientnet-lite0": _Variant("reference", epsilon=1e-3, same=True),
    "tf_efficientnet_lite0": _Variant("timm", epsilon=1e-3, same=True),
    "efficientnet_lite0": _Variant("timm", epsilon=1e-5, same=False),
}
"""The "architecture" in config.json; the two of timm were trained apart."""


class _Plan(NamedTuple):
    """One convolution with its batch norm."""

    conv: str
    norm: str
    inputs: int
    outputs: int
    kernel: int
    stride: int
    depthwise: bool
    active: bool

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.outputs, 1 if self.depthwise else self.inputs, self.kernel, self.kernel)


@dataclass(frozen=True)
class _Conv:
    plan: _Plan
    weight: torch.Tensor
    bias: torch.Tensor
    same: bool

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        import torch
        from torch.nn.functional import conv2d, pad

        plan = self.plan
        sides = [_padding(size, plan, same=self.same) for size in (states.shape[3], states.shape[2])]
        around = 0
        if all(before == after == sides[0][0] for before, after in sides):
            around = sides[0][0]
        else:
            states = pad(states, [*sides[0], *sides[1]])
        groups = plan.inputs if plan.depthwise else 1
        states = conv2d(states, self.weight, self.bias, stride=plan.stride, padding=around, groups=groups)
        return torch.clamp_(states, 0, 6) if plan.active else states


class EfficientNetLite0:
    """An EfficientNet-Lite0 on its device.

    Args:
        folder: Where config.json and its safetensors lie.
        device: Where it computes.
        dtype: In which precision convolutions are computed; the mean over places is float32.
        classes: Whether `outputs` gives the logits of its classes, not its features.

    Raises:
        ModelError: A tensor or a setting is missing, left over, or of another shape; names it.
    """

    def __init__(self, folder: ModelFolder, *, device: torch.device, dtype: torch.dtype, classes: bool = False) -> None:
        import torch

        config: dict[str, Any] = folder.json("config.json") or {}
        variant = VARIANTS[config["architecture"]]
        if config.get("features", FEATURES) != FEATURES or config.get("num_features", FEATURES) != FEATURES:
            raise ModelError(f"model {folder.name}: an EfficientNet-Lite0 has {FEATURES} features; config.json differs")
        blocks = list(_blocks(variant.names))
        tensors = _checked(folder, blocks, classifier=_classifier(variant.names), needed=classes)
        self.preprocessing = _preprocessing(folder, config)
        self._device, self._dtype = device, dtype

        def conv(plan: _Plan) -> _Conv:
            weight, bias = _folded(tensors, plan, epsilon=variant.epsilon)
            weight = weight.to(device=device, dtype=dtype, memory_format=torch.channels_last)
            return _Conv(plan, weight, bias.to(device=device, dtype=dtype), variant.same)

        self._blocks = [([conv(plan) for plan in plans], skips) for plans, skips in blocks]
        self._head: tuple[torch.Tensor, torch.Tensor] | None = None
        if classes:
            weight, bias = (tensors[f"{_classifier(variant.names)}.{part}"] for part in ("weight", "bias"))
            self._head = weight.to(device=device, dtype=torch.float32), bias.to(device=device, dtype=torch.float32)
        self.dim = len(self._head[1]) if self._head else FEATURES
        self.labels = tuple(str(index) for index in range(self.dim)) if classes else ()
        kept = [tensor for convs, _ in self._blocks for each in convs for tensor in (each.weight, each.bias)]
        self.nbytes = sum(tensor.numel() * tensor.element_size() for tensor in (*kept, *(self._head or ())))

    def outputs(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features float32 (pictures, 1280), or logits float32 (pictures, classes), on the device.

        Args:
            pixels: uint8 (pictures, height, width, 3), on the device.
        """
        import torch

        states = self.preprocessing.normalised(pixels, dtype=self._dtype)
        for convs, skips in self._blocks:
            inner = states
            for conv in convs:
                inner = conv(inner)
            states = inner.add_(states) if skips else inner
        features = states.mean((2, 3), dtype=torch.float32)
        return torch.addmm(self._head[1], features, self._head[0].t()) if self._head else features


def _blocks(names: Literal["reference", "timm"]) -> Iterator[tuple[list[_Plan], bool]]:
    """The convolutions in the order they run, in blocks, and whether a block's input is added to its output."""
    timm = names == "timm"

    def plan(conv: str, norm: str, sizes: tuple[int, int], kernel: int = 1, stride: int = 1, **kinds: bool) -> _Plan:
        depthwise, active = kinds.get("depthwise", False), kinds.get("active", True)
        return _Plan(conv, norm, *sizes, kernel, stride, depthwise, active)

    yield [plan("conv_stem" if timm else "_conv_stem", "bn1" if timm else "_bn0", (3, _STEM), 3, 2)], False
    inputs, number = _STEM, 0
    for place, stage in enumerate(_STAGES):
        for repeat in range(stage.repeats):
            stride = stage.stride if repeat == 0 else 1
            at = f"blocks.{place}.{repeat}." if timm else f"_blocks.{number}."
            inner = inputs * stage.expand
            widens = stage.expand > 1
            convs = [("conv_pw", "bn1")] * widens + [("conv_dw", "bn2" if widens else "bn1")]
            convs += [("conv_pwl", "bn3") if widens else ("conv_pw", "bn2")]
            if not timm:
                convs = [("_expand_conv", "_bn0")] * widens + [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
            *first, (dw_conv, dw_norm), (last_conv, last_norm) = [(at + conv, at + norm) for conv, norm in convs]
            plans = [plan(conv, norm, (inputs, inner)) for conv, norm in first]
            plans.append(plan(dw_conv, dw_norm, (inner, inner), stage.kernel, stride, depthwise=True))
            plans.append(plan(last_conv, last_norm, (inner, stage.channels), active=False))
            yield plans, stride == 1 and inputs == stage.channels
            inputs, number = stage.channels, number + 1
    yield [plan("conv_head" if timm else "_conv_head", "bn2" if timm else "_bn1", (inputs, FEATURES))], False


def _classifier(names: Literal["reference", "timm"]) -> str:
    return "classifier" if names == "timm" else "_fc"


def _checked(
    folder: ModelFolder, blocks: list[tuple[list[_Plan], bool]], *, classifier: str, needed: bool
) -> dict[str, torch.Tensor]:
    given = {name: value for name, value in folder.tensors().items() if not name.endswith("num_batches_tracked")}
    expected: dict[str, tuple[int, ...]] = {}
    for plans, _ in blocks:
        for plan in plans:
            expected[f"{plan.conv}.weight"] = plan.weight_shape
            for part in ("weight", "bias", "running_mean", "running_var"):
                expected[f"{plan.norm}.{part}"] = (plan.outputs,)
    if needed or f"{classifier}.weight" in given:
        classes = given[f"{classifier}.bias"].numel() if f"{classifier}.bias" in given else 0
        expected |= {f"{classifier}.weight": (classes, FEATURES), f"{classifier}.bias": (classes,)}
    refuse_difference(folder, expected, given)
    return given


def _folded(tensors: dict[str, torch.Tensor], plan: _Plan, *, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    scale, shift, mean, variance = (
        tensors[f"{plan.norm}.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
    )
    factor = scale / (variance + epsilon).sqrt()
    return tensors[f"{plan.conv}.weight"].double() * factor[:, None, None, None], shift - mean * factor


def _padding(size: int, plan: _Plan, *, same: bool) -> tuple[int, int]:
    if not same:
        return plan.kernel // 2, plan.kernel // 2
    total = max((-(-size // plan.stride) - 1) * plan.stride + plan.kernel - size, 0)
    return total // 2, total - total // 2


def _preprocessing(folder: ModelFolder, config: dict[str, Any]) -> Preprocessing:
    """From config.json, or the `pretrained_cfg` in it, as timm writes it.

    The shorter side is scaled to `input_size` / `crop_pct` and the central square kept. Unless stated, `crop_pct` is 1
    and `interpolation` bilinear: nothing of a square picture is lost, and small ones are scaled up without ringing.
    """
    from PIL.Image import Resampling

    settings = config.get("pretrained_cfg", config)
    try:
        size = settings["input_size"]
        height, width = (size, size) if isinstance(size, int) else (int(size[-2]), int(size[-1]))
        share = float(settings.get("crop_pct", 1.0))
        mean, std = (tuple(float(value) for value in settings[key]) for key in ("mean", "std"))
        filters = {"bilinear": Resampling.BILINEAR, "bicubic": Resampling.BICUBIC, "lanczos": Resampling.LANCZOS}
        resample = filters[settings.get("interpolation", "bilinear")]
        possible = height == width >= 1 and 0 < share <= 1 and len(mean) == len(std) == 3 and min(std) > 0  # noqa: PLR2004
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ModelError(f"model {folder.name}: config.json of an EfficientNet-Lite0 needs {error}") from error
    if not possible or settings.get("crop_mode", "center") != "center":
        raise ModelError(
            f"model {folder.name}: config.json of an EfficientNet-Lite0 needs a square input_size, 0 < crop_pct <= 1, "
            "crop_mode center, and three values each in mean and std"
        )
    return Preprocessing(
        resize=int(height / share),
        crop=(height, width),
        resample=int(resample),
        scale=1 / 255,
        mean=mean,
        std=std,
    )
