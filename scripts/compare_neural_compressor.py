"""neural-compressor's PT2E quantization and its autotune beside the two targets: does what it says of layers hold for them?

pip install "neural-compressor[pt]==3.10", then
python scripts/compare_neural_compressor.py RECIPE [--data-root DIR] [--checkpoint F] [--images 256] [--calibration 64]
    [--branch NAME] [--observer minmax|kl] [--tolerable-loss 0.01] [--json FILE]

Each branch is quantized in torch by neural-compressor, and by each target of the recipe as a build does it; scorers stay
float in all of them. Printed, branch by branch, all on the same held-out images:

- each layer alone in int8: its ratio of signal to quantization noise in dB, in torch and in each target, with the rank
  correlation (Spearman) of each two of them, and the seconds that all layers took;
- autotune, given the sets that keep 0, 1, 2, ... of the most sensitive layers float, ranked in torch: the set that it stops
  at, its trials and seconds;
- what that set does in each target: top-1 lost and won against fp32, with the one-sided bounds at 95%.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from neural_compressor.torch.export import export
from neural_compressor.torch.quantization import INT8StaticQuantConfig, TuningConfig, autotune, quantize
from recipe_arguments import recipe_parser

from athe_export import console
from athe_export.branches import BranchGraphSource
from athe_export.data.source import no_progress
from athe_export.deployed import PLAIN, deployed
from athe_export.graphs import calibration_pixels, export_graph, quantize_job
from athe_export.held_out import HeldOut, draw_held_out
from athe_export.layer_precision import subject_of
from athe_export.pipeline import prepare
from athe_export.precision.sensitivity import BranchSensitivity, measure
from athe_export.precision.subject import Clock, Subject
from athe_export.precision.trial import Bench, Limits
from athe_export.preprocessing import GraphInput
from athe_export.recipe import load_recipe
from athe_export.stages import StageTimer
from athe_export.system import Prepared
from athe_export.targets.keep_float import kept_float

TORCH = "neural-compressor"
FLOAT = {"w_dtype": "fp32", "act_dtype": "fp32"}


class TorchSession:
    """A torch module as a session."""

    def __init__(self, module: Callable[[torch.Tensor], torch.Tensor], size: int) -> None:
        self._module, self.input_shape, self.output_shape = module, (1, size, size, 3), (1, 0)

    @torch.no_grad()
    def run(self, image: GraphInput) -> np.ndarray:
        return self._module(torch.from_numpy(image)).numpy()


class Pt2e:
    """A branch exported by neural-compressor, to be quantized with any layers kept float."""

    def __init__(self, source: BranchGraphSource, images: Sequence[GraphInput], observer: str) -> None:
        self.source, self._images, self._observer = source, images, observer
        self.example = (torch.from_numpy(images[0]),)
        self.exported = export(source.module, self.example)
        self.scorers = kept_float(source.layers, ())

    def config(self, keep: Iterable[str]) -> Any:
        """Every layer int8 but these and the scorers."""
        found = INT8StaticQuantConfig(act_algo=self._observer)
        for name in (*self.scorers, *keep):
            found.set_local(name, INT8StaticQuantConfig(**FLOAT))
        return found

    @torch.no_grad()
    def calibrate(self, module: Any, *_: Any) -> None:
        for image in self._images:
            module(torch.from_numpy(image))

    def quantized(self, keep: Iterable[str]) -> TorchSession:
        module = copy.deepcopy(self.exported)
        for name in ("_exported", "dynamic_shapes"):  # which a copy loses
            setattr(module, name, getattr(self.exported, name, None))
        made = quantize(module, self.config(keep), run_fn=self.calibrate, example_inputs=self.example, inplace=True)
        return TorchSession(made, self.source.image_size)

    def subject(self, images: Callable[[], Iterable[GraphInput]], labels: np.ndarray) -> Subject:
        layers = tuple(name for name in self.source.layers if name not in self.scorers)
        fp32 = TorchSession(self.source.module, self.source.image_size)
        return Subject(self.source.role, layers, fp32, self.quantized, images, labels)

    def tuned(self, subject: Subject, ranking: Sequence[str], tolerable_loss: float) -> dict[str, Any]:
        """autotune over ever longer runs of the ranking's first layers; its loss is relative, of top-1 as it was counted."""
        sets, seen = [tuple(ranking[:n]) for n in range(len(ranking))], []

        def top1(module: Any) -> float:
            session = TorchSession(module, self.source.image_size)
            answers = np.array([session.run(image).argmax() for image in subject.images()])
            seen.append(float((answers == subject.labels).mean()))
            return seen[-1]

        config = TuningConfig(config_set=[self.config(keep) for keep in sets], tolerable_loss=tolerable_loss)
        start = time.monotonic()
        made = autotune(self.exported, config, top1, run_fn=self.calibrate, example_inputs=self.example)
        stopped = None if made is None else len(seen) - 2  # it gives nothing back where no set is good enough
        return {
            "top1_fp32": seen[0],
            "top1_of_trials": seen[1:],
            "keep_float": None if stopped is None else list(sets[stopped]),
            "seconds": time.monotonic() - start,
        }


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation."""
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.corrcoef(ranks)[0, 1])


def alone(subject: Subject) -> tuple[BranchSensitivity, float]:
    start = time.monotonic()
    return measure(subject, "layer", Clock(), no_progress), time.monotonic() - start


def compared(prepared: Prepared, source: BranchGraphSource, held: HeldOut, args: argparse.Namespace) -> dict[str, Any]:
    """One branch in torch and in each target."""
    recipe, role, size = prepared.file.recipe, source.role, source.image_size
    images, labels = partial(held.pixels, role, size), held.labels[held.positions(role)]
    fed = list(calibration_pixels(prepared, source))[: args.calibration]
    pt2e = Pt2e(deployed(source, prepared.images.preprocessing, PLAIN), fed, args.observer)
    subjects = {TORCH: pt2e.subject(images, labels)}
    for target in recipe.targets.names:
        spec = getattr(recipe.targets, target)
        job = quantize_job(target, prepared, source, export_graph(prepared, source, spec))
        subjects[target] = subject_of(job, spec.quantize, images, labels, args.calibration)
    found = {name: alone(subject) for name, subject in subjects.items()}
    noise = {name: {row.name: row.distance for row in of.ranked} for name, (of, _) in found.items()}
    tuned = pt2e.tuned(subjects[TORCH], [row.name for row in found[TORCH][0].ranked], args.tolerable_loss)
    limits = Limits(recipe.parity.max_top1_drop_pp, 100, recipe.parity.confidence)
    tried = {}
    for name, subject in subjects.items():
        keep = [layer for layer in tuned["keep_float"] or () if layer in subject.layers]
        tried[name] = Bench([subject], limits, no_progress).trial(keep, Clock()).to_json()
    return {
        "images": len(labels),
        "seconds": {name: seconds for name, (_, seconds) in found.items()},
        "together": {name: of.together and vars(of.together) for name, (of, _) in found.items()},
        "layers": {
            layer: {name: rows[layer].sqnr_db for name, rows in noise.items() if rows.get(layer)} for layer in source.layers
        },
        "autotune": tuned,
        "its_set_in": tried,
    }


def shown(role: str, found: dict[str, Any]) -> None:
    names = list(found["seconds"])
    rows = [
        (layer, "", *("" if of.get(n) is None else f"{of[n]:.1f}" for n in names))
        for layer, of in found["layers"].items()
        if of
    ]
    rows.append(("all together", "", *(f"{found['together'][n]['sqnr_db']:.1f}" for n in names)))
    rows.append(("seconds", "", *(f"{found['seconds'][n]:.0f}" for n in names)))
    console.print_table(("layer alone in int8", "", *(f"{n}, dB" for n in names)), rows, f"{role}, {found['images']} images")
    for first, second in itertools.combinations(names, 2):
        both = [(of[first], of[second]) for of in found["layers"].values() if of.get(first) and of.get(second)]
        apart = np.mean([abs(a - b) for a, b in both])
        said = f"rank correlation {spearman(*zip(*both, strict=True)):.2f}, {apart:.1f} dB apart on average"
        console.say(f"{first} and {second}: {said}")
    tuned = found["autotune"]
    console.say(
        f"autotune: {len(tuned['top1_of_trials'])} trials, {tuned['seconds']:.0f} s, keep_float {tuned['keep_float']}"
    )
    for name, t in found["its_set_in"].items():
        bounds = f"{t['drop_lower_pp']:.2f} to {t['drop_upper_pp']:.2f}"
        console.say(
            f"  in {name}: lost {t['lost']}, won {t['won']}, drop {t['drop_pp']:.2f} pp, bounds {bounds}: {t['verdict']}"
        )


def main() -> None:
    parser = recipe_parser(__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--calibration", type=int, default=64)
    parser.add_argument("--tolerable-loss", type=float, default=0.01)
    parser.add_argument("--branch", action="append", help="one of the recipe's; all of them without it")
    parser.add_argument("--observer", choices=("minmax", "kl"), default="minmax", help="of activations, in torch")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    records: dict[str, Any] = {}
    with console.Watch() as watch:
        prepared = prepare(load_recipe(args.recipe), args.data_root, args.checkpoint, StageTimer(watch))
    held = draw_held_out(prepared, "--images", args.images)
    branches = [b.name for b in prepared.file.recipe.branches]
    for source in (s for s in prepared.system.sources if s.role in (args.branch or branches)):
        print(f"comparing {source.role}", file=sys.stderr)
        records[source.role] = compared(prepared, source, held, args)
        shown(source.role, records[source.role])
    if args.json:
        args.json.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
