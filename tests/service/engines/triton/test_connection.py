"""TLS to real servers; see `tests.triton_servers`."""

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from service.bundle import Bundle
from service.engines.onnx import OnnxEngine
from service.engines.triton import server, servers
from service.engines.triton.engine import TritonEngine
from service.engines.triton.tls import Tls
from tests.certificates import Authority
from tests.service.engines.batches import OUTPUTS, images
from tests.triton_servers import Encrypted, TritonServer
from tests.waiting import until

EMBEDDING = ("embedding",)


@asynccontextmanager
async def opened(bundle: Bundle, url: str, tls: Tls | None) -> AsyncIterator[TritonEngine]:
    engine = TritonEngine(bundle, (url,), shared_memory=False, tls=tls)
    try:
        await engine.warm_up()
        yield engine
    finally:
        await engine.close()


@pytest.fixture(autouse=True)
def short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PAUSE", 0.1)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Why servers are not used."""
    lines = [record.getMessage() for record in caplog.records]
    return [line.partition(" is not used: ")[2] for line in lines if " is not used: " in line]


async def test_answers_are_those_of_the_engine_in_this_process(
    bundle: Bundle, encrypted: Encrypted
) -> None:
    batch = images(3, 32, 80)
    local = OnnxEngine(bundle, threads=1)
    expected = await local.infer(batch, OUTPUTS)
    await local.close()
    ca = encrypted.authority.certificate
    for url, tls in (
        (encrypted.url, Tls(ca, None, None)),
        (encrypted.mutual_url, Tls(ca, *encrypted.client)),
    ):
        async with opened(bundle, url, tls) as engine:
            assert engine.ready
            actual = await engine.infer(batch, OUTPUTS)
        for name, array in expected.items():
            np.testing.assert_allclose(actual[name], array, atol=1e-5)


async def test_where_the_sides_disagree_nothing_is_sent_and_one_line_says_on_what(
    bundle: Bundle,
    encrypted: Encrypted,
    triton: TritonServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stranger = Authority(tmp_path)
    unknown = stranger.issue("gateway")
    ca = encrypted.authority.certificate
    ours, known = Tls(ca, None, None), Tls(ca, *encrypted.client)
    by_address = encrypted.one_sided.url
    cases = [
        (encrypted.url, None, "it hangs up; if it speaks TLS, set triton_ca"),
        (encrypted.url, Tls(stranger.certificate, None, None), "triton_ca does not vouch for its"),
        (by_address, ours, "its certificate is not for 127.0.0.1, which triton_urls calls it"),
        (encrypted.mutual_url, ours, "it hangs up; if it asks for a certificate, set triton_cert"),
        (encrypted.mutual_url, Tls(ca, *unknown), f"that issued {unknown.certificate}?"),
        (triton.url, known, "it speaks without TLS; start it with --grpc-use-ssl=1"),
    ]
    for url, tls, why in cases:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            async with opened(bundle, url, tls) as engine:
                await asyncio.sleep(0.3)
                assert not engine.ready
        assert len(told(caplog)) == 1, told(caplog)
        assert why in told(caplog)[0]
        assert "\n" not in caplog.messages[0]


async def test_renewed_certificates_are_used_for_the_next_connection(
    bundle: Bundle,
    encrypted: Encrypted,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"

    def renew(authority: Authority) -> None:
        issued = authority.issue("gateway")
        shutil.copy(issued.certificate, certificate)
        shutil.copy(issued.key, key)

    renew(Authority(tmp_path / "stranger"))
    tls = Tls(encrypted.authority.certificate, certificate, key)
    async with opened(bundle, encrypted.mutual_url, tls) as engine:
        assert not engine.ready
        certificate.write_text("damaged")
        await until(lambda: told(caplog)[-1].startswith(f"triton_certificate: {certificate} holds"))
        renew(encrypted.authority)
        await until(lambda: engine.ready)
        # A connection that stands is not touched.
        certificate.write_text("damaged")
        await asyncio.sleep(0.3)
        assert set(await engine.infer(images(1, 64, 64), EMBEDDING)) == {"embedding"}


async def test_a_certificate_is_for_the_name_that_leads_to_the_server_now(
    bundle: Bundle, encrypted: Encrypted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "FIND_PAUSE", 0.05)
    server = [encrypted.one_sided.url]
    found = {"localhost:8001": [], "triton:8001": server}

    async def addresses(url: str) -> list[str]:
        return found[url]

    monkeypatch.setattr(servers, "_addresses", addresses)
    tls = Tls(encrypted.authority.certificate, None, None)
    engine = TritonEngine(bundle, tuple(found), shared_memory=False, tls=tls)
    await engine.warm_up()
    assert not engine.ready
    found["localhost:8001"] = server
    await until(lambda: engine.ready)
    # Under two names it is one server.
    assert [told.server for told in await engine.statistics()] == server
    await engine.close()
