"""Stages of the image benchmark that score rows, and the one that says why scores differ.

    images, labels -> courses;  vectors -> scores, agree -> cluster_courses;  all -> ranks, analyse

Each reads what the ones before left in the folder, see `benchmarks.pruning_images`, and writes below `scores/train`, of
all training images, and `scores/part`, of those without the validation images.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import image_analysis, image_scores
from benchmarks.common import record, table
from benchmarks.image_trainings import CLASSES, name_of, opened, parts_of, recipe_of, trainer_of

if TYPE_CHECKING:
    import argparse

COURSES = 3
MAIN = "simclr"
"""Encoder whose rows hold the methods that read no vectors."""


def courses(options: argparse.Namespace) -> None:
    """Scores of short trainings, of all training images and of those without the validation images.

    Scores that are there stay, for settings and rows rest on them.
    """
    images, labels, held = opened(options)
    part, _ = parts_of(held)
    for name, rows in (("train", np.flatnonzero(~held)), ("part", part)):
        folder = options.work / "scores" / name
        # Only cuts of all training images take densities at the mean probability.
        wanted = image_scores.COURSES if name == "train" else image_scores.COURSES[:-1]
        lacking = [each for each in wanted if not (folder / f"{each}.npy").is_file()]
        if not lacking or time.perf_counter() > options.deadline:
            continue
        started = time.perf_counter()
        data = (images, labels, rows, np.flatnonzero(held))
        trainer = trainer_of(options, data, recipe_of(options), lanes=1)
        found = image_scores.courses(trainer, labels[rows], trainings=COURSES)
        found = {each: found[each] for each in lacking}
        seconds = dict.fromkeys(found, time.perf_counter() - started)
        image_scores.save(folder, found, seconds)


def cluster_courses(options: argparse.Namespace) -> None:
    """AUM of trainings that learn the clusters of an encoder's vectors; one part of the rows a shard."""
    images, labels, held = opened(options)
    part, _ = parts_of(held)
    shard, shards = (int(each) for each in options.shard.split("/"))
    for name, rows in (("part", part), ("train", np.flatnonzero(~held)))[shard::shards]:
        started = time.perf_counter()
        known = options.work / "scores" / name / f"{options.encoder}.{options.clusters}.npy"
        score = f"{options.clusters}_course"
        if not known.is_file() or known.with_name(f"{options.encoder}.{score}.npy").is_file():
            continue
        clusters = np.load(known).astype(np.int64)
        trainer = trainer_of(options, (images, labels, rows, np.flatnonzero(held)), recipe_of(options), lanes=1)
        found = {score: image_scores.courses(trainer, clusters, trainings=COURSES)["aum"]}
        seconds = {score: time.perf_counter() - started}
        image_scores.save(options.work / "scores" / name, found, seconds, prefix=f"{options.encoder}.")


def agree(options: argparse.Namespace) -> None:
    """Clusters of an encoder's vectors on which neighbours agree, and their density where it is not there.

    How far the clusters are classes is printed and read by nothing.
    """
    from benchmarks.image_clusters import Agreement, agreed_clusters
    from datapipe.metrics.density import knn_density

    _, labels, held = opened(options, images=False)
    whole = np.load(options.work / f"vectors-{options.encoder}.npy").astype(np.float32)
    part, _ = parts_of(held)
    how = Agreement(steps=options.steps or Agreement.steps)
    for name, rows in (("train", np.flatnonzero(~held)), ("part", part)):
        started = time.perf_counter()
        found, cosines = agreed_clusters(whole[rows], classes=CLASSES, how=how, device=options.device)
        folder = options.work / "scores" / name
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{options.encoder}.agreed.npy", found)
        if not (folder / f"{options.encoder}.knn_density.npy").is_file():
            density = {"knn_density": knn_density(cosines[:, : image_scores.NEIGHBOURS])}
            seconds = {"knn_density": time.perf_counter() - started}
            image_scores.save(folder, density, seconds, prefix=f"{options.encoder}.")
        print(name, image_analysis.of_clusters(found, labels[rows]), flush=True)


def ranks(options: argparse.Namespace) -> None:
    """Mean ranks: of the neighbours' density by all encoders, and of these with the AUM of the encoder's clusters.

    Densities are those among all training images, also for the images of `part`.
    """
    _, _, held = opened(options, images=False)
    part, _ = parts_of(held)
    folder = options.work / "scores"
    own = [np.load(path) for path in sorted((folder / "train").glob("*.knn_density.npy"))]
    found = image_scores.mean_rank(own)
    inside = np.isin(np.flatnonzero(~held), part)
    for name, rows in (("train", slice(None)), ("part", inside)):
        image_scores.save(folder / name, {"densities": found[rows]}, {})
        course = folder / name / f"{options.encoder}.agreed_course.npy"
        if course.is_file():
            combined = image_scores.mean_rank([found[rows], np.load(course)])
            image_scores.save(folder / name, {"combined": combined}, {}, prefix=f"{options.encoder}.")
    print(f"{len(own)} encoders")


def vectors(options: argparse.Namespace) -> None:
    """Vectors of all images by a vision model, in the file's order."""
    from PIL import Image

    from datapipe.workers import ImageItem, LocalWorker, ModelSpec

    images, _, _ = opened(options)
    items = [ImageItem(_png(Image.fromarray(each.squeeze()).convert("RGB"))) for each in images]
    spec = ModelSpec(name=options.encoder, source=str(options.model), task="embed_image")
    with LocalWorker([spec], device=options.device) as worker:
        results = worker.run("embed_image", items, model=options.encoder)
    found = np.stack([result.vector for result in results]).astype(np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    np.save(options.work / f"vectors-{options.encoder}.npy", found)


def scores(options: argparse.Namespace) -> None:
    """Scores of an encoder's vectors, of all training images and of those without the validation images."""
    _, _, held = opened(options)
    whole = np.load(options.work / f"vectors-{options.encoder}.npy")
    part, _ = parts_of(held)
    for name, rows in (("train", np.flatnonzero(~held)), ("part", part)):
        found, clusters, seconds = image_scores.of_vectors(
            whole[rows], classes=CLASSES, threads=len(os.sched_getaffinity(0))
        )
        image_scores.save(options.work / "scores" / name, found, seconds, prefix=f"{options.encoder}.")
        np.save(options.work / "scores" / name / f"{options.encoder}.cluster.npy", clusters)
        print(name, {key: round(value, 1) for key, value in seconds.items()}, flush=True)


def analyse(options: argparse.Namespace) -> None:
    """Compare clusters, scores and cuts of all encoders with the true labels, on the host."""
    _, labels, held = opened(options, images=False)
    labels = labels[~held]
    folder = options.work / "scores" / "train"
    ours = json.loads((options.work / "settings.json").read_text(encoding="utf-8"))
    encoders = {}
    for path in sorted(folder.glob("*.cluster.npy")):
        encoder = path.name.removesuffix(".cluster.npy")
        scores, groups, _ = image_scores.read(folder, encoder)
        encoders[encoder] = (scores, {**groups, "label": labels.astype(np.int32)})
    fractions = [each for each in options.fractions if str(each) in ours["labels"]]
    for about, figures in image_analysis.analysed(encoders, labels, ours=ours, fractions=fractions, main=MAIN):
        record("pruning_images_analysis", figures, {"dataset": name_of(options), **about})
    print(table("pruning_images_analysis"))


def _png(image: Any) -> bytes:
    import io

    sink = io.BytesIO()
    image.save(sink, "PNG", compress_level=1)
    return sink.getvalue()
