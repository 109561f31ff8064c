"""The usual way to run these experiments, written from scratch for comparison: Pillow in a DataLoader, eager NCHW.

Every image is augmented alone, by Pillow and torchvision's transforms; workers hand float tensors over; the teacher answers
every batch of every student; nothing is shared between runs.
"""

import random

import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps
from torch.utils.data import DataLoader, Dataset

from ccdlib.base.vision import torchvision
from ccdlib.models import build
from ccdlib.views import OPS, POLICIES

GREYS = {"L": 128, "RGB": (128, 128, 128)}


def _affine(coefficients, resampling):
    def op(image, m):
        return image.transform(
            image.size, Image.Transform.AFFINE, coefficients(m, *image.size), resampling, fillcolor=GREYS[image.mode]
        )

    return op


def _enhance(kind):
    return lambda image, m: kind(image).enhance(1 + m)


NEAREST, BICUBIC = Image.Resampling.NEAREST, Image.Resampling.BICUBIC
PILLOW = {
    "shearX": _affine(lambda m, w, h: (1, m, 0, 0, 1, 0), BICUBIC),
    "shearY": _affine(lambda m, w, h: (1, 0, 0, m, 1, 0), BICUBIC),
    "translateX": _affine(lambda m, w, h: (1, 0, m * w, 0, 1, 0), NEAREST),
    "translateY": _affine(lambda m, w, h: (1, 0, 0, 0, 1, m * h), NEAREST),
    "rotate": lambda image, m: image.rotate(m, fillcolor=GREYS[image.mode]),
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "brightness": _enhance(ImageEnhance.Brightness),
    "posterize": ImageOps.posterize,
    "solarize": ImageOps.solarize,
    "autocontrast": lambda image, m: ImageOps.autocontrast(image),
    "equalize": lambda image, m: ImageOps.equalize(image),
    "invert": lambda image, m: ImageOps.invert(image),
}


class Pairs(Dataset):
    """(original, JDA twin, label) of every training image of a ccdlib Data, as normalised float tensors (C, H, W)."""

    def __init__(self, data, policy):
        self.images, self.labels = data.train_images.permute(0, 2, 3, 1).numpy(), data.train_labels.tolist()
        self.policy = POLICIES[policy]
        transforms = torchvision.transforms
        steps = [transforms.RandomCrop(data.train_images.shape[-1], padding=data.pad)]
        steps += [transforms.RandomHorizontalFlip()] if data.flip else []
        self.base = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(data.mean, data.std)])

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        """One pair."""
        pixels = self.images[row]
        image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
        return self.base(image), self.base(self.twin(image)), self.labels[row]

    def twin(self, image):
        """The image after a walk over the policy."""
        for name, level in self.policy.steps:
            if random.random() < self.policy.p:
                magnitude = OPS[name].magnitude(level)
                if OPS[name].signed and random.random() < 0.5:
                    magnitude = -magnitude
                image = PILLOW[name](image, magnitude)
        return image


def loader(data, policy, batch, workers):
    """The usual DataLoader of pairs."""
    return DataLoader(Pairs(data, policy), batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


def distil(teacher, student, optimiser, inputs, labels, weighted):
    """One KD + JDA step, or CCD's where `weighted`, as it is usually written; inputs: originals, then twins."""
    with torch.no_grad():
        taught = teacher(inputs).logits
    said = student(inputs).logits
    rows = F.kl_div((said / 4).log_softmax(1), (taught / 4).softmax(1), reduction="none").sum(1)
    original, twin = rows.chunk(2)
    if weighted:
        twin = twin * (1 + F.cosine_similarity(*taught.chunk(2)))
    loss = F.cross_entropy(said, labels.repeat(2)) + 16 * (original.mean() + twin.mean()) / 2
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.item()


def networks(pair, data, seed=0, device="cpu"):
    """(teacher, student, optimiser), the usual way: on a GPU with TF32, which is torch's default for convolutions."""
    if torch.device(device).type == "cuda":
        torch.backends.cudnn.conv.fp32_precision = "tf32"
    teacher, student = (build(name, data.classes, data.channels, seed).to(device) for name in pair)
    return teacher.eval(), student, torch.optim.SGD(student.parameters(), 0.05, 0.9, weight_decay=5e-4, nesterov=True)


def train(pair, data, policy, batch, epochs, test_every=1, weighted=True, seed=0, workers=2, device="cpu"):
    """Train the student of pair (teacher, student) of images on the CPU; returns the accuracy."""
    teacher, student, optimiser = networks(pair, data, seed, device)
    pairs = loader(data, policy, batch, workers)
    test = (data.test_images / 255 - torch.tensor(data.mean).view(-1, 1, 1)) / torch.tensor(data.std).view(-1, 1, 1)
    for epoch in range(1, epochs + 1):
        student.train()
        for original, twin, labels in pairs:
            inputs = torch.cat([original, twin]).to(device)
            distil(teacher, student, optimiser, inputs, labels.to(device), weighted)
        if epoch % test_every and epoch < epochs:
            continue
        student.eval()
        with torch.no_grad():
            said = torch.cat([student(part.to(device)).logits.argmax(1).cpu() for part in test.split(500)])
    return 100 * (said == data.test_labels).double().mean().item()
