"""Token log probabilities and hidden states against transformers' own logits, and what is scored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis.strategies import integers, lists, text
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from datapipe.errors import ItemError, ModelError, WorkerError
from datapipe.workers.encoders.causal import CausalModel
from datapipe.workers.folder import ModelFolder
from datapipe.workers.spec import ModelSpec
from datapipe.workers.tasks.causal import CausalItem, CausalScores, CausalTask
from datapipe.workers.worker import LocalWorker
from tests.workers.tiny import CAUSAL, save_model, text_folder

if TYPE_CHECKING:
    from pathlib import Path

    from datapipe.workers.spec import DtypeName

CPU = torch.device("cpu")
MAPPING = "MODEL_FOR_CAUSAL_LM_MAPPING"


@pytest.fixture(scope="module")
def items(data: Path) -> list[CausalItem]:
    rows = pq.read_table(data / "dolly_3k.parquet").slice(0, 8).to_pylist()
    return [CausalItem(row["output"], row["instruction"] if place % 2 else "") for place, row in enumerate(rows)]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> CausalTask:
    folder = tmp_path_factory.mktemp("causal")
    make(folder, "llama")
    return open_task(folder)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> CausalTask:
    folder = tmp_path_factory.mktemp("bare")
    make(folder, "llama", bare=True)
    return open_task(folder)


def make(folder: Path, kind: str, **settings: Any) -> Any:
    return text_folder(folder, kind, mapping=MAPPING, **settings)


def open_task(folder: Path, **spec: Any) -> CausalTask:
    stated = ModelSpec("m", str(folder), task="causal", **spec)
    return CausalTask.open(ModelFolder("m", folder), spec=stated, device=CPU, dtype=torch.float32)


def run(folder: Path, items: list[CausalItem], *, dtype: DtypeName = "float32") -> list[CausalScores]:
    with LocalWorker([ModelSpec("m", str(folder), task="causal", dtype=dtype)], device="cpu") as worker:
        return worker.run("causal", items, model="m")


def score(task: CausalTask, *items: CausalItem) -> list[CausalScores]:
    prepared = task.prepare_many(items)
    return [task.finish(raw, each) for raw, each in zip(task.forward(prepared), prepared, strict=True)]


def plain_ids(folder: Path, text: str) -> list[int]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def theirs(model: Any, ids: list[int], scored: int) -> np.ndarray:
    """Log probabilities of the last `scored` tokens, by transformers, one text at a time and all logits at once."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(1)
    found: np.ndarray = logits[:-1].gather(1, torch.tensor(ids[1:]).unsqueeze(1))[-scored:, 0].numpy()
    return found


def test_each_token_of_a_text_gets_its_log_probability(task: CausalTask) -> None:
    (result,) = score(task, CausalItem("a tool for gardens", context="a secateur is"))
    assert result.token_ids.dtype == np.int32
    assert result.log_probabilities.dtype == np.float32
    assert len(result.token_ids) == len(result.log_probabilities) == 4
    assert (result.log_probabilities < 0).all()
    assert (result.truncated, result.hidden, result.states, result.dim) == (False, None, None, 32)


@pytest.mark.parametrize("kind", sorted(CAUSAL))
def test_log_probabilities_are_those_of_transformers(tmp_path: Path, items: list[CausalItem], kind: str) -> None:
    model = make(tmp_path, kind)
    results = run(tmp_path, items)
    for item, result in zip(items, results, strict=True):
        context, text = plain_ids(tmp_path, item.context), plain_ids(tmp_path, item.text)
        kept = text[:39]
        room = 39 - len(kept)
        ids = [101, *(context[-room:] if room else []), *kept]
        assert result.token_ids.tolist() == kept
        assert (result.tokens, result.truncated) == (1 + len(context) + len(text), 1 + len(context) + len(text) > 40)
        np.testing.assert_allclose(result.log_probabilities, theirs(model, ids, len(kept)), rtol=0, atol=1e-4)
    assert any(result.truncated for result in results)
    assert len(run(tmp_path, [])) == 0


def test_log_probabilities_do_not_depend_on_the_company(tmp_path: Path, items: list[CausalItem]) -> None:
    make(tmp_path, "qwen2")
    for together, item in zip(run(tmp_path, items), items, strict=True):
        (alone,) = run(tmp_path, [item])
        np.testing.assert_allclose(together.log_probabilities, alone.log_probabilities, rtol=0, atol=1e-5)


def test_hidden_states_give_the_logits_of_the_scored_tokens(tmp_path: Path, items: list[CausalItem]) -> None:
    make(tmp_path, "gemma2")
    task = open_task(tmp_path)
    mixed = [CausalItem(item.text, item.context, hidden=place % 2 == 0) for place, item in enumerate(items)]
    for item, result in zip(mixed, score(task, *mixed), strict=True):
        assert (result.hidden is None) == (not item.hidden)
        if result.states is not None:
            assert result.states.shape == (len(result.token_ids), 32)
            logits = task.model.logits(torch.from_numpy(result.states)).log_softmax(1).numpy()
            chosen = logits[np.arange(len(logits)), result.token_ids]
            np.testing.assert_allclose(chosen, result.log_probabilities, rtol=0, atol=1e-5)


def test_states_are_the_same_where_no_log_probabilities_are_wanted(task: CausalTask, items: list[CausalItem]) -> None:
    whole = score(task, *(CausalItem(item.text, item.context, hidden=True) for item in items))
    asked = [
        CausalItem(item.text, item.context, hidden=True, scores=place % 3 == 0) for place, item in enumerate(items)
    ]
    for item, one, other in zip(asked, whole, score(task, *asked), strict=True):
        np.testing.assert_array_equal(one.hidden, other.hidden)
        np.testing.assert_array_equal(one.token_ids, other.token_ids)
        assert len(other.log_probabilities) == (len(one.token_ids) if item.scores else 0)
    (nothing,) = score(task, CausalItem("a tool", scores=False))
    assert nothing.hidden is None
    assert not len(nothing.log_probabilities)


def test_chunks_of_rows_change_nothing(
    task: CausalTask, items: list[CausalItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score(task, *items)
    monkeypatch.setattr(task.model, "chunk_rows", 7)
    for one, other in zip(whole, score(task, *items), strict=True):
        np.testing.assert_allclose(one.log_probabilities, other.log_probabilities, rtol=0, atol=1e-5)


def test_the_head_alone_gives_the_whole_distribution(task: CausalTask) -> None:
    states = task.model.hidden([np.array([101, 5, 6], np.int32), np.array([101], np.int32)])
    logits = task.model.logits(states).clone()
    assert (states.shape, logits.dtype, logits.shape) == ((4, 32), torch.float32, (4, 30_522))
    targets = torch.tensor([5, 6, 30_521, 0])
    expected = logits.log_softmax(1).gather(1, targets.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(task.model.log_probabilities(states, targets), expected, rtol=0, atol=1e-5)


def test_without_an_opening_the_first_token_has_no_probability(bare: CausalTask) -> None:
    whole, rest, single, context = score(
        bare,
        CausalItem("tool for gardens", context="a"),
        CausalItem("tool for gardens"),
        CausalItem("tool", hidden=True),
        CausalItem("tool", context="a"),
    )
    assert len(whole.token_ids) == 3
    assert rest.token_ids.tolist() == whole.token_ids.tolist()[1:]
    assert (len(single.token_ids), len(single.log_probabilities), single.tokens) == (0, 0, 1)
    assert single.states is not None
    assert single.states.shape == (0, 32)
    assert len(context.token_ids) == 1
    (alone,) = score(bare, CausalItem("tool", hidden=True))
    assert len(alone.log_probabilities) == 0
    assert alone.states is not None


def test_the_tokens_of_a_text_are_the_same_whatever_its_context(task: CausalTask) -> None:
    alone, after = score(task, CausalItem("ing tool"), CausalItem("ing tool", context="prun"))
    assert alone.token_ids.tolist() == after.token_ids.tolist()
    assert np.abs(alone.log_probabilities - after.log_probabilities).max() > 1e-4


@given(context=integers(0, 60), length=integers(1, 60), limit=integers(2, 50))
def test_context_goes_first_then_the_end_of_the_text(task: CausalTask, context: int, length: int, limit: int) -> None:
    short = CausalTask(task.tokenizer, task.model, device=CPU, max_length=limit, folder=task.folder)
    prepared = short.prepare(CausalItem("b " * length, context="a " * context))
    a, b = (short.tokenizer.plain([letter], first=0)[0][0] for letter in "ab")
    kept = min(length, limit - 1)
    before = min(context, limit - 1 - kept)
    assert prepared.ids.tolist() == [101] + [a] * before + [b] * kept
    assert prepared.scored.tolist() == [b] * kept
    assert (prepared.total, prepared.length) == (1 + context + length, 1 + before + kept)


@given(texts=lists(text(max_size=8), min_size=1, max_size=6))
def test_any_text_is_scored_or_refused_by_its_index(bare: CausalTask, texts: list[str]) -> None:
    for place, each in enumerate(texts):
        try:
            (result,) = score(bare, CausalItem(each, context="a"))
        except ItemError as error:
            assert "has no tokens to score" in str(error) or "surrogate" in str(error), place  # noqa: PT017
        else:
            assert len(result.token_ids) == result.tokens - 1


def test_bfloat16_gives_nearly_the_same(tmp_path: Path, items: list[CausalItem]) -> None:
    make(tmp_path, "llama")
    for exact, rounded in zip(run(tmp_path, items), run(tmp_path, items, dtype="bfloat16"), strict=True):
        np.testing.assert_allclose(exact.log_probabilities, rounded.log_probabilities, rtol=0, atol=0.3)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("text", r"item 1 must be a CausalItem\. Got str"),
        (CausalItem(3), r"item 1 must be text\. Got int"),  # type: ignore[arg-type]
        (CausalItem("a", None), r"item 1 must be text\. Got NoneType"),  # type: ignore[arg-type]
        (CausalItem("\ud800"), "item 1 holds half a surrogate pair"),
        (CausalItem("", context="a"), "item 1 has no tokens to score"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_its_index(task: CausalTask, item: Any, message: str) -> None:
    with pytest.raises(ItemError, match=message) as caught:
        task.prepare_many([CausalItem("fine"), item])
    assert caught.value.index == 1


def test_a_model_that_reads_backwards_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "bert", is_decoder=False)
    with pytest.raises(ModelError, match=r"a BertLMHeadModel with this config\.json also reads backwards"):
        open_task(tmp_path)


def test_a_bert_that_is_a_decoder_is_scored(tmp_path: Path) -> None:
    model = make(tmp_path, "bert", is_decoder=True)
    (result,) = run(tmp_path, [CausalItem("a pruning tool")])
    ids = [101, *plain_ids(tmp_path, "a pruning tool")]
    np.testing.assert_allclose(result.log_probabilities, theirs(model, ids, len(ids) - 1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_tied_and_own_heads_are_checked(tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, kind)
    whole = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in whole) == (kind == "qwen2")
    capfd.readouterr()
    lost = "lm_head.weight" if kind == "qwen2" else "model.embed_tokens.weight"
    save_file({n: t for n, t in whole.items() if n != lost}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=rf"tensors are missing from {tmp_path}: .*{lost}"):
        open_task(tmp_path)
    save_file(whole | {"model.layers.9.mlp.up_proj.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"holds tensors that its encoder lacks: model\.layers\.9\.mlp"):
        open_task(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_other_folders_are_refused_by_their_reason(tmp_path: Path) -> None:
    text_folder(tmp_path / "vit", "distilbert", mapping="MODEL_MAPPING")
    with pytest.raises(ModelError, match="distilbert has no causal language model in transformers"):
        open_task(tmp_path / "vit")
    make(tmp_path / "small", "llama", vocab_size=1000)
    with pytest.raises(ModelError, match=r"tokenizer\.json has 30522 tokens, but the model only 1000"):
        open_task(tmp_path / "small")
    make(tmp_path / "short", "llama")
    with pytest.raises(ModelError, match="a max_length of 1 leaves no room for a text after 1 special tokens"):
        open_task(tmp_path / "short", max_length=1)


def test_a_head_that_does_not_come_apart_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "llama")
    own = transformers.LlamaForCausalLM.forward
    monkeypatch.setattr(
        transformers.LlamaForCausalLM,
        "forward",
        lambda self, input_ids=None, **given: (
            own(self, input_ids, **given)
            if input_ids is None
            else transformers.modeling_outputs.CausalLMOutput(logits=own(self, input_ids, **given).logits * 2)
        ),
    )
    with pytest.raises(
        ModelError, match=r"the head of a LlamaForCausalLM does not come apart .* \(its logits differ\)"
    ):
        open_task(tmp_path)


def test_a_model_that_gives_nan_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "qwen2")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.embed_tokens.weight"][plain_ids(tmp_path, "tool")] = torch.nan
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WorkerError, match="a log probability of item 0 of the batch is not finite"):
        run(tmp_path, [CausalItem("a garden"), CausalItem("a tool for gardens")])


def test_logits_of_many_rows_never_stand_side_by_side(tmp_path: Path) -> None:
    model = save_model(tmp_path, transformers.LlamaForCausalLM(transformers.LlamaConfig(**CAUSAL["llama"])))
    assert model.config.tie_word_embeddings
    found = CausalModel(ModelFolder("m", tmp_path), device=CPU, dtype=torch.float32)
    assert found.chunk_rows * found.vocabulary * 4 <= 64 << 20
    states = torch.randn(3, 32)
    first = found.logits(states)
    assert found.logits(states).data_ptr() == first.data_ptr()
    assert found.nbytes == sum(p.numel() * 4 for p in model.parameters()) + sum(
        b.numel() * b.element_size() for b in model.buffers()
    )
