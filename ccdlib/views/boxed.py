"""An epoch as batches of views, of images with boxes: original and twin share the flip, and boxes move with the pixels."""

import torch

from ccdlib.views.boxes import flipped, moved, still
from ccdlib.views.epoch import Batch, EpochViews


class BoxViews(EpochViews):
    """The views of one epoch of images with boxes.

    Whole images are flipped, the original and its twins alike, and a twin's ops come after that; nothing is cropped. The labels
    of a batch are the boxes (B, K, 5) of each view, and its `moves` say how a view's pixels lie to those of the original view.
    """

    def _draw(self, n, twins):
        super()._draw(n, twins)
        self.crops = [self.crops[0]] * self.views

    def _view(self, rows, draws, crops, crops_of_partners):
        """A view of the images `rows`, and its labels (n, 1 + K, 6): first the moves of an image, then its boxes."""
        data = self.data
        height, width = data.shape[1:]
        images = data.train_images.index_select(0, rows.to(data.train_images.device))
        flips = crops.flips.to(images.device)
        images = torch.where(flips[:, None, None, None], images.flip(3), images)
        boxes = moved(data.train_boxes[rows.to(data.train_boxes.device)], flipped(crops.flips, width), height, width)
        moves = still(len(rows))
        if draws is not None:
            images, moves = self.rule.apply(images, draws), self.rule.moves(draws, height, width)
            boxes = moved(boxes, moves, height, width)
        labels = torch.nn.functional.pad(boxes, (0, 1))
        return images, torch.cat([moves.flatten(1)[:, None].to(labels), labels], 1)

    def _batch(self, owners, views, labels, part) -> Batch:
        made = super()._batch(owners, views, labels, part)
        return made._replace(labels=made.labels[:, 1:, :5], moves=made.labels[:, 0].unflatten(1, (2, 3)))
