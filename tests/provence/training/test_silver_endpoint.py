"""A chat model over HTTP, against a real server on this machine that fails in every way."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

from datapipe.errors import ConfigError, WorkerError
from provence.training.silver_endpoint import EndpointLabeller
from provence.training.silver_journal import Reply
from tests.provence.training.silver_server import ChatServer, chat_server

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "sk-very-secret"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with chat_server(lambda prompt: f"It is {prompt} [0].") as state:
        yield state


def labeller(server: ChatServer, **options: Any) -> EndpointLabeller:
    return EndpointLabeller(server.address, "tiny", **{"pause": 0.0, "retries": 2, "concurrency": 1, **options})


def test_every_prompt_gets_its_own_reply(server: ChatServer) -> None:
    prompts = [str(number) for number in range(20)]
    found = dict(labeller(server, concurrency=4).replies(prompts))
    assert found == {place: Reply(f"It is {prompt} [0].") for place, prompt in enumerate(prompts)}


def test_the_request_is_a_greedy_chat_completion(server: ChatServer) -> None:
    list(labeller(server, max_new_tokens=7).replies(["why"]))
    assert server.seen == [
        {
            "path": "/v1/chat/completions",
            "model": "tiny",
            "messages": [{"role": "user", "content": "why"}],
            "temperature": 0,
            "max_tokens": 7,
            "stream": False,
        }
    ]
    assert server.keys == [None]


def test_the_key_of_the_environment_is_sent(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    list(labeller(server, key_variable="MY_KEY").replies(["why"]))
    assert server.keys == [f"Bearer {KEY}"]


def test_a_reply_at_its_limit_is_not_finished(server: ChatServer) -> None:
    server.finish_reason = "length"
    assert next(labeller(server).replies(["why"]))[1] == Reply("It is why [0].", finished=False)


@pytest.mark.parametrize(
    "fault", [(429, {"Retry-After": "0"}), (429, {"Retry-After": "soon"}), (500, {}), (503, {}), (0, {})]
)
def test_a_passing_fault_is_tried_again(server: ChatServer, fault: tuple[int, dict[str, str]]) -> None:
    server.faults = [fault, fault]
    assert next(labeller(server).replies(["why"])) == (0, Reply("It is why [0]."))
    assert len(server.seen) == 3


def test_a_server_that_hangs_counts_as_failed(server: ChatServer) -> None:
    server.hold.clear()
    with pytest.raises(WorkerError, match=r"failed 2 times, at last with: timed out"):
        list(labeller(server, timeout=0.05, retries=1).replies(["why"]))


def test_a_fault_that_stays_ends_the_run_and_says_that_replies_are_kept(server: ChatServer) -> None:
    server.faults = [(500, {})] * 9
    with pytest.raises(WorkerError, match=r"failed 3 times, at last with: HTTP 500; replies so far are kept"):
        list(labeller(server).replies(["why"]))


@pytest.mark.parametrize("retries", [0, 1, 6])
def test_a_server_that_is_not_there_is_named_after_one_more_attempt(retries: int) -> None:
    asked = EndpointLabeller("http://127.0.0.1:9/v1", "tiny", retries=retries, pause=0.01)
    error = r"^http://127\.0\.0\.1:9/v1/chat/completions cannot be reached: Connection refused; check the address"
    with pytest.raises(WorkerError, match=error):
        list(asked.replies(["why"] * 20))


def test_a_host_that_nobody_knows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(WorkerError, match=r"^http://nowhere/v1/.* cannot be reached: Name or service not known"):
        list(EndpointLabeller("http://nowhere/v1", "tiny", pause=0.01).replies(["why"]))


def test_a_server_that_goes_away_later_is_tried_again_and_that_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with chat_server(str.upper) as state:
        asked = labeller(state, retries=3)
        assert dict(asked.replies(["why"])) == {0: Reply("WHY")}
    with pytest.raises(WorkerError, match=r"failed 4 times, at last with: Connection refused; replies so far are kept"):
        list(asked.replies(["why"]))
    (told,) = caplog.messages
    assert told == f"{state.address}/chat/completions: Connection refused; attempt 2 of 4 follows in 0 s"


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_prompt_is_its_own_fault(server: ChatServer, status: int) -> None:
    server.faults = [(status, {})]
    found = dict(labeller(server).replies(["first", "second"]))
    assert found == {0: "refused_by_endpoint", 1: Reply("It is second [0].")}


def test_a_server_that_refuses_everything_ends_the_run(server: ChatServer) -> None:
    server.faults = [(400, {})] * 20
    with pytest.raises(ConfigError, match=r"refuses every prompt with HTTP 400. It says '{\"error\": \"as told\"}'"):
        list(labeller(server).replies([str(number) for number in range(20)]))


@pytest.mark.parametrize(
    ("status", "hint"), [(401, "put a valid key into"), (404, "check the address"), (302, "redirects are not followed")]
)
def test_what_will_not_pass_ends_the_run_at_once_without_telling_the_key(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, status: int, hint: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.faults = [(status, {"Location": "http://127.0.0.1:9/"})]
    with pytest.raises(ConfigError, match=hint) as caught:
        list(labeller(server).replies(["why"]))
    assert KEY not in str(caught.value)
    assert len(server.seen) == 1


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"choices": []}', b'{"choices": [{"message": null}]}'])
def test_an_answer_of_another_shape_is_shown(server: ChatServer, body: bytes) -> None:
    server.raw = body
    with pytest.raises(WorkerError, match=r"gave no chat completion\. Got"):
        list(labeller(server).replies(["why"]))


@pytest.mark.parametrize("address", ["ftp://host/v1", "host:80/v1", "http:///v1", "http://host/v1?key=secret"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="must look like http://HOST:PORT/v1") as caught:
        EndpointLabeller(address, "tiny")
    assert "secret" not in str(caught.value)


def test_a_password_in_the_address_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError, match="put the key into") as caught:
        EndpointLabeller("http://me:secret@host/v1", "tiny")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"max_new_tokens": 0}, {"retries": -1}, {"timeout": 0}])
def test_numbers_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        EndpointLabeller("http://host/v1", "tiny", **options)
