"""A group of processes that trains one network by torch's own engine: torchrun and DistributedDataParallel.

Every process takes its part of each step's images. Batch norms see the whole step and every process's loss counts by its share
of the inputs, so the gradient is that of one process on the joined batch, and how many processes there are names no run.
"""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ccdlib.base import extensions, paths
from ccdlib.base.devices import best_device
from ccdlib.base.files import write_whole
from ccdlib.base.registry import CcdError

RESTARTS = 3  # how often a group that lost a process starts again, from the last epoch that was kept


# Without it a group that starts again reads the addresses of the processes that ended, and waits for them (torch 2.13).
FRESH = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


ERROR = "CCD_GROUP_ERROR"  # the file for the mistake that ends a group, because starting again would not mend it


def started_by_torchrun():
    """Whether this process is one of a group that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launched():
    """Whether this group was started by launch(), in a process that says what becomes of it."""
    return ERROR in os.environ


def given_up():
    """Whether a process of this group made a mistake that starting again would not mend."""
    return os.path.exists(os.environ.get(ERROR, ""))


def size():
    """How many processes train together; 1 outside of a group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank():
    """Which of them this is; the first, 0, prints and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def joined():
    """Take part in the group that torchrun started."""
    backend = "gloo"
    if best_device().type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"  # a run may ask for the CPU
    # The first process may wait for hours for another one that trains the same run.
    dist.init_process_group(backend, timeout=timedelta(days=7))
    try:
        yield
    except CcdError as error:
        if not launched():
            raise
        write_whole(os.environ[ERROR], str(error))
        sys.exit(1)  # the others may wait for this one: torchrun ends them, starts all again, and they see that it was given up
    dist.destroy_process_group()


def from_first(make):
    """What `make()` gives in the first process, in all of them; its CcdError, too."""
    if size() == 1:
        return make()
    made = [None]
    if rank() == 0:
        try:
            made = [make()]
        except CcdError as error:
            made = [error]
    dist.broadcast_object_list(made)
    if isinstance(made[0], CcdError):
        raise made[0]
    return made[0]


def total(tensor):
    """The sum of a tensor over all processes."""
    if size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def wait():
    """Until all processes are here."""
    if size() > 1:
        dist.barrier()


class _Total(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, tensor):
        return total(tensor)

    @staticmethod
    def backward(ctx, gradient):
        return total(gradient)


class JointNorm(nn.BatchNorm2d):
    """Batch norm over the inputs of all processes; torch's SyncBatchNorm has no CPU version."""

    def forward(self, x):
        """x (B, C, h, w) -> the same, normalised by the statistics of all processes' inputs."""
        if not self.training:
            return super().forward(x)
        # One exchange for all: sums in float64, in which the variance may be a difference.
        wide = x.double()
        count = wide.new_tensor([x.numel() / x.shape[1]])
        sums = _Total.apply(torch.cat([wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3)), count]))
        n = sums[-1].detach()
        mean, square = (sums[:-1] / n).chunk(2)
        variance = (square - mean.square()).clamp(min=0)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(x.dtype), self.momentum)
            self.running_var.lerp_((variance * n / (n - 1)).to(x.dtype), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return x * scale.to(x.dtype).view(1, -1, 1, 1) + shift.to(x.dtype).view(1, -1, 1, 1)


def in_group(network, device):
    """A network as the processes of a group train it together; the network itself in a group of one.

    Its weights stay those of `network`, whose batch norms see all inputs from now on.
    """
    if size() == 1:
        return network
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return DistributedDataParallel(network, device_ids=[torch.cuda.current_device()])
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = JointNorm
    return DistributedDataParallel(network)


def launch(configs, show, repair=False):
    """Train runs, one after the other, with as many processes of this machine as they ask for, on GPUs as many as there are at
    most, and come back when all are done.

    A process that is lost ends the group, which then starts again from the last epoch that was kept, a few times. Errors:
    CcdError as fit() raises it, and when processes are lost again and again.
    """
    processes, gpus = max(config.processes for config in configs), torch.cuda.device_count()
    device = best_device().type if configs[0].device == "auto" else configs[0].device
    if device == "cuda" and processes > gpus:  # how many there are changes no result
        print(f"{processes} processes were asked for, and {gpus} GPUs are here: one each", file=sys.stderr)
        processes = gpus
    with tempfile.TemporaryDirectory(prefix="ccdlib-") as folder:
        asked, mistake, log = (Path(folder) / name for name in ("runs.json", "mistake", "log"))
        asked.write_text(json.dumps([config.model_dump(mode="json") for config in configs]))
        threads = max(1, torch.get_num_threads() // processes)
        kept = {name: value for name, value in os.environ.items() if name != "CCD_JOBS"}
        environment = (
            kept
            | FRESH
            | extensions.environment()
            | {ERROR: str(mistake), "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        )
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)),
            *("--max-restarts", str(RESTARTS), "-m", "ccdlib", "fit", str(asked)),
            *("--show", {"bar": "epochs", "run": "none"}.get(show, show)),  # fit() itself says what a run came to
            *(["--repair"] if repair else []),
        ]
        with (
            open(log, "w") as errors,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, cwd=paths.ROOT
            ) as group,
        ):
            try:
                for line in group.stdout:
                    print(line, end="", flush=True)
            except BaseException:
                group.terminate()
                raise
        if mistake.exists():
            raise CcdError(mistake.read_text())
        if group.returncode:
            last = "\n".join(log.read_text().splitlines()[-15:])
            raise CcdError(
                f"the {processes} processes that trained together ended with exit status {group.returncode}. What was kept is "
                f"there, and the same command goes on from it. They said last:\n{last}"
            )
