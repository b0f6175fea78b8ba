"""`datapipe serve` as a process: where it listens, what it prints, whom it lets in, how it ends."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from datapipe.errors import ConfigError
from datapipe.settings import ServeSettings, Settings
from datapipe.workers.http.auth import Keys, check_exposure, is_loopback
from datapipe.workers.http.serve import Server, read_settings
from datapipe.workers.spec import DEFAULT_EMBEDDER
from tests.workers.http.conftest import KEY
from tests.workers.http.servers import Command, wait_until

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "the innkeeper's daughter hid the letter"
EVERYWHERE = "0.0.0.0"  # noqa: S104 - what is tested is that it is refused


def test_the_command_serves_the_embedded_model_and_keeps_its_secrets(tmp_path: Path) -> None:
    """The fast suite's one server in a process: start, key, answer, refusal, log, end."""
    keys = tmp_path / "keys"
    keys.write_text("# of the team\nkey-from-the-file\n\n")
    command = Command("--api-key-file", str(keys), "--max-texts", "5", DATAPIPE_API_KEY=KEY)
    with command as url, httpx.Client(base_url=url, trust_env=False) as client:
        assert client.get("/v1/models").status_code == 401
        wait_until(lambda: client.get("/ready").status_code == 200)
        for key in (KEY, "key-from-the-file"):
            answer = client.post("/v1/embeddings", json={"input": TEXT}, headers={"authorization": f"Bearer {key}"})
            assert len(answer.json()["data"][0]["embedding"]) == 384
            assert answer.json()["model"] == DEFAULT_EMBEDDER.name
            assert "server" not in answer.headers
        client.headers["authorization"] = f"Bearer {KEY}"
        assert client.post("/v1/embeddings", json={"input": ["a"] * 6}).status_code == 413
        assert client.get("/health").json()["status"] == "ok"
    code, errors = command.end()
    assert code == 0, errors
    for secret in (KEY, "key-from-the-file", "innkeeper"):
        assert secret not in errors
    assert "********" in errors
    assert "POST /v1/embeddings 200" in errors
    assert "max texts" in errors


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_running_requests_end(by: signal.Signals) -> None:
    command = Command()
    with command as url:
        texts = [f"text number {n} of a long request " * 5 for n in range(400)]
        answers: list[int] = []

        def ask() -> None:
            answers.append(
                httpx.post(f"{url}/v1/embeddings", json={"input": texts}, trust_env=False, timeout=60).status_code
            )

        asking = threading.Thread(target=ask)
        asking.start()
        wait_until(lambda: "in_progress 1" in _in_progress(url))
        code, errors = command.end(by)
        asking.join(60)
        assert answers == [200], errors
        assert code == 0, errors
        assert "Traceback" not in errors
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health", trust_env=False)


def _in_progress(url: str) -> str:
    """Requests in progress besides the one that asks."""
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    (line,) = [line for line in text.splitlines() if line.startswith("datapipe_http_requests_in_progress ")]
    return f"in_progress {float(line.split()[1]) - 1:g}"


@pytest.mark.slow
def test_a_signal_while_models_are_loaded_ends_it_too() -> None:
    command = Command()
    time.sleep(1.0)
    code, errors = command.end()
    assert code in {0, -signal.SIGTERM}, errors
    assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        (["--host", EVERYWHERE], {}, f"others can reach {EVERYWHERE}, and no key is set: set DATAPIPE_API_KEY or"),
        (["--model", "/no/such/folder"], {}, "model /no/such/folder"),
        (["--max-texts", "0"], {}, "settings that cannot be used: max_texts: Input should be greater than or"),
        ([], {"DATAPIPE_SERVE__MAX_TXTS": "5"}, "DATAPIPE_SERVE__MAX_TXTS: Extra inputs are"),
        ([], {"DATAPIPE_SERVE__PORT": KEY}, "DATAPIPE_SERVE__PORT: Input should be a valid"),
    ],
)
def test_what_cannot_be_served_is_one_line_and_exit_1(
    options: list[str], environment: dict[str, str], message: str
) -> None:
    command = Command(*options, **environment)
    code = command.process.wait(60)
    _, errors = command.end()
    assert code == 1
    assert errors.splitlines()[-1].startswith(f"error: {message}"), errors
    assert KEY not in errors
    assert "Traceback" not in errors


def test_a_taken_port_is_found_before_a_model_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1 port {port}: Address already in use"):
            Server(ServeSettings(port=port, device="cpu")).run(listening=lambda _: None)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "localhost", "::1", "[::1]"])
def test_the_loopback_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    check_exposure(ServeSettings(host=host), Keys())


@pytest.mark.parametrize("host", [EVERYWHERE, "::", "10.0.0.1", "example.org", "localhost.example.org", ""])
def test_anything_else_needs_a_key_or_a_word(host: str) -> None:
    with pytest.raises(ConfigError, match="no key is set"):
        check_exposure(ServeSettings(host=host), Keys(["", "  "]))
    check_exposure(ServeSettings(host=host), Keys([KEY]))
    check_exposure(ServeSettings(host=host, allow_public=True), Keys())


@pytest.mark.parametrize("content", [None, b"", b"# only a comment\n\n", b"\xff\xfe"])
def test_a_key_file_without_a_key_is_refused(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"the key file .*/keys (cannot be read|holds no key)"):
        Keys.of(None, file)


def test_settings_come_from_the_environment_and_the_command_line_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAPIPE_SERVE__MAX_TEXTS", "7")
    monkeypatch.setenv("DATAPIPE_SERVE__MODEL", "a=x b=y,task=classify")
    monkeypatch.setenv("DATAPIPE_SERVE__PORT", "1")
    found = read_settings({"port": 2})
    assert (found.max_texts, found.port, found.model) == (7, 2, ("a=x", "b=y,task=classify"))
    assert read_settings({"model": ["c"]}).model == ("c",)


def test_every_setting_is_an_option_of_the_command() -> None:
    from typer.main import get_command

    from datapipe.cli import app

    command: Any = get_command(app)
    assert {option.name for option in command.commands["serve"].params} == set(ServeSettings.model_fields)


def test_settings_are_shown_with_the_key_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAPIPE_API_KEY", KEY)
    server = Server(ServeSettings(device="cpu"))
    shown = json.dumps(server.effective, default=str)
    assert KEY not in shown
    assert server.effective["api_key"] == "********"
    assert server.effective["device"] == "cpu"
    assert KEY not in json.dumps(Settings().model_dump(), default=str)
    monkeypatch.delenv("DATAPIPE_API_KEY")
    assert Server(ServeSettings(device="cpu")).effective["api_key"].startswith("none: everybody who reaches")


@pytest.mark.slow
async def test_strangers_do_not_stop_the_service_for_others(command: str) -> None:
    """Bad requests of all kinds at the same time as good ones."""
    headers = {"authorization": f"Bearer {KEY}"}
    bad: list[dict[str, Any]] = [
        {"content": b"{" * 9000, "headers": {"content-type": "application/json"}},
        {"content": b"x" * (9 << 20), "headers": {"content-type": "application/json"}},
        {"json": {"input": ["a"] * 3000}},
        {"json": {"input": "a" * 2_000_000}},
        {"json": {"input": [[1, 2]]}},
        {"json": {"input": "a"}, "headers": {"authorization": "Bearer wrong"}},
    ]
    async with httpx.AsyncClient(base_url=command, headers=headers, trust_env=False, timeout=60) as client:
        refused = [client.post("/v1/embeddings", **options) for options in bad * 5]
        good = [client.post("/v1/embeddings", json={"input": f"text {n}"}) for n in range(60)]
        answers = await asyncio.gather(*refused, *good)
        assert [answer.status_code for answer in answers[len(refused) :]] == [200] * 60
        assert [answer.status_code for answer in answers[: len(refused)]] == [400, 413, 413, 413, 422, 401] * 5
        assert (await client.get("/health")).json()["queued"] == 0
