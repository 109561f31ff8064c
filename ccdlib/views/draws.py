"""Draws: the random choices for each of N images, as a value that can be shown, stored, repeated and shared."""

from dataclasses import fields, replace
from typing import Self

import torch


class PerImage:
    """Draws for N images: a frozen dataclass of tensors whose first dimension is N. Indexing selects images."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def __getitem__(self, rows: torch.Tensor | slice | list[int]) -> Self:
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})


Drawn = PerImage | torch.Tensor  # draws for N images: a reader's own rule may use one tensor (N, ...)


def joined(draws: list[Drawn]) -> Drawn:
    """One object with the draws of all of `draws`, in their order."""
    first = draws[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(draws)
    return type(first)(*(torch.cat([getattr(each, field.name) for each in draws]) for field in fields(first)))
