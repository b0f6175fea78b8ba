"""Pruning from text to text: ours, and the loop that published packages run, over the same weights and texts.

    python -m benchmarks.provence_speed cpu                       # the embedded default on this machine's cores
    python -m benchmarks.provence_speed gpu                       # large shapes, random weights, on one GPU
    python -m benchmarks.provence_speed latency --device cpu      # one question and 5, 20, 50 passages
    python -m benchmarks.provence_speed --table

The loop is what a straightforward program does with transformers: texts in their order, sentences tokenised one by one,
padded batches of 32, every logit copied back. Both sides split texts alike, so their decisions can be compared: the
threshold is the median sentence of the loop in float32, where weights are random. Texts are contexts of SQuAD with a
question each, of 40 to 508 tokens. Clocks stop when the pruned texts are there. `useful` arithmetic counts tokens that
are not padding: products with weights, queries with keys, and probabilities with values.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pyarrow.parquet as pq

from benchmarks.common import ROOT, Row, finished, record, table
from datapipe.weights import embedded_folder
from datapipe.workers.folder import ModelFolder, resolve
from datapipe.workers.spec import DtypeName, ModelSpec
from datapipe.workers.worker import LocalWorker
from provence import Pruner
from provence.families.delta import decode_delta
from provence.prepare import plain_question
from provence.units import split

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from numpy.typing import NDArray

NAME = "provence_speed"
TOKENIZER = embedded_folder("all-MiniLM-L6-v2") / "tokenizer.json"
SHORTEST, LONGEST = 40, 508
BATCH = 32
MARGIN = 0.01
COLUMNS = [
    *("what", "device", "model", "way", "dtype", "documents_per_s", "times_float32_loop", "times_bfloat16_loop"),
    *("useful_tflops", "share_of_product", "decisions_unlike"),
]
LATENCY = ["device", "model", "passages", "p50_ms", "p95_ms", "passages_per_s"]

DTYPES: tuple[DtypeName, ...] = ("float32", "bfloat16")

Pair = tuple[str, str]
Modules = tuple[Any, Any, Any]
"""Encoder, head of the tokens, and what gives hidden states."""


@dataclass(frozen=True)
class Shape:
    """A checkpoint to make: the layout of a family around an architecture's own size."""

    model: str
    family: str
    layers: int
    dim: int


DEBERTA = Shape("DeBERTa-v3-large", "provence", 24, 1024)
MODERNBERT = Shape("ModernBERT-base", "open_provence", 22, 768)


def pairs_of(number: int, *, shortest: int = SHORTEST, longest: int = LONGEST) -> list[Pair]:
    """Questions with their contexts, in a seeded order, of so many tokens together; repeated where they run out."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    rows = pq.read_table(ROOT / "data" / "squad20_dev.parquet", columns=["question", "context"]).to_pylist()
    order = np.random.default_rng(0).permutation(len(rows))
    found = [(rows[index]["question"], rows[index]["context"]) for index in order[: 2 * number]]
    lengths = [len(encoding) for encoding in tokenizer.encode_batch(found)]
    fitting = [pair for pair, length in zip(found, lengths, strict=True) if shortest <= length <= longest]
    return (fitting * (number // len(fitting) + 1))[:number]


def write_deberta(folder: Path, *, layers: int = DEBERTA.layers) -> None:
    """The layout of naver around a DeBERTa-v3-large with random weights, or with fewer layers."""
    import torch
    import transformers

    settings = {
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "layer_norm_eps": 1e-7,
        "max_position_embeddings": 512,
        "max_relative_positions": -1,
        "norm_rel_ebd": "layer_norm",
        "num_attention_heads": 16,
        "num_hidden_layers": layers,
        "pad_token_id": 0,
        "pooler_dropout": 0,
        "pooler_hidden_act": "gelu",
        "pooler_hidden_size": 1024,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "position_buckets": 256,
        "relative_attention": True,
        "share_att_key": True,
        "type_vocab_size": 0,
        "vocab_size": 128100,
    }
    torch.manual_seed(0)
    model = transformers.DebertaV2ForSequenceClassification(transformers.DebertaV2Config(**settings, num_labels=1))
    token = torch.nn.Linear(1024, 2)
    torch.nn.init.normal_(token.weight, std=0.1)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if "position_ids" not in name}
    tensors |= {f"token_classifier.{name}": tensor for name, tensor in token.state_dict().items()}
    _write(folder, settings | {"model_type": "Provence", "id2label": {"0": "LABEL_0"}}, tensors)


def write_modernbert(folder: Path) -> None:
    """The layout of OpenProvence around a ModernBERT-base with random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    base = transformers.ModernBertConfig(num_labels=1)
    model = transformers.ModernBertForSequenceClassification(base)
    head = torch.nn.Linear(base.hidden_size, 2)
    torch.nn.init.normal_(head.weight, std=0.1)
    tensors = {f"ranking_model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"pruning_head.classifier.{name}": tensor for name, tensor in head.state_dict().items()}
    settings = {
        "base_model_config": model.config.to_dict(),
        "max_length": 512,
        "model_type": "open_provence",
        "num_labels": 1,
        "num_pruning_labels": 2,
        "pruning_config": {},
    }
    _write(folder, settings, tensors)


def _write(folder: Path, settings: Row, tensors: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings, default=str))
    (folder / "tokenizer.json").write_text(TOKENIZER.read_text(encoding="utf-8"))
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "model.safetensors")


class Loop:
    """The straightforward program: transformers' modules, batches of 32 in the order of the texts."""

    def __init__(self, folder: Path, family: str, *, device: str, dtype: str) -> None:
        import torch
        from tokenizers import Tokenizer

        self.device, self.family = device, family
        self.tokenizer = Tokenizer.from_file(str(TOKENIZER))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        modules = {"provence": _deberta_modules, "open_provence": _modernbert_modules, "native": _native_modules}
        self.encoder, self.token, self.states = modules[family](folder)
        linear = [module.weight for module in self.encoder.modules() if isinstance(module, torch.nn.Linear)]
        self.weights = sum(weight.numel() for weight in linear)
        for module in (self.encoder, self.token):
            module.to(device=device, dtype=getattr(torch, dtype)).eval()

    def close(self) -> None:
        """Nothing to do: the memory goes with the object."""

    def values(self, pairs: Sequence[Pair]) -> list[float]:
        """The mean keep probability of each sentence."""
        return [value for sentences in self.sentences(pairs) for _, _, value in sentences]

    def sentences(self, pairs: Sequence[Pair]) -> list[list[tuple[int, int, float]]]:
        """Start, end and value of each sentence, by the family's rule before its threshold; probabilities for both."""
        found = []
        for start in range(0, len(pairs), BATCH):
            found += self._batch(pairs[start : start + BATCH])
        return found

    def prune(self, pairs: Sequence[Pair], threshold: float) -> list[str]:
        """The texts that are left."""
        texts = []
        for (_, text), sentences in zip(pairs, self.sentences(pairs), strict=True):
            texts.append(" ".join(text[start:end] for start, end, value in sentences if value > threshold))
        return texts

    def _batch(self, pairs: Sequence[Pair]) -> list[list[tuple[int, int, float]]]:
        import torch

        windows, spans = [], []
        for question, text in pairs:
            worded = plain_question(question) if self.family == "provence" else question
            ids = [101, *self.tokenizer.encode(worded, add_special_tokens=False).ids, 102]
            places = []
            for unit in split(text):
                own = self.tokenizer.encode(text[unit.start : unit.end], add_special_tokens=False).ids
                places.append((unit.start, unit.end, len(ids), len(ids) + len(own)))
                ids += own
            windows.append([*ids, 102])
            spans.append(places)
        longest = max(map(len, windows))
        padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in windows], device=self.device)
        mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in windows], device=self.device)
        with torch.inference_mode():
            states = self.states(self.encoder, padded, mask)
            logits = self.token(states).float().cpu()
        keep = torch.softmax(logits, dim=2)[:, :, 1] if logits.shape[2] > 1 else torch.sigmoid(logits[:, :, 0])
        return [
            [(start, end, float(keep[row, begin:stop].mean())) for start, end, begin, stop in places if stop > begin]
            for row, places in enumerate(spans)
        ]


def _deberta_modules(folder: Path) -> Modules:
    import torch
    import transformers
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text()) | {"model_type": "deberta-v2"}
    settings.pop("id2label")
    model = transformers.DebertaV2Model(transformers.DebertaV2Config(**settings))
    inside = {name.removeprefix("deberta."): t for name, t in tensors.items() if name.startswith("deberta.")}
    model.load_state_dict(inside)
    token = torch.nn.Linear(settings["hidden_size"], 2)
    token.load_state_dict({name: tensors[f"token_classifier.{name}"] for name in ("weight", "bias")})
    return model, token, lambda encoder, ids, mask: encoder(input_ids=ids, attention_mask=mask)[0]


def _modernbert_modules(folder: Path) -> Modules:
    import torch
    import transformers
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text())["base_model_config"]
    model = transformers.ModernBertModel(transformers.ModernBertConfig(**settings))
    prefix = "ranking_model.model."
    model.load_state_dict({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})
    token = torch.nn.Linear(model.config.hidden_size, 2)
    token.load_state_dict({name: tensors[f"pruning_head.classifier.{name}"] for name in ("weight", "bias")})
    caught: list[Any] = []
    model.final_norm.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))

    def states(encoder: Any, ids: Any, mask: Any) -> Any:
        caught.clear()
        encoder(input_ids=ids, attention_mask=mask)
        return caught[0]

    return model, token, states


def _native_modules(folder: Path) -> Modules:
    """The embedded base with the differences of a native folder put in, as transformers' own BertModel."""
    import torch
    import transformers

    settings = json.loads((folder / "config.json").read_text())
    tensors = ModelFolder("loop", folder).tensors()
    base = resolve(ModelSpec(name="loop", source=settings["base"]))
    inside = {name.removeprefix("delta."): tensor for name, tensor in tensors.items() if name.startswith("delta.")}
    merged = decode_delta(base.tensors(), inside)
    model = transformers.BertModel(transformers.BertConfig(**base.config()), add_pooling_layer=False)
    given = {name.removeprefix("bert."): tensor.float() for name, tensor in merged.items() if "pooler" not in name}
    model.load_state_dict(given, strict=False)
    token = torch.nn.Linear(model.config.hidden_size, len(tensors["keep.weight"]))
    token.load_state_dict({name: tensors[f"keep.{name}"].float() for name in ("weight", "bias")})
    return model, token, lambda encoder, ids, mask: encoder(input_ids=ids, attention_mask=mask)[0]


class Ours:
    """A worker of this project with the same weights."""

    def __init__(self, folder: Path, *, device: str, dtype: DtypeName) -> None:
        self.worker = LocalWorker([ModelSpec(name="m", source=str(folder), task="prune", dtype=dtype)], device=device)
        self.pruner = Pruner.load("m", worker=self.worker)

    def values(self, pairs: Sequence[Pair]) -> list[float]:
        """The mean keep probability of each sentence."""
        pruned = self.pruner.prune_batch([(question, [text]) for question, text in pairs], rule="mean")
        return [unit.keep_probability for [context] in pruned for unit in context.sentences]

    def prune(self, pairs: Sequence[Pair], threshold: float) -> list[str]:
        """The texts that are left."""
        asked = [(question, [text]) for question, text in pairs]
        return [context.text for [context] in self.pruner.prune_batch(asked, threshold=threshold, rule="mean")]

    def close(self) -> None:
        """Give the memory back."""
        self.worker.close()


def flops_of(lengths: Sequence[int], *, layers: int, dim: int, weights: int) -> float:
    """Useful arithmetic of the encoder over windows of these lengths."""
    linear = 2.0 * weights * sum(lengths)
    return linear + sum(4.0 * layers * dim * length * length for length in lengths)


def timed(call: Callable[[], Any], *, device: str) -> tuple[float, Any]:
    """Seconds, and what came out."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    found = call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun, found


def product_rate(device: str, dtype: str) -> float:
    """Arithmetic a second of a large product, in the same process."""
    import torch

    size = 8192 if device == "cuda" else 2048
    one = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
    best = 1e9
    for _ in range(8):
        seconds, _ = timed(lambda: one @ one, device=device)
        best = min(best, seconds)
    return 2.0 * size**3 / best


def rates(what: str, shape: Shape, folder: Path, *, device: str, numbers: dict[str, int], rounds: int) -> None:
    """Record documents a second of both ways in both precisions."""
    config = {"what": what, "device": device, "model": shape.model, "numbers": numbers, "rounds": rounds}
    keys: list[tuple[str, DtypeName]] = [(way, dtype) for dtype in DTYPES for way in ("loop", "ours")]
    if all(finished(NAME, {**config, "way": way, "dtype": dtype}) for way, dtype in keys):
        print(shape.model, "measured already")
        return
    compared = pairs_of(min(numbers.values()))
    threshold, weights = 0.0, 0
    values: dict[tuple[str, str], NDArray[np.float64]] = {}
    found: dict[tuple[str, str], Row] = {}
    for way, dtype in keys:
        side: Loop | Ours
        if way == "loop":
            side = Loop(folder, shape.family, device=device, dtype=dtype)
            weights = side.weights
        else:
            side = Ours(folder, device=device, dtype=dtype)
        values[way, dtype] = np.array(side.values(compared))
        threshold = threshold or float(np.median(values[way, dtype]))
        pairs = pairs_of(numbers[f"{way} {dtype}"])
        side.prune(pairs, threshold)
        seconds = [timed(partial(side.prune, pairs, threshold), device=device)[0] for _ in range(rounds)]
        spent, lengths = statistics.median(seconds), token_lengths(pairs)
        useful = flops_of(lengths, layers=shape.layers, dim=shape.dim, weights=weights)
        found[way, dtype] = {
            "documents_per_s": len(pairs) / spent,
            "rates": [len(pairs) / each for each in seconds],
            "mean_tokens": float(np.mean(lengths)),
            "useful_tflops": useful / spent / 1e12,
            "share_of_product": useful / spent / product_rate(device, dtype),
        }
        print(shape.model, way, dtype, f"{len(pairs) / spent:.1f} documents/s", flush=True)
        side.close()
        del side
        gc.collect()
    reference = values["loop", "float32"]
    for (way, dtype), row in found.items():
        own = values[way, dtype]
        unlike = (own > threshold) != (reference > threshold)
        row["decisions_unlike"] = int(unlike.sum())
        row["unlike_beyond_margin"] = int((unlike & (np.abs(reference - threshold) > MARGIN)).sum())
        row["largest_difference"] = float(np.abs(own - reference).max())
        row["sentences"] = len(reference)
        for precision in DTYPES:
            row[f"times_{precision}_loop"] = row["documents_per_s"] / found["loop", precision]["documents_per_s"]
        record(NAME, row, {**config, "way": way, "dtype": dtype})


def token_lengths(pairs: Sequence[Pair]) -> list[int]:
    """Tokens of each question with its text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return [len(encoding) for encoding in tokenizer.encode_batch_fast(list(pairs))]


def gpu(rounds: int, only: str | None = None) -> None:
    """Both large shapes, or the one of that name."""
    numbers = {"loop float32": 320, "loop bfloat16": 640, "ours float32": 320, "ours bfloat16": 6400}
    for shape, write in ((DEBERTA, write_deberta), (MODERNBERT, write_modernbert)):
        if only not in {None, shape.model}:
            continue
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "model"
            write(folder)
            rates("shapes", shape, folder, device="cuda", numbers=numbers, rounds=rounds)


def default_folder() -> Path:
    """The weights that ship."""
    from provence.weights import DEFAULT

    return Path(DEFAULT.source)


def cpu(rounds: int) -> None:
    """The embedded default."""
    numbers = {"loop float32": 160, "loop bfloat16": 160, "ours float32": 480, "ours bfloat16": 480}
    shape = Shape("provence-default", "native", 6, 384)
    rates("default", shape, default_folder(), device="cpu", numbers=numbers, rounds=rounds)


def latency(device: str, rounds: int) -> None:
    """One question with several passages, one call at a time."""
    pairs = pairs_of(2000, shortest=150, longest=260)
    texts = [text for _, text in pairs]
    with Pruner.load("default", device=device) as pruner:
        for passages in (5, 20, 50):
            seconds = []
            for turn in range(rounds + 5):
                question = pairs[turn % len(pairs)][0]
                several = [texts[(turn * passages + place) % len(texts)] for place in range(passages)]
                spent, _ = timed(lambda: pruner.prune(question, several), device=device)  # noqa: B023
                seconds.append(spent)
            p50, p95 = np.percentile(seconds[5:], [50, 95])
            row = {"p50_ms": 1e3 * p50, "p95_ms": 1e3 * p95, "passages_per_s": passages / p50}
            config = {"what": "latency", "device": device, "passages": passages, "rounds": rounds}
            record(f"{NAME}_latency", {"model": "provence-default", **row}, config)


def main() -> None:
    """Measure, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["cpu", "gpu", "latency"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=[DEBERTA.model, MODERNBERT.model], help="of the large shapes")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.what == "gpu":
        gpu(arguments.rounds, arguments.only)
    elif arguments.what == "cpu":
        cpu(arguments.rounds)
    elif arguments.what == "latency":
        latency(arguments.device, max(arguments.rounds, 30))
    print(table(NAME, COLUMNS))
    print(table(f"{NAME}_latency", LATENCY))


if __name__ == "__main__":
    main()
