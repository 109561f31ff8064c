"""Data sets by name: images in memory or in files, with one contract, and what comes with the package.

    dataset.py  the contract, and stratified subsets    memory.py  images in memory, on the training device
    files.py    images that stay in their files         sources.py  the registry DATASETS, and load_data
    boxed.py    images with boxes                       arrays.py, folders.py, photos.py  where images come from
    bundled/  photographs, and teachers trained on them

It may import base, and nothing above.
"""

from ccdlib.data.dataset import ARRAYS, SPLITS, Dataset, stratified
from ccdlib.data.files import Images
from ccdlib.data.folders import LEAST_SIDE, check_side, read_rgb
from ccdlib.data.memory import Data
from ccdlib.data.sources import DATASETS, IMAGENET, Sizes, Source, load_data, sizes_of, source_of, statistics_of
