"""Draws: what chance says about each of N images, as a value that can be shown, stored, repeated and shared."""

from dataclasses import fields, replace
from typing import Self

import torch


class PerImage:
    """Draws for N images: a frozen dataclass of tensors whose first dimension is N; indexing chooses images."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def __getitem__(self, rows) -> Self:
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def joined(draws: list[PerImage | torch.Tensor]) -> PerImage | torch.Tensor:
    """The draws of several images as one."""
    first = draws[0]
    if isinstance(first, torch.Tensor):  # all that a reader's own rule may need
        return torch.cat(draws)
    return type(first)(*(torch.cat([getattr(each, field.name) for each in draws]) for field in fields(first)))
