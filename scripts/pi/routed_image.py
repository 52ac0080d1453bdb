"""One routed image of a bundle, from pixels to label, between two marks that the instruction counter sees.

python routed_image.py BUNDLE TARGET BRANCH OUTPUT.npy

The image is the first golden one that the router sends to the branch. It is warmed up on, and predicted on one thread.
Needs athe-export and the target's engine.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import numpy as np
from run_graph import WARM_UP, mark

from athe_export.runtime.golden import read_golden
from athe_export.runtime.predictor import Predictor


def main() -> None:
    bundle, target, branch, output = sys.argv[1:]
    predictor = Predictor.load(Path(bundle), target)
    images = list(read_golden(predictor.bundle)["images"])
    image = next((i for i in images if predictor.predict(i).branch == branch), None)
    if image is None:
        sys.exit(f"none of the {len(images)} golden images takes the branch {branch}")
    gc.disable()
    for _ in range(WARM_UP):
        predictor.predict(image)
    mark(1)
    found = predictor.predict(image)
    mark(2)
    np.save(output, np.array([found.router_score, *(p for _, p in found.top)], np.float32))


if __name__ == "__main__":
    main()
