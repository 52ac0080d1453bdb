"""The verbs. Each parses and prints; the work is elsewhere and is imported when asked for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from athe_export import __version__, console
from athe_export.bench_verbs import BENCH_EXAMPLES, TUNE_EXAMPLES, bench, tune
from athe_export.ci import Outputs, told_to_ci
from athe_export.dependencies import require
from athe_export.deploy_verb import DEPLOY_EXAMPLES, deploy
from athe_export.errors import RESUME, GateFailed, GateInconclusive, Interrupted, UsageError, as_error
from athe_export.evaluate_verb import EXAMPLES, evaluate
from athe_export.options import (
    BundleArgument,
    DataRoot,
    JsonFlag,
    Junit,
    RecipeArgument,
    Summary,
)
from athe_export.recipe_verbs import recipes_app

if TYPE_CHECKING:
    from athe_export.verify import VerifyReport

app = typer.Typer(
    name="athe-export",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="An adaptive vision transformer, from a PyTorch checkpoint to a verified int8 bundle for small devices.",
    epilog="Start with: athe-export build recipes/quickstart.yaml",
)
app.add_typer(recipes_app, name="recipes")


def _version(value: bool) -> None:
    if value:
        console.say(f"athe-export {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)] = False,
) -> None:
    pass


@app.command(epilog="Examples: athe-export build recipes/quickstart.yaml · athe-export build my.yaml -o out --json")
def build(
    recipe: RecipeArgument,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Bundle folder; default artifacts/bundles/NAME.")
    ] = None,
    data_root: DataRoot = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights to use in place of the recipe's.")] = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Also write BUNDLE.controls, which bench holds the bundle against.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan; write nothing.")] = False,
    junit: Junit = None,
    summary: Summary = None,
    as_json: JsonFlag = False,
) -> None:
    """Build a bundle from a recipe, gate its accuracy, and put it in place only if it passes."""
    from athe_export.plan import plan_build
    from athe_export.recipe import load_recipe

    if dry_run:
        file = load_recipe(recipe)
        plan = plan_build(file, output or _output_of(file.recipe.name), data_root, checkpoint, controls)
        console.print_json(plan) if as_json else console.print_plan(plan)
        return
    with told_to_ci(f"build {recipe}", Outputs.here(junit, summary), output) as tell:
        file = load_recipe(recipe)
        require("build bundles")
        from athe_export.pipeline import run_build

        with console.Watch() as watch:
            result = run_build(file, output or _output_of(file.recipe.name), watch, data_root, checkpoint, controls)
        tell(result.to_json())
    if as_json:
        console.print_json(result.to_json())
        return
    console.print_build(result.output, result.manifest, sum(seconds for _, seconds in result.stages))


def _output_of(name: str) -> Path:
    return Path("artifacts/bundles") / name


@app.command(epilog="Examples: athe-export verify BUNDLE · athe-export verify BUNDLE --data-root /data --json")
def verify(
    bundle: BundleArgument,
    data_root: Annotated[Path | None, typer.Option(help="Run the parity gate too, on the images below this folder.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Gate on the first N images only.")] = None,
    junit: Junit = None,
    summary: Summary = None,
    as_json: JsonFlag = False,
) -> None:
    """Check every file, run every graph on the golden images and, with data, the parity gate."""
    if limit is not None and data_root is None:
        raise UsageError("--limit narrows the parity gate", where="--limit", remedy="add --data-root DIR")
    with told_to_ci(f"verify {bundle}", Outputs.here(junit, summary), bundle) as tell:
        from athe_export.verify import verify_bundle

        with console.Watch() as watch:
            report = verify_bundle(bundle, data_root, limit, watch.progress, lambda text: watch.line(f"warning: {text}"))
        if report.verdict in ("fail", "inconclusive"):
            if not as_json:
                console.print_verify(report)
            raise _missed(report, bundle)
        tell(report.to_json())
    console.print_json(report.to_json()) if as_json else console.print_verify(report)


def _missed(report: VerifyReport, bundle: Path) -> GateFailed | GateInconclusive:
    error = GateFailed if report.verdict == "fail" else GateInconclusive
    lines = "\n".join(f"  {line}" for line in report.broken)
    word = "does not hold here" if report.verdict == "fail" else "cannot be decided with so few images"
    return error(f"the bundle's promise {word}:\n{lines}", where=str(bundle), remedy=report.remedy, report=report.to_json())


@app.command(epilog="Examples: athe-export inspect BUNDLE · athe-export inspect BUNDLE --sensitivity")
def inspect(
    bundle: BundleArgument,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Show instead what int8 costs each layer, and what a search kept float.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what a bundle holds: router, branches, graphs, shapes, MACs, sizes, int8 and float ops, provenance."""
    from athe_export.bundle.reader import open_bundle

    opened = open_bundle(bundle)
    opened.check()
    if sensitivity:
        if not opened.manifest.precision:
            raise UsageError(
                "the bundle was built without a measurement of its layers",
                where=str(bundle),
                remedy="add `sensitivity: {}` to targets.<target>.quantize in the recipe, and build again",
            )
        found = {"precision": opened.manifest.precision}
        console.print_json(found) if as_json else console.print_precision(opened.manifest)
        return
    if as_json:
        console.print_json(opened.manifest.to_json() | {"stored": opened.manifest.sizes()})
        return
    console.print_manifest(opened.manifest)


@app.command(epilog="Examples: athe-export run BUNDLE photo.jpg · athe-export run BUNDLE --camera 0 --json")
def run(
    bundle: BundleArgument,
    images: Annotated[list[Path] | None, typer.Argument(help="Image files.", show_default=False)] = None,
    target: Annotated[
        str, typer.Option(help="auto (what tune has found fastest, else LiteRT where it is installed), litert or onnx.")
    ] = "auto",
    precision: Annotated[str, typer.Option(help="auto (what tune has found fastest, else int8), int8 or fp32.")] = "auto",
    branch: Annotated[str, typer.Option(help="auto (the router decides) or a branch's name.")] = "auto",
    top: Annotated[int, typer.Option(min=1, help="How many classes to list.")] = 5,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the engine; else what tune has found, else 1.", show_default=False)
    ] = None,
    watch: Annotated[Path | None, typer.Option(help="Classify every image that comes into this folder.")] = None,
    camera: Annotated[
        str | None, typer.Option(help="Classify frames: a camera's index, a stream's address, a video.")
    ] = None,
    duration: Annotated[float | None, typer.Option(min=0, help="End a watch or a camera after so many seconds.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Classify images with a bundle; with --watch and --camera as they come, until Ctrl-C, as JSON lines with --json."""
    from athe_export.bench.fastest import fastest_predictor
    from athe_export.live_verb import check_source, run_live

    images = images or []
    check_source(images, watch, camera, duration)
    # a link to the current version may lead elsewhere while this runs
    predictor, remark = fastest_predictor(bundle if images else bundle.resolve(), target, precision, threads)
    if not images:
        run_live(predictor, [remark] if remark else [], watch, camera, duration, branch, top, as_json)
        return
    results: list[dict[str, Any]] = []
    for image in images:
        results.append({"image": str(image), **predictor.predict(image, branch, top).to_json()})
    gate, target = predictor.bundle.manifest.verdict, predictor.target
    notes = [*([remark] if remark else []), *predictor.graphs.notes]
    not_run = [{"target": t, "why": w} for t, w in predictor.passed_over.items()]
    if as_json:
        told = {"gate_at_build": gate, "target": target, "not_run": not_run, "notes": notes}
        console.print_json(told | {"results": results})
    else:
        console.print_results(results, gate, target, not_run, notes)


app.command(epilog=BENCH_EXAMPLES)(bench)
app.command(epilog=TUNE_EXAMPLES)(tune)


@app.command(epilog="Examples: athe-export train recipes/quickstart.yaml · athe-export train my.yaml --max-minutes 60")
def train(
    recipe: RecipeArgument,
    init: Annotated[Path | None, typer.Option(help="Checkpoint to start from; what fits is taken.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to write; default the recipe's checkpoint.")
    ] = None,
    data_root: DataRoot = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    max_minutes: Annotated[float | None, typer.Option(min=0, help="End in good order after so long.")] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Use torch.compile: quicker once it has started.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a recipe's checkpoint: the dense backbone, the branches jointly, then the router."""
    from athe_export.recipe import load_recipe

    file = load_recipe(recipe)
    require("train checkpoints")
    from athe_export.training.train import train_recipe

    try:
        with console.Watch() as watch:
            result = train_recipe(
                file, data_root=data_root, init=init, output=output, resume=resume, device=device,
                max_minutes=max_minutes, compiled=compiled, command=" ".join(["athe-export", *sys.argv[1:]]),
                report=watch.line, progress=watch.progress,
            )  # fmt: skip
    except BaseException as error:
        if isinstance(as_error(error), Interrupted):
            raise Interrupted("interrupted", remedy=RESUME) from None
        raise
    summary = {
        "checkpoint": str(result.path),
        "sha256": result.sha256,
        "complete": result.complete,
        "metrics": result.metrics,
    }
    console.print_json(summary) if as_json else console.print_training(summary)


app.command(epilog=EXAMPLES)(evaluate)


@app.command(epilog="Examples: athe-export schema > recipe.schema.json · athe-export schema parity")
def schema(
    document: Annotated[
        Literal["recipe", "parity"], typer.Argument(help="A recipe, or the outcome of the gate.")
    ] = "recipe",
) -> None:
    """Print the JSON Schema of a recipe, or of the parity object that verify and build give."""
    from athe_export.recipe import recipe_json_schema
    from athe_export.report.parity_schema import PARITY_SCHEMA

    console.print_json(recipe_json_schema() if document == "recipe" else PARITY_SCHEMA)


@app.command(epilog="Example: athe-export doctor")
def doctor(as_json: JsonFlag = False) -> None:
    """Say what is installed, what is missing for which job, and the command that mends it."""
    from athe_export.doctor import findings

    found = findings()
    console.print_json(found) if as_json else console.print_doctor(found)


app.command(epilog=DEPLOY_EXAMPLES)(deploy)
