"""A self-supervised encoder of small images, trained on the training images themselves, for a GPU host.

    images.npy -> two random views of each image -> ResNet body, projection -> NT-Xent -> vectors of all rows

SimCLR (Chen et al. 2020, arXiv 2002.05709) at the rates usual for CIFAR-10, with views made on the device. Labels serve
only to print the accuracy of the 20 nearest on a tenth of the training rows. Run:
python -m benchmarks.ssl_encoder FOLDER [--seconds 250], where the folder is that of `benchmarks.pruning_images`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from datapipe.proof.images import one_cycle
from datapipe.proof.resnet import ResNet

PEAK_RATE, MOMENTUM, DECAY, TEMPERATURE, NEIGHBOURS = 0.24, 0.9, 5e-4, 0.2, 20
LEAST_AREA, COLOURED, GREYED = 0.1, 0.8, 0.2
LUMA = (0.299, 0.587, 0.114)
TOLD_EVERY = 1000
_TIMED_FROM, _TIMED_TO = 20, 120
"""Steps that tell how many there is time for."""


def views(images: torch.Tensor) -> torch.Tensor:
    """Random resized crop, mirror and colours: float (rows, channels, side, side) near [-1, 1] of uint8 images."""
    count, device = len(images), images.device
    scale = torch.empty(count, device=device).uniform_(LEAST_AREA, 1.0).sqrt_()
    mirror = torch.where(torch.rand(count, device=device) < 0.5, -1.0, 1.0)
    shift = [torch.empty(count, device=device).uniform_(-1, 1) * (1 - scale) for _ in range(2)]
    none = torch.zeros_like(scale)
    affine = torch.stack([torch.stack([scale * mirror, none, shift[0]], 1), torch.stack([none, scale, shift[1]], 1)], 1)
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    seen = functional.grid_sample(images.float() / 255, grid, padding_mode="reflection", align_corners=False)
    if images.shape[1] == len(LUMA):
        seen = torch.einsum("nij,njhw->nihw", colours(count, device), seen)
    changed = (torch.rand(count, 1, 1, 1, device=device) < COLOURED).float()
    bright, contrast = (1 + changed * torch.empty_like(changed).uniform_(-0.4, 0.4) for _ in range(2))
    mean = seen.mean((1, 2, 3), keepdim=True)
    seen = bright * torch.lerp(mean, seen, contrast)
    return (2 * seen.clamp(0, 1) - 1).contiguous(memory_format=torch.channels_last)


def colours(count: int, device: torch.device) -> torch.Tensor:
    """Random saturation and hue, for some images grey, as matrices on RGB, float32 (count, 3, 3)."""
    same, luma = torch.eye(3, device=device), torch.tensor(LUMA, device=device).expand(3, 3)
    turn = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=device) / math.sqrt(3)
    draws = [torch.rand(count, 1, 1, device=device) for _ in range(4)]
    changed = (draws[0] < COLOURED).float()
    saturation, angle = 1 + changed * (0.8 * draws[1] - 0.4), changed * 2 * math.pi * (0.2 * draws[2] - 0.1)
    # A turn around the axis of greys (Rodrigues).
    hue = angle.cos() * same + (1 - angle.cos()) / 3 + angle.sin() * turn
    coloured = (saturation * same + (1 - saturation) * luma) @ hue
    return torch.where(draws[3] < GREYED, luma, coloured)


def nt_xent(projected: torch.Tensor) -> torch.Tensor:
    """Normalised temperature-scaled cross-entropy; row i and row i + half are views of one image."""
    unit = functional.normalize(projected.float(), dim=1)
    near = (unit @ unit.t() / TEMPERATURE).fill_diagonal_(-torch.inf)
    count = len(unit)
    partner = (torch.arange(count, device=unit.device) + count // 2) % count
    return functional.cross_entropy(near, partner)


def main() -> None:
    """Train, write the vectors, print the accuracy of the nearest neighbours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--name", default="simclr", help="Of the encoder: vectors-NAME.npy.")
    parser.add_argument("--seconds", type=float, default=250.0, help="Of training; sets the steps.")
    parser.add_argument("--steps", type=int, help="In place of seconds.")
    parser.add_argument("--learning-rate", type=float, default=PEAK_RATE)
    parser.add_argument("--batch-rows", type=int, default=512)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    started = time.perf_counter()
    images, labels, held = (np.load(options.work / f"{name}.npy") for name in ("images", "labels", "held"))
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    place = torch.device(options.device)
    whole = torch.from_numpy(images).to(place).permute(0, 3, 1, 2)
    train = torch.from_numpy(np.flatnonzero(~held)).to(place)
    body = ResNet(whole.shape[1], 2, width=options.width)
    size = body.features
    top = torch.nn.Sequential(torch.nn.Linear(size, size), torch.nn.ReLU(), torch.nn.Linear(size, 128))
    body, top = body.to(place, memory_format=torch.channels_last), top.to(place)  # type: ignore[call-overload]
    body.whiten(whole[train[:: max(1, len(train) // 2048)]].float() / 127.5 - 1)
    steps = fit(body, top, whole, train, options)
    body.eval()
    with torch.inference_mode():
        parts = [body.body(part.float() / 127.5 - 1).float() for part in torch.split(whole, 2048)]
        vectors = functional.normalize(torch.cat(parts), dim=1)
    np.save(options.work / f"vectors-{options.name}.npy", vectors.cpu().numpy())
    known, asked = labels[~held], np.random.Generator(np.random.Philox(7)).random(int((~held).sum())) < 0.1
    right = neighbours(vectors[torch.from_numpy(~held).to(place)], known, asked)
    told = {"steps": steps, "nearest_neighbours": right, "seconds": time.perf_counter() - started}
    (options.work / f"{options.name}.json").write_text(json.dumps(told) + "\n", encoding="utf-8")
    print(told, flush=True)


def fit(
    body: ResNet, top: torch.nn.Module, whole: torch.Tensor, train: torch.Tensor, options: argparse.Namespace
) -> int:
    """Train for the steps, or for as many as the seconds allow. Returns the steps."""
    weights = [each for part in (body, top) for each in part.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=options.learning_rate, momentum=MOMENTUM, weight_decay=DECAY)
    place = whole.device
    step, steps, since = 0, options.steps or 20_000, time.perf_counter()
    while step < steps:
        if options.steps is None and step in {_TIMED_FROM, _TIMED_TO}:
            float(whole[0, 0, 0, 0])  # waits for the device
            now = time.perf_counter()
            if step == _TIMED_TO:
                steps = max(2 * step, int(options.seconds * (_TIMED_TO - _TIMED_FROM) / (now - since)))
            since = now
        optimizer.param_groups[0]["lr"] = options.learning_rate * one_cycle(step, steps, warm=0.1)
        rows = train[torch.randint(len(train), (options.batch_rows,), device=place)]
        pair = torch.cat([views(whole[rows]), views(whole[rows])])
        with torch.autocast(place.type, torch.bfloat16, enabled=place.type == "cuda"):
            projected = top(body.body(pair))
        optimizer.zero_grad(set_to_none=True)
        loss = nt_xent(projected)
        torch.autograd.backward(loss)
        optimizer.step()
        step += 1
        if step % TOLD_EVERY == 0 or step == steps:
            print(f"step {step} of {steps}: loss {loss.item():.3f}", flush=True)
            if not bool(loss.isfinite()):
                raise SystemExit("the loss is no number: try a lower --learning-rate")
    return steps


def neighbours(vectors: torch.Tensor, labels: np.ndarray, asked: np.ndarray) -> float:
    """Percent of the rows asked for whose class is that of most of their nearest among the others."""
    known, some = (torch.from_numpy(each).to(vectors.device) for each in (labels, asked))
    others, right = vectors[~some], 0
    for part, truth in zip(torch.split(vectors[some], 1024), torch.split(known[some], 1024), strict=True):
        near = (part @ others.t()).topk(min(NEIGHBOURS, len(others)), dim=1).indices
        right += int((known[~some][near].mode(1).values == truth).sum())
    return 100 * right / max(1, int(some.sum()))


if __name__ == "__main__":
    main()
