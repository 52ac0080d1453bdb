"""The device's runtime on a real bundle: what it answers, what it opens, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from athe_export.bundle.reader import open_bundle
from athe_export.data.shapes import Shapes
from athe_export.errors import BundleIntegrityError, ImageError, UsageError
from athe_export.runtime.golden import read_golden
from athe_export.runtime.predictor import Predictor, open_session
from athe_export.runtime.routing import RouterPolicy
from tests.tools import edit_manifest, replace_file, store_whole


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A generated image, enlarged to the size of a small photo."""
    path = tmp_path / "photo.png"
    Image.fromarray(Shapes().image("test", 0)).resize((300, 200), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="module")
def predictor(built: Path) -> Predictor:
    return Predictor.load(built)


def test_every_golden_image_gets_the_answer_of_the_branch_its_score_sends_it_to(built: Path, predictor: Predictor) -> None:
    bundle = open_bundle(built)
    stored = read_golden(bundle)
    assert bundle.manifest.router is not None
    policy = RouterPolicy(bundle.manifest.router.bounds["onnx"])
    branches = []
    for index, image in enumerate(stored["images"]):
        found = predictor.predict(image)
        score = stored["onnx/router/fp32"][index, 0]
        expected = bundle.manifest.branches[policy.branch_of(score)].name
        logits = stored[f"onnx/{expected}/int8"][index]
        assert found.router_score == pytest.approx(float(score), abs=1e-6)
        assert (found.branch, found.label) == (expected, predictor.labels[int(logits.argmax())])
        branches.append(found.branch)
    assert set(branches) == {"simple", "complex"}, "the golden images do not exercise every branch"


def test_probabilities_are_ranked_and_sum_to_one(predictor: Predictor, photo: Path) -> None:
    found = predictor.predict(photo, top=100)
    probabilities = [p for _, p in found.top]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert found.top[0] == (found.label, found.probability)
    assert {label for label, _ in found.top} == set(predictor.labels)


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (5, 5), (1000, 100)])
def test_as_many_classes_are_listed_as_asked_for_and_exist(
    predictor: Predictor, photo: Path, asked: int, given: int
) -> None:
    assert len(predictor.predict(photo, top=asked).top) == given


def test_a_file_and_its_pixels_get_the_same_answer(predictor: Predictor, photo: Path) -> None:
    from_file, from_pixels = predictor.predict(photo), predictor.predict(np.asarray(Image.open(photo)))
    assert (from_file.top, from_file.router_score) == (from_pixels.top, from_pixels.router_score)


def test_a_bundle_given_as_text_is_a_path(built: Path, photo: Path, predictor: Predictor) -> None:
    assert Predictor.load(str(built)).predict(str(photo)).top == predictor.predict(photo).top


@pytest.mark.parametrize("branch", ["simple", "complex"])
def test_a_branch_that_is_asked_for_answers_whatever_the_router_says(
    built: Path, predictor: Predictor, photo: Path, branch: str
) -> None:
    bundle = open_bundle(built)
    entry = next(g for g in bundle.manifest.graphs if g.role == branch)
    source = predictor.preprocessing.source(np.asarray(Image.open(photo)))
    logits = open_session(bundle, entry).run(predictor.preprocessing.graph_input(source, entry.inputs[0].shape))
    found = predictor.predict(photo, branch=branch)
    assert (found.branch, found.label) == (branch, predictor.labels[int(logits.argmax())])
    assert found.router_score is None  # the router is not asked


def test_more_threads_give_the_same_answer(built: Path, predictor: Predictor, photo: Path) -> None:
    two = Predictor.load(built, threads=2).predict(photo, top=100)
    one = predictor.predict(photo, top=100)
    assert two.branch == one.branch
    assert dict(two.top) == pytest.approx(dict(one.top), abs=1e-5)


def test_graphs_are_opened_when_they_are_first_needed(bundle: Path, photo: Path) -> None:
    store_whole(bundle)
    (bundle / "onnx/complex.int8.onnx").unlink()
    predictor = Predictor.load(bundle)
    assert predictor.predict(photo, branch="simple").branch == "simple"
    with pytest.raises(BundleIntegrityError, match=r"missing: onnx/complex\.int8\.onnx"):
        predictor.predict(photo, branch="complex")


@pytest.mark.parametrize("name", ["onnx/simple.int8.part.onnx", "onnx/complex.int8.onnx"])
def test_a_changed_graph_is_refused_before_it_is_run(bundle: Path, photo: Path, name: str) -> None:
    path, branch = bundle / name, name[5:].partition(".")[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleIntegrityError, match="changed") as error:
        Predictor.load(bundle).predict(photo, branch=branch)
    assert [f.path for f in error.value.files] == [name]


def test_graphs_that_are_opened_at_once_answer_as_those_that_are_opened_one_by_one(built: Path, photo: Path) -> None:
    at_once, one_by_one = Predictor.load(built), Predictor.load(built)
    at_once.graphs.open()
    for branch in ("auto", "simple", "complex"):
        assert at_once.predict(photo, branch).top == one_by_one.predict(photo, branch).top


@pytest.mark.parametrize("name", ["simple.int8.part", "complex.int8", "router.fp32"])
def test_a_changed_graph_is_refused_where_all_are_opened_at_once(bundle: Path, name: str) -> None:
    path = bundle / f"onnx/{name}.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleIntegrityError, match=f"changed: onnx/{name}"):
        Predictor.load(bundle).graphs.open()


def test_labels_in_other_writing_systems_come_out_as_they_went_in(bundle: Path, photo: Path) -> None:
    names = [f"класс {i} 类" for i in range(100)]
    replace_file(bundle, "labels.txt", "".join(f"{n}\n" for n in names).encode())
    assert Predictor.load(bundle).predict(photo).label in names


def test_a_bundle_without_labels_is_refused(bundle: Path) -> None:
    (bundle / "labels.txt").unlink()
    edit_manifest(bundle, lambda m: m.update(files=[f for f in m["files"] if f["role"] != "labels"]))
    with pytest.raises(BundleIntegrityError, match="no labels"):
        Predictor.load(bundle)


@pytest.mark.parametrize(
    ("load", "predict", "said"),
    [
        ({"target": "litert"}, {}, "no target 'litert'"),
        ({"precision": "fp32"}, {}, "no fp32 graph of simple"),
        ({"precision": "int4"}, {}, "no int4 graph of simple"),
        ({}, {"branch": "medium"}, "no branch 'medium'"),
    ],
)
def test_what_the_bundle_does_not_have_is_said_with_what_it_has(
    built: Path, photo: Path, load: dict[str, str], predict: dict[str, str], said: str
) -> None:
    with pytest.raises(UsageError, match=said) as error:
        Predictor.load(built, **load).predict(photo, **predict)
    assert any(word in error.value.remedy for word in ("onnx", "int8", "simple"))


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((32, 32), np.uint8),
        np.zeros((32, 32, 4), np.uint8),
        np.zeros((32, 32, 3), np.float32),
        np.zeros((1, 32, 32, 3), np.uint8),
    ],
    ids=["gray", "RGBA", "float", "batch"],
)
def test_pixels_that_are_not_rgb_bytes_are_refused(predictor: Predictor, pixels: np.ndarray) -> None:
    with pytest.raises(UsageError, match="pixels must be uint8"):
        predictor.predict(pixels)


def test_a_graph_refuses_a_tensor_of_another_shape_or_type(built: Path) -> None:
    bundle = open_bundle(built)
    session = open_session(bundle, bundle.manifest.graphs[0])
    for wrong in (np.zeros((2, 32, 32, 3), np.uint8), np.zeros((1, 32, 32, 3), np.float32)):
        with pytest.raises(UsageError, match="the graph takes uint8"):
            session.run(wrong)


def _save(mode: str, suffix: str, **options: object) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        path = folder / f"photo{suffix}"
        image = Image.fromarray(Shapes().image("test", 0)).resize((96, 64))
        if mode == "I;16":
            image = image.convert("L")
        image.convert(mode).save(path, **options)
        return path

    return save


@pytest.mark.parametrize(
    "save",
    [
        _save("RGB", ".jpg"),
        _save("RGB", ".png"),
        _save("L", ".png"),
        _save("1", ".png"),
        _save("LA", ".png"),
        _save("RGBA", ".png"),
        _save("P", ".png"),
        _save("I;16", ".png"),
        _save("CMYK", ".jpg"),
        _save("RGB", ".webp"),
        _save("RGB", ".bmp"),
        _save("P", ".gif"),
    ],
    ids=["jpg", "png", "gray", "bilevel", "gray with alpha", "RGBA", "palette", "16 bit", "CMYK", "webp", "bmp", "gif"],
)
def test_every_common_kind_of_image_is_classified(
    predictor: Predictor, tmp_path: Path, save: Callable[[Path], Path]
) -> None:
    found = predictor.predict(save(tmp_path))
    assert found.label in predictor.labels
    assert 0 < found.probability <= 1


def test_a_lossless_file_of_any_kind_gets_the_answer_of_its_pixels(predictor: Predictor, tmp_path: Path) -> None:
    answers = {
        predictor.predict(_save("RGB", suffix, **options)(tmp_path)).top
        for suffix, options in ((".png", {}), (".bmp", {}), (".webp", {"lossless": True}), (".tiff", {}))
    }
    assert len(answers) == 1


def test_the_first_frame_of_an_animation_is_taken_and_that_is_said(predictor: Predictor, tmp_path: Path) -> None:
    frames = [Image.fromarray(Shapes().image("test", i)) for i in (0, 1, 2)]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "still.png")
    moving, still = predictor.predict(tmp_path / "moving.png"), predictor.predict(tmp_path / "still.png")
    assert moving.top == still.top
    assert any("first of 3 frames" in note for note in moving.notes) and still.notes == ()


def test_an_image_of_extreme_proportions_is_classified(predictor: Predictor, tmp_path: Path) -> None:
    Image.new("RGB", (4000, 8), (200, 30, 30)).save(tmp_path / "wide.png")
    assert predictor.predict(tmp_path / "wide.png").label in predictor.labels


def test_a_file_that_is_no_image_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("not a photo")
    with pytest.raises(ImageError) as error:
        predictor.predict(tmp_path / "photo.jpg")
    assert error.value.where == str(tmp_path / "photo.jpg")
