"""On which processors a portable training has the same bits: trains three small students and compares their weights.

    python benchmarks/processors.py [--record]

--record adds this processor to processors.json, with what was found. tests/test_arithmetic.py makes the same comparison.
"""

import argparse
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from ccdlib.base.arithmetic import SWITCHES, processor

FILE = Path(__file__).with_suffix(".json")
TRAINING = """
import hashlib, torch, ccdlib
short = {"data": "objects", "n_train": 40, "batch": 20, "epochs": 3, "portable": True}
digest = hashlib.sha256()
for model, method, views in (("resnet8", "ccd", "cifar100"), ("wrn_16_1", "at", "cifar10"), ("mobilenet_v2", "kd", "base")):
    teacher = ccdlib.RunConfig(**short, model="wrn_16_1" if method == "at" else "resnet20", seed=7)
    student = ccdlib.RunConfig(**short, model=model, method=method, views=views, teacher=teacher)
    digest.update((ccdlib.fit(student, show="none").folder / "weights.safetensors").read_bytes())
print(digest.hexdigest())
"""


def trained() -> str:
    """The SHA-256 of the weights of three portable trainings, in a process that nobody has prepared for them."""
    with TemporaryDirectory() as folder:
        plain = {name: value for name, value in os.environ.items() if name not in SWITCHES}
        environment = plain | {"CCD_OUTPUTS": folder, "CCD_DEVICE": "cpu"}
        command = [sys.executable, "-c", TRAINING]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout.split()[-1]


def main() -> None:
    """Compare, and record if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    known = json.loads(FILE.read_text()) if FILE.exists() else {"sha256": trained(), "processors": {}}
    found = trained()
    agrees = found == known["sha256"]
    print(f"{processor()}: {'the same bits' if agrees else f'other bits ({found})'}")
    if asked.record:
        known["processors"][processor()] = {"agrees": agrees, "date": datetime.now(UTC).date().isoformat()}
        FILE.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
