import pytest
from hypothesis import HealthCheck, settings

from service.bundle import Bundle
from tests.bundles import make_bundle
from tests.triton_servers import encrypted, triton, triton_session, tritons

__all__ = ["encrypted", "triton", "triton_session", "tritons"]

# What is slow on a busy machine is no fault.
settings.register_profile(
    "unhurried", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")
