"""Small random checkpoints, and what transformers' plain modules compute with them in float32, a window at a time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

from datapipe.weights import embedded_folder
from datapipe.workers.folder import ModelFolder
from provence.families import open_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from datapipe.storage.arrays import Int32
    from provence.families.base import Heads, PrunerModel

CPU = torch.device("cpu")
LENGTHS = (7, 31, 2, 12)
TOKENIZER = embedded_folder("all-MiniLM-L6-v2") / "tokenizer.json"


def spread(module: Any, *, seed: int = 0) -> Any:
    """Fill a module with numbers far from its start values, where norms and biases do nothing; returns it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + norm)
    return module.eval()


def batch_of(lengths: Sequence[int], *, vocabulary: int = 30_522, seed: int = 0) -> list[Int32]:
    """Windows of random tokens."""
    generator = np.random.default_rng(seed)
    return [generator.integers(5, vocabulary, length, dtype=np.int32) for length in lengths]


def reference_states(encoder: Any, batch: Sequence[Int32]) -> tuple[torch.Tensor, torch.Tensor]:
    """Last hidden states, (tokens, dim), and where each window starts, int64 (windows,)."""
    with torch.inference_mode():
        states = [encoder(input_ids=torch.from_numpy(ids).long()[None])[0][0] for ids in batch]
    lengths = torch.tensor([0, *(len(ids) for ids in batch[:-1])])
    return torch.cat(states), lengths.cumsum(0)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal within 1e-4."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def run(folder: Path, lengths: Sequence[int] = LENGTHS, **options: Any) -> Heads:
    """Both heads of the model in a folder over windows of these lengths."""
    model = load(folder, **options)
    return model.heads(batch_of(lengths, vocabulary=model.vocabulary))


def load(folder: Path, **options: Any) -> PrunerModel:
    """The model in a folder, on the CPU, in float32."""
    return open_model(ModelFolder("m", folder), device=CPU, dtype=torch.float32, **options)


def write(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    """A folder with config.json and model.safetensors; returns it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def edit(folder: Path, **changes: Any) -> None:
    """Change settings in config.json; a value of `...` takes its setting out."""
    path = folder / "config.json"
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in settings.items() if value is not ...}))


def change(folder: Path, tensors: dict[str, torch.Tensor | None]) -> None:
    """Put these tensors into a folder's checkpoint; None takes one out."""
    path = folder / "model.safetensors"
    changed = load_file(path) | tensors
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, path)


@dataclass(frozen=True)
class Checkpoint:
    """A small checkpoint of a family.

    Attributes:
        folder: Where it lies.
        expected: Keep probabilities and scores of a batch, by plain modules of transformers.
    """

    folder: Path
    expected: Callable[[Sequence[Int32]], tuple[torch.Tensor, torch.Tensor]]


TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 300,
    "pad_token_id": 1,
}

DEBERTA = TINY | {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-7,
    "max_position_embeddings": 64,
    "max_relative_positions": -1,
    "norm_rel_ebd": "layer_norm",
    "pad_token_id": 0,
    "pooler_dropout": 0,
    "pooler_hidden_act": "gelu",
    "pooler_hidden_size": 32,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "position_buckets": 8,
    "relative_attention": True,
    "share_att_key": True,
    "type_vocab_size": 0,
}


def provence(folder: Path) -> Checkpoint:
    """A checkpoint as naver/provence-reranker-debertav3-v1 is laid out."""
    model = spread(
        transformers.DebertaV2ForSequenceClassification(transformers.DebertaV2Config(**DEBERTA, num_labels=1))
    )
    token = spread(torch.nn.Linear(32, 2), seed=1)
    tensors = model.state_dict() | {f"token_classifier.{name}": tensor for name, tensor in token.state_dict().items()}
    write(folder, DEBERTA | {"model_type": "Provence", "architectures": ["Provence"], "id2label": {"0": "x"}}, tensors)

    def one(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.softmax(token(model.deberta(ids)[0][0]), dim=1)[:, 1], model(ids).logits[0, 0]

    return Checkpoint(folder, partial(_one_by_one, one))


XLMR = TINY | {"max_position_embeddings": 66, "type_vocab_size": 1, "layer_norm_eps": 1e-5}


def xprovence(folder: Path) -> Checkpoint:
    """A checkpoint as naver/xprovence-reranker-bgem3-v1 is laid out."""
    encoder = spread(transformers.XLMRobertaModel(transformers.XLMRobertaConfig(**XLMR), add_pooling_layer=True))
    rank, token = spread(torch.nn.Linear(32, 1), seed=1), spread(torch.nn.Linear(32, 2), seed=2)
    tensors = {
        f"{prefix}.{name}": tensor
        for prefix, module in (("roberta", encoder), ("classifier", rank), ("token_classifier", token))
        for name, tensor in module.state_dict().items()
    }
    write(folder, XLMR | {"model_type": "XProvence", "architectures": ["XProvence"]}, tensors)

    def one(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states, pooled = encoder(ids)[:2]
        return torch.softmax(token(states[0]), dim=1)[:, 1], rank(pooled)[0, 0]

    return Checkpoint(folder, partial(_one_by_one, one))


def zilliz(folder: Path, **settings: Any) -> Checkpoint:
    """A checkpoint as zilliz/semantic-highlight-bilingual-v1 is laid out."""
    base = transformers.XLMRobertaConfig(**XLMR, num_labels=1)
    model = spread(transformers.XLMRobertaForSequenceClassification(base))
    return _open_provence(folder, model, model.roberta, settings | {"max_length": 8192})


MODERN = TINY | {
    "max_position_embeddings": 96,
    "num_hidden_layers": 3,
    "local_attention": 8,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


def open_provence(folder: Path, *, labels: int = 1, **base: Any) -> Checkpoint:
    """A checkpoint as hotchpotch/open-provence-reranker-* are laid out; `base` are settings of the ranking model."""
    config = transformers.ModernBertConfig(**(MODERN | base), num_labels=labels)
    model = spread(transformers.ModernBertForSequenceClassification(config))
    return _open_provence(folder, model, model.model, {"max_length": 64, "num_labels": labels})


def _open_provence(folder: Path, model: Any, encoder: Any, settings: dict[str, Any]) -> Checkpoint:
    head = spread(torch.nn.Linear(32, 2), seed=1)
    tensors = {f"ranking_model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"pruning_head.classifier.{name}": tensor for name, tensor in head.state_dict().items()}
    config = {"model_type": "open_provence", "num_labels": 1, "num_pruning_labels": 2, "pruning_config": {}}
    write(folder, config | {"base_model_config": model.config.to_dict()} | settings, tensors)
    caught: list[torch.Tensor] = []
    if hasattr(encoder, "final_norm"):
        encoder.final_norm.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    else:
        encoder.register_forward_hook(lambda _, __, outputs: caught.append(outputs[0]))

    def one(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        score = torch.sigmoid(model(ids).logits[0, 0])
        return torch.softmax(head(caught.pop()[0]), dim=1)[:, 1], score

    return Checkpoint(folder, partial(_one_by_one, one))


def tiny_tokenizer(folder: Path) -> None:
    """Write tokenizer.json of 300 words and pieces at most, with the template of the embedded one."""
    whole = json.loads(TOKENIZER.read_text())
    letters = "abcdefghijklmnopqrstuvwxyz.,?"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    whole["model"]["vocab"] = {piece: place for place, piece in enumerate(pieces)}
    whole["added_tokens"] = [token | {"id": pieces.index(token["content"])} for token in whole["added_tokens"]]
    for token in whole["post_processor"]["special_tokens"].values():
        token["ids"] = [pieces.index(token["id"])]
    whole["padding"] = whole["truncation"] = None
    (folder / "tokenizer.json").write_text(json.dumps(whole))


def _one_by_one(
    one: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]], batch: Sequence[Int32]
) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        found = [one(torch.from_numpy(ids).long()[None]) for ids in batch]
    return torch.cat([keep for keep, _ in found]), torch.stack([score for _, score in found])
