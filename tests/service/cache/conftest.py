import pytest


@pytest.fixture
def patient_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is put is stored, however slow the machine."""
    monkeypatch.setattr("service.cache.redis.WRITE_TIMEOUT", 60)
