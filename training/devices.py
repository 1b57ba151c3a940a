"""Which device a run uses, and how precisely it computes there."""

from __future__ import annotations

import os

import torch


class DeviceError(Exception):
    """There is no such device here; the message names those there are."""


def choose_device(name: str = "auto") -> torch.device:
    """The device of this process: the named one, or an accelerator if there is one.

    Each process that `torchrun` starts on a machine takes an accelerator of its own.

    Raises:
        DeviceError: There is no such device here.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        name = "cpu" if accelerator is None else accelerator.type
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"{name!r} is no device; use auto, cpu or cuda") from None
    if device.type == "cpu":
        return device
    if accelerator is None or accelerator.type != device.type:
        raise DeviceError(f"there is no {name} here; use auto or cpu")
    if device.index is None:
        device = torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))
    if device.index >= (count := torch.accelerator.device_count()):
        raise DeviceError(
            f"there is no {device} here, for there are {count}; start no more processes than that"
        )
    return device


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False
