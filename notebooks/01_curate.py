# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Curate a data set
#
# Score the banking77 questions by their distance to prototypes, keep a part, and look at what was kept and why.
# Open this file with jupytext, or run it as a script. It needs no download.

# %%
import tempfile
from pathlib import Path

import polars as pl

import datapipe

root = next(folder for folder in [Path.cwd(), *Path.cwd().parents] if (folder / "data" / "banking77.parquet").exists())
source = pl.read_parquet(root / "data" / "banking77.parquet").head(1500)
out = Path(tempfile.mkdtemp()) / "run"
source.head(3)

# %% [markdown]
# One call makes the run. Its folder is all the state there is: the same call again finds everything done.

# %%
result = datapipe.curate(source, out=out, keep=0.3, text_column="text", label_column="label_name")
result

# %%
result.counts, result.reasons

# %% [markdown]
# `kept` is a LazyFrame over `kept.parquet`; `scores` and `selection` hold every row.

# %%
table = result.scores.join(result.selection, on="row_id", how="left", maintain_order="left").collect()
table.group_by("kept").agg(rows=pl.len(), mean_score=pl.col("prototypes").mean()).sort("kept")

# %% [markdown]
# ## Another budget in the same folder
#
# Only the choice is made again: the embeddings and scores are there already.

# %%
hard = datapipe.curate(
    source, out=out, keep=0.8, strategy="hard", text_column="text", label_column="label_name", dedup="exact"
)
for timing in hard.timings:
    print(f"{timing.stage:8} {timing.seconds:6.2f} s {'done before' if timing.reused else ''}")
hard.counts, hard.manifest["selection"]["warnings"]

# %% [markdown]
# ## The hardest and the easiest questions

# %%
texts = datapipe.scan(source).select("row_id", "text", "label_name")
ranked = texts.join(hard.scores, on="row_id", how="inner", maintain_order="left").sort("prototypes", "row_id").collect()
pl.concat([ranked.head(4), ranked.tail(4)])

# %% [markdown]
# ## On a frame, without a run folder

# %%
chosen = (
    source.lazy()
    .head(300)
    .pipe(datapipe.score, metric="prototypes", text_column="text")
    .pipe(datapipe.select, keep=0.25, strategy="strata")
    .collect()
)
chosen.select("text", "score_prototypes", "kept", "reason", "stratum").head(5)

# %%
assert chosen["kept"].sum() == 75
assert datapipe.verify(out).ok
