"""Torchvision architectures with weights made here, and what torchvision itself says with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from PIL import Image
from torch import nn
from torchvision import models
from torchvision.transforms import functional

PHOTOS = ("chelsea", "coffee", "astronaut", "rocket")
LABELS = ("苹果", "香蕉", "苹果", "梨", "西瓜", "葡萄", "桃子")


def photo(name: str) -> np.ndarray:
    return np.ascontiguousarray(getattr(skimage.data, name)())


def trained(arch: str, labels: int = len(LABELS), **arguments: Any) -> nn.Module:
    """An architecture that tells labels apart: normalised by what photographs look like to it, logits 0.3 wide."""
    torch.manual_seed(20260)
    network = models.get_model(arch, weights=None, num_classes=labels, **arguments)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0  # one batch is all there is to learn from
    own = transforms(arch)
    own.crop_size = [arguments.get("image_size", own.crop_size[0])]
    pictures = torch.stack([own(Image.fromarray(photo(name))) for name in PHOTOS])
    with torch.no_grad():
        if norms:
            network.train()(pictures)
        last = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
        nn.init.normal_(last.weight, std=0.02)  # some begin as zeros
        last.weight.mul_(0.3 / network.eval()(pictures).std(dim=1).max())
    return network


def transforms(arch: str) -> Any:
    weights = models.get_model_weights(arch)
    return weights.__members__.get("IMAGENET1K_V1", weights.DEFAULT).transforms()


def channels_first(rgb: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(rgb).permute(2, 0, 1)


def theirs(arch: str, crop: np.ndarray) -> torch.Tensor:
    """A crop as torchvision hands it to ``arch``."""
    own = transforms(arch)
    return functional.normalize(functional.convert_image_dtype(channels_first(crop), torch.float32), own.mean, own.std)


def probabilities(network: nn.Module, arch: str, crops: np.ndarray) -> np.ndarray:
    """What torchvision says of crops ``uint8 [n, side, side, 3]``."""
    with torch.inference_mode():
        found = torch.softmax(network(torch.stack([theirs(arch, crop) for crop in crops])), dim=1)
    return found.numpy()


def written(folder: Path, network: nn.Module | dict[str, Any], labels: tuple[str, ...] = LABELS) -> tuple[Path, Path]:
    """The files a person has: ``wwts_model.pth`` and ``labels_zh.txt``."""
    state = network.state_dict() if isinstance(network, nn.Module) else network
    torch.save(state, folder / "wwts_model.pth")
    (folder / "labels_zh.txt").write_text("\n".join(labels) + "\n", encoding="utf-8")
    return folder / "wwts_model.pth", folder / "labels_zh.txt"
