"""Every task on an accelerator against the same on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from datapipe.workers.spec import ModelSpec
from datapipe.workers.tasks.causal import CausalItem
from datapipe.workers.tasks.classify import ClassifyItem
from datapipe.workers.tasks.image import ImageItem
from datapipe.workers.worker import LocalWorker
from tests.workers.test_efficientnet import plain, write
from tests.workers.tiny import text_folder, vision_folder

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator"),
]
DTYPES = ["float32", "bfloat16"]


def both(folder: Path, task: str, items: list[Any], *, dtype: Any) -> list[list[Any]]:
    found = []
    asked: list[tuple[str, Any]] = [("cpu", "float32"), ("cuda", dtype)]
    for device, precision in asked:
        with LocalWorker([ModelSpec("m", str(folder), task=task, dtype=precision)], device=device) as worker:
            found.append(worker.run(task, items, model="m"))
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["efficientnet", "vit", "resnet"])
def test_images_point_the_same_way(tmp_path: Path, data: Path, kind: str, dtype: str) -> None:
    images = pq.read_table(data / "fashion_mnist_60.parquet")["image"].to_pylist()
    if kind == "efficientnet":
        write(tmp_path, plain())
    else:
        vision_folder(tmp_path, kind)
    here, there = both(tmp_path, "embed_image", [ImageItem(image) for image in images], dtype=dtype)
    cosines = [float(one.vector @ other.vector) for one, other in zip(here, there, strict=True)]
    assert min(cosines) > (0.9999 if dtype == "float32" else 0.98)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_logits_are_the_same(tmp_path: Path, data: Path, kind: str, dtype: str) -> None:
    text_folder(tmp_path, kind, mapping="MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING")
    texts = pq.read_table(data / "banking77.parquet")["text"].slice(0, 40).to_pylist()
    here, there = both(tmp_path, "classify", [ClassifyItem(text) for text in texts], dtype=dtype)
    one, other = (np.stack([result.logits for result in results]) for results in (here, there))
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-3 if dtype == "float32" else 0.1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "phi"])
def test_log_probabilities_and_states_are_the_same(tmp_path: Path, data: Path, kind: str, dtype: str) -> None:
    text_folder(tmp_path, kind, mapping="MODEL_FOR_CAUSAL_LM_MAPPING")
    rows = pq.read_table(data / "dolly_3k.parquet").slice(0, 30).to_pylist()
    items = [CausalItem(row["output"], row["instruction"], hidden=True) for row in rows]
    for one, other in zip(*both(tmp_path, "causal", items, dtype=dtype), strict=True):
        atol = 1e-3 if dtype == "float32" else 0.3
        np.testing.assert_allclose(one.log_probabilities, other.log_probabilities, rtol=0, atol=atol)
        assert one.token_ids.tolist() == other.token_ids.tolist()
        assert one.states.shape == other.states.shape
