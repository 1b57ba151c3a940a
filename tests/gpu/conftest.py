from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU; without one these tests fail, for whoever asks for them wants to know."""
    if not torch.cuda.is_available():
        pytest.fail(
            "there is no GPU here: run `make gpu-tests` on a machine that has one, or leave these "
            'tests out by -m "not gpu"'
        )
    return torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """No TF32 in convolutions, where torch allows it: it keeps ten bits of a number."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
