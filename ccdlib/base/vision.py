"""`from ccdlib.base.vision import torchvision`: torchvision, also beside a CPU-only torch.

torchvision's Linux wheel on PyPI is built for CUDA. Its compiled part does not load beside a CPU build of torch, and then
`import torchvision` fails with "operator torchvision::nms does not exist", because two operator schemas that its Python code
refers to are never declared. Declaring them is enough for the transforms, data sets and models; for object detection `nms` also
gets an implementation here, which keeps the same boxes. Where the plain import works, this module does nothing else.
"""

import sys

import torch

try:
    import torchvision
except RuntimeError as error:
    if "torchvision::nms" not in str(error):
        raise
    for _name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[_name]  # the failed import left them incomplete
    _SCHEMAS = torch.library.Library("torchvision", "FRAGMENT")  # kept, because the schemas last as long as this object
    for _operator in ("nms", "qnms"):
        _SCHEMAS.define(f"{_operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

    def _nms(boxes, scores, threshold):
        """The rows of boxes (N, 4) that no box of a higher score overlaps by more than `threshold`, by falling score."""
        order = scores.argsort(descending=True, stable=True)
        overlaps = (torchvision.ops.box_iou(boxes[order], boxes[order]) > threshold).numpy()
        kept, hidden = [], overlaps[:0].any(0)
        for k in range(len(order)):
            if not hidden[k]:
                kept.append(k)
                hidden |= overlaps[k]
        return order[kept]

    _SCHEMAS.impl("nms", _nms, "CPU")
    torchvision.ops.boxes._assert_has_ops = lambda: None  # it asks for the compiled part

__all__ = ["torchvision"]
