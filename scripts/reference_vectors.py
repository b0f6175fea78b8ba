"""Make the reference vectors of the tests: sentence-transformers on the official float32 all-MiniLM-L6-v2.

    python scripts/reference_vectors.py FOLDER

FOLDER holds the model as published. The texts are rows of `data/` that the embedded weights were not rounded with,
short and long ones, some longer than the model's 256 tokens. Writes tests/workers/data/minilm_reference.parquet.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from quantise_minilm import OFFICIAL_SHA256, ROOT, split
from sentence_transformers import SentenceTransformer

from datapipe.storage.digest import file_sha256

TARGET = ROOT / "tests" / "workers" / "data" / "minilm_reference.parquet"
SHORT, LONG = 18, 4
"""Texts of each data set: evenly spread, and the longest of them."""


def main() -> None:
    """Embed and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="sentence-transformers/all-MiniLM-L6-v2 as published.")
    folder = parser.parse_args().folder
    found = file_sha256(folder / "model.safetensors")
    if found != OFFICIAL_SHA256:
        raise SystemExit(f"{folder}/model.safetensors has SHA-256 {found}, the official one {OFFICIAL_SHA256}")
    _, measuring = split()
    texts: list[str] = []
    for chosen in measuring.values():
        texts += chosen[:: len(chosen) // SHORT][:SHORT]
        texts += sorted(set(chosen), key=len)[-LONG:]
    model = SentenceTransformer(str(folder), device="cpu")
    vectors = model.encode(texts, batch_size=1)
    tokens = [len(ids) for ids in model.tokenizer(texts, truncation=False)["input_ids"]]
    table = pa.table(
        {
            "text": texts,
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float32()), vectors.shape[1]),
            "tokens": pa.array(tokens, pa.int32()),
        }
    )
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, TARGET, compression="zstd", use_dictionary=False, write_statistics=False)
    print(f"{TARGET.relative_to(ROOT)}: {len(texts)} texts, {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
