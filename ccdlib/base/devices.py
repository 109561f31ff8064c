"""Devices: what "auto" stands for, how many GPUs and cores there are, and how results name the hardware."""

import os

import torch

from ccdlib.base.arithmetic import processor
from ccdlib.base.registry import CcdError


def best_device() -> torch.device:
    """The device that "auto" stands for: $CCD_DEVICE where it is set, else CUDA where there is a GPU, else the CPU.

    CCD_DEVICE=cuda also serves on a machine without a GPU, to look up the runs of one that has it. Errors: CcdError for a
    CCD_DEVICE that is neither cpu nor cuda.
    """
    given = os.environ.get("CCD_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    if given not in ("cpu", "cuda"):
        raise CcdError(f"CCD_DEVICE = {given!r}: allowed are cpu and cuda")
    return torch.device(given)


def gpus() -> int:
    """The number of GPUs that "auto" may use, 0 where CCD_DEVICE is cpu.

    Asking does not initialise CUDA, so that the process can still choose which GPUs it sees.
    """
    return 0 if os.environ.get("CCD_DEVICE") == "cpu" else torch.cuda.device_count()


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def jobs() -> int:
    """The number of runs that are trained at once: $CCD_JOBS where it is set, else 1 on a GPU, else one for each core.

    Errors: CcdError for a CCD_JOBS that is no whole number from 1.
    """
    given = os.environ.get("CCD_JOBS")
    if given is None:
        return 1 if best_device().type == "cuda" else cores()
    if not given.isdecimal() or int(given) < 1:
        raise CcdError(f"CCD_JOBS = {given!r}: allowed are whole numbers from 1 (how many runs are trained at once)")
    return int(given)


def hardware(device: str | torch.device) -> str:
    """One line about the hardware: the name of the GPU, or the name of the CPU and the number of threads in use."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' * (threads > 1)}"


def device_named(name: str) -> torch.device:
    """The torch device that "auto", "cpu" or "cuda" names. Errors: CcdError for CUDA on a machine without a GPU."""
    device = best_device() if name == "auto" else torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        how = "CCD_DEVICE = 'cuda'" if name == "auto" else "device 'cuda'"
        raise CcdError(f"{how} was asked for and no CUDA device is there; use 'auto' or 'cpu', or unset CCD_DEVICE")
    return device
