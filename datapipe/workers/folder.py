"""A model's folder: found without running or fetching anything that was not asked for, and read as plain data.

    source -> resolve -> ModelFolder -> json(), tensors(), digest

Only safetensors and JSON are ever read; no code of a folder runs, whatever its config names. Raises
`ModelNotFoundError`, `UnsafeModelError`, `DigestError` and `ModelError`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datapipe.errors import DigestError, ModelError, ModelNotFoundError, UnsafeModelError
from datapipe.storage.digest import file_sha256
from datapipe.workers.spec import EMBEDDED_PREFIX

if TYPE_CHECKING:
    import torch

    from datapipe.workers.spec import ModelSpec

__all__ = ["SCALE_SUFFIX", "ModelFolder", "resolve"]

_log = logging.getLogger(__name__)

SCALE_SUFFIX = ".scale"
"""An int8 tensor NAME is stored with its factors as NAME.scale, one a row; the value is their product."""

_INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
_NOT_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "optimizer.bin", "scheduler.bin")
_SETTINGS = (
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "preprocessor_config.json",
    "processor_config.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_HUB_PATTERNS = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*/*.safetensors",
    "*/*.json",
    "LICENSE*",
    "NOTICE*",
    "README.md",
)
"""What is fetched of a model; its licence and its card go with it wherever it is exported."""


@dataclass(frozen=True)
class ModelFolder:
    """The files of one model.

    Attributes:
        name: Name of the model, for messages.
        root: The folder.
    """

    name: str
    root: Path

    def path(self, relative: str) -> Path:
        """Place of a file in the folder. Raises `UnsafeModelError` if `relative` leads out of it."""
        parts = Path(relative).parts
        if Path(relative).is_absolute() or ".." in parts or "\0" in relative:
            raise UnsafeModelError(f"model {self.name}: {self.root} names a file outside its folder: {relative!r}")
        return self.root / relative

    def within(self, relative: str) -> ModelFolder:
        """The same model, seen from a folder inside this one."""
        return ModelFolder(self.name, self.path(relative)) if relative not in {"", "."} else self

    def json(self, relative: str) -> Any | None:
        """Content of a JSON file, or None if there is none. Raises `ModelError` if it is damaged."""
        path = self.path(relative)
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ModelError(f"model {self.name}: {path} is not valid JSON ({error})") from error

    def config(self) -> dict[str, Any]:
        """The settings in config.json without `auto_map`: code that a folder brings is never run.

        Raises:
            ModelNotFoundError: There is no config.json.
            ModelError: It is damaged or states no `model_type`.
        """
        config = self.json("config.json")
        if config is None:
            raise ModelNotFoundError(f"model {self.name}: {self.root} has no config.json")
        if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
            raise ModelError(f"model {self.name}: {self.root / 'config.json'} states no model_type")
        if config.pop("auto_map", None) is not None:
            _log.warning("model %s: its config.json names code of its own (auto_map), which is ignored", self.name)
        return config

    def weight_files(self) -> list[Path]:
        """The safetensors files, in the order of their names.

        Raises:
            UnsafeModelError: Weights are there as pickles only.
            ModelNotFoundError: There are no weights, or the index names a file that is missing.
        """
        index = self.json(_INDEX)
        if index is not None:
            if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict):
                raise ModelError(f"model {self.name}: {self.root / _INDEX} has no weight_map")
            files = [self.path(str(name)) for name in sorted(set(index["weight_map"].values()))]
            absent = [file.name for file in files if not file.is_file()]
            if absent:
                raise ModelNotFoundError(f"model {self.name}: {_INDEX} names {absent[0]}, which is not in {self.root}")
            return files
        files = sorted(self.root.glob("*.safetensors"))
        if files:
            return files
        pickles = [p.name for p in sorted(self.root.iterdir()) if p.suffix in _PICKLES and p.name not in _NOT_WEIGHTS]
        if pickles:
            raise UnsafeModelError(
                f"model {self.name}: {self.root / pickles[0]} can run code when it is read, so it is not; convert it "
                f"where you trust it: AutoModel.from_pretrained({str(self.root)!r}).save_pretrained(NEW_FOLDER), "
                "which writes safetensors"
            )
        raise ModelNotFoundError(f"model {self.name}: no *.safetensors in {self.root}")

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors on the CPU, by name; int8 tensors with factors beside them come back as float32.

        Raises:
            ModelError: A file is damaged, or a tensor stands in two files.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        tensors: dict[str, torch.Tensor] = {}
        for path in self.weight_files():
            try:
                found = load_file(path)
            except (SafetensorError, OSError) as error:
                raise ModelError(f"model {self.name}: {path} is not a readable safetensors file ({error})") from error
            twice = sorted(tensors.keys() & found.keys())
            if twice:
                raise ModelError(f"model {self.name}: tensor {twice[0]} stands in {path.name} and in another file")
            tensors.update(found)
        for name in [name for name in tensors if name + SCALE_SUFFIX in tensors]:
            scale = tensors.pop(name + SCALE_SUFFIX).float()
            tensors[name] = tensors[name].float().mul_(scale.unsqueeze(1))
        return tensors

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the sorted lines `file name, NUL, SHA-256 of the file, newline` of the files that matter.

        These are the safetensors files, their index, tokenizer.json, and the JSON settings of the model, its tokenizer,
        its preprocessing and its pooling; a README or a licence changes nothing.
        """
        files = {self.root / name for name in (*_SETTINGS, _INDEX)}
        files |= {*self.weight_files(), *self.root.glob("*/config.json"), *self.root.glob("*/*.safetensors")}
        lines = sorted(
            f"{path.relative_to(self.root).as_posix()}\0{file_sha256(path)}\n" for path in files if path.is_file()
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def check(self, digest: str | None) -> None:
        """Raise `DigestError` unless the files have that digest; None checks nothing."""
        if digest is not None and digest != self.digest:
            raise DigestError(
                f"model {self.name}: the files in {self.root} have digest {self.digest}, but the spec states {digest}; "
                "fetch the model again, or state the new digest if the change is meant"
            )


def resolve(spec: ModelSpec) -> ModelFolder:
    """Find the folder of a model. The network is touched only for a hub id that is not cached, and only when online.

    Raises:
        ModelNotFoundError: There is no such embedded model, folder, or cached hub id; says how to get it.
    """
    if spec.source.startswith(EMBEDDED_PREFIX):
        from datapipe.weights import embedded_folder

        return ModelFolder(spec.name, embedded_folder(spec.source.removeprefix(EMBEDDED_PREFIX)))
    folder = Path(spec.source).expanduser()
    if folder.is_dir():
        if spec.revision is not None:
            raise ModelError(f"model {spec.name}: a revision is for hub ids, but {folder} is a folder")
        return ModelFolder(spec.name, folder)
    if folder.exists():
        raise ModelNotFoundError(f"model {spec.name}: {folder} is a file, not a folder")
    if _HUB_ID.fullmatch(spec.source) is None:
        raise ModelNotFoundError(f"model {spec.name}: there is no folder {folder}, and it is no hub id (owner/name)")
    return ModelFolder(spec.name, _from_hub(spec))


def _from_hub(spec: ModelSpec) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fetch(*, cached: bool) -> Path:
        return Path(
            snapshot_download(
                spec.source, revision=spec.revision, local_files_only=cached, allow_patterns=list(_HUB_PATTERNS)
            )
        )

    try:
        folder = fetch(cached=True)
        if any(folder.glob("*.safetensors")) or any(folder.glob("*/*.safetensors")) or constants.HF_HUB_OFFLINE:
            return folder
    except LocalEntryNotFoundError:
        pass  # not in the cache: fetched below, or refused where the hub is switched off
    command = f"hf download {spec.source}" + (f" --revision {spec.revision}" if spec.revision else "")
    if constants.HF_HUB_OFFLINE:
        raise ModelNotFoundError(
            f"model {spec.name}: {spec.source} is neither a folder nor in the model cache, and the hub is switched off "
            f"(HF_HUB_OFFLINE); on a machine with a network run: {command}"
        )
    _log.info("model %s: fetching %s, which is not cached", spec.name, spec.source)
    try:
        return fetch(cached=False)
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(
            f"model {spec.name}: {spec.source} is neither a folder nor in the model cache and could not be fetched "
            f"({error}); on a machine with a network run: {command}"
        ) from error
