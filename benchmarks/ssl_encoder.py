"""A self-supervised encoder of small images, trained on the images themselves, for a GPU host.

    FILE.parquet -> two random views of each image -> ResNet-9 body, projection -> NT-Xent -> vectors of all rows

SimCLR (Chen et al. 2020, arXiv 2002.05709), with views made on the device. Labels serve only to print the accuracy of
the 20 nearest training rows on the test split. Run: python -m benchmarks.ssl_encoder FILE OUT.npy [--steps 10000].
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from benchmarks.pruning_images import load
from datapipe.proof.images import one_cycle, resnet9

PEAK_RATE, MOMENTUM, DECAY, TEMPERATURE, NEIGHBOURS = 0.3, 0.9, 5e-4, 0.2, 20


def views(images: torch.Tensor) -> torch.Tensor:
    """Random resized crop, mirror, brightness, contrast, grey: float (rows, channels, side, side) near [-1, 1]."""
    count, device = len(images), images.device
    scale = torch.empty(count, device=device).uniform_(0.2, 1.0).sqrt_()
    mirror = torch.where(torch.rand(count, device=device) < 0.5, -1.0, 1.0)
    room = 1 - scale
    shift = [torch.empty(count, device=device).uniform_(-1, 1) * room for _ in range(2)]
    none = torch.zeros_like(scale)
    affine = torch.stack([torch.stack([scale * mirror, none, shift[0]], 1), torch.stack([none, scale, shift[1]], 1)], 1)
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    seen = functional.grid_sample(images.float() / 127.5 - 1, grid, padding_mode="reflection", align_corners=False)
    grey = (torch.rand(count, 1, 1, 1, device=device) < 0.2).float()
    seen = torch.lerp(seen, seen.mean(1, keepdim=True).expand_as(seen), grey)
    tint = torch.empty(count, images.shape[1], 1, 1, device=device).uniform_(-0.3, 0.3)
    contrast = torch.empty(count, 1, 1, 1, device=device).uniform_(0.6, 1.4)
    return (seen * contrast + tint).contiguous(memory_format=torch.channels_last)


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
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch-rows", type=int, default=512)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    started = time.perf_counter()
    images, labels, held = load(options.file)
    torch.manual_seed(0)
    place = torch.device(options.device)
    whole = torch.from_numpy(images).to(place).permute(0, 3, 1, 2)
    train = torch.from_numpy(np.flatnonzero(~held)).to(place)
    body = resnet9(whole.shape[1], 1, width=options.width)[:-1]  # type: ignore[index]
    size = 8 * options.width
    top = torch.nn.Sequential(torch.nn.Linear(size, size), torch.nn.ReLU(), torch.nn.Linear(size, 128))
    model = torch.nn.Sequential(body, top).to(place, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=PEAK_RATE, momentum=MOMENTUM, weight_decay=DECAY)
    on_gpu = place.type == "cuda"
    for step in range(options.steps):
        optimizer.param_groups[0]["lr"] = PEAK_RATE * one_cycle(step, options.steps, warm=0.1)
        rows = train[torch.randint(len(train), (options.batch_rows,), device=place)]
        with torch.autocast(place.type, torch.bfloat16, enabled=on_gpu):
            projected = model(torch.cat([views(whole[rows]), views(whole[rows])]))
        optimizer.zero_grad(set_to_none=True)
        nt_xent(projected).backward()
        optimizer.step()
    model.eval()
    with torch.inference_mode():
        parts = [body(part.float() / 127.5 - 1).float() for part in whole.split(2048)]
        vectors = functional.normalize(torch.cat(parts), dim=1)
    np.save(options.out, vectors.cpu().numpy())
    print(f"nearest neighbours {neighbours(vectors, labels, held):.2f} %, {time.perf_counter() - started:.0f} s")


def neighbours(vectors: torch.Tensor, labels: np.ndarray, held: np.ndarray) -> float:
    """Percent of test rows whose class is that of most of their nearest training rows."""
    known = torch.from_numpy(labels).to(vectors.device)
    test = torch.from_numpy(held).to(vectors.device)
    right = 0
    for part, truth in zip(vectors[test].split(1024), known[test].split(1024), strict=True):
        near = (part @ vectors[~test].t()).topk(min(NEIGHBOURS, int((~test).sum())), dim=1).indices
        right += int((known[~test][near].mode(1).values == truth).sum())
    return 100 * right / int(test.sum())


if __name__ == "__main__":
    main()
