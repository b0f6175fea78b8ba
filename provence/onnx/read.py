"""A native pruner's tensors without torch: safetensors to numpy, packed differences added to their base.

    native folder -> NativeConfig, safetensors -> differences unpacked -> base + differences -> PlainPruner

The values are those that `provence.families.native` computes with, bit for bit. Raises `ModelError` and `DigestError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from datapipe.errors import ModelError
from datapipe.workers.encoders.bert import BertShape
from datapipe.workers.encoders.checkpoint import UNUSED_TENSORS, refuse_difference
from datapipe.workers.folder import SCALE_SUFFIX, resolve
from datapipe.workers.spec import ModelSpec
from provence.families.delta import PACKED, STEPS
from provence.families.native import MODEL_TYPE, NativeConfig
from provence.families.stacking import stacked_config, stacked_tensors
from provence.families.view import FolderView

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datapipe.storage.arrays import Float32
    from datapipe.workers.folder import ModelFolder

__all__ = ["PlainPruner", "read_native"]

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I8": "i1", "U8": "u1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
_HEADS = ("keep.", "score.")


@dataclass(frozen=True)
class PlainPruner:
    """A pruner of our layout as plain arrays.

    Attributes:
        config: What its config.json states.
        shape: The numbers of its encoder.
        encoder: The encoder's tensors by name, float32.
        heads: `keep.weight` (1, dim), `keep.bias` (1,), `score.weight` (1, dim) and `score.bias` (1,), float32.
    """

    config: NativeConfig
    shape: BertShape
    encoder: Mapping[str, Float32]
    heads: Mapping[str, Float32]


def read_native(folder: ModelFolder) -> PlainPruner:
    """Read a native pruner whose encoder is a BERT or of its kin.

    Raises:
        ModelError: It is no native pruner, its encoder is of another kind, or tensors are missing, left over or of
            another shape; names them.
        DigestError: The embedded base is another than the one that the differences belong to.
    """
    if folder.config()["model_type"] != MODEL_TYPE:
        raise ModelError(
            f"model {folder.name}: only pruners of our own layout run without torch, but {folder.root} states "
            f"model_type {folder.config()['model_type']!r}"
        )
    config = NativeConfig.of(folder)
    tensors = _tensors(folder)
    heads = {name: _float(tensor) for name, tensor in tensors.items() if name.startswith(_HEADS)}
    prefix = "encoder." if config.base is None else "delta."
    stray = {name: tensor for name, tensor in tensors.items() if not name.startswith((prefix, *_HEADS))}
    refuse_difference(folder, {}, stray)
    stored = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if config.base is None:
        settings: Mapping[str, Any] = dict(config.encoder or {})
        given = _unpacked(folder, stored)
    else:
        base = resolve(ModelSpec(name=folder.name, source=config.base))
        base.check(config.base_digest)
        settings, given = base.config(), _dequantised(_tensors(base))
        if config.layers is not None:
            given, settings = stacked_tensors(given, config.layers), stacked_config(settings, config.layers)
        for name, difference in _unpacked(folder, stored).items():
            if name not in given or given[name].shape != difference.shape:
                raise ModelError(f"model {folder.name}: the difference for tensor {name} does not fit its base")
            given[name] = given[name] + difference
    shape = BertShape.of(FolderView.of(folder, settings=settings, tensors={}))
    if shape is None:
        raise ModelError(f"model {folder.name}: an encoder of type {settings.get('model_type')!r} needs torch to run")
    named = {name.removeprefix(shape.prefix): tensor for name, tensor in given.items()}
    found: dict[str, Any] = {name: tensor for name, tensor in named.items() if not name.startswith(UNUSED_TENSORS)}
    refuse_difference(folder, shape.tensors(), found)
    return PlainPruner(config, shape, found, _one_row(folder, heads, dim=shape.dim))


def _one_row(folder: ModelFolder, heads: dict[str, Any], *, dim: int) -> dict[str, Float32]:
    """The heads, a keep head of two rows as the one whose sigmoid is the same."""
    rows = len(heads["keep.weight"]) if "keep.weight" in heads else 1
    rows = rows if rows in {1, 2} else 1
    expected = {"keep.weight": (rows, dim), "keep.bias": (rows,), "score.weight": (1, dim), "score.bias": (1,)}
    refuse_difference(folder, expected, heads)
    if rows == 1:
        return heads
    return heads | {name: heads[name][1:] - heads[name][:1] for name in ("keep.weight", "keep.bias")}


def _tensors(folder: ModelFolder) -> dict[str, Any]:
    """All tensors as they are stored; bfloat16 as float32."""
    import safetensors

    deserialize: Any = safetensors.deserialize
    found: dict[str, Any] = {}
    for path in folder.weight_files():
        try:
            entries = deserialize(path.read_bytes())
        except (safetensors.SafetensorError, OSError) as error:
            raise ModelError(f"model {folder.name}: {path} is not a readable safetensors file ({error})") from error
        for name, entry in entries:
            if name in found:
                raise ModelError(f"model {folder.name}: tensor {name} stands in {path.name} and in another file")
            found[name] = _array(folder, name, entry["dtype"], entry["data"]).reshape(entry["shape"])
    return found


def _array(folder: ModelFolder, name: str, dtype: str, data: Any) -> Any:
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype not in _DTYPES:
        raise ModelError(
            f"model {folder.name}: tensor {name} has the dtype {dtype}, which cannot be read without torch"
        )
    return np.frombuffer(data, _DTYPES[dtype])


def _dequantised(tensors: dict[str, Any]) -> dict[str, Float32]:
    """Int8 tensors with factors beside them multiplied by them, as `ModelFolder.tensors` does."""
    found = {name: tensor for name, tensor in tensors.items() if not name.endswith(SCALE_SUFFIX)}
    scales = {name: tensors.get(name + SCALE_SUFFIX) for name in found}
    return {
        name: _float(tensor) if scales[name] is None else _float(tensor) * _float(scales[name])[:, None]
        for name, tensor in found.items()
    }


def _unpacked(folder: ModelFolder, stored: dict[str, Any]) -> dict[str, Float32]:
    """Packed tensors as values, as `provence.families.delta.unpack_tensors` does."""
    found: dict[str, Float32] = {}
    for name, tensor in stored.items():
        whole = name.removesuffix(PACKED).removesuffix(STEPS)
        if name == whole:
            found[name] = _float(tensor)
            continue
        codes, steps = stored.get(whole + PACKED), stored.get(whole + STEPS)
        if codes is None or steps is None:
            raise ModelError(f"model {folder.name}: tensor {name} needs both {whole}{PACKED} and {whole}{STEPS}")
        if codes.dtype == np.uint8:
            codes = np.stack([codes & 15, codes >> 4], axis=2).reshape(len(codes), -1).astype(np.float32) - 8
        if codes.ndim != 2 or len(steps) != len(codes) or not steps.size or codes.shape[1] % steps.shape[1]:  # noqa: PLR2004
            raise ModelError(f"model {folder.name}: {whole}{PACKED} and {whole}{STEPS} do not fit each other")
        groups = codes.reshape(len(codes), steps.shape[1], -1).astype(np.float32)
        found[whole] = (groups * _float(steps)[:, :, None]).reshape(codes.shape)
    return found


def _float(tensor: Any) -> Float32:
    found: Float32 = tensor.astype(np.float32)
    return found
