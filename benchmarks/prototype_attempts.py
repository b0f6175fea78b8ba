"""Ways to assign rows to prototypes, to beat scikit-learn by more: each against the bare product, in turns.

What we ship multiplies 1,024 rows in one thread, so that the bits do not depend on the number of threads. The others
multiply smaller or larger chunks in one thread, or blocks of 4,096 rows that the library splits over all threads. The
rows are recorded beside those of `benchmarks.prototypes`.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import blas_kernels, finished, record, table, with_the_processors_own_blas
from benchmarks.prototypes import Product, clustered, median, scikit_learn, seconds
from datapipe.metrics import assign
from datapipe.metrics.assign import Assigner

if TYPE_CHECKING:
    from collections.abc import Callable

    from datapipe.storage.arrays import Float32

VARIANTS = {
    "chunks of 1,024 rows": 1024,
    "chunks of 256 rows": 256,
    "chunks of 512 rows": 512,
    "chunks of 4,096 rows": 4096,
    "blocks split by the library": None,
}
BLOCK_ROWS = 4096


def split_by_the_library(vectors: Float32, prototypes: Float32) -> Callable[[], object]:
    """Nearest prototype with one product over all threads and one argmax a block."""
    import torch

    right = torch.from_numpy(np.ascontiguousarray(prototypes.T))
    out, lines = torch.empty(BLOCK_ROWS, len(prototypes)), np.arange(BLOCK_ROWS)

    def work() -> None:
        for start in range(0, len(vectors), BLOCK_ROWS):
            cosines = torch.mm(torch.from_numpy(vectors[start : start + BLOCK_ROWS]), right, out=out).numpy()
            cosines[lines, np.argmax(cosines, axis=1)].copy()

    return work


def measure(*, variant: str, rows: int, dim: int, k: int, rounds: int) -> dict[str, Any]:
    """Compare one variant with the bare product and with scikit-learn, alternating.

    `most_times_scikit_learn` is what a method would reach that is nothing but the product, in the same rounds.
    """
    vectors, prototypes = clustered(rows, dim, seed=0), clustered(k, dim, seed=1)
    chunk = VARIANTS[variant]
    assign.CHUNK_ROWS = chunk or assign.CHUNK_ROWS
    with Assigner(prototypes) as assigner, Product(vectors, prototypes) as product:
        ours = split_by_the_library(vectors, prototypes) if chunk is None else lambda: assigner.assign(vectors)
        work: dict[str, Callable[[], object]] = {
            "product_one_call": lambda: product.one_call(rows),
            "product_thread_each": lambda: product.a_thread_each(rows),
            "assign": ours,
            "scikit_learn": scikit_learn(vectors, prototypes),
        }
        for warm in work.values():
            warm()
        taken = [{name: seconds(run) for name, run in work.items()} for _ in range(rounds)]
    bare = [min(times["product_one_call"], times["product_thread_each"]) for times in taken]
    return {
        "rows_per_s": round(rows / min(times["assign"] for times in taken)),
        "rows_per_s_scikit_learn": round(rows / min(times["scikit_learn"] for times in taken)),
        "product_gflops": round(2e-9 * rows * dim * k / min(bare), 1),
        "share_of_product": median(p / times["assign"] for p, times in zip(bare, taken, strict=True)),
        "times_scikit_learn": median(times["scikit_learn"] / times["assign"] for times in taken),
        "most_times_scikit_learn": median(times["scikit_learn"] / p for p, times in zip(bare, taken, strict=True)),
        "scikit_learn_kernel": blas_kernels(),
    }


def main() -> None:
    """Measure every variant that is not recorded yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32_768)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--k", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=41)
    sizes = vars(parser.parse_args())
    with_the_processors_own_blas()
    for variant in VARIANTS:
        config = {"variant": variant, **sizes}
        if not finished("prototypes", {"what": "attempt", **config}):
            record("prototypes", measure(**config), {"what": "attempt", **config})
    print(table("prototypes"))


if __name__ == "__main__":
    main()
