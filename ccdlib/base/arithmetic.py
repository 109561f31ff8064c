"""The arithmetic of a run: float32 or bfloat16, and whether all x86-64 processors that were tried give its bits ("portable").

Processors round differently because torch chooses the widest instructions that it finds, and these add numbers in another
order. The switches below ask oneDNN, ATen and MKL for kernels that every x86-64 processor with AVX2 has. They have an effect
only where torch has not computed anything yet.
"""

import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch

Precision = Literal["auto", "float32", "bfloat16", "fast"]
# MKL_CBWR=AVX2 gave other bits on another processor. One thread: more would add in an order that depends on their number.
SWITCHES = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1"}
UNSWITCHED = ("613ec213", "b36d273b")  # _product() without the switch on one thread and on two; with it 2894a252
WIDEST = {"amx_bf16": "AMX", "avx512_f": "AVX-512", "avx2": "AVX2", "sve2": "SVE2", "neon": "NEON"}
TOO_LATE = (
    "this process has already computed with the widest instructions of its processor, so its results are not portable. "
    "Start it anew, with CCD_PORTABLE=1 if it computes before it trains; or give portable = False"
)


class Arithmetic(NamedTuple):
    """How a run computes. precision: "float32" or "bfloat16", of the networks alone; losses, weights and statistics are
    float32. portable: whether its bits are those of every x86-64 processor on which this was tried."""

    precision: str
    portable: bool

    @property
    def half(self) -> bool:
        """Whether networks compute in bfloat16."""
        return self.precision == "bfloat16"

    @property
    def said(self) -> str:
        """The arithmetic in words."""
        return self.precision + ", portable" * self.portable


def resolved(precision: Precision, portable: bool, device: str) -> Arithmetic:
    """What a precision and `portable` stand for on a `device` ("cpu" or "cuda") of this machine.

    "auto": bfloat16 on a GPU, float32 on a CPU. "fast": bfloat16 where the device has instructions for it, else float32.
    Only float32 on an x86-64 CPU can be portable, so that `portable` has no effect elsewhere.
    """
    if precision in ("auto", "fast"):
        precision = "bfloat16" if device == "cuda" or (precision == "fast" and has_bfloat16()) else "float32"
    return Arithmetic(precision, portable and precision == "float32" and device == "cpu" and can_be_portable())


def has_bfloat16() -> bool:
    """Whether this CPU multiplies matrices of bfloat16 (AMX), which makes networks two to three times as fast."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def can_be_portable() -> bool:
    """Whether this CPU has the instructions on which portable arithmetic rests: x86-64 with AVX2."""
    return platform.machine() in ("x86_64", "AMD64") and bool(torch.cpu.get_capabilities().get("avx2", False))


def is_portable() -> bool:
    """Whether what this process computes is portable. Asking settles what instructions torch uses."""
    asked = SWITCHES.items() <= os.environ.items() and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return asked and _product() not in UNSWITCHED


def _product():
    """A few digits of the bits of a matrix product: MKL tells in no other way whether it has heard of its switch."""
    numbers = torch.arange(64.0 * 64).view(64, 64) / 7
    return hashlib.sha256((numbers @ numbers.sin()).numpy().tobytes()).hexdigest()[:8]


def exact(device: str | torch.device) -> None:
    """Let float32 mean float32 on a GPU, whose convolutions would otherwise round to ten bits (TF32)."""
    if torch.device(device).type == "cuda":
        torch.backends.cudnn.conv.fp32_precision = "ieee"


def make_portable() -> bool:
    """Let this process compute portably, on one thread; returns False where it is too late, because it has computed already."""
    before = {name: os.environ.get(name) for name in SWITCHES}
    os.environ.update(SWITCHES)
    if is_portable():
        torch.set_num_threads(1)
        return True
    _restore(before)
    return False


@contextmanager
def switched(portable: bool) -> Iterator[None]:
    """Context in which processes that this one starts compute portably from their beginning, if `portable`."""
    before = {name: os.environ.get(name) for name in SWITCHES}
    os.environ.update(SWITCHES if portable else {})
    try:
        yield
    finally:
        _restore(before)


def _restore(variables):
    for name, value in variables.items():
        os.environ.pop(name, None)
        os.environ.update({name: value} if value is not None else {})


def from_environment() -> None:
    """Let this process compute portably if $CCD_PORTABLE is 1, for scripts that compute before they train."""
    if os.environ.get("CCD_PORTABLE") == "1":
        make_portable()


def processor() -> str:
    """The processor's name, with the widest instructions that it has, which decide how it rounds."""
    known = torch.cpu.get_capabilities()
    name = known.get("cpu_name") or platform.processor() or platform.machine()
    widest = next((said for key, said in WIDEST.items() if known.get(key)), known.get("architecture", "?"))
    return f"{name}, {widest}"
