import pytest

from service.bundle import Bundle
from tests.bundles import make_bundle
from tests.triton_servers import encrypted, triton, triton_session, tritons

__all__ = ["encrypted", "triton", "triton_session", "tritons"]


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")
