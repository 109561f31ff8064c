"""What networks see: every view rule of the paper and of what it is compared with, and the epoch as batches of views.

    rules.py  the contract and the registry VIEWS     ops.py       pixel operations, bit by bit those of Pillow
    policies.py  JDA     sampled.py  RandAugment, TrivialAugment, AutoAugment     mixes.py  Mixup, CutMix, CutMixPick; Cutout
    crops.py, draws.py  base crop, flip, normalise    boxes.py     boxes, which move with the pixels
    epoch.py  an epoch of images in memory; boxed.py: of images with boxes; in_files.py: of images in files

It may import data and base, and nothing above.
"""

from ccdlib.views.crops import Crops, as_bytes, crop_and_flip, draw_crops, normalise, rotations
from ccdlib.views.draws import PerImage
from ccdlib.views.epoch import BLOCK, Ahead, Batch, EpochViews, steps_an_epoch
from ccdlib.views.in_files import FileViews, check_views, crop_box, epoch_views, views_of
from ccdlib.views.mixes import Cutout, CutoutDraws, Mix, MixDraws
from ccdlib.views.ops import GREY, LEVELS, OPS, Op, apply_op, check_images, pillow_op
from ccdlib.views.policies import POLICIES, Draws, Policy, policy_named
from ccdlib.views.rules import VIEWS, ViewRule
from ccdlib.views.sampled import AutoAugment, Sampled, SampledDraws
