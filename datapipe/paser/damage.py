"""Smaller or coarser versions of a language model, to have something to heal.

    folder + texts -> what each block or neuron does on them -> tensors without the least -> a folder that loads as any

`drop_blocks` takes out the blocks that change their input least (Block Influence, Men et al. 2024, arXiv 2403.03853,
equation 1). `narrow` takes out the neurons of the feed-forward layers with the least |W_down| |x| (An et al. 2024,
arXiv 2312.11983, their baseline "Wanda-sp"), the same number in each block. `round_weights` rounds to the nearest of
2^bits values a group. All three are one-shot and small on purpose. Models are of the Llama kind
(`model.layers.N.mlp.{gate,up,down}_proj`). Raises `ModelError` and `ConfigError`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datapipe.errors import ConfigError, ModelError
from datapipe.paser.model_files import refuse_existing, write_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch

    from datapipe.workers.folder import ModelFolder

_BLOCK = re.compile(r"^(model\.layers\.)(\d+)(\..+)$")
_ROUNDED = re.compile(r"^model\.layers\.\d+\..+_proj\.weight$")
_MOST_BITS = 8
_TOKENS = 512
_BY_BLOCK = "layer_types"
"""A setting that lists one value a block."""


@dataclass(frozen=True)
class Damage:
    """What was done.

    Attributes:
        folder: The damaged model.
        parameters: Weights before.
        left: Weights after.
        removed: Blocks that were taken out, in the original's numbers; empty otherwise.
        influence: Block Influence of every block, 0 ... 2; empty otherwise.
    """

    folder: Path
    parameters: int
    left: int
    removed: tuple[int, ...] = ()
    influence: tuple[float, ...] = ()


def drop_blocks(source: Path, out: Path, *, keep: int, texts: Sequence[str], device: str = "cpu") -> Damage:
    """Keep the `keep` most influential blocks, in their order.

    Block Influence of block i is 1 - E cos(x_i, x_(i+1)) over the tokens of `texts`; ties go out from the back.

    Args:
        source: Folder of the model.
        out: Folder to be made.
        keep: Blocks that stay, 1 <= keep < blocks.
        texts: What the influence is measured on; their first 512 tokens.
        device: Where.

    Raises:
        ConfigError: `keep` is out of range, there is no text, or `out` exists.
        ModelError: The model is of another kind, or cannot be loaded.
    """
    folder, config, tensors = _opened(source, out, texts)
    blocks = int(config["num_hidden_layers"])
    if not 1 <= keep < blocks:
        raise ConfigError(f"keep counts blocks that stay of {blocks}: 1 ... {blocks - 1}; got {keep}")
    influence = _influence(folder, texts, device)
    staying = sorted(sorted(range(blocks), key=lambda at: (-influence[at], at))[:keep])
    place = {old: new for new, old in enumerate(staying)}
    kept = {}
    for name, tensor in tensors.items():
        found = _BLOCK.match(name)
        if found is None:
            kept[name] = tensor
        elif int(found[2]) in place:
            kept[f"{found[1]}{place[int(found[2])]}{found[3]}"] = tensor
    config["num_hidden_layers"] = keep
    if isinstance(config.get(_BY_BLOCK), list):
        config[_BY_BLOCK] = [config[_BY_BLOCK][at] for at in staying]
    write_model(out, folder, config, kept)
    removed = tuple(at for at in range(blocks) if at not in place)
    return Damage(out, _count(tensors), _count(kept), removed, tuple(influence))


def narrow(source: Path, out: Path, *, keep: float, texts: Sequence[str], device: str = "cpu") -> Damage:
    """Keep a part of the neurons of every feed-forward layer: those with the greatest sum_i |W_down,ij| |x_j|_2.

    Args:
        source: Folder of the model.
        out: Folder to be made.
        keep: Part that stays, 0 < keep < 1; rounded to a multiple of 8 neurons.
        texts: What x, the neurons' values, is measured on; their first 512 tokens.
        device: Where.

    Raises:
        ConfigError: `keep` is out of range, there is no text, or `out` exists.
        ModelError: The model is of another kind, or cannot be loaded.
    """
    folder, config, tensors = _opened(source, out, texts)
    width = int(config["intermediate_size"])
    staying = 8 * round(keep * width / 8)
    if not 0 < staying < width:
        raise ConfigError(f"keep is the part of {width} neurons that stays, 0 < keep < 1; got {keep}")
    sizes = _neuron_sizes(folder, texts, device)
    kept = dict(tensors)
    for at in range(int(config["num_hidden_layers"])):
        names = {part: f"model.layers.{at}.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
        missing = [name for name in names.values() if name not in tensors]
        if missing or tensors[names["down"]].shape[1] != width:
            raise ModelError(
                f"model {folder.name}: {(missing or [names['down']])[0]} is not that of a Llama-type block"
            )
        scores = tensors[names["down"]].float().abs().sum(0) * sizes[at]
        chosen = scores.topk(staying).indices.sort().values
        for part in ("gate", "up"):
            kept[names[part]] = tensors[names[part]][chosen].contiguous()
        kept[names["down"]] = tensors[names["down"]][:, chosen].contiguous()
    config["intermediate_size"] = staying
    write_model(out, folder, config, kept)
    return Damage(out, _count(tensors), _count(kept))


def round_weights(source: Path, out: Path, *, bits: int, group: int = 64) -> Damage:
    """Round every projection of every block to 2^bits evenly spaced values from least to greatest of each group.

    The result is stored in the precision of the original, so it loads as any; what is lost is information, not bytes.

    Args:
        source: Folder of the model.
        out: Folder to be made.
        bits: 1 ... 8.
        group: Neighbouring inputs of one output that share their scale.

    Raises:
        ConfigError: `bits` or `group` is out of range, or `out` exists.
        ModelError: A projection's inputs cannot be cut into such groups.
    """
    if not 1 <= bits <= _MOST_BITS or group < 2:  # noqa: PLR2004 - one value needs no rounding
        raise ConfigError(f"bits must be 1 ... {_MOST_BITS} and group at least 2; got {bits} and {group}")
    folder, config, tensors = _opened(source, out, ("",))
    kept = {}
    for name, tensor in tensors.items():
        kept[name] = _rounded(tensor, bits, group, name) if _ROUNDED.match(name) else tensor
    write_model(out, folder, config, kept)
    return Damage(out, _count(tensors), _count(kept))


def _rounded(weights: torch.Tensor, bits: int, group: int, name: str) -> torch.Tensor:
    rows, columns = weights.shape
    if columns % group:
        raise ModelError(f"{name} has {columns} inputs, which groups of {group} do not divide")
    parts = weights.float().view(rows, columns // group, group)
    least, greatest = parts.amin(2, keepdim=True), parts.amax(2, keepdim=True)
    step = ((greatest - least) / (2**bits - 1)).clamp_min(1e-12)
    found: torch.Tensor = (((parts - least) / step).round() * step + least).view(rows, columns).to(weights.dtype)
    return found


def _opened(source: Path, out: Path, texts: Sequence[str]) -> tuple[ModelFolder, dict[str, Any], dict[str, Any]]:
    from datapipe.workers.folder import ModelFolder

    if not texts:
        raise ConfigError("no text was given to measure on")
    refuse_existing(out)
    folder = ModelFolder(source.name, source)
    config, tensors = folder.config(), folder.tensors()
    if not any(_BLOCK.match(name) for name in tensors) or "num_hidden_layers" not in config:
        raise ModelError(
            f"model {folder.name}: no tensor is named model.layers.N: only Llama-type models are damaged here"
        )
    return folder, config, tensors


def _influence(folder: ModelFolder, texts: Sequence[str], device: str) -> list[float]:
    from torch.nn import functional

    def watch(sums: torch.Tensor, inputs: tuple[torch.Tensor, ...], output: Any) -> torch.Tensor:
        after = output[0] if isinstance(output, tuple) else output
        return sums + functional.cosine_similarity(inputs[0].float(), after.float(), dim=-1).double().sum()

    sums, tokens = _watched(folder, texts, device, of=lambda layer: layer, watch=watch)
    return [1.0 - float(each) / tokens for each in sums]


def _neuron_sizes(folder: ModelFolder, texts: Sequence[str], device: str) -> list[torch.Tensor]:
    """L2 norm over the tokens of every input of every down projection, float32 (neurons,) a block, on the host."""

    def watch(sums: torch.Tensor, inputs: tuple[torch.Tensor, ...], _output: Any) -> torch.Tensor:
        return sums + inputs[0].double().square().flatten(0, -2).sum(0)

    sums, _ = _watched(folder, texts, device, of=lambda layer: layer.mlp.down_proj, watch=watch)
    return [each.sqrt().float().cpu() for each in sums]


def _watched(
    folder: ModelFolder,
    texts: Sequence[str],
    device: str,
    *,
    of: Callable[[Any], Any],
    watch: Callable[[torch.Tensor, tuple[torch.Tensor, ...], Any], torch.Tensor],
) -> tuple[list[torch.Tensor], int]:
    """Run the texts; what `watch` has summed up at a part of every block, and the number of tokens."""
    import torch

    model, batches = _running(folder, texts, device)
    body = model.get_decoder()
    layers = body.layers
    sums = [torch.zeros((), dtype=torch.float64, device=device) for _ in layers]

    def hook(at: int) -> Callable[..., None]:
        def look(_module: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
            sums[at] = watch(sums[at], inputs, output)

        return look

    for at, layer in enumerate(layers):
        of(layer).register_forward_hook(hook(at))
    with torch.inference_mode():
        for ids in batches:
            body(input_ids=ids, use_cache=False)
    return sums, sum(ids.shape[1] for ids in batches)


def _running(folder: ModelFolder, texts: Sequence[str], device: str) -> tuple[Any, list[torch.Tensor]]:
    import torch
    import transformers

    from datapipe.workers.encoders.library import class_for, config_of, filled
    from datapipe.workers.tasks.causal import PlainTokenizer

    config = config_of(folder)
    kind = class_for(folder, config, mapping=transformers.MODEL_FOR_CAUSAL_LM_MAPPING, purpose="causal language model")
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model = filled(kind, config, folder, dtype=dtype).to(device)
    ids = PlainTokenizer(folder).plain([text for text in texts if text], first=0)
    batches = [torch.from_numpy(each[:_TOKENS].astype("int64"))[None].to(device) for each in ids if len(each) > 1]
    if not batches:
        raise ConfigError("no text was given to measure on")
    return model, batches


def _count(tensors: dict[str, Any]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())
