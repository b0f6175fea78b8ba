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
# # Train on few rows with a teacher
#
# With knowledge distillation, random rows are about as good as carefully chosen ones, so the pruned set is a random one
# and a teacher that has seen everything says what the rows that went would have taught
# ([Ben-Baruch et al.](https://arxiv.org/abs/2403.07854)). Open this file with jupytext, or run it as a script. It needs
# no download.

# %%
import os
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import polars as pl
import torch

import datapipe
from datapipe.distill.dataset import SoftLabelCollator, SoftLabelDataset, batch_loss
from datapipe.distill.losses import kd_loss, targets_of

root = next(folder for folder in [Path.cwd(), *Path.cwd().parents] if (folder / "data" / "banking77.parquet").exists())
work = Path(tempfile.mkdtemp())
torch.manual_seed(0)
torch.set_num_threads(1)  # the models here are so small that threads would only wait for one another
questions = pl.read_parquet(root / "data" / "banking77.parquet").filter(pl.col("label") < 20)
train, test = (questions.filter(pl.col("split") == part) for part in ("train", "test"))
train = train.group_by("label", maintain_order=True).head(24)
train.height, test.height

# %% [markdown]
# ## Random rows, and a teacher
#
# `head` is a teacher that every run with vectors and labels can have: small networks on the run's frozen vectors, each
# row judged by one that has not seen it. A fine-tuned classifier does better: name its folder or a cached hub id
# instead. `datapipe soft-labels RUN --teacher head` does the same.

# %%
run = work / "run"
columns = {"text_column": "text", "label_column": "label_name"}
datapipe.curate(train, out=run, keep=0.4, strategy="random", **columns)
labels = datapipe.soft_labels(run, teacher="head")
labels.facts["rows"], labels.facts["bytes_a_row"], labels.facts["disagreeing"], labels.facts["contradicted"]

# %% [markdown]
# The manifest says how much the student should listen to the teacher, and what that rests on.

# %%
labels.facts["alpha"]

# %% [markdown]
# A smaller budget of the same rows keeps some of the same ones, so it reads the labels that are there: no teacher runs,
# and the weight of the teacher rises.

# %%
datapipe.curate(train, out=run, keep=0.2, strategy="random", **columns)
labels = datapipe.soft_labels(run, teacher="head")
labels.facts["rows"], [timing.stage for timing in labels.timings], round(labels.alpha, 3)

# %% [markdown]
# ## A student from scratch
#
# A bag of words, trained on the kept rows with the labels alone and with the teacher too. `kd_loss` is
# `(1 - alpha) CE + alpha T² KL(teacher || student)`.

# %%
from tokenizers import Tokenizer

from datapipe.weights import embedded_folder

tokenizer = Tokenizer.from_file(str(embedded_folder("all-MiniLM-L6-v2") / "tokenizer.json"))
tokenizer.no_padding()
store = labels.store(class_names=sorted(train["label_name"].unique()))
names = store.header.class_names
kept = pl.read_parquet(run / "kept.parquet")
stored = store.read(np.arange(len(store.row_ids)))
targets = targets_of(stored.labels, store.header)
alphas = torch.tensor(stored.fact("kd_alpha").filled(labels.alpha))
truth = torch.tensor([names.index(name) for name in kept["label_name"]])


def words(texts):
    ids = [tokenizer.encode(text).ids for text in texts]
    offsets = np.cumsum([0, *map(len, ids)])[:-1]
    return torch.tensor(np.concatenate(ids)), torch.tensor(offsets)


def accuracy_of(alpha, temperature=2.0, steps=100):
    torch.manual_seed(0)
    student = torch.nn.Sequential(
        torch.nn.EmbeddingBag(tokenizer.get_vocab_size(), 64), torch.nn.ReLU(), torch.nn.Linear(64, len(names))
    )
    descent = torch.optim.AdamW(student.parameters(), lr=0.01)
    ids, offsets = words(kept["text"])
    for _ in range(steps):
        descent.zero_grad()
        logits = student[1:](student[0](ids, offsets))
        kd_loss(logits, targets, truth, alpha=alpha, temperature=temperature).backward()
        descent.step()
    with torch.inference_mode():
        found = student[1:](student[0](*words(test["text"]))).argmax(1)
    return float((found == torch.tensor([names.index(name) for name in test["label_name"]])).float().mean())


print(f"labels alone {accuracy_of(torch.zeros_like(alphas)):.3f}, with the teacher {accuracy_of(alphas):.3f}")

# %% [markdown]
# ## In the Hugging Face `Trainer`
#
# `SoftLabelDataset` joins your rows with the store by `row_id`, `SoftLabelCollator` adds soft labels and weights to your
# own batch, `batch_loss` is the loss. The student here is a BERT of two layers with random weights.

# %%
import transformers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

transformers.logging.set_verbosity_error()
fast = PreTrainedTokenizerFast(
    tokenizer_file=str(embedded_folder("all-MiniLM-L6-v2") / "tokenizer.json"), pad_token="[PAD]", eos_token="[SEP]"
)
SOFT = ("soft_labels", "kd_alpha", "soft_rows", "soft_places", "soft_classes")


class Distilling:
    """Mix into a Trainer: the loss of a batch that SoftLabelCollator made."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        soft = {name: inputs[name] for name in SOFT if name in inputs}
        plain = {name: value for name, value in inputs.items() if name not in {*SOFT, "labels"}}
        outputs = model(**plain)
        loss = batch_loss(outputs.logits, {**soft, "labels": inputs.get("labels")})
        return (loss, outputs) if return_outputs else loss


class DistillingTrainer(Distilling, Trainer):
    pass


rows = [
    {"row_id": row["row_id"], "labels": names.index(row["label_name"]), **fast(row["text"])} for row in kept.to_dicts()
]
shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
trainer = DistillingTrainer(
    BertForSequenceClassification(BertConfig(vocab_size=len(fast), num_labels=len(names), **shape)),
    TrainingArguments(
        str(work / "bert"),
        max_steps=10,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        logging_steps=5,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
    ),
    train_dataset=SoftLabelDataset(store, rows),
    data_collator=SoftLabelCollator(store, alpha=labels.alpha, collate=DataCollatorWithPadding(fast)),
)
trainer.train()
[round(entry["loss"], 3) for entry in trainer.state.log_history if "loss" in entry]

# %% [markdown]
# ## Language models: tokens, and TRL's `SFTTrainer`
#
# A causal teacher says what could follow at every token of the responses. Whole distributions over a vocabulary are far
# too large, so 64 draws a token are stored, without bias, or the most probable tokens with `top_k`. This notebook has no
# language model to start from, so its teacher is a tiny one that learns here for some seconds: use yours, such as
# `HuggingFaceTB/SmolLM2-135M-Instruct`, in its place.

# %%
from transformers import LlamaConfig, LlamaForCausalLM


def llama(width):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(fast),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=101,
            eos_token_id=102,
        )
    )


def tokens(prompt, response):
    """As the teacher reads them: what its template puts before a text, then prompt and response, each by itself."""
    first, *second = (fast(text, add_special_tokens=False)["input_ids"] for text in (prompt, response))
    ids = [fast.convert_tokens_to_ids("[CLS]"), *first, *second[0]][:128]
    return ids, [-100] * (1 + len(first)) + second[0]


dolly = (
    pl.read_parquet(root / "data" / "dolly_3k.parquet")
    .select("instruction", "output")
    .filter(
        pl.col("instruction").str.len_chars().is_between(10, 120), pl.col("output").str.len_chars().is_between(10, 160)
    )
)
teacher = llama(64)
descent = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
for step in range(25):
    batch = [tokens(*row)[0] for row in dolly.sample(8, seed=step).iter_rows()]
    longest = max(map(len, batch))
    ids = torch.tensor([each + [0] * (longest - len(each)) for each in batch])
    loss = teacher(input_ids=ids, labels=ids.masked_fill(ids == 0, -100)).loss
    descent.zero_grad()
    loss.backward()
    descent.step()
teacher.save_pretrained(work / "teacher")
fast.save_pretrained(work / "teacher")
round(loss.item(), 3)

# %%
pool = work / "pool"
datapipe.curate(dolly, out=pool, keep=0.1, metric="random", strategy="random", text_column="output")
taught = datapipe.soft_labels(
    pool, teacher=str(work / "teacher"), prompt_column="instruction", response_column="output", device="cpu"
)
taught.facts["rows"], taught.facts["positions"], round(taught.facts["bytes"] / taught.facts["positions"])

# %% [markdown]
# The student must have the teacher's tokenizer; the store refuses another one, and rows that are cut otherwise. TRL takes
# `datasets.Dataset` alone, so the joined rows are made one.

# %%
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from datapipe.embedding.text import tokenizer_digest


class DistillingSFTTrainer(Distilling, SFTTrainer):
    pass


def padded(batch):
    longest = max(len(row["input_ids"]) for row in batch)
    fill = lambda name, value: torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in batch])
    return {
        "input_ids": fill("input_ids", 0),
        "attention_mask": fill("attention_mask", 0),
        "labels": fill("labels", -100),
    }


token_store = taught.store(tokenizer=tokenizer_digest(str(work / "teacher")))
responses = []
for row in pl.read_parquet(pool / "kept.parquet").to_dicts():
    ids, own = tokens(row["instruction"], row["output"])
    responses.append({"row_id": row["row_id"], "input_ids": ids, "attention_mask": [1] * len(ids), "labels": own})
joined = SoftLabelDataset(token_store, responses)
sft = DistillingSFTTrainer(
    llama(32),
    SFTConfig(
        str(work / "student"),
        max_steps=6,
        per_device_train_batch_size=8,
        learning_rate=3e-3,
        logging_steps=3,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        remove_unused_columns=False,
        disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True},
    ),
    train_dataset=Dataset.from_list([joined[place] for place in range(len(joined))]),
    data_collator=SoftLabelCollator(token_store, alpha=taught.alpha, collate=padded),
    processing_class=fast,
)
sft.train()
[round(entry["loss"], 3) for entry in sft.state.log_history if "loss" in entry]
