"""Replies of a causal language model in a folder, by transformers, greedily and in batches.

    prompts -> chat template -> token ids, sorted by length -> left-padded batches -> generate -> Reply

The class follows from config.json and transformers alone: no code of the folder runs, and only safetensors are read.
Raises `ModelError` and `ConfigError`; a batch that does not fit into memory is halved.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, Final

from datapipe.errors import ConfigError, ModelError, ModelNotFoundError, WorkerError
from provence.training.silver_journal import Reply

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from datapipe.workers.folder import ModelFolder
    from datapipe.workers.spec import DtypeName
    from provence.training.silver import Outcome

__all__ = ["LocalLabeller"]

_log = logging.getLogger(__name__)

_BATCH_TOKENS: Final = {"cpu": 8192, "cuda": 131_072}
"""Tokens of a batch with its replies; each keeps its keys and values in memory until the batch is done."""


class LocalLabeller:
    """A causal language model on one device.

    Args:
        model: A folder, or a hub id that is cached or can be fetched.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        dtype: Precision; `auto` follows the hardware.
        max_new_tokens: Tokens of a reply at most.
        batch_tokens: Tokens of a batch, replies and padding included; None takes 8,192 on the CPU and 131,072 on CUDA.

    Raises:
        ModelError: The folder holds no causal model that transformers knows, or its files do not fit together.
        ConfigError: A number is below 1, or there is no such device.
    """

    def __init__(
        self,
        model: str,
        *,
        device: str = "auto",
        dtype: DtypeName = "auto",
        max_new_tokens: int = 256,
        batch_tokens: int | None = None,
    ) -> None:
        import transformers

        from datapipe.workers.device import resolve_device, resolve_dtype
        from datapipe.workers.encoders.library import class_for, config_of, filled, positions_of
        from datapipe.workers.folder import resolve
        from datapipe.workers.spec import ModelSpec

        if max_new_tokens < 1 or (batch_tokens is not None and batch_tokens < 1):
            raise ConfigError(
                f"max_new_tokens and batch_tokens must be at least 1. Got {max_new_tokens} and {batch_tokens}"
            )
        folder = resolve(ModelSpec(name=model, source=model, task="causal"))
        self._device = resolve_device(device)
        precision = resolve_dtype(dtype, self._device)
        config = config_of(folder)
        kind = class_for(
            folder, config, mapping=transformers.MODEL_FOR_CAUSAL_LM_MAPPING, purpose="causal language model"
        )
        self._tokenizer = _tokenizer(folder)
        if self._tokenizer.chat_template is None:
            _log.warning("model %s has no chat template, so it is asked in plain text", model)
        self._model = filled(kind, config, folder, dtype=precision).to(self._device)
        self._positions, self._max_new_tokens = positions_of(config), max_new_tokens
        self._batch_tokens = batch_tokens or _BATCH_TOKENS[self._device.type]
        self._ends = _ends(folder, config, self._tokenizer)
        self.name = folder.root.name
        self.identity = json.dumps(["local", folder.digest, str(precision), max_new_tokens])

    def replies(self, prompts: Sequence[str]) -> Iterator[tuple[int, Outcome]]:
        """The place of each prompt and its reply, batch by batch, or `prompt_too_long`.

        Raises:
            WorkerError: One prompt alone does not fit into the device's memory.
        """
        encoded = [self._encode(prompt) for prompt in prompts]
        room = self._positions - self._max_new_tokens
        short = []
        for place, ids in enumerate(encoded):
            if len(ids) > room:
                yield place, "prompt_too_long"
            else:
                short.append(place)
        short.sort(key=lambda place: (-len(encoded[place]), place))
        while short:
            size = max(1, self._batch_tokens // (len(encoded[short[0]]) + self._max_new_tokens))
            batch, short = short[:size], short[size:]
            yield from zip(batch, self._generate([encoded[place] for place in batch]), strict=True)

    def _encode(self, prompt: str) -> list[int]:
        if self._tokenizer.chat_template is None:
            return list(self._tokenizer(f"{prompt}\n\nAnswer:")["input_ids"])
        messages = [{"role": "user", "content": prompt}]
        # A template that knows no thinking ignores the switch.
        text = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _generate(self, batch: Sequence[list[int]]) -> list[Reply]:
        import torch

        try:
            return self._generate_at_once(batch)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise WorkerError(f"a prompt of {len(batch[0])} tokens does not fit into {self._device}") from error
            _log.warning("a batch of %d prompts does not fit into %s and is halved", len(batch), self._device)
        torch.cuda.empty_cache()
        half = len(batch) // 2
        return self._generate(batch[:half]) + self._generate(batch[half:])

    def _generate_at_once(self, batch: Sequence[list[int]]) -> list[Reply]:
        import torch
        from transformers import GenerationConfig

        longest, padding = len(batch[0]), self._ends[0]
        rows = [[padding] * (longest - len(ids)) + ids for ids in batch]
        there = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in batch]
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=self._max_new_tokens,
            eos_token_id=self._ends,
            pad_token_id=padding,
        )
        with torch.inference_mode():
            made = self._model.generate(
                input_ids=torch.tensor(rows, device=self._device),
                attention_mask=torch.tensor(there, device=self._device),
                generation_config=settings,
            )
        return [self._reply(ids) for ids in made[:, longest:].tolist()]

    def _reply(self, ids: list[int]) -> Reply:
        end = next((place for place, token in enumerate(ids) if token in self._ends), None)
        text = self._tokenizer.decode(ids[:end], skip_special_tokens=True)
        return Reply(text.strip(), finished=end is not None)


def _tokenizer(folder: ModelFolder) -> Any:
    """The tokenizer.json as it is, with the chat template beside it."""
    from transformers import PreTrainedTokenizerFast

    if not folder.path("tokenizer.json").is_file():
        raise ModelNotFoundError(f"model {folder.name}: {folder.root} has no tokenizer.json")
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder.root, local_files_only=True)
    except Exception as error:  # what a damaged file raises is up to the library
        raise ModelError(f"model {folder.name}: the tokenizer in {folder.root} does not load ({error})") from error


def _ends(folder: ModelFolder, config: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a reply, as the generation settings, the config and the tokenizer say."""
    stated = [(folder.json("generation_config.json") or {}).get("eos_token_id"), config.eos_token_id]
    found: list[int] = []
    for each in [*stated, tokenizer.eos_token_id]:
        found += each if isinstance(each, list) else [each] if each is not None else []
    if not found:
        raise ModelError(f"model {folder.name}: neither its settings nor its tokenizer name a token that ends a reply")
    return list(dict.fromkeys(found))
