"""Scikit-learn's digits: 1 797 scans of handwritten digits, 8 x 8 pixels of 17 gray levels, inside its wheel."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold
from torch import Tensor


def digits() -> tuple[Tensor, Tensor]:
    """(images float32 [1797, 1, 8, 8] in [0, 1], the digits int64 [1797])."""
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().div(16)  # 0, 1/16, ..., 1
    return x.reshape(-1, 1, 8, 8), torch.from_numpy(labels).long()


def split(x: Tensor, y: Tensor, folds: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """(indices to train on, indices to test on) of each fold; every image is in exactly one test set."""
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed).split(x.flatten(1).numpy(), y.numpy())
    return [(torch.from_numpy(train), torch.from_numpy(test)) for train, test in parts]
