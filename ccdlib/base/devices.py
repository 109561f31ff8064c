"""Devices: what "auto" means, how many GPUs and cores there are, and what they are called in results."""

import os
import platform

import torch

from ccdlib.base.registry import CcdError


def best_device() -> torch.device:
    """The device that "auto" means: $CCD_DEVICE (cuda names the runs of a GPU where there is none), or what is here."""
    given = os.environ.get("CCD_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    if given not in ("cpu", "cuda"):
        raise CcdError(f"CCD_DEVICE = {given!r}: allowed are cpu and cuda")
    return torch.device(given)


def gpus() -> int:
    """How many GPUs there are for "auto"; none where it means the CPU. CUDA is not begun by asking, so that a process can
    still choose the GPUs that it sees."""
    return 0 if os.environ.get("CCD_DEVICE") == "cpu" else torch.cuda.device_count()


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def jobs() -> int:
    """How many runs are trained at once: $CCD_JOBS, or one on a GPU, or as many as there are cores."""
    given = os.environ.get("CCD_JOBS")
    if given is None:
        return 1 if best_device().type == "cuda" else cores()
    if not given.isdecimal() or int(given) < 1:
        raise CcdError(f"CCD_JOBS = {given!r}: allowed are whole numbers from 1, the runs that are trained at once")
    return int(given)


def hardware(device: str | torch.device) -> str:
    """One line: the GPU's name, or the processor's architecture and the threads in use."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.machine()}, {torch.get_num_threads()} threads"


def device_named(name: str) -> torch.device:
    """The torch device of "auto", "cpu" or "cuda". Errors: CcdError where it is CUDA and none is here."""
    device = best_device() if name == "auto" else torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        how = "CCD_DEVICE = 'cuda'" if name == "auto" else "device 'cuda'"
        raise CcdError(f"{how} was asked for and no CUDA device is there; use 'auto' or 'cpu', or unset CCD_DEVICE")
    return device
