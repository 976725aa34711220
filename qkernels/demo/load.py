"""A new process that never saw the training: builds float models, loads packed files into them, and predicts.

    python -m qkernels.demo.load < {"folds": 5, "seed": 0, "files": [{"model": "mlp", "fold": 0, "folder": "..."}, ...]}

It prints the predictions as json: one list of classes for each file, for the test images of its fold. A file that
cannot be loaded is one line on stderr, which names it, and exit status 1.
"""

import json
import sys

import torch

import qkernels as qk

from .data import digits, split
from .models import MODELS
from .train import logits


def main() -> int:
    task = json.load(sys.stdin)
    torch.set_num_threads(1)
    x, y = digits()
    tests = [test for _, test in split(x, y, task["folds"], task["seed"])]
    predictions = []
    for file in task["files"]:
        model = MODELS[file["model"]]()
        try:
            qk.load_packed(model, file["folder"])
        except (ValueError, OSError) as error:
            print(error, file=sys.stderr)
            return 1
        predictions.append(logits(model, x[tests[file["fold"]]]).argmax(1).tolist())
    json.dump(predictions, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
