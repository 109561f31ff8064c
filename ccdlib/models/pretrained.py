"""Weights of torchvision for the ImageNet ResNets, as a Backbone has them."""

import torch

from ccdlib.base.registry import CcdError, unknown

# How torchvision names the parts of its ImageNet ResNets, and where a Backbone has them.
PARTS = {"conv1": "stem.0", "bn1": "stem.1", "fc": "head"} | {f"layer{k + 1}": f"stages.{k}" for k in range(4)}


def weights_named(name, file):
    """torchvision's weights that `file`, "torchvision:NAME", names; None for a path. Errors: see pretrained()."""
    from ccdlib.base.vision import torchvision

    if name not in ("resnet18", "resnet34"):
        raise CcdError(f"{file}: torchvision's weights fit resnet18 and resnet34, not {name!r}; give a .safetensors file")
    kind, colon, wanted = file.partition(":")
    if not (kind == "torchvision" and colon):
        return None
    weights = torchvision.models.get_model_weights(name)
    if wanted not in weights.__members__:
        raise unknown(f"weights of {name}", wanted, weights.__members__)
    return weights[wanted]


def pretrained(name, file):
    """The state of the backbone `name` (resnet18, resnet34) from weights of torchvision: a .pth, or "torchvision:NAME", which
    is downloaded once. Errors: CcdError for other backbones and names, and for files that are not there or no weights."""
    weights = weights_named(name, file)
    try:
        if weights:
            state = weights.get_state_dict(progress=False, check_hash=True)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
        parts = ((key.partition("."), tensor) for key, tensor in state.items())
        return {f"{PARTS[part]}.{rest}": tensor for (part, _, rest), tensor in parts}
    except CcdError:
        raise
    except OSError as error:
        raise CcdError(
            f"{file} could not be read or downloaded ({error}). Connect to the network once, or download the file elsewhere "
            "and give its path"
        ) from error
    except Exception as error:  # torch raises many kinds for a file that is no state of a network, and advises to run it
        raise CcdError(
            f"{file} holds no weights of torchvision's {name} ({type(error).__name__}): only named tensors are read, nothing "
            "that could run code; give another file"
        ) from error
