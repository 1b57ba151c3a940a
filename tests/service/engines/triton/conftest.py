import pytest

from service.engines.triton import client, connection, servers

CONNECT_LIMIT = "grpc.min_reconnect_backoff_ms"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine's servers answer late, and are no worse for it."""
    monkeypatch.setattr(client, "ASK_LIMIT", 60)
    monkeypatch.setattr(client, "STATISTICS_LIMIT", 60)
    monkeypatch.setattr(servers, "START_LIMIT", 120)
    channel = dict(connection.CHANNEL) | {CONNECT_LIMIT: 60_000}
    monkeypatch.setattr(connection, "CHANNEL", list(channel.items()))
