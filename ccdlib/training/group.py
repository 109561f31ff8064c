"""Several processes that train one network together: torchrun starts them, DistributedDataParallel averages their gradients.

Every process takes its part of each step's images. Batch norms see all images of a step, and each process's loss is weighted
by its share of the inputs. So the gradient is that of one process with the whole batch, and a run's name does not depend on how
many processes trained it.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ccdlib.base import extensions, paths
from ccdlib.base.devices import best_device
from ccdlib.base.files import write_whole
from ccdlib.base.registry import CcdError
from ccdlib.training.config import RunConfig

RESTARTS = 3  # how often a group that lost a process starts again, from the last saved epoch
# Without this, a group that starts again reads the addresses of the processes that ended, and waits for them (torch 2.13).
FRESH = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
ERROR = "CCD_GROUP_ERROR"  # names the file that receives a CcdError, which would be raised again after every restart


def started_by_torchrun() -> bool:
    """Whether torchrun started this process as one of a group."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launched() -> bool:
    """Whether launch() started this group; the process that called it waits for the group and reports its errors."""
    return ERROR in os.environ


def given_up() -> bool:
    """Whether a process of this group raised a CcdError, so that starting the group again is pointless."""
    return os.path.exists(os.environ.get(ERROR, ""))


def size() -> int:
    """The number of processes that train together; 1 outside of a group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process in its group, from 0. Only process 0 prints and writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def joined() -> Iterator[None]:
    """Context in which this process is part of the group that torchrun started."""
    backend = "gloo"
    if best_device().type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"  # a run may ask for the CPU on a machine with GPUs
    # The first process may wait for hours while a process outside of the group trains the same run.
    dist.init_process_group(backend, timeout=timedelta(days=7))
    try:
        yield
    except CcdError as error:
        if not launched():
            raise
        write_whole(os.environ[ERROR], str(error))
        sys.exit(
            1
        )  # torchrun then ends the others, which may wait for this one, and starts all again; given_up() ends them at once
    dist.destroy_process_group()


def from_first(make: Callable[[], Any]) -> Any:
    """Call `make()` in the first process only; all processes get what it returns, or raise its CcdError."""
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


def total(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes; outside of a group the tensor itself."""
    if size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def wait() -> None:
    """Wait until all processes of the group have called this."""
    if size() > 1:
        dist.barrier()


class _Total(torch.autograd.Function):
    """total() with a gradient, which is the sum of the gradients of all processes."""

    @staticmethod
    def forward(ctx, tensor):
        return total(tensor)

    @staticmethod
    def backward(ctx, gradient):
        return total(gradient)


class JointNorm(nn.BatchNorm2d):
    """Batch norm over the inputs of all processes on a CPU, where torch's SyncBatchNorm does not work."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise this process's x (B, C, h, w) by the mean and variance over the inputs of all processes."""
        if not self.training:
            return super().forward(x)
        # All sums are exchanged at once, in float64: the variance is a difference, in which float32 would lose digits.
        wide = x.double()
        count = wide.new_tensor([x.numel() / x.shape[1]])
        sums = _Total.apply(torch.cat([wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3)), count]))
        n = sums[-1].detach()
        mean, square = (sums[:-1] / n).chunk(2)
        variance = (square - mean.square()).clamp(min=0)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((variance * n / (n - 1)).to(self.running_var.dtype), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        own = self.running_mean.dtype  # float32, also where x is bfloat16
        normal = x.to(own) * scale.to(own).view(1, -1, 1, 1) + shift.to(own).view(1, -1, 1, 1)
        return normal.to(x.dtype)


def in_group(network: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a network so that the processes of a group train it together; outside of a group, the network itself.

    The wrapped network shares its weights with `network`, whose batch norms are changed to see the inputs of all processes.
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


def launch(configs: Sequence[RunConfig], show: str, repair: bool = False) -> None:
    """Train runs, one after the other, by one group of processes on this machine, and return when all are finished.

    The group has as many processes as the runs ask for, but on GPUs not more than there are GPUs. If a process is lost, the
    whole group starts again from the last saved epoch, up to three times. show, repair: see fit(). Errors: CcdError as fit()
    raises it, and if processes are lost after the last restart.
    """
    processes, gpus = max(config.processes for config in configs), torch.cuda.device_count()
    device = best_device().type if configs[0].device == "auto" else configs[0].device
    if device == "cuda" and processes > gpus:  # fewer processes give the same result
        print(
            f"{processes} processes were asked for, but this machine has {gpus} GPUs: one process on each is used",
            file=sys.stderr,
        )
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
            *("--show", {"bar": "epochs", "run": "none"}.get(show, show)),  # "run": fit() prints the results after this
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
                f"the {processes} processes that trained together ended with exit status {group.returncode}. What was saved is "
                f"kept, and the same command goes on from there. The last lines of their output:\n{last}"
            )
