from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from service.settings import Settings


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://user:p%40ss@10.0.0.1:6380/2",
        "rediss://:secret@redis.example/0?ssl_cert_reqs=required",
        "redis://[::1]:6379",
        "unix:///run/redis.sock",
    ],
)
def test_a_redis_url_is_taken_and_not_shown(url: str) -> None:
    settings = Settings(redis_url=SecretStr(url))
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == url
    assert url not in repr(settings)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://localhost",
        "redis://",
        "redis://:se#cret@host:6379",
        "redis://:secret@host:port",
        "redis://:secret@host/name",
        "redis://[::1",
        "unix://",
    ],
)
def test_a_malformed_redis_url_is_refused_with_the_way_out_and_without_the_secret(url: str) -> None:
    with pytest.raises(ValidationError) as error:
        Settings(redis_url=SecretStr(url))
    (wrong,) = error.value.errors()
    assert wrong["loc"] == ("redis_url",)
    assert "redis://[user:password@]host[:port][/database]" in wrong["msg"]
    assert "secret" not in wrong["msg"]


def test_a_shared_index_needs_a_redis() -> None:
    with pytest.raises(ValidationError, match="index: redis needs redis_url"):
        Settings(index="redis")
    settings = Settings(index="redis", redis_url=SecretStr("redis://localhost"))
    assert settings.index == "redis"


def test_tritons_addresses_come_joined_by_commas_and_the_engine_needs_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FOVEAL_TRITON_URLS", "triton-0:8001, 10.0.0.1:8001,[::1]:8001")
    settings = Settings(engine="triton")
    assert settings.triton_urls == ("triton-0:8001", "10.0.0.1:8001", "[::1]:8001")
    assert not settings.triton_shared_memory
    monkeypatch.delenv("FOVEAL_TRITON_URLS")
    with pytest.raises(ValidationError, match="engine: triton needs triton_urls"):
        Settings(engine="triton")


@pytest.mark.parametrize(
    "url", ["triton", "http://triton:8001", ":8001", "triton:x", "triton:70000"]
)
def test_what_is_no_address_of_triton_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="is no host:port of a gRPC service"):
        Settings(triton_urls=(url,))


def test_a_certificate_for_triton_needs_its_key_and_the_servers_authority() -> None:
    ca, certificate, key = (Path(name) for name in ("ca.crt", "tls.crt", "tls.key"))
    for alone in ({"triton_certificate": certificate}, {"triton_key": key}):
        with pytest.raises(ValidationError, match="triton_certificate and triton_key: neither is"):
            Settings(triton_ca=ca, **alone)
    with pytest.raises(ValidationError, match="without it the gateway speaks in the clear"):
        Settings(triton_certificate=certificate, triton_key=key)
    assert Settings(triton_ca=ca).triton_key is None
    assert Settings(triton_ca=ca, triton_certificate=certificate, triton_key=key).triton_key == key
