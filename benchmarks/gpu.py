"""`make gpu`: the tests on CUDA, the benchmark's column of this GPU, then a batch of profile paper for so many hours.

    python benchmarks/gpu.py [--hours 0.5] [--profile paper]

Without a GPU every line that does not need CUDA is executed on the CPU, on few images: the same tests, the benchmark with
--dry, and a minute of a small batch. So the first minute on a rented GPU is not spent on mistakes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from ccdlib.base.arithmetic import processor
from ccdlib.base.devices import gpus

HERE = Path(__file__).parent
SECTIONS = "rate,views,step,fit,paper,memory,precision"


def steps(dry: bool, hours: float, profile: str) -> list[list[str]]:
    """The commands, in order."""
    python, bench = [sys.executable, "-W", "ignore"], str(HERE / "bench.py")
    batch = [sys.executable, "-m", "ccdlib", "batch", "--hours", str(hours)]
    return [
        [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "tests"],
        [*python, bench, "--only", SECTIONS, *["--dry"] * dry],
        [*batch, "--profile", "smoke", "00_quickstart"] if dry else [*batch, "--profile", profile],
    ]


def main() -> None:
    """Do one after another, and stop at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=0.5, help="of the batch")
    parser.add_argument("--profile", default="paper")
    asked = parser.parse_args()
    dry = gpus() == 0
    said = f"no GPU: {processor()} executes all that needs none" if dry else f"{gpus()} x {torch.cuda.get_device_name()}"
    print(said, flush=True)
    with tempfile.TemporaryDirectory(prefix="ccdlib-gpu-") as folder:
        environment = os.environ | ({"CCD_OUTPUTS": folder} if dry else {})
        for command in steps(dry, 0.03 if dry else asked.hours, asked.profile):
            began = time.perf_counter()
            print(f"\n$ {' '.join(command)}", flush=True)
            if failed := subprocess.run(command, cwd=HERE.parent, env=environment, check=False).returncode:
                sys.exit(failed)
            print(f"({time.perf_counter() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
