"""Make the embedded default embedder: all-MiniLM-L6-v2 with int8 weights, from the official float32 checkpoint.

    python scripts/quantise_minilm.py FOLDER

FOLDER holds the model as published (sentence-transformers/all-MiniLM-L6-v2, Apache-2.0); another model.safetensors is
refused. Word embeddings are rounded row by row. The weight of a product is rounded column by column, each error handed
on to the columns still to come, so that the product on real activations changes least (GPTQ, Frantar et al., arXiv
2210.17323, with a factor a row and columns in the order of their activations' power). Activations come from texts of
`data/`; the texts that the model card's cosines are measured on are others. Nothing is quantised at run time: the
weights are multiplied out to float32 when they are loaded.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from datapipe.embedding.text import embed_texts
from datapipe.storage.digest import file_sha256
from datapipe.workers.folder import SCALE_SUFFIX, ModelFolder
from datapipe.workers.spec import ModelSpec
from datapipe.workers.tokenizer import TextTokenizer
from datapipe.workers.worker import LocalWorker

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parent.parent
NAME = "all-MiniLM-L6-v2"
TARGET = ROOT / "datapipe" / "weights" / NAME
OFFICIAL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
COPIED = ("config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "tokenizer.json")
LEVELS = 127
LEAST_COSINE = 0.999
LATER = ("attention.output.dense", "intermediate.dense", "output.dense")
"""Products of a layer after query, key and value, in the order in which they are computed."""

DAMPING = 0.01
"""Share of the mean power that is added to the power of each input, so that unused inputs stay solvable."""

CARD = """# all-MiniLM-L6-v2, int8 weights

The default embedder of secateur: English texts of up to 256 tokens to 384 numbers of unit length.

- **From**: [sentence-transformers/all-MiniLM-L6-v2](https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2),
  Apache License 2.0, `model.safetensors` with SHA-256 `{official}`.
- **Changed**: weights of the products and the word embeddings are int8 with a float32 factor a row, position embeddings
  float16; the pooler, which sentence vectors do not use, is left out. Everything else is float32 as published. They are
  multiplied out to float32 when the model is loaded.
- **Made by**: `scripts/quantise_minilm.py` (GPTQ, arXiv 2210.17323, on texts of `data/`).
- **Cosine to the vectors of the float32 model**, on texts that the rounding did not see:

| texts | count | mean | least |
|---|---|---|---|
{table}

`config.json`, `modules.json`, `1_Pooling/config.json`, `sentence_bert_config.json` and `tokenizer.json` are as
published. The licence is in `LICENSE`, what was changed in `NOTICE`.
"""

NOTICE = """all-MiniLM-L6-v2
Copyright The sentence-transformers authors
Licensed under the Apache License, Version 2.0; see LICENSE.

Taken from https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2.
Changed for secateur: weights were rounded to int8 and the pooler was removed; see README.md.
"""


def texts() -> dict[str, list[str]]:
    """Texts of the shipped data sets, by data set."""
    banking = pq.read_table(ROOT / "data" / "banking77.parquet")["text"].to_pylist()
    squad = sorted(set(pq.read_table(ROOT / "data" / "squad20_dev.parquet")["context"].to_pylist()))
    dolly = pq.read_table(ROOT / "data" / "dolly_3k.parquet", columns=["instruction", "output"]).to_pylist()
    return {
        "banking77": banking,
        "squad20_dev contexts": squad,
        "dolly_3k": [f"{row['instruction']} {row['output']}" for row in dolly],
    }


def split() -> tuple[list[str], dict[str, list[str]]]:
    """Texts to round with (every 40th, 12th, 30th), and texts to measure on: all others, of dolly_3k every 5th."""
    rounding: list[str] = []
    measuring: dict[str, list[str]] = {}
    for (name, found), step, thinned in zip(texts().items(), (40, 12, 30), (1, 1, 5), strict=True):
        chosen = range(5, len(found), step)
        rounding += [found[place] for place in chosen]
        measuring[name] = [text for place, text in enumerate(found) if place not in chosen][::thinned]
    return rounding, measuring


def row_factors(weight: torch.Tensor) -> torch.Tensor:
    """Factor of each row, float32 (rows, 1), that loses least: searched between 0.8 and 1 of the largest value."""
    largest = weight.abs().amax(dim=1, keepdim=True)
    best = largest / LEVELS
    least = torch.full_like(largest, torch.inf)
    for share in np.linspace(0.8, 1.0, 21):
        factor = largest * float(share) / LEVELS
        lost = ((levels(weight, factor) * factor - weight) ** 2).sum(dim=1, keepdim=True)
        best, least = torch.where(lost < least, factor, best), torch.minimum(lost, least)
    return best


def levels(weight: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Nearest levels."""
    return (weight / factor).round().clamp(-LEVELS, LEVELS)


def gptq(weight: torch.Tensor, power: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Levels of a weight (out, in) that change products with inputs of that power least.

    Args:
        weight: W.
        power: X^T X / rows of the inputs, float64 (in, in).
        factor: Of each row, (out, 1).
    """
    rest, scale = weight.double(), factor.double().squeeze(1)
    power = power + torch.eye(len(power), dtype=torch.float64) * DAMPING * power.diagonal().mean()
    order = power.diagonal().argsort(descending=True, stable=True)
    rest, power = rest[:, order].clone(), power[order][:, order]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(power))
    steps = torch.linalg.cholesky(inverse, upper=True)
    found = torch.empty_like(rest)
    for column in range(rest.shape[1]):
        found[:, column] = levels(rest[:, column], scale)
        error = (rest[:, column] - found[:, column] * scale) / steps[column, column]
        rest[:, column:] -= error.unsqueeze(1) * steps[column, column:]
    return found[:, order.argsort()].float()


class _SeenError(Exception):
    """The inputs that were asked for have passed; the rest of the forward pass is of no interest."""


def powers(model: BertModel, names: Sequence[str], batches: list[torch.Tensor]) -> list[torch.Tensor]:
    """X^T X / rows of the inputs of some products, float64."""
    total: dict[str, torch.Tensor] = {}
    rows = sum(batch.numel() for batch in batches)

    def add(name: str, inputs: torch.Tensor) -> None:
        flat = inputs.flatten(0, -2).double()
        total[name] = total.get(name, 0) + flat.T @ flat / rows
        if name == names[-1]:
            raise _SeenError

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, given, name=name: add(name, given[0]))
        for name in names
    ]
    for batch in batches:
        with suppress(_SeenError):
            model(input_ids=batch)
    for hook in hooks:
        hook.remove()
    return [total[name] for name in names]


def by_length(folder: Path, chosen: list[str]) -> list[torch.Tensor]:
    """Token ids of texts of one length each, so that nothing is padding."""
    groups: dict[int, list[torch.Tensor]] = {}
    for tokens in TextTokenizer(ModelFolder(NAME, folder), max_length=256).encode(chosen):
        groups.setdefault(tokens.length, []).append(torch.from_numpy(tokens.ids))
    return [torch.stack(group) for _, group in sorted(groups.items())]


def quantise(folder: Path, chosen: list[str]) -> dict[str, torch.Tensor]:
    """Tensors of the int8 checkpoint."""
    published = load_file(folder / "model.safetensors")
    kept = {name: t for name, t in published.items() if not name.startswith(("pooler.", "embeddings.position_ids"))}
    result = dict(kept)

    def round_to(name: str, found: torch.Tensor, factor: torch.Tensor) -> None:
        result[name], result[name + SCALE_SUFFIX] = found.to(torch.int8), factor.squeeze(1)
        kept[name] = found * factor

    words = "embeddings.word_embeddings.weight"
    factor = row_factors(kept[words])
    round_to(words, levels(kept[words], factor), factor)
    places = "embeddings.position_embeddings.weight"
    result[places] = kept[places].half()
    kept[places] = result[places].float()
    model = BertModel(BertConfig.from_json_file(folder / "config.json"), add_pooling_layer=False).eval()
    batches = by_length(folder, chosen)
    for layer in range(model.config.num_hidden_layers):
        at = f"encoder.layer.{layer}"
        attention = [f"{at}.attention.self.{name}" for name in ("query", "key", "value")]
        for names in (attention, *([f"{at}.{name}"] for name in LATER)):
            model.load_state_dict(kept)
            for name, power in zip(names, powers(model, names, batches), strict=True):
                weight = kept[f"{name}.weight"]
                factor = row_factors(weight)
                round_to(f"{name}.weight", gptq(weight, power, factor), factor)
                print(f"{name} rounded")
    return result


def cosines(official: Path, rounded: Path, measuring: dict[str, list[str]]) -> str:
    """Rows of the model card's table. Ends the program if a text's vector is too far off."""
    specs = [ModelSpec(name, str(folder), dtype="float32") for name, folder in (("float", official), ("int8", rounded))]
    rows = []
    with LocalWorker(specs, device="cpu") as worker:
        for name, chosen in measuring.items():
            one, other = (embed_texts(worker, chosen, model=spec.name).vectors for spec in specs)
            cosine = np.einsum("ij,ij->i", one, other, dtype=np.float64)
            rows.append(f"| {name} | {len(chosen):,} | {cosine.mean():.5f} | {cosine.min():.5f} |")
            print(rows[-1])
            if cosine.min() < LEAST_COSINE:
                raise SystemExit(f"{name}: a cosine of {cosine.min():.5f} is too low; nothing was written")
    return "\n".join(rows)


def write(folder: Path, target: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write the weights and what belongs to them."""
    (target / "1_Pooling").mkdir(parents=True)
    for name in COPIED:
        shutil.copyfile(folder / name, target / name)
    save_file({name: tensors[name].contiguous() for name in sorted(tensors)}, target / "model.safetensors")
    (target / "model.safetensors").chmod(0o644)
    shutil.copyfile(ROOT / "LICENSE", target / "LICENSE")
    (target / "NOTICE").write_text(NOTICE, encoding="utf-8")


def main() -> None:
    """Read the official folder; write the embedded one, if it is good enough."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="sentence-transformers/all-MiniLM-L6-v2 as published.")
    parser.add_argument("--target", type=Path, default=TARGET, help="Where to write; replaced if it exists.")
    options = parser.parse_args()
    folder: Path = options.folder
    target: Path = options.target
    found = file_sha256(folder / "model.safetensors")
    if found != OFFICIAL_SHA256:
        raise SystemExit(f"{folder}/model.safetensors has SHA-256 {found}, the official one {OFFICIAL_SHA256}")
    torch.set_num_threads(1)  # the same bits whatever the number of cores
    rounding, measuring = split()
    with torch.inference_mode():
        tensors = quantise(folder, rounding)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        new = Path(scratch) / NAME
        write(folder, new, tensors)
        table = cosines(folder, new, measuring)
        (new / "README.md").write_text(CARD.format(official=OFFICIAL_SHA256, table=table), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        new.replace(target)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(json.dumps({"bytes": size, "digest": ModelFolder(NAME, target).digest}))


if __name__ == "__main__":
    main()
