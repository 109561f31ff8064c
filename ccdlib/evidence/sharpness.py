"""How flat the loss is around a trained network: sharpness, the Hessian's largest eigenvalue and trace, and a picture.

The loss is the mean cross entropy of labels on fixed images, with batch norms in eval mode, the same for networks of all
methods. Plain sharpness changes when a convolution before a batch norm is scaled, and the statistics of the batch norm with
it, although the network says the same (Dinh et al., ICML 2017). Adaptive sharpness does not.
"""

import math
from collections.abc import Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from ccdlib.base.registry import CcdError
from ccdlib.base.streams import stream
from ccdlib.training.ascent import steepest, units

PROBES = 10  # random vectors for the trace


class Landscape:
    """The loss of a network as a function of its weights.

    network: in eval mode; its weights are the same again after each method. inputs (N, C, H, W): normalised images. labels
    (N,). size: how many images are computed at once. The numbers are nats, and nats for each unit of the weights squared.
    """

    def __init__(self, network: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, size: int = 256):
        self.network = network.eval().requires_grad_(True)
        self.parts = list(zip(inputs.split(size), labels.split(size), strict=True))
        self.total = len(labels)
        self.parameters = list(network.parameters())
        self.weights = [parameter.detach().clone() for parameter in self.parameters]

    def loss(self, away: Sequence[torch.Tensor] | None = None) -> float:
        """The mean loss at the weights w + away."""
        with torch.no_grad(), self._moved(away):
            return sum(loss.item() for loss in self._losses())

    def gradient(self, away: Sequence[torch.Tensor] | None = None) -> list[torch.Tensor]:
        """The gradient of the mean loss at w + away, a tensor for each parameter."""
        found = [torch.zeros_like(weight) for weight in self.weights]
        with self._moved(away):
            for loss in self._losses():
                for total, part in zip(found, torch.autograd.grad(loss, self.parameters), strict=True):
                    total += part
        return found

    def times_hessian(self, vector: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The Hessian of the mean loss at w, times a vector that is given as a tensor for each parameter."""
        found = [torch.zeros_like(weight) for weight in self.weights]
        for loss in self._losses():
            gradient = torch.autograd.grad(loss, self.parameters, create_graph=True)
            slope = sum((g * v).sum() for g, v in zip(gradient, vector, strict=True))
            for total, part in zip(found, torch.autograd.grad(slope, self.parameters), strict=True):
                total += part
        return found

    @contextmanager
    def _moved(self, away):
        """A context in which the weights are w + away, for None w itself."""
        try:
            self._put(away)
            yield
        finally:
            self._put(None)

    @torch.no_grad()
    def _put(self, away):
        for k, (parameter, weight) in enumerate(zip(self.parameters, self.weights, strict=True)):
            parameter.copy_(weight if away is None else weight + away[k])

    def _losses(self):
        """The loss of each part, whose sum is the mean loss of all images."""
        for inputs, labels in self.parts:
            logits = self.network(inputs).logits
            yield nn.functional.cross_entropy(logits, labels, reduction="sum") / self.total


def sharpness(landscape: Landscape, rho: float, steps: int = 1, adaptive: bool = False) -> float:
    """The largest rise of the loss, in nats, that is found within `rho` of the weights: max L(w + e) - L(w) over ||e|| <= rho.

    steps: 1 goes straight up to the border, as SAM does (Foret et al., ICLR 2021); more walk there along the gradient, each
    step of 2 rho / steps, and are brought back where they leave the ball. adaptive: the ball is ||e / T|| <= rho with T = |w|
    + 0.01 elementwise, as ASAM's (Kwon et al., ICML 2021). Returns 0 where the loss rises nowhere. Errors: CcdError where the
    loss is not a finite number.
    """
    at_rest, away, found = landscape.loss(), None, 0.0
    for _ in range(steps):
        way = steepest(landscape.weights, landscape.gradient(away), rho if steps == 1 else 2 * rho / steps, adaptive)
        away = way if away is None else [a + b for a, b in zip(away, way, strict=True)]
        away = _within(landscape.weights, away, rho, adaptive)
        rise = landscape.loss(away) - at_rest
        if not math.isfinite(rise):
            raise CcdError(f"the loss within rho = {rho:g} of the weights is not a finite number; give a smaller rho")
        found = max(found, rise)
    return found


def _within(weights, away, rho, adaptive):
    """The point of the ball on the line from its centre through `away`, or `away` itself where it lies in the ball."""
    norm = torch.nn.utils.get_total_norm([part / unit for part, unit in zip(away, units(weights, adaptive), strict=True)])
    return [part * (rho / norm).clamp(max=1) for part in away]


def top_eigenvalue(landscape: Landscape, tolerance: float = 0.02, seed: int = 0) -> float:
    """The largest eigenvalue of the Hessian, by SciPy's Lanczos iteration, to a relative `tolerance`.

    seed: of the vector that it begins with. Errors: scipy's ArpackNoConvergence.
    """
    import numpy as np
    from scipy.sparse.linalg import LinearOperator, eigsh

    sizes = [weight.numel() for weight in landscape.weights]

    def times(vector):
        parts = torch.from_numpy(np.ascontiguousarray(vector, dtype=np.float32).ravel()).split(sizes)
        shaped = [part.view_as(weight) for part, weight in zip(parts, landscape.weights, strict=True)]
        return torch.cat([part.flatten() for part in landscape.times_hessian(shaped)]).numpy()

    hessian = LinearOperator((sum(sizes), sum(sizes)), matvec=times, dtype=np.float32)
    first = torch.randn(sum(sizes), generator=stream(seed, "policy")).numpy()
    return float(eigsh(hessian, k=1, which="LA", ncv=8, tol=tolerance, v0=first, return_eigenvectors=False)[0])


def trace(landscape: Landscape, probes: int = PROBES, seed: int = 0) -> tuple[float, float]:
    """The trace of the Hessian and its standard error, by Hutchinson's estimate with vectors of random signs.

    probes: their number, two or more. seed: of the signs.
    """
    generator, found = stream(seed, "policy"), []
    for _ in range(probes):
        signs = [torch.randint(0, 2, w.shape, generator=generator) * 2.0 - 1 for w in landscape.weights]
        found.append(sum((a * b).sum().item() for a, b in zip(landscape.times_hessian(signs), signs, strict=True)))
    values = torch.tensor(found, dtype=torch.float64)
    return values.mean().item(), (values.std() / probes**0.5).item()


class Plane(NamedTuple):
    """The loss on a plane through the weights: losses (n, n) at w + a d1 + b d2, for a (rows) and b (columns) of `places`."""

    places: torch.Tensor  # (n,)
    losses: torch.Tensor  # (n, n), nats


def plane(landscape: Landscape, extent: float = 1.0, points: int = 11, seed: int = 0) -> Plane:
    """The loss on a plane of two random directions, each filter as long as the filter that it moves (Li et al., NeurIPS 2018).

    So networks whose weights have other scales can be compared. Biases and the weights of batch norms do not move, as there.
    extent: the largest a and b. points: on each axis. seed: of the directions; the same for networks of one kind.
    """
    generator = stream(seed, "policy")
    directions = [[_filterwise(weight, generator) for weight in landscape.weights] for _ in range(2)]
    places = torch.linspace(-extent, extent, points)
    losses = torch.empty(points, points)
    for i, a in enumerate(places):
        for j, b in enumerate(places):
            losses[i, j] = landscape.loss([a * one + b * other for one, other in zip(*directions, strict=True)])
    return Plane(places, losses)


def _filterwise(weight, generator):
    """A random direction whose filters are as long as those of `weight`."""
    if weight.ndim < 2:
        return torch.zeros_like(weight)
    direction = torch.randn(weight.shape, generator=generator)
    ours, other = (torch.linalg.vector_norm(w, dim=tuple(range(1, w.ndim)), keepdim=True) for w in (weight, direction))
    return direction * ours / other.clamp(min=1e-12)
