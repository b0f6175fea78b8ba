"""Write the tables of the README from the results: `python -m benchmarks.readme`.

Each block between `<!-- bench:NAME -->` and `<!-- end -->` becomes the table of `results/NAME.json`; a block
`<!-- bench:NAME key=value … -->` holds the rows with those values.
"""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.common import table

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCK = re.compile(r"(<!-- bench:(\w+)((?: \w+=\w+)*) -->\n)(.*?)(<!-- end -->)", flags=re.DOTALL)


STORE = [
    *("labels", "format", "bytes_a_row", "write_rows_s", "sequential_rows_s", "random_rows_s"),
]
COLUMNS = {
    "paser_clusters quality": ["rows", "method", "clusters", "nmi", "nmi_half", "ari", "ari_half"],
    "paser_clusters cost": ["rows", "method", "k", "clusters", "seconds", "cpu_s", "peak_rss_mb", "nmi", "load_before"],
    "soft_label_store 1000": STORE,
    "soft_label_store 49152": STORE,
    "scale": [
        *("rows", "real_rows", "seconds", "rows_per_s", "ingest_s", "fit_s", "score_s", "select_s", "export_s"),
        *("report_s", "peak_rss_MB", "source_GB", "run_GB", "load_before"),
    ],
    "scoring_cost": [
        *("metric", "way", "rows", "seconds", "cpu_seconds", "times_ours", "times_ours_cpu", "of", "load"),
    ],
    "dedup labels": ["set", "threshold", "pairs", "above", "same_above", "precision", "found"],
    "dedup recall": ["rows", "lists", "probes", "threshold", "pairs", "recall", "rows_that_go", "rows_alike"],
    "dedup cost": [
        *("rows", "lists", "build_s", "search_s", "search_cpu_s", "pairs", "rows_that_go", "faiss_search_s"),
        *("times_faiss", "times_faiss_cpu"),
    ],
    "soft_label_loss": [
        *("labels", "bytes_a_position", "exact_loss", "loss_bias", "loss_rmse_batch", "gradient_bias"),
        *("gradient_rmse", "summed_gradient_rmse"),
    ],
    "embedding": [
        *("data", "device", "method", "dtype", "batch", "rows_per_second", "times_st_float32_default"),
        *("times_st_float32_best", "times_st_bfloat16_best", "cosine_least"),
    ],
    "serving": [
        *("server", "dtype", "clients", "requests_per_s", "p50_ms", "p95_ms", "p99_ms", "times_infinity"),
        *("p99_of_infinity", "least_cosine"),
    ],
    "sharing": [
        *("device", "way", "online_per_s", "p50_ms", "p95_ms", "alone_p95_ms", "times_alone_p95"),
        *("share_of_bulk_alone", "memory_mib"),
    ],
    "provence_quality macro": [
        *("method", "squad11_dev", "squad20_dev", "wikiqa", "syllabusqa", "entailmentbank", "hotpotqa_sample"),
        *("fairytaleqa", "expmrc", "mean", "mean_low", "mean_high"),
    ],
    "provence_calibration": [
        *("set", "method", "made_on", "questions", "requested", "achieved", "achieved_low", "achieved_high", "removed"),
    ],
    "provence_speed": [
        *("device", "model", "way", "dtype", "documents_per_s", "times_float32_loop", "times_bfloat16_loop"),
        *("useful_tflops", "share_of_product", "decisions_unlike", "sentences"),
    ],
    "provence_onnx": [
        *("model", "way", "documents", "documents_per_s", "cpu_ms_a_document", "sentences", "unlike", "beyond_margin"),
        *("mean_difference", "largest_difference", "score_correlation"),
    ],
    "pruning_text_means": [
        *("dataset", "method", "kept_5", "kept_10", "kept_20", "kept_30", "kept_50", "kept_70", "kept_90", "kept_100"),
    ],
    "pruning_text_worst": [
        *("dataset", "method", "kept_5", "kept_10", "kept_20", "kept_30", "kept_50", "kept_70", "kept_90", "kept_100"),
    ],
    "pruning_text_gaps default_labels": ["dataset", "fraction", "minus_random", "half_width", "verdict"],
    "pruning_images_means": ["encoder", "method", "kept_5", "kept_10", "kept_30", "kept_50", "kept_100"],
    "pruning_images_worst": ["encoder", "method", "kept_5", "kept_10", "kept_30", "kept_50", "kept_100"],
    "pruning_images_gaps default_label_free": [
        *("encoder", "fraction", "minus_random", "half_width", "verdict", "best_with_labels", "gap", "gap_closed"),
    ],
    "pruning_images_analysis clusters": ["encoder", "clusters", "accuracy", "mutual_information", "largest"],
    "pruning_images_analysis scores": ["encoder", "score", "correlation", "correlation_within_classes"],
    "pruning_gains": ["dataset", "fraction", "method", "random", "accuracy", "gain", "half_width"],
    "provence_training": ["model", "seconds", "held_macro", "loss"],
    "provence_tune": ["name", "tiling", "useful_tflops", "relative_error"],
    "provence_speed_latency": ["device", "model", "passages", "p50_ms", "p95_ms", "passages_per_s"],
    "gpu_embedding bulk": ["model", "data", "layout", "tokens_per_second", "useful_tflops", "share_of_ceiling"],
    "gpu_embedding online": ["model", "texts", "beside", "variant", "p50_seconds", "p95_seconds"],
    "gpu_embedding worker": ["model", "data", "items", "devices", "tokens_per_second", "share_of_ceiling"],
    "prototypes": [
        *("what", "variant", "rows", "dim", "k", "rows_per_s", "rows_per_s_bfloat16", "rows_per_s_scikit_learn"),
        *("product_gflops", "share_of_product", "share_of_product_bfloat16", "times_scikit_learn"),
        *("most_times_scikit_learn", "sample", "fit_s", "score_s", "peak_rss_mib"),
    ],
}
"""What the README shows of a benchmark; everything where it is not named here."""


def filled(text: str) -> str:
    """Return `text` with every block's table made anew."""

    def block(found: re.Match[str]) -> str:
        head, name, conditions, _, end = found.groups()
        only = dict(condition.split("=") for condition in conditions.split())
        columns = COLUMNS.get(" ".join([name, *list(only.values())[:1]]))
        return f"{head}{table(name, columns, only=only)}\n{end}"

    return BLOCK.sub(block, text)


def main() -> None:
    """Rewrite the README."""
    README.write_text(filled(README.read_text()))


if __name__ == "__main__":
    main()
