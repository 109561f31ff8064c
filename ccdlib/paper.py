"""Published top-1 accuracies as data, with their sources. A number that could not be obtained is not here: never guessed.

The result tables of the ACCV 2022 and Neurocomputing 2024 papers themselves could not be obtained; what is here comes from the
HSAKD protocol (same teachers and network code), and the cells for KD + JDA and CCD stay empty.
"""

SOURCE = "HSAKD slides p. 22 and README (Yang et al., IJCAI 2021)"

# (data, teacher, student): method: mean of the last column of the source, in percent.
TOP1 = {
    ("cifar100", "wrn_40_2", "wrn_16_2"): {"teacher": 76.45, "ce": 73.57, "kd": 75.23},
    ("cifar100", "wrn_40_2", "wrn_40_1"): {"teacher": 76.45, "ce": 71.95, "kd": 73.90},
    ("cifar100", "resnet56", "resnet20"): {"teacher": 73.44, "ce": 69.62, "kd": 70.91},
    ("cifar100", "resnet32x4", "resnet8x4"): {"teacher": 79.63, "ce": 72.95, "kd": 73.54},
    ("cifar100", "vgg13", "mobilenet_v2"): {"teacher": 74.64, "ce": 73.51, "kd": 75.21},
    ("cifar100", "wrn_40_2", "shufflenet_v1"): {"teacher": 76.45, "ce": 71.74, "kd": 75.83},
    ("cifar100", "resnet32x4", "shufflenet_v2"): {"teacher": 79.63, "ce": 72.96, "kd": 75.43},
}


def published(config):
    """The published accuracy of what a RunConfig trains; None where the literature's protocol is not the config's.

    The protocol: all of CIFAR-100, 240 epochs, one view an image, a teacher of another seed's worth of training aside.
    """
    if config.n_train is not None or config.epochs != 240 or config.views != "none" or config.teacher is None:
        return None
    return TOP1.get((config.data, config.teacher.model, config.model), {}).get(config.method)
