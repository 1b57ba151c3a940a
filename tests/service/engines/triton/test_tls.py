import subprocess
from pathlib import Path

import pytest

from service.engines.base import EngineUnavailable
from service.engines.triton.tls import Pem, Tls
from tests.certificates import Authority, Certificate


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def ours(authority: Authority) -> Certificate:
    return authority.issue("gateway")


def test_the_files_are_read_as_they_are(
    authority: Authority, ours: Certificate, tmp_path: Path
) -> None:
    ca = authority.certificate.read_bytes()
    assert Tls(authority.certificate, None, None).read() == Pem(ca, None, None)
    several = tmp_path / "several.crt"
    several.write_bytes("Behörde Nº 1\n".encode() + ca + b"another\n" + ca)
    assert Tls(several, *ours).read() == Pem(
        several.read_bytes(), ours.certificate.read_bytes(), ours.key.read_bytes()
    )


def test_what_cannot_be_used_names_its_setting_its_file_and_the_way_out(
    authority: Authority, ours: Certificate, tmp_path: Path
) -> None:
    ca, (certificate, key) = authority.certificate, ours
    nowhere, empty, locked = tmp_path / "nowhere", tmp_path / "empty", tmp_path / "locked"
    empty.touch()
    lock = ("openssl", "pkey", "-aes128", "-passout", "pass:secret", "-in", key, "-out", locked)
    subprocess.run(lock, check=True, capture_output=True)
    reads, begins = "may read", "BEGIN CERTIFICATE"
    other = authority.issue("another").key
    cases = {
        Tls(nowhere, None, None): ("triton_ca", nowhere, reads),
        Tls(tmp_path, None, None): ("triton_ca", tmp_path, reads),
        Tls(empty, None, None): ("triton_ca", empty, begins),
        Tls(key, None, None): ("triton_ca", key, begins),
        Tls(ca, nowhere, key): ("triton_certificate", nowhere, reads),
        Tls(ca, key, key): ("triton_certificate", key, begins),
        Tls(ca, certificate, nowhere): ("triton_key", nowhere, reads),
        Tls(ca, certificate, empty): ("triton_key", empty, "as PEM"),
        Tls(ca, certificate, other): ("triton_key", other, "belongs to it"),
        Tls(ca, certificate, locked): ("triton_key", locked, "without a password"),
    }
    for tls, (setting, path, way_out) in cases.items():
        with pytest.raises(EngineUnavailable) as told:
            tls.read()
        assert str(told.value).startswith(f"{setting}: {path} ")
        assert way_out in str(told.value)
        assert "\n" not in str(told.value)
