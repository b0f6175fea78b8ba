"""Models are loaded once, checked, and given up in the order of their last use."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch

from datapipe.errors import ConfigError, DigestError, ModelError
from datapipe.weights import embedded_folder
from datapipe.workers import device as device_module
from datapipe.workers import registry as registry_module
from datapipe.workers.device import physical_cores, resolve_device, resolve_devices, resolve_dtype
from datapipe.workers.registry import ModelRegistry
from datapipe.workers.spec import DEFAULT_EMBEDDER, ModelSpec
from datapipe.workers.tasks.embed import EmbedTask
from datapipe.workers.tasks.lookup import find_task, register
from tests.workers.echo import Echo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_a_loaded_model_says_what_it_is() -> None:
    loaded = ModelRegistry().load(DEFAULT_EMBEDDER, "cpu")
    assert loaded.spec == DEFAULT_EMBEDDER
    task: Any = loaded.task
    assert isinstance(task, EmbedTask)
    assert loaded.dim == 384
    assert len(loaded.digest) == 64
    assert loaded.bits.keys() == {"device", "kind", "dtype", "torch", "threads"}
    assert loaded.nbytes == (22_713_216 - 147_840) * loaded.dtype.itemsize


def test_names_are_known_models_or_sources() -> None:
    known = ModelSpec("mine", "some/source")
    registry = ModelRegistry([known])
    assert registry.names == ["mine"]
    assert registry.spec("mine") is known
    assert registry.spec("other/source") == ModelSpec("other/source", "other/source")
    with pytest.raises(ConfigError, match="model mine is for the task 'embed', not for 'echo'"):
        registry.spec("mine", task=Echo.name)
    with pytest.raises(ConfigError, match="there is no task 'no-such'; known are "):
        registry.spec("mine", task="no-such")
    with pytest.raises(ConfigError, match="two models are named 'mine'"):
        ModelRegistry([known, known])


def test_a_digest_in_the_spec_is_checked(tiny_bert: Callable[..., Path]) -> None:
    folder = str(tiny_bert())
    registry = ModelRegistry()
    digest = registry.load(ModelSpec("m", folder), "cpu").digest
    assert registry.load(ModelSpec("m", folder, digest=digest), "cpu").digest == digest
    with pytest.raises(DigestError, match="fetch the model again"):
        registry.load(ModelSpec("m", folder, digest="0" * 64), "cpu")


def test_threads_that_ask_at_once_load_a_model_once(
    tiny_bert: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, together = ModelSpec("m", str(tiny_bert())), threading.Barrier(4)
    loads: list[Any] = []
    load = registry_module._load

    def noted(*given: Any) -> Any:
        loads.append(given)
        return load(*given)

    monkeypatch.setattr(registry_module, "_load", noted)
    registry = ModelRegistry()

    def ask(_: int) -> int:
        together.wait()
        return id(registry.load(spec, "cpu"))

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(ask, range(4)))) == 1
    assert len(loads) == 1


def test_a_failed_load_is_tried_again(tiny_bert: Callable[..., Path]) -> None:
    folder = tiny_bert()
    registry, spec = ModelRegistry(), ModelSpec("m", str(folder))
    (folder / "tokenizer.json").rename(folder / "away")
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        registry.load(spec, "cpu")
    (folder / "away").rename(folder / "tokenizer.json")
    assert registry.load(spec, "cpu").dim == 32


def test_the_least_recently_used_model_is_given_up(tiny_bert: Callable[..., Path]) -> None:
    specs = [ModelSpec(name, str(tiny_bert(name))) for name in ("a", "b", "c")]
    one = ModelRegistry().load(specs[0], "cpu").nbytes
    registry = ModelRegistry(memory_bytes=2 * one)
    a, b = (registry.load(spec, "cpu") for spec in specs[:2])
    assert registry.load(specs[0], "cpu") is a
    registry.load(specs[2], "cpu")
    assert registry.load(specs[0], "cpu") is a
    assert registry.load(specs[1], "cpu") is not b


def test_a_model_over_the_budget_is_still_served(tiny_bert: Callable[..., Path]) -> None:
    registry, spec = ModelRegistry(memory_bytes=1), ModelSpec("m", str(tiny_bert()))
    assert registry.load(spec, "cpu") is registry.load(spec, "cpu")


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ({"avx2", "fma"}, torch.float32),
        ({"avx512f", "avx512_vnni"}, torch.float32),
        ({"avx512f", "avx512_bf16"}, torch.bfloat16),
        ({"amx_bf16", "amx_tile"}, torch.bfloat16),
    ],
)
def test_precision_follows_the_flags_of_the_cpu(
    flags: set[str], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_module, "cpu_flags", lambda: frozenset(flags))
    assert resolve_dtype("auto", torch.device("cpu")) is dtype
    assert resolve_dtype("float32", torch.device("cpu")) is torch.float32
    assert resolve_dtype("auto", torch.device("cuda")) is torch.bfloat16


def test_devices_that_are_not_there_are_refused() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert physical_cores() >= 1
    for name in ("gpu", "meta", ""):
        with pytest.raises(ConfigError, match=rf"device must be auto, cpu, cuda or cuda:N\. Got '{name}'"):
            resolve_device(name)
    with pytest.raises(ConfigError, match=r"device cuda:99 was asked for, but this machine has \d+ CUDA devices"):
        resolve_device("cuda:99")


def test_tasks_are_found_by_name() -> None:
    known: Any = find_task("embed")
    assert known is EmbedTask
    with pytest.raises(ConfigError, match=r"there is no task 'nothing'; known are .*embed"):
        find_task("nothing")


def test_a_name_belongs_to_one_task() -> None:
    class Shout(EmbedTask):
        name = "shout"

    class Other(EmbedTask):
        name = "shout"

    shout: Any = Shout
    assert register(shout) is register(shout) is find_task("shout")
    others: list[Any] = [Other, EmbedTask]
    for task in others:
        with pytest.raises(ConfigError, match=f"a task named '{task.name}' exists already"):
            register(task)


def test_the_embedded_weights_are_small() -> None:
    size = sum(path.stat().st_size for path in embedded_folder("all-MiniLM-L6-v2").rglob("*"))
    assert size <= 23_600_000


def test_the_devices_of_a_worker_are_named_one_by_one_or_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_devices("cpu") == [torch.device("cpu")]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"kind {device.index // 2}")
    assert resolve_devices("cuda:0, cuda:1") == [torch.device("cuda:0"), torch.device("cuda:1")]
    assert resolve_devices("cuda:2") == [torch.device("cuda:2")]
    with pytest.raises(ConfigError, match="start one worker for each of kind 0, kind 1"):
        resolve_devices("auto")
    with pytest.raises(ConfigError, match="several devices must each be named cuda:N"):
        resolve_devices("cpu,cuda:0")
    with pytest.raises(ConfigError, match="a device is named twice in 'cuda:1,cuda:1'"):
        resolve_devices("cuda:1,cuda:1")
