import pytest
import torch

from training.devices import DeviceError, choose_device


def test_auto_is_the_accelerator_or_the_cpu():
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    assert choose_device().type == ("cpu" if accelerator is None else accelerator.type)
    assert choose_device("cpu") == torch.device("cpu")


def test_what_is_no_device_is_refused():
    with pytest.raises(DeviceError, match="'gpu' is no device; use auto, cpu or cuda"):
        choose_device("gpu")


def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(DeviceError, match="there is no meta here; use auto or cpu"):
        choose_device("meta")


@pytest.fixture
def accelerators(monkeypatch):
    """Two of them, as torch would say it."""
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda")
    )
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_process_has_an_accelerator_of_its_own(monkeypatch, accelerators, name):
    assert choose_device(name) == torch.device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device(name) == torch.device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(DeviceError, match="no cuda:2 here, for there are 2; start no more"):
        choose_device(name)
    assert choose_device("cuda:0") == torch.device("cuda:0")
