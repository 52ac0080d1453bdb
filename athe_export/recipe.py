"""A recipe: one YAML file that fixes what is built. `load_recipe` returns a frozen `Recipe` or lists every problem.

Paths in a recipe are relative to the recipe's own folder; `resolve` makes them absolute.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from athe_export.errors import RecipeError
from athe_export.model_spec import NAME
from athe_export.model_spec import BiFormerSpec as BiFormerSpec  # keys of a recipe like all others, wherever they stand
from athe_export.model_spec import BranchSpec as BranchSpec
from athe_export.model_spec import ModelSpec as ModelSpec
from athe_export.model_spec import PruneSpec as PruneSpec
from athe_export.recipe_checks import contradictions
from athe_export.schema import DocumentReader, json_schema, key
from athe_export.train_spec import MAX_SEED
from athe_export.train_spec import PhaseSpec as PhaseSpec
from athe_export.train_spec import TrainSpec as TrainSpec

SHA256 = r"[0-9a-f]{64}"
Precision = Literal["int8", "fp32"]


@dataclass(frozen=True)
class StructuredSpec:
    importance: Literal["magnitude", "taylor", "hessian"] = key("what a channel is worth", default="taylor")
    images: int = key("calibration images that taylor and hessian are measured on, at most", default=128, min=1)


@dataclass(frozen=True)
class CheckpointSpec:
    path: str | None = key("weights: .safetensors, or .pth of plain tensors", default=None)
    shared: bool = key("the file is another recipe's: `train` does not write it", default=False)
    sha256: str | None = key("sha256 of the file; checked where given", default=None, pattern=SHA256)
    structured: StructuredSpec | None = key("a wider file is pruned to the model's sizes; null: refused", default=None)
    random_seed: int | None = key(
        "instead of a path: untrained weights of this seed (never gated)", default=None, min=0, max=MAX_SEED
    )


@dataclass(frozen=True)
class PreprocessingSpec:
    source_size: int = key("a photo is brought to this size first, as the training images were", min=8, max=1024)
    resize: Literal["bicubic", "bilinear"] = key("Pillow's interpolation", default="bicubic")
    mean: tuple[float, ...] = key("channel means, of pixels scaled to 0..1", default=(0.485, 0.456, 0.406), length=3)
    std: tuple[float, ...] = key("channel deviations, of pixels scaled to 0..1", default=(0.229, 0.224, 0.225), length=3)


@dataclass(frozen=True)
class GateSpec:
    split: str = key("dataset split of the parity gate", default="test")
    limit: int | None = key("use the first N images of it; null: all", default=None, min=1)


@dataclass(frozen=True)
class DataSpec:
    dataset: Literal["cifar100", "folder", "shapes"] = key("where images come from")
    preprocessing: PreprocessingSpec = key("image to tensor")
    calibration: str = key("calibration set, a YAML file")
    path: str | None = key("dataset folder: one class folder per class below each split (folder only)", default=None)
    gate: GateSpec = key("images of the parity gate", default=GateSpec())


@dataclass(frozen=True)
class Threshold:
    """Where the router's difficulty score switches to the next branch; exactly one of the three is set."""

    __shorthand__ = "fixed"
    fixed: tuple[float, ...] | None = key("score bounds, ascending, one fewer than branches", default=None, min=0, max=1)
    max_drop_pp: float | None = key(
        "largest top-1 loss against the hardest branch alone, percentage points, on held-out training images",
        default=None,
        min=0,
        max=100,
    )
    share_simple: float | None = key("share of images for the easiest branch", default=None, above=0, max=1)


@dataclass(frozen=True)
class RouterSpec:
    arch: Literal["mobilenet_v1_0.25"] = key("router network")
    image_size: int = key("router input height and width, pixels", min=32, max=512)
    threshold: Threshold = key("a number, {max_drop_pp: …} or {share_simple: …}")
    fit_images: int | None = key("held-out images that max_drop_pp is fitted on; null: all", default=None, min=1)


@dataclass(frozen=True)
class EqualiseSpec:
    alpha: float = key(
        "share of a channel's range that the layer takes over; the rest stays in the norm", default=0.5, min=0, max=1
    )
    shift: bool = key("the middle of each channel's range is moved to 0 as well", default=False)


@dataclass(frozen=True)
class SensitivitySpec:
    images: int = key("held-out images to measure on", default=256, min=1)
    by: Literal["layer", "block"] = key("what is int8 alone: one layer, or the layers of one block", default="layer")


@dataclass(frozen=True)
class AutoPrecisionSpec:
    """Layers to keep float are searched on held-out images."""

    max_top1_drop_pp: float = key(
        "largest top-1 drop against the fp32 graphs, percentage points; held on its bound", min=0, max=100
    )
    max_slowdown: float = key("longest time of an image, over that with every layer int8", default=1.5, min=1, max=100)
    minutes: float = key("the search ends after so long, with the best that it found", default=30.0, min=0, max=100000)
    images: int | None = key("held-out images to measure on; null: all", default=None, min=1)


@dataclass(frozen=True)
class OnnxQuantizeSpec:
    scheme: Literal["static_wi8_ai8", "dynamic_wi8_afp32"] = key("int8 scheme", default="static_wi8_ai8")
    calibrator: Literal["min_max", "percentile", "entropy", "mse", "auto"] = key("activation ranges", default="min_max")
    percentile: float = key("of the percentile calibrator", default=99.99, min=50, max=100)
    reduce_range: bool = key("7-bit weights, exact on x86 without VNNI", default=False)
    keep_float: tuple[str, ...] = key("torch module globs of layers that stay float", default=())
    sensitivity: SensitivitySpec | None = key("what int8 costs each layer is measured and kept; null: no", default=None)
    auto: AutoPrecisionSpec | None = key("more layers to keep float are searched; null: no", default=None)


@dataclass(frozen=True)
class OnnxTarget:
    opset: int = key("ONNX opset", default=20, min=18, max=23)
    precisions: tuple[Precision, ...] = key("graphs of every branch to put into the bundle", default=("int8",))
    quantize: OnnxQuantizeSpec = key("quantization", default=OnnxQuantizeSpec())


@dataclass(frozen=True)
class LitertQuantizeSpec:
    scheme: Literal["static_wi8_ai8", "dynamic_wi8_afp32"] = key("int8 scheme", default="static_wi8_ai8")
    keep_float: tuple[str, ...] = key("torch module globs of layers that stay float", default=())
    dynamic: tuple[str, ...] = key("globs of layers whose activations are quantized as they come", default=())
    calibrator: Literal["min_max", "moving_average", "percentile", "mse", "auto"] = key(
        "activation ranges", default="min_max"
    )
    percentile: float = key("of the percentile calibrator", default=99.99, min=50, max=100)
    sensitivity: SensitivitySpec | None = key("what int8 costs each layer is measured and kept; null: no", default=None)
    auto: AutoPrecisionSpec | None = key("more layers to keep float are searched; null: no", default=None)


@dataclass(frozen=True)
class LitertTarget:
    precisions: tuple[Precision, ...] = key("graphs of every role to put into the bundle", default=("int8",))
    quantize: LitertQuantizeSpec = key("quantization", default=LitertQuantizeSpec())


@dataclass(frozen=True)
class Targets:
    """At least one of them."""

    onnx: OnnxTarget | None = key("ONNX Runtime", default=None)
    litert: LitertTarget | None = key("LiteRT with XNNPACK", default=None)

    @property
    def names(self) -> tuple[str, ...]:
        """The targets asked for, as they stand in the bundle."""
        return tuple(f.name for f in dataclasses.fields(self) if getattr(self, f.name) is not None)


@dataclass(frozen=True)
class ParitySpec:
    max_top1_drop_pp: float = key("largest top-1 drop of int8 against fp32, percentage points", default=0.7, min=0, max=100)
    min_agreement: float = key("least share of images with the same answer", default=0.97, min=0, max=1)
    min_router_agreement: float = key("least share of images routed alike", default=0.99, min=0, max=1)
    min_sqnr_db: float | None = key(
        "least ratio of a branch's logits to their int8 noise, decibels; null: no limit", default=12.0, min=0, max=100
    )
    confidence: float = key("one-sided confidence of every bound", default=0.95, min=0.5, max=0.9999)
    stability_draws: int = key(
        "other draws of calibration images that int8 is measured with; 0: none", default=0, min=0, max=100
    )


@dataclass(frozen=True)
class BenchSpec:
    """Limits on speed, for `bench` on the device."""

    min_speedup_simple: float | None = key(
        "a routed image of the easiest branch is at least so many times as fast as the dense control", default=None, above=0,
        max=1000,
    )  # fmt: skip
    int8_not_slower_than_fp32: bool = key("a routed image is no slower in int8 than in fp32", default=False)


@dataclass(frozen=True)
class Recipe:
    """Everything a build depends on besides the files it names; immutable, made by `load_recipe`."""

    schema: Literal[1] = key("recipe format version")
    name: str = key("bundle name", pattern=NAME)
    model: ModelSpec = key("the backbone")
    checkpoint: CheckpointSpec = key("the weights")
    data: DataSpec = key("images and preprocessing")
    branches: tuple[BranchSpec, ...] = key("static graphs, easiest first")
    targets: Targets = key("what to build for")
    router: RouterSpec | None = key("needed with two branches and more", default=None)
    equalise: EqualiseSpec | None = key("LayerNorm's scales go into the next layer before export; null: no", default=None)
    parity: ParitySpec = key("limits of the parity gate", default=ParitySpec())
    share_weights: bool = key("what branches have in common is stored once", default=False)
    bench: BenchSpec | None = key("limits that `bench` holds the bundle to; null: none", default=None)
    train: TrainSpec | None = key("how the checkpoint is trained", default=None)


@dataclass(frozen=True)
class RecipeFile:
    """A recipe with where it came from: `text` as read, sha256 of it, `folder` that its paths are relative to."""

    recipe: Recipe
    path: Path
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def resolve(self, path: str) -> Path:
        return (self.path.parent / path).resolve()


def recipe_json_schema() -> dict[str, Any]:
    """JSON Schema of a recipe, for editors and CI."""
    return json_schema(Recipe, "athe-export recipe")


def load_recipe(path: Path) -> RecipeFile:
    """Reads and checks a recipe.

    Raises:
        RecipeError: the file is missing or unreadable, or lists every problem with its line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(
            "there is no such recipe",
            where=str(path),
            remedy="give the path of a YAML file; `athe-export recipes list` shows those that are shipped",
        ) from None
    except (OSError, UnicodeDecodeError) as err:
        raise RecipeError(f"cannot be read as text: {err}", where=str(path), remedy="give the path of a YAML file") from None
    reader = DocumentReader()
    recipe = reader.read(Recipe, text)
    if recipe is not None:
        # all are found before any is reported, so that none makes another's value look unusable
        for where, message in contradictions(recipe, lambda *path: not reader.broken(path)):
            reader.report(where, message)
    if reader.problems or recipe is None:
        found = sorted(reader.problems, key=lambda p: p.line)
        count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
        raise RecipeError(
            f"{count} in the recipe:\n" + "\n".join(f"  {p}" for p in found),
            where=str(path),
            remedy="mend these keys; `athe-export schema` prints the recipe's JSON Schema",
        )
    return RecipeFile(recipe, path.resolve(), text)
