"""Where the model hub cannot be reached, its client neither waits nor tries again."""

from __future__ import annotations

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants

from edge_tprune.errors import UserError
from edge_tprune.models.hub import no_retries, why_unreachable
from edge_tprune.models.loading import load_model


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a hub at a port of this machine where nobody listens."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return str(port)


def test_a_hub_that_answers_is_asked(closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert why_unreachable() is None
        with no_retries() as reason:
            assert (reason, constants.HF_HUB_OFFLINE) == (None, False)
        server.shutdown()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_network_that_takes_connections_and_is_silent_is_not_asked(
    closed: str, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setattr("edge_tprune.models.hub._PATIENCE_S", 0.3)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"{scheme}://127.0.0.1:{listening.getsockname()[1]}")
        assert why_unreachable() == "127.0.0.1 does not answer within 0.3 s"


def test_a_hub_that_does_not_answer_is_not_asked(closed: str) -> None:
    with no_retries() as reason:
        assert reason == "127.0.0.1 cannot be reached: Connection refused"
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("address", ["http://[hub", "https://hub:port", "https://hub..co", "huggingface.co", "nonsense"])
def test_an_address_that_is_none_is_not_asked(closed: str, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    with no_retries() as reason:
        assert reason is not None
        assert reason.startswith(f"HF_ENDPOINT, {address}, is no address: ")
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("name", "asked"),
    [("http_proxy", True), ("all_proxy", True), ("https_proxy", False), ("ftp_proxy", False), ("no_proxy", False)],
)
def test_a_proxy_of_its_scheme_may_reach_it(closed: str, monkeypatch: pytest.MonkeyPatch, name: str, asked: bool) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert (why_unreachable() is None) == asked


def test_weights_that_cannot_be_fetched_end_at_once_with_the_cause(
    closed: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/nonexistent")
    asked: list[float] = []
    monkeypatch.setattr(time, "sleep", asked.append)
    says = r"could not be fetched \(127.0.0.1 cannot be reached: Connection refused, and the cache does not hold them\)"
    with pytest.raises(UserError, match=says):
        load_model("vit_tiny_patch16_224")
    assert asked == [], "nothing is tried again"
    assert "Retrying" not in capfd.readouterr().err
