"""Our EfficientNet-Lite0 against the same network put together from PyTorch's modules."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from datapipe.errors import ModelError
from datapipe.workers.encoders.efficientnet import EfficientNetLite0
from datapipe.workers.encoders.vision import open_vision
from datapipe.workers.folder import ModelFolder

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")
ROWS = [(1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5)]
ROWS += [(6, 320, 1, 1, 3)]
"""Expansion, channels, repeats, stride and kernel of each stage."""

BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution and batch norm, borders padded as TensorFlow does for sides that are multiples of 32."""
    before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
    return nn.Sequential(
        nn.ZeroPad2d((before, after, before, after)),
        nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=1e-3),
    )


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = inputs * expand
        layers = [conv(inputs, inner), nn.ReLU6()] if expand > 1 else []
        layers += [conv(inner, inner, kernel, stride, groups=inner), nn.ReLU6(), conv(inner, outputs)]
        self.layers = nn.Sequential(*layers)
        self.skips = inputs == outputs and stride == 1

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(states)
        return states + found if self.skips else found


def plain() -> nn.Sequential:
    """The network with random numbers in it, norms too."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [conv(3, 32, 3, 2), nn.ReLU6()]
    inputs = 32
    for expand, outputs, repeats, stride, kernel in ROWS:
        for repeat in range(repeats):
            layers.append(Bottleneck(inputs, outputs, kernel, stride if repeat == 0 else 1, expand))
            inputs = outputs
    model = nn.Sequential(*layers, conv(320, 1280), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for name, tensor in model.state_dict().items():
        if "running_var" in name:
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(torch.randn(tensor.shape) * 0.1)
    return model.eval().requires_grad_(requires_grad=False)


def names(layout: str) -> list[str]:
    """Names of the tensors of `plain`, in its order, as the reference weights or timm spell them."""
    pairs = [("_conv_stem", "_bn0") if layout == "reference" else ("conv_stem", "bn1")]
    number = 0
    for stage, (expand, _, repeats, _, _) in enumerate(ROWS):
        for repeat in range(repeats):
            if layout == "reference":
                found = [("_expand_conv", "_bn0")] if expand > 1 else []
                found += [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
                pairs += [(f"_blocks.{number}.{one}", f"_blocks.{number}.{two}") for one, two in found]
            else:
                found = [("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")]
                found = found if expand > 1 else [("conv_dw", "bn1"), ("conv_pw", "bn2")]
                pairs += [(f"blocks.{stage}.{repeat}.{one}", f"blocks.{stage}.{repeat}.{two}") for one, two in found]
            number += 1
    pairs.append(("_conv_head", "_bn1") if layout == "reference" else ("conv_head", "bn2"))
    return [name for one, two in pairs for name in (f"{one}.weight", *(f"{two}.{part}" for part in BATCH_NORM))]


def write(folder: Path, model: nn.Module, *, layout: str = "reference", classes: int = 7, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    tensors = dict(zip(names(layout), model.state_dict().values(), strict=True))
    generator = torch.Generator().manual_seed(1)
    head = "_fc" if layout == "reference" else "classifier"
    tensors[f"{head}.weight"] = torch.randn((classes, 1280), generator=generator)
    tensors[f"{head}.bias"] = torch.randn(classes, generator=generator)
    save_file(tensors, folder / "model.safetensors")
    settings: dict[str, Any] = {"input_size": 64, "mean": [0.498] * 3, "std": [0.502] * 3}
    if layout == "timm":
        settings["input_size"] = [3, 64, 64]
        settings = {"pretrained_cfg": settings, "num_features": 1280}
    architecture = "efficientnet-lite0" if layout == "reference" else "tf_efficientnet_lite0"
    (folder / "config.json").write_text(json.dumps({"architecture": architecture} | settings | config))
    return folder


def load(folder: Path, *, dtype: torch.dtype = torch.float32, classes: bool = False) -> EfficientNetLite0:
    found = open_vision(ModelFolder("m", folder), device=CPU, dtype=dtype, classes=classes)
    assert isinstance(found, EfficientNetLite0)
    return found


def pixels(count: int = 3) -> torch.Tensor:
    noise = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    return torch.from_numpy(noise)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return plain()


@pytest.mark.parametrize("layout", ["reference", "timm"])
def test_features_and_logits_equal_the_plain_network(tmp_path: Path, model: nn.Module, layout: str) -> None:
    folder = write(tmp_path / layout, model, layout=layout)
    expected = model(((pixels().float() / 255 - 0.498) / 0.502).permute(0, 3, 1, 2))
    with torch.inference_mode():
        features, logits = (load(folder, classes=classes).outputs(pixels()) for classes in (False, True))
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-4)
    head = [value for name, value in load_file(folder / "model.safetensors").items() if name[:3] in {"_fc", "cla"}]
    bias, weight = sorted(head, key=torch.Tensor.dim)
    torch.testing.assert_close(logits, expected @ weight.T + bias, rtol=1e-4, atol=1e-3)


def test_it_holds_what_the_paper_says(tmp_path: Path, model: nn.Module) -> None:
    found = load(write(tmp_path / "m", model, classes=1000), classes=True)
    assert (found.dim, found.labels[:2], found.preprocessing.size) == (1000, ("0", "1"), (64, 64))
    assert found.nbytes / 4 == pytest.approx(4.65e6, rel=0.01)


def test_bfloat16_points_the_same_way(tmp_path: Path, model: nn.Module) -> None:
    folder = write(tmp_path / "m", model)
    with torch.inference_mode():
        exact, rounded = (load(folder, dtype=dtype).outputs(pixels()) for dtype in (torch.float32, torch.bfloat16))
    assert torch.nn.functional.cosine_similarity(exact, rounded).min() > 0.98
    assert rounded.dtype == torch.float32


def test_unstated_settings_lose_nothing_of_a_square_picture(tmp_path: Path, model: nn.Module) -> None:
    whole = load(write(tmp_path / "m", model)).preprocessing
    assert (whole.resize, whole.crop, whole.resample) == (64, (64, 64), 2)
    cropped = load(write(tmp_path / "m", model, crop_pct=0.875, interpolation="bicubic")).preprocessing
    assert (cropped.resize, cropped.crop, cropped.resample) == (73, (64, 64), 3)


def test_a_checkpoint_that_does_not_fit_is_refused_by_the_names_of_its_tensors(
    tmp_path: Path, model: nn.Module
) -> None:
    folder = write(tmp_path / "m", model)
    whole = load_file(folder / "model.safetensors")
    name = "_blocks.3._depthwise_conv.weight"
    save_file({n: t for n, t in whole.items() if n != name}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=rf"tensors are missing from {folder}: {name}"):
        load(folder)
    save_file(whole | {"_se_reduce.weight": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"holds tensors that its encoder lacks: _se_reduce\.weight"):
        load(folder)
    save_file(whole | {name: torch.zeros(144, 1, 3, 3)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=rf"tensor {name} has shape \(144, 1, 3, 3\), but config\.json means"):
        load(folder)
    save_file({n: t for n, t in whole.items() if not n.startswith("_fc")}, folder / "model.safetensors")
    assert load(folder).dim == 1280
    with pytest.raises(ModelError, match=r"tensors are missing .*: _fc\.bias, _fc\.weight"):
        load(folder, classes=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"features": 512}, "has 1280 features; config.json differs"),
        ({"input_size": None}, "config.json of an EfficientNet-Lite0 needs"),
        ({"input_size": [3, 64, 32]}, "needs a square input_size"),
        ({"crop_pct": 0}, "0 < crop_pct <= 1"),
        ({"crop_mode": "squash"}, "crop_mode center"),
        ({"interpolation": "random"}, "config.json of an EfficientNet-Lite0 needs 'random'"),
        ({"std": [0.5, 0.5]}, "three values each in mean and std"),
        ({"mean": 0.5}, "config.json of an EfficientNet-Lite0 needs"),
        ({"architecture": "efficientnet_lite4"}, "its architecture 'efficientnet_lite4' is none of efficientnet-lite0"),
    ],
)
def test_a_config_that_cannot_be_is_refused(
    tmp_path: Path, model: nn.Module, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        load(write(tmp_path / "m", model, **config))
