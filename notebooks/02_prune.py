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
# # Prune what was retrieved
#
# Cut from passages the sentences that a question does not need, and put the passages in order, in one pass of one small
# model. Open this file with jupytext, or run it as a script. It needs no download.

# %%
from pathlib import Path

import polars as pl

from provence import Pruner

root = next(
    folder for folder in [Path.cwd(), *Path.cwd().parents] if (folder / "data" / "squad20_dev.parquet").exists()
)
rows = pl.read_parquet(root / "data" / "squad20_dev.parquet").filter(pl.col("split") == "test", pl.col("answerable"))
question = rows["question"][0]
passages = rows.unique("context", maintain_order=True).head(8)
texts, titles = passages["context"].to_list(), passages["title"].to_list()
question

# %% [markdown]
# `default` is the model inside the package; a folder or a cached hub id of any family goes there too.

# %%
pruner = Pruner.load("default")
pruned = pruner.prune(question, texts, titles=titles)
pl.DataFrame(
    {
        "relevance": [context.relevance_score for context in pruned],
        "characters": [len(text) for text in texts],
        "cut": [round(context.compression, 2) for context in pruned],
        "left": [context.text[:80] for context in pruned],
    }
)

# %% [markdown]
# What is left is verbatim: the kept spans of the input, and every sentence says its probability and its reason.

# %%
best = max(pruned, key=lambda context: context.relevance_score)
source = texts[best.index]
assert best.text == "".join(source[start:end] for start, end in best.kept_spans)
pl.DataFrame(
    {
        "probability": [round(part.keep_probability, 3) for part in best.sentences],
        "kept": [part.kept for part in best.sentences],
        "reason": [part.reason for part in best.sentences],
        "sentence": [source[part.start : part.end][:90] for part in best.sentences],
    }
)

# %% [markdown]
# ## How much to keep
#
# A threshold, or a budget of tokens over all passages together. `top_n` gives the best passages first.

# %%
for wanted in ({"threshold": 0.05}, {"threshold": 0.5}, {"budget_tokens": 100}, {"top_n": 2}):
    kept = pruner.prune(question, texts, titles=titles, **wanted)
    print(f"{wanted!s:26} {sum(len(context.text) for context in kept):5} of {sum(map(len, texts))} characters")

# %% [markdown]
# ## As a page
#
# Marked parts are kept; the shade is the probability. `provence prune --html PAGE` writes the same.

# %%
from provence.render import Shown, page

shown = [Shown(f"passage {context.index}", texts[context.index], context) for context in pruned]
html = page(question, shown, model="default")
f"{len(html):,} characters of HTML"

# %% [markdown]
# ## In a chain
#
# `ProvenceCompressor` goes wherever LangChain takes a document compressor, such as `ContextualCompressionRetriever`.

# %%
from langchain_core.documents import Document

from provence.langchain import ProvenceCompressor

documents = [
    Document(id=str(place), page_content=text, metadata={"title": title})
    for place, (text, title) in enumerate(zip(texts, titles, strict=True))
]
compressor = ProvenceCompressor(top_n=3, title_key="title")
for document in compressor.compress_documents(documents, question):
    print(document.id, f"{document.metadata['relevance_score']:.3f}", document.page_content[:80])

# %%
pruner.close()
compressor.close()
