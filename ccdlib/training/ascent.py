"""Sharpness-aware steps: a step from the weights w by the gradient at w + e, where the loss is highest in their neighbourhood.

SAM (Foret et al., ICLR 2021, equations 2 and 3) goes up by e = rho g / ||g||. ASAM (Kwon et al., ICML 2021, with p = 2)
measures the way in units of the weights, e = rho T^2 g / ||T g|| with T = |w| + ETA elementwise, because plain sharpness
changes when weights are rescaled although the network does not (Dinh et al., ICML 2017).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

ETA = 0.01  # keeps weights of zero in reach, as in Kwon et al.
# {optimiser: (rho unless the configuration says another, whether the way is measured in units of the weights)}
ASCENTS = {"sam": (0.05, False), "asam": (0.5, True)}


def units(weights: Sequence[torch.Tensor], adaptive: bool) -> list[torch.Tensor]:
    """The T in which the way from each of `weights` is measured: ones unless `adaptive`."""
    return [weight.abs() + ETA if adaptive else torch.ones((), device=weight.device) for weight in weights]


@torch.no_grad()
def steepest(
    weights: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor], rho: float, adaptive: bool
) -> list[torch.Tensor]:
    """The e for each of `weights` that raises the loss most, to first order, with ||e|| = rho; if `adaptive`, ||e / T|| = rho.

    gradients: of the loss, of the same shapes. All zeros where the gradient is zero.
    """
    sizes = units(weights, adaptive)
    scaled = [unit * gradient for unit, gradient in zip(sizes, gradients, strict=True)]
    length = rho / torch.nn.utils.get_total_norm(scaled).clamp(min=1e-12)
    return [length * unit * part for unit, part in zip(sizes, scaled, strict=True)]


@contextmanager
def climbed(parameters: Sequence[nn.Parameter], modules: Iterable[nn.Module], rho: float, adaptive: bool) -> Iterator[None]:
    """A context in which `parameters` are w + e, by their gradients, which are then cleared. Afterwards they are w again, bit
    by bit, and have the gradients of the context.

    modules: whose batch norms keep the running statistics that they have, because those at w + e are not the network's.
    """
    moved = [parameter for parameter in parameters if parameter.grad is not None]
    kept = [parameter.detach().clone() for parameter in moved]
    norms = {
        layer: layer.momentum
        for module in modules
        for layer in module.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    }
    with torch.no_grad():
        for parameter, e in zip(moved, steepest(kept, [parameter.grad for parameter in moved], rho, adaptive), strict=True):
            parameter.add_(e)
            parameter.grad = None
    for layer in norms:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in norms.items():
            layer.momentum = momentum
        with torch.no_grad():
            for parameter, weight in zip(moved, kept, strict=True):
                parameter.copy_(weight)
