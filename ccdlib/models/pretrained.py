"""Weights of torchvision for the ImageNet ResNets, under the names that a Backbone gives them."""

from typing import TYPE_CHECKING

import torch

from ccdlib.base.registry import CcdError, unknown

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

# {the name of a part in torchvision's ImageNet ResNets: its name in a Backbone}
PARTS = {"conv1": "stem.0", "bn1": "stem.1", "fc": "head"} | {f"layer{k + 1}": f"stages.{k}" for k in range(4)}


def weights_named(name: str, file: str) -> "WeightsEnum | None":
    """The weights of torchvision for the backbone `name` that `file`, "torchvision:NAME", names; None where it is a path.

    Errors: CcdError for backbones other than resnet18 and resnet34, and for weights that torchvision does not have.
    """
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


def pretrained(name: str, file: str) -> dict[str, torch.Tensor]:
    """The state dict of the backbone `name` (resnet18 or resnet34) with weights of torchvision.

    file: the path of a .pth file, or "torchvision:NAME", which is downloaded once.
    Errors: CcdError as weights_named(), and for a file that cannot be read or downloaded, or holds no such weights.
    """
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
    except Exception as error:  # torch raises many kinds of errors for such a file, and advises to load it unsafely
        raise CcdError(
            f"{file} holds no weights of torchvision's {name} ({type(error).__name__}): only named tensors are read, nothing "
            "that could run code; give another file"
        ) from error
