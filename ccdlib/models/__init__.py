"""Backbones by name, all with one contract: `network(x) -> Output(logits, feats, pooled)`.

    backbone.py  the contract, the registry MODELS, initial weights    networks.py  a row for each network of the papers
    shufflenet.py  units that the libraries lack                       pretrained.py  weights that torchvision offers
    detector.py  networks that find things in images

It may import base, and nothing above.
"""

from ccdlib.models import networks
from ccdlib.models.backbone import (
    HE,
    HE_NORMAL,
    HE_ZERO,
    MODELS,
    UNIFORM,
    Backbone,
    Initial,
    Output,
    build,
    folded,
    in_bfloat16,
    initialise,
)
from ccdlib.models.detector import BACKBONES, DETECTORS, Detector, Regions
from ccdlib.models.pretrained import pretrained, weights_named
