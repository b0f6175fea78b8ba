"""Sequence classifiers against transformers' own logits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from datapipe.errors import ItemError, ModelError, ModelNotFoundError, WorkerError
from datapipe.workers.folder import ModelFolder
from datapipe.workers.spec import ModelSpec
from datapipe.workers.tasks.classify import Classification, ClassifyItem, ClassifyTask
from datapipe.workers.worker import LocalWorker
from tests.workers.tiny import CLASSIFIERS, text_folder

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")
LABELS = {0: "card", 1: "cash", 2: "loan"}
MAPPING = "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING"


@pytest.fixture(scope="module")
def items(data: Path) -> list[ClassifyItem]:
    texts = pq.read_table(data / "banking77.parquet")["text"].slice(0, 12).to_pylist()
    return [ClassifyItem(text) for text in texts[:8]] + [
        ClassifyItem(*pair) for pair in zip(texts[:4], texts[8:], strict=True)
    ]


def make(folder: Path, kind: str, **settings: Any) -> Any:
    return text_folder(folder, kind, mapping=MAPPING, id2label=LABELS, **settings)


def run(folder: Path, items: list[ClassifyItem], **spec: Any) -> list[Classification]:
    with LocalWorker(
        [ModelSpec("m", str(folder), task="classify", **({"dtype": "float32"} | spec))], device="cpu"
    ) as worker:
        return worker.run("classify", items, model="m")


def open_task(folder: Path) -> ClassifyTask:
    spec = ModelSpec("m", str(folder), task="classify")
    return ClassifyTask.open(ModelFolder("m", folder), spec=spec, device=CPU, dtype=torch.float32)


def logits_of(results: list[Classification]) -> np.ndarray:
    return np.stack([result.logits for result in results])


def theirs(folder: Path, model: Any, items: list[ClassifyItem]) -> tuple[np.ndarray, list[int]]:
    """Logits one text at a time, and tokens, of texts cut to 40 tokens."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    counts = [len(tokenizer.encode(item.text, item.pair)) for item in items]
    tokenizer.enable_truncation(40)
    logits = []
    for item in items:
        encoding = tokenizer.encode(item.text, item.pair)
        typed = {"token_type_ids": torch.tensor([encoding.type_ids])} if model.config.model_type == "bert" else {}
        with torch.inference_mode():
            logits.append(model(input_ids=torch.tensor([encoding.ids]), **typed).logits[0].numpy())
    return np.stack(logits), counts


def test_a_text_gets_one_logit_a_class_and_classes_have_names(tmp_path: Path) -> None:
    make(tmp_path, "bert")
    with LocalWorker([ModelSpec("m", str(tmp_path), task="classify", dtype="float32")], device="cpu") as worker:
        (result,) = worker.run("classify", [ClassifyItem("my card was declined")], model="m")
        loaded = worker.load("m", task="classify")
    assert (result.logits.shape, result.logits.dtype) == ((3,), np.float32)
    assert (result.tokens, result.truncated) == (6, False)
    assert loaded.task.labels == ("card", "cash", "loan")  # type: ignore[attr-defined]
    assert loaded.dim == 3


@pytest.mark.parametrize("kind", sorted(CLASSIFIERS))
def test_logits_are_those_of_transformers_whatever_the_company(
    tmp_path: Path, items: list[ClassifyItem], kind: str
) -> None:
    model = make(tmp_path, kind)
    expected, counts = theirs(tmp_path, model, items)
    results = run(tmp_path, items)
    np.testing.assert_allclose(logits_of(results), expected, rtol=0, atol=1e-4)
    assert np.abs(expected - expected[0]).max() > 1e-2
    assert [result.tokens for result in results] == counts
    assert [result.truncated for result in results] == [count > 40 for count in counts]
    alone = [run(tmp_path, [item])[0] for item in items[:3]]
    np.testing.assert_allclose(logits_of(alone), expected[:3], rtol=0, atol=1e-4)


def test_the_two_texts_of_a_pair_are_told_apart(tmp_path: Path) -> None:
    make(tmp_path, "bert")
    one, other, joined = run(tmp_path, [ClassifyItem("a b", "c"), ClassifyItem("a", "b c"), ClassifyItem("a b c")])
    assert np.abs(one.logits - other.logits).max() > 1e-3
    assert (one.tokens, joined.tokens) == (6, 5)


def test_a_decoder_without_a_padding_token_judges_one_text_at_a_time(tmp_path: Path) -> None:
    items = [ClassifyItem("a text"), ClassifyItem("a somewhat longer text"), ClassifyItem("[PAD]")]
    model = make(tmp_path, "llama", pad_token_id=None)
    expected, _ = theirs(tmp_path, model, items)
    np.testing.assert_allclose(logits_of(run(tmp_path, items)), expected, rtol=0, atol=1e-4)


def test_bfloat16_gives_nearly_the_same(tmp_path: Path, items: list[ClassifyItem]) -> None:
    make(tmp_path, "roberta")
    exact, rounded = (logits_of(run(tmp_path, items, dtype=dtype)) for dtype in ("float32", "bfloat16"))
    np.testing.assert_allclose(exact, rounded, rtol=0.1, atol=0.05)


def test_max_length_cuts_texts_and_says_so(tmp_path: Path) -> None:
    make(tmp_path, "bert")
    (result,) = run(tmp_path, [ClassifyItem("one two three four five", "six")], max_length=6)
    assert (result.tokens, result.truncated) == (9, True)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 5}))
    assert open_task(tmp_path).prepare(ClassifyItem("one two three four five")).length == 5


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("text", r"item 1 must be a ClassifyItem\. Got str"),
        (ClassifyItem(3), r"item 1 must be text\. Got int"),  # type: ignore[arg-type]
        (ClassifyItem("a", 3), r"item 1 must be text\. Got int"),  # type: ignore[arg-type]
        (ClassifyItem("a", "\ud800"), "item 1 holds half a surrogate pair"),
    ],
)
def test_what_is_no_text_is_refused_by_its_index(tmp_path: Path, item: Any, message: str) -> None:
    make(tmp_path, "bert")
    with pytest.raises(ItemError, match=message) as caught:
        run(tmp_path, [ClassifyItem("fine"), item])
    assert caught.value.index == 1


def test_a_text_without_tokens_is_refused_where_no_special_token_stands_in(tmp_path: Path) -> None:
    make(tmp_path, "bert", bare=True)
    with pytest.raises(ItemError, match="item 0 has no tokens"):
        run(tmp_path, [ClassifyItem("")])


def test_a_folder_without_a_head_is_refused(tmp_path: Path) -> None:
    text_folder(tmp_path / "bare", "bert", mapping="MODEL_MAPPING")
    with pytest.raises(ModelError, match="describes a BertModel, which has no head for classes; the task needs"):
        open_task(tmp_path / "bare")
    config = json.loads((tmp_path / "bare" / "config.json").read_text())
    (tmp_path / "bare" / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k != "architectures"})
    )
    with pytest.raises(ModelError, match=r"tensors are missing from .*: classifier\.bias, classifier\.weight"):
        open_task(tmp_path / "bare")
    (tmp_path / "bare" / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ModelError, match="vit has no sequence classifier in transformers"):
        open_task(tmp_path / "bare")


def test_a_checkpoint_that_does_not_fit_is_refused_by_the_names_of_its_tensors(tmp_path: Path) -> None:
    make(tmp_path, "distilbert")
    whole = load_file(tmp_path / "model.safetensors")
    save_file(whole | {"lora_A.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"holds tensors that its encoder lacks: lora_A\.weight"):
        open_task(tmp_path)
    save_file(whole | {"classifier.weight": torch.zeros(9, 32)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"classifier\.weight has shape \(9, 32\), but config\.json means \(3, 32\)"):
        open_task(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    save_file(whole, tmp_path / "model.safetensors")
    with pytest.raises(ModelNotFoundError, match=r"has no tokenizer\.json"):
        open_task(tmp_path)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "bert", vocab_size=1000)
    with pytest.raises(ModelError, match=r"tokenizer\.json has 30522 tokens, but the model only 1000"):
        open_task(tmp_path)


def test_a_model_that_gives_nan_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "bert")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["classifier.bias"][:] = torch.nan
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WorkerError, match="FloatingPointError: a logit of text 0 of the batch is not finite"):
        run(tmp_path, [ClassifyItem("a")])
