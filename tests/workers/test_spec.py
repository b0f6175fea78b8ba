from __future__ import annotations

from typing import Any

import pytest

from datapipe.errors import ConfigError
from datapipe.workers.spec import DEFAULT_EMBEDDER, ModelSpec, spec_of


def test_a_model_named_by_its_source_is_its_own_spec() -> None:
    assert spec_of("owner/name") == ModelSpec("owner/name", "owner/name")


def test_default_is_the_embedded_embedder() -> None:
    assert spec_of("default").source == DEFAULT_EMBEDDER.source == "embedded:all-MiniLM-L6-v2"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, "a model needs a name and a source"),
        ({"source": "a\0b"}, "a model needs a name and a source"),
        ({"digest": "abc"}, r"the digest of model m must be 64 hex digits \(SHA-256\)\. Got 'abc'"),
        ({"dtype": "int4"}, r"the dtype of model m must be one of auto, float32, bfloat16, float16\. Got 'int4'"),
        ({"max_length": 0}, r"the max_length of model m must be at least 1\. Got 0"),
        (
            {"source": "embedded:x", "revision": "main"},
            r"model m is embedded and has no revisions\. Got revision 'main'",
        ),
    ],
)
def test_a_spec_refuses_what_is_out_of_range(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelSpec(**({"name": "m", "source": "s"} | fields))
