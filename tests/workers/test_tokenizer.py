"""Token ids are those of the model's tokenizer.json, whatever padding and truncation it states itself."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import lists, text
from tokenizers import Tokenizer

from datapipe.errors import ItemError, ModelError, ModelNotFoundError
from datapipe.weights import embedded_folder
from datapipe.workers import tokenizer as module
from datapipe.workers.folder import ModelFolder
from datapipe.workers.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from pathlib import Path

MINILM = ModelFolder("minilm", embedded_folder("all-MiniLM-L6-v2"))
CLS, SEP = 101, 102


def test_the_file_s_own_padding_and_truncation_are_off() -> None:
    settings: Any = MINILM.json("tokenizer.json")
    assert settings["truncation"]["max_length"] == 128
    assert settings["padding"]["strategy"] == {"Fixed": 128}
    short, long = TextTokenizer(MINILM, max_length=256).encode(["hi", "word " * 200])
    assert (short.length, long.length) == (3, 202)


def test_a_long_text_is_cut_before_the_last_special_token_and_says_so() -> None:
    (tokens,) = TextTokenizer(MINILM, max_length=8).encode(["one two three four five six seven eight nine ten"])
    assert (tokens.ids[0], tokens.ids[-1]) == (CLS, SEP)
    assert (tokens.length, tokens.total, tokens.truncated) == (8, 12, True)


def test_a_text_that_just_fits_is_not_cut() -> None:
    (tokens,) = TextTokenizer(MINILM, max_length=12).encode(["one two three four five six seven eight nine ten"])
    assert (tokens.length, tokens.total, tokens.truncated) == (12, 12, False)


def test_the_empty_text_has_its_special_tokens() -> None:
    assert TextTokenizer(MINILM).encode([""])[0].ids.tolist() == [CLS, SEP]


@given(lists(text(max_size=60), max_size=8))
def test_ids_are_those_of_the_library_one_text_at_a_time(texts: list[str]) -> None:
    library = Tokenizer.from_file(str(MINILM.root / "tokenizer.json"))
    library.no_padding()
    library.no_truncation()
    whole = TextTokenizer(MINILM)
    assert [t.ids.tolist() for t in whole.encode(texts)] == [library.encode(t).ids for t in texts]
    assert whole.count(texts).tolist() == [len(library.encode(t).ids) for t in texts]


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text {number} " * (number % 7 + 1) for number in range(50)]
    whole = TextTokenizer(MINILM, max_length=9)
    at_once = whole.encode(texts)
    monkeypatch.setattr(module, "_CHUNK_CHARACTERS", 40)
    for one, other in zip(at_once, whole.encode(texts), strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        assert one.total == other.total


def test_lower_case_and_prefix_are_put_on_every_text() -> None:
    dressed = TextTokenizer(MINILM, lower=True, prefix="query: ", max_length=6)
    assert dressed.encode(["Hi"])[0].ids.tolist() == TextTokenizer(MINILM).encode(["query: hi"])[0].ids.tolist()
    assert dressed.encode(["Hi " * 20])[0].ids.tolist()[1:3] == dressed.encode(["Hi"])[0].ids.tolist()[1:3]


@pytest.mark.parametrize(
    ("texts", "index", "message"),
    [
        (["a", None], 11, "item 11 must be text. Got NoneType"),
        (["a", "b", "\ud800"], 12, "item 12 holds half a surrogate pair, which is no text"),
    ],
)
def test_what_is_no_text_is_refused_by_its_index(texts: list[str], index: int, message: str) -> None:
    with pytest.raises(ItemError, match=message) as caught:
        TextTokenizer(MINILM).encode(texts, first=10)
    assert caught.value.index == index


def test_a_text_without_tokens_is_refused_by_its_index(tmp_path: Path) -> None:
    settings: Any = MINILM.json("tokenizer.json")
    settings["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(ItemError, match="item 1 has no tokens") as caught:
        TextTokenizer(ModelFolder("m", tmp_path)).encode(["a", " "])
    assert caught.value.index == 1


def test_a_folder_without_tokenizer_json_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"has no tokenizer\.json; write one with AutoTokenizer"):
        TextTokenizer(ModelFolder("m", tmp_path))


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    shutil.copy(MINILM.root / "config.json", tmp_path / "tokenizer.json")
    with pytest.raises(ModelError, match=r"model m: .*tokenizer\.json is no tokenizer"):
        TextTokenizer(ModelFolder("m", tmp_path))
