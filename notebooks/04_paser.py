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
# # Heal a pruned language model with few rows
#
# A pruned model has not forgotten everything alike. `select_recovery` clusters an instruction pool into skills, measures
# how far the pruned model has moved away from the original on each, gives each skill a part of the budget by that, and
# picks rows ([PASER](https://arxiv.org/abs/2502.12594)). Open this file with jupytext, or run it as a script. It needs no
# download: its models are tiny ones that learn here for some seconds. Use yours in their place, such as
# `HuggingFaceTB/SmolLM2-135M-Instruct` and what a pruner has left of it.

# %%
import os
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import polars as pl
import torch

import datapipe
from datapipe.paser.damage import drop_blocks, round_weights

root = next(folder for folder in [Path.cwd(), *Path.cwd().parents] if (folder / "data" / "dolly_3k.parquet").exists())
work = Path(tempfile.mkdtemp())
torch.set_num_threads(1)  # the models here are so small that threads would only wait for one another
dolly = (
    pl.read_parquet(root / "data" / "dolly_3k.parquet")
    .drop("source")
    .rename({"category": "source"})
    .filter(
        pl.col("instruction").str.len_chars().is_between(10, 100), pl.col("output").str.len_chars().is_between(10, 120)
    )
)
pool = dolly.head(128)
pool.write_parquet(work / "pool.parquet")
pool.group_by("source").len().sort("len", descending=True)

# %% [markdown]
# ## A model, and what was made of it
#
# Four blocks that learn Dolly for a moment. Then `drop_blocks` takes out the two that change their input least
# ([ShortGPT](https://arxiv.org/abs/2403.03853)), and `round_weights` leaves 2 bits of each weight. `datapipe damage` does
# the same; any other damage will do, as long as the tokenizer stays.

# %%
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from datapipe.weights import embedded_folder

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
fast = PreTrainedTokenizerFast(
    tokenizer_file=str(embedded_folder("all-MiniLM-L6-v2") / "tokenizer.json"), pad_token="[PAD]", eos_token="[SEP]"
)
fast.chat_template = (
    "{% for message in messages %}{{ message['role'] }} : {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
torch.manual_seed(0)
original = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=101,
        eos_token_id=102,
    )
)
descent = torch.optim.AdamW(original.parameters(), lr=3e-3)
texts = [f"user : {row['instruction']}\nassistant : {row['output']}" for row in pool.to_dicts()]
for step in range(40):
    batch = fast(texts[8 * step % 128 :][:8], padding=True, truncation=True, max_length=64, return_tensors="pt")
    ids = batch["input_ids"]
    loss = original(**batch, labels=ids.masked_fill(ids == 0, -100)).loss
    descent.zero_grad()
    loss.backward()
    descent.step()
original.save_pretrained(work / "original")
fast.save_pretrained(work / "original")
dropped = drop_blocks(work / "original", work / "dropped", keep=2, texts=texts[:8])
round_weights(work / "original", work / "rounded", bits=2, group=64)
round(loss.item(), 2), dropped.removed

# %% [markdown]
# ## Which rows heal it
#
# The same as `datapipe paser pool.parquet --original original --pruned dropped --pruned rounded --out run --keep 0.25`.
# The first pruned model decides which rows are kept; all of them stand in the damage atlas.

# %%
run = work / "run"
models = {"original": work / "original", "pruned": [work / "dropped", work / "rounded"], "device": "cpu"}
chosen = datapipe.select_recovery(work / "pool.parquet", **models, out=run, keep=0.25)
chosen

# %% [markdown]
# Skills, what they lost (capability degradation score, in nats) with its 95 % interval, and what they got.

# %%
chosen.clusters.select("cluster", "name", "rows", "cds", "low", "high", "share", "budget", "taken").collect()

# %% [markdown]
# The damage atlas: which skill each compression breaks; cluster -1 is all rows together.

# %%
chosen.damage.select("variant", "cluster", "name", "jsd_mean", "disagree", "nll_o", "nll_p").collect()

# %% [markdown]
# `kept.parquet` has the pool's own columns. `train.parquet` and `dataset_info.json` are the same rows in the shape that
# LLaMA-Factory reads. `report.html` shows all of it on one page, with maps of the pool.

# %%
sorted(path.name for path in run.iterdir() if path.is_symlink()), chosen.kept.collect().head(3)

# %% [markdown]
# ## Another choice costs nothing
#
# States of the original and damage of each row lie in the run folder, so other budgets, methods and weights run no
# model: here the published rule to the letter, then one source that is worth three times as much.

# %%
paper = datapipe.select_recovery(work / "pool.parquet", **models, out=run, keep=0.25, mode="paper")
print(paper.counts, [timing.stage for timing in paper.timings if not timing.reused])
wanted = datapipe.select_recovery(work / "pool.parquet", **models, out=run, keep=0.25, source_prior={"closed_qa": 3.0})
wanted.kept.collect()["source"].value_counts(sort=True)

# %% [markdown]
# ## Train on them
#
# `datapipe recover RUN --model dropped --out healed` reads what was kept. Whether the choice beats random rows of the
# same tokens is for your own evaluation to say; a tiny model and some thirty rows cannot.

# %%
from datapipe.paser.recovery import RecoveryRecipe, recover

recipe = RecoveryRecipe(tokens=8_000, batch_tokens=512, max_length=128, learning_rate=1e-3)
healed = recover(run, model=work / "dropped", out=work / "healed", recipe=recipe, device="cpu")
healed.course.steps, round(healed.loss_before, 2), round(healed.loss_after, 2)

# %% [markdown]
# The healed model is one more version of the original, so it has a place in the atlas, at the cost of one pass: how far
# it is from the original now, and what it makes of the responses of the whole pool.

# %%
models["pruned"] = [work / "dropped", work / "healed"]
after = datapipe.select_recovery(work / "pool.parquet", **models, out=run, keep=0.25)
print([timing.stage for timing in after.timings if not timing.reused])
after.damage.filter(pl.col("cluster") == -1).select("variant", "jsd_mean", "disagree", "nll_o", "nll_p").collect()
