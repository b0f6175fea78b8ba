"""Images through the tasks embed_image and classify_image, and vision models of transformers against their own code."""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from datapipe.errors import ConfigError, ItemError, MissingExtraError, ModelError, ModelNotFoundError
from datapipe.workers.encoders.preprocess import Preprocessing
from datapipe.workers.folder import ModelFolder
from datapipe.workers.spec import ModelSpec
from datapipe.workers.tasks.image import EmbedImageTask, ImageClassification, ImageEmbedding, ImageItem
from datapipe.workers.worker import LocalWorker
from tests.workers.tiny import PROCESSOR, VISION, save_model, vision_folder

if TYPE_CHECKING:
    from pathlib import Path

    from datapipe.workers.spec import DtypeName

CPU = torch.device("cpu")
CLASS_TOKEN = {"deit", "vit", "vit_msn"}
REFUSED = {"vit_mae"}


@pytest.fixture(scope="module")
def images(data: Path) -> list[bytes]:
    files: list[bytes] = pq.read_table(data / "fashion_mnist_60.parquet")["image"].to_pylist()
    return files


def run(folder: Path, images: list[bytes], *, task: str = "embed_image", dtype: DtypeName = "float32") -> list[Any]:
    with LocalWorker([ModelSpec("m", str(folder), task=task, dtype=dtype)], device="cpu") as worker:
        return worker.run(task, [ImageItem(image) for image in images], model="m")


def open_task(folder: Path, **spec: Any) -> EmbedImageTask:
    return EmbedImageTask.open(
        ModelFolder("m", folder), spec=ModelSpec("m", str(folder), **spec), device=CPU, dtype=torch.float32
    )


def vectors_of(results: list[ImageEmbedding]) -> np.ndarray:
    return np.stack([result.vector for result in results])


def processed(images: list[bytes]) -> torch.Tensor:
    """What transformers makes of the images before its model."""
    pictures = [Image.open(io.BytesIO(image)).convert("RGB") for image in images]
    return torch.from_numpy(np.stack(transformers.ViTImageProcessorPil(**PROCESSOR)(pictures)["pixel_values"])).float()


def pooled(kind: str, given: Any) -> Any:
    if kind in CLASS_TOKEN:
        return given.last_hidden_state[:, 0]
    if kind == "ijepa":
        return given.last_hidden_state.mean(1)
    return given.pooler_output.flatten(1)


def test_an_image_becomes_a_unit_vector_with_its_size(tmp_path: Path, images: list[bytes]) -> None:
    vision_folder(tmp_path, "vit")
    (result,) = run(tmp_path, images[:1])
    assert (result.vector.shape, result.vector.dtype) == ((32,), np.float32)
    assert np.linalg.norm(result.vector) == pytest.approx(1, abs=1e-6)
    assert (result.width, result.height) == (28, 28)


@pytest.mark.parametrize("kind", sorted(VISION.keys() - REFUSED))
def test_vectors_are_those_of_transformers(tmp_path: Path, images: list[bytes], kind: str) -> None:
    model = vision_folder(tmp_path, kind)
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(pooled(kind, model(pixel_values=processed(images[:8]))), dim=1)
    ours = vectors_of(run(tmp_path, images[:8]))
    assert np.abs(ours - ours[0]).max() > 1e-3
    np.testing.assert_allclose(ours, expected.numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_of_two_towers_the_one_for_images_is_read(tmp_path: Path, images: list[bytes], kind: str) -> None:
    torch.manual_seed(0)
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text |= {"vocab_size": 50, "projection_size": 16, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = transformers.AutoConfig.for_model(kind, text_config=text, vision_config=VISION["vit"])
    config.vision_config.projection_dim = config.projection_dim = 24
    model = save_model(tmp_path, transformers.MODEL_MAPPING[type(config)](config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    with torch.inference_mode():
        given = model.get_image_features(pixel_values=processed(images[:4]))
    expected = given if isinstance(given, torch.Tensor) else given.pooler_output
    expected = torch.nn.functional.normalize(expected, dim=1).numpy()
    np.testing.assert_allclose(vectors_of(run(tmp_path, images[:4])), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_logits_and_labels_are_those_of_transformers(tmp_path: Path, images: list[bytes], kind: str) -> None:
    labels = {0: "shoe", 1: "shirt", 2: "bag"}
    model = vision_folder(tmp_path, kind, mapping="MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING", id2label=labels)
    with torch.inference_mode():
        expected = model(pixel_values=processed(images[:8])).logits.numpy()
    results: list[ImageClassification] = run(tmp_path, images[:8], task="classify_image")
    np.testing.assert_allclose(np.stack([result.logits for result in results]), expected, rtol=0, atol=1e-4)
    with LocalWorker([ModelSpec("m", str(tmp_path), task="classify_image")], device="cpu") as worker:
        loaded = worker.load("m", task="classify_image")
        assert (loaded.task.labels, loaded.dim) == (("shoe", "shirt", "bag"), 3)  # type: ignore[attr-defined]


def test_a_classifier_also_embeds(tmp_path: Path, images: list[bytes]) -> None:
    for kind in ("vit", "resnet"):
        vision_folder(tmp_path / kind, kind, mapping="MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING")
        assert vectors_of(run(tmp_path / kind, images[:2])).shape == (2, 32)


def test_the_company_of_other_images_moves_a_vector_by_rounding_only(tmp_path: Path, images: list[bytes]) -> None:
    for kind in ("vit", "convnext"):
        vision_folder(tmp_path / kind, kind)
        together, alone = run(tmp_path / kind, images[:6]), [run(tmp_path / kind, [one])[0] for one in images[:6]]
        np.testing.assert_allclose(vectors_of(together), vectors_of(alone), rtol=0, atol=1e-5)


def test_bfloat16_points_the_same_way(tmp_path: Path, images: list[bytes]) -> None:
    vision_folder(tmp_path, "dinov2")
    exact, rounded = (vectors_of(run(tmp_path, images[:6], dtype=dtype)) for dtype in ("float32", "bfloat16"))
    assert (exact * rounded).sum(axis=1).min() > 0.99


def test_an_image_costs_its_patches_of_16_at_the_size_of_the_model(tmp_path: Path, images: list[bytes]) -> None:
    vision_folder(tmp_path, "resnet")
    assert open_task(tmp_path).prepare(ImageItem(images[0])).length == 4
    settings = PROCESSOR | {"size": {"height": 224, "width": 224}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert open_task(tmp_path).prepare(ImageItem(images[0])).length == 196


def test_a_hostile_image_is_refused_by_its_index(tmp_path: Path, images: list[bytes]) -> None:
    vision_folder(tmp_path, "resnet")
    with pytest.raises(ItemError, match="image 2 is a damaged PNG file") as caught:
        run(tmp_path, [*images[:2], images[2][:200]])
    assert caught.value.index == 2
    task = open_task(tmp_path)
    for item, found in ((images[0], "bytes"), (ImageItem("text"), "str"), (ImageItem(None), "NoneType")):  # type: ignore[arg-type]
        with pytest.raises(ItemError, match=rf"item 7 must be an ImageItem of bytes\. Got {found}") as caught:
            task.prepare_many([item], first=7)
        assert caught.value.index == 7


def test_a_model_that_gives_nan_is_refused(tmp_path: Path, images: list[bytes]) -> None:
    vision_folder(tmp_path, "vit")
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"embeddings.cls_token": torch.full((1, 1, 32), torch.nan)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="its vit gives outputs that are not finite"):
        run(tmp_path, images[:1])


def test_an_image_whose_vector_is_not_finite_is_named(tmp_path: Path, images: list[bytes]) -> None:
    class Faulty:
        dim, nbytes, labels = 2, 0, ()

        def __init__(self, preprocessing: Preprocessing) -> None:
            self.preprocessing = preprocessing

        def outputs(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[1.0, 2.0], [torch.nan, 0.0]])

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    task = EmbedImageTask(cast("Any", Faulty(Preprocessing.of(ModelFolder("m", tmp_path)))), CPU)
    with pytest.raises(FloatingPointError, match="the output of image 1 of the batch is not finite"):
        task.forward(task.prepare_many([ImageItem(image) for image in images[:2]]))


def test_a_model_of_no_use_is_refused_by_its_reason(tmp_path: Path, images: list[bytes]) -> None:
    vision_folder(tmp_path / "mae", "vit_mae")
    with pytest.raises(ModelError, match=r"its vit_mae cannot take pictures of 32 x 32 \(it pools nothing"):
        open_task(tmp_path / "mae")
    vision_folder(tmp_path / "large", "vit", image_size=64)
    with pytest.raises(ModelError, match="its vit cannot take pictures of 32 x 32"):
        open_task(tmp_path / "large")
    vision_folder(tmp_path / "stranger", "vit")
    config = json.loads((tmp_path / "stranger" / "config.json").read_text())
    (tmp_path / "stranger" / "config.json").write_text(json.dumps(config | {"model_type": "vit-of-a-stranger"}))
    with pytest.raises(ModelError, match="transformers knows no model_type 'vit-of-a-stranger'"):
        open_task(tmp_path / "stranger")
    (tmp_path / "stranger" / "config.json").write_text(json.dumps({"architectures": ["Mystery"]}))
    with pytest.raises(ModelError, match=r"states no model_type, and its architecture None is none of"):
        open_task(tmp_path / "stranger")
    (tmp_path / "stranger" / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(ModelError):
        open_task(tmp_path / "stranger")
    (tmp_path / "stranger" / "config.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"has no config\.json"):
        open_task(tmp_path / "stranger")


def test_a_checkpoint_that_does_not_fit_is_refused_by_the_names_of_its_tensors(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    vision_folder(tmp_path, "siglip_vision_model")
    whole = load_file(tmp_path / "model.safetensors")
    name = next(name for name in whole if name.endswith("head.probe"))
    capfd.readouterr()
    save_file({n: t for n, t in whole.items() if n != name}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=rf"tensors are missing from {tmp_path}: .*head\.probe"):
        open_task(tmp_path)
    save_file(whole | {"adapter.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"holds tensors that its encoder lacks: adapter\.weight"):
        open_task(tmp_path)
    save_file(whole | {name: torch.zeros(1, 1, 5)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"head\.probe has shape \(1, 1, 5\), but config\.json means \(1, 1, 32\)"):
        open_task(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_loading_leaves_the_random_numbers_and_the_progress_bars_of_the_caller_alone(tmp_path: Path) -> None:
    vision_folder(tmp_path, "vit")
    torch.manual_seed(3)
    expected = torch.rand(4)
    shown = transformers.utils.logging.is_progress_bar_enabled()
    torch.manual_seed(3)
    open_task(tmp_path)
    assert torch.equal(torch.rand(4), expected)
    assert transformers.utils.logging.is_progress_bar_enabled() == shown


def test_code_and_kernels_that_a_folder_names_are_never_fetched(tmp_path: Path) -> None:
    vision_folder(tmp_path, "vit")
    canary = tmp_path / "it_ran"
    (tmp_path / "stranger.py").write_text(f"open({str(canary)!r}, 'w')\nclass Model: pass\n")
    for file in ("config.json", "preprocessor_config.json"):
        settings = json.loads((tmp_path / file).read_text())
        settings["auto_map"] = dict.fromkeys(("AutoConfig", "AutoModel", "AutoImageProcessor"), "stranger.Model")
        settings |= (
            {} if file.startswith("pre") else {"_attn_implementation": "stranger/kernel", "fusion_config": {"x": 1}}
        )
        (tmp_path / file).write_text(json.dumps(settings))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "stranger/model"}))
    assert open_task(tmp_path).dim == 32
    assert not canary.exists()
    assert not [name for name in sys.modules if "stranger" in name]


def test_max_length_is_for_texts(tmp_path: Path) -> None:
    vision_folder(tmp_path, "vit")
    with pytest.raises(ConfigError, match=r"model m takes images, and max_length is for texts\. Got 5"):
        open_task(tmp_path, max_length=5)


def test_without_pillow_the_pip_line_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vision_folder(tmp_path, "vit")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'secateur\[images\]'"):
        open_task(tmp_path)
