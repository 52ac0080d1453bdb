"""The document reader: what it takes, and that every problem is said with its line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest
import yaml
from jsonschema import Draft202012Validator

from athe_export.schema import DocumentReader, dotted, json_schema, key


@dataclass(frozen=True)
class Bounds:
    """Takes a number, a list of numbers, or a mapping."""

    __shorthand__ = "fixed"
    fixed: tuple[float, ...] | None = key("numbers", default=None, min=0, max=1)
    share: float | None = key("a share", default=None, above=0, max=1)


@dataclass(frozen=True)
class Layer:
    width: int = key("width", min=1, max=64)
    bias: bool = key("bias", default=True)


@dataclass(frozen=True)
class Document:
    name: str = key("name", pattern=r"[a-z]+")
    kind: Literal["small", "large"] = key("size class")
    layers: tuple[Layer, ...] = key("layers", default=())
    mean: tuple[float, ...] = key("three means", default=(0.0, 0.0, 0.0), length=3)
    limit: int | None = key("limit", default=None, min=1)
    bounds: Bounds | None = key("bounds", default=None)


LEAST = "name: net\nkind: small\n"


def problems(text: str) -> list[str]:
    reader = DocumentReader()
    reader.read(Document, text)
    return [str(p) for p in reader.problems]


def accepted(text: str) -> Document:
    reader = DocumentReader()
    document = reader.read(Document, text)
    assert not reader.problems
    assert document is not None
    return document


def test_a_full_document_is_read_into_frozen_values() -> None:
    text = LEAST + "layers: [{width: 3, bias: false}, {width: 4}]\nmean: [0, 0.5, 1]\nlimit: null\nbounds: {share: 0.5}\n"
    expected = Document("net", "small", (Layer(3, False), Layer(4)), (0.0, 0.5, 1.0), None, Bounds(share=0.5))
    assert accepted(text) == expected


@pytest.mark.parametrize(("written", "fixed"), [("0.25", (0.25,)), ("[0.25, 1]", (0.25, 1.0)), ("{fixed: [0]}", (0.0,))])
def test_a_shorthand_takes_a_number_a_list_or_the_mapping(written: str, fixed: tuple[float, ...]) -> None:
    assert accepted(f"{LEAST}bounds: {written}\n").bounds == Bounds(fixed)


def test_an_anchor_may_stand_for_a_repeated_value() -> None:
    assert accepted(LEAST + "layers: [&one {width: 3}, *one]\n").layers == (Layer(3), Layer(3))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: the document is empty"),
        ("# only a comment\n", "line 1: the document is empty"),
        ("name: [unclosed\n", "line 2: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("name: net\n\tkind: small\n", "line 2: not valid YAML: found character '\\t' that cannot start any token"),
        ("name: net\nkind: \x01small\n", "line 2: not valid YAML: unacceptable character #x0001: special characters are not allowed"),
        ("name: net\n---\nname: other\n", "line 2: not valid YAML: but found another document"),
        ("[" * 5000, "line 1: not valid YAML: nested too deeply"),
        ("- name\n", "line 1: must be a mapping of keys, not a list"),
        ("just text\n", "line 1: must be a mapping of keys, not 'just text'"),
    ],
)  # fmt: skip
def test_what_is_no_document_at_all_is_one_problem(text: str, said: str) -> None:
    assert problems(text) == [said]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("limit: many", "line 3: limit: must be a whole number, not 'many'"),
        ("limit: 1.5", "line 3: limit: must be a whole number, not '1.5'"),
        ("limit: '3'", "line 3: limit: must be a whole number, not '3'"),
        ("limit: true", "line 3: limit: must be a whole number, not 'true'"),
        ("limit: [3]", "line 3: limit: must be a whole number, not a list"),
        ("limit: 0", "line 3: limit: 0 is too small; the least is 1"),
        ("layers: 3", "line 3: layers: must be a list, not '3'"),
        ("layers: [3]", "line 3: layers[0]: must be a mapping of keys, not '3'"),
        ("layers: [{width: 65}]", "line 3: layers[0].width: 65 is too large; the most is 64"),
        ("layers: [{width: }]", "line 3: layers[0].width: must be a whole number, not empty"),
        ("layers: [{width: 1, bias: yes}]", "line 3: layers[0].bias: must be true or false, not 'yes'"),
        ("layers: [{bias: true}]", "line 3: layers[0].width: is missing (width)"),
        ("mean: [0, 1]", "line 3: mean: must have 3 entries, not 2"),
        ("mean: [0, 1, nan]", "line 3: mean[2]: nan is not a finite number"),
        ("mean: [0, 1, 1e999]", "line 3: mean[2]: inf is not a finite number"),
        ("mean: [0, 1, x]", "line 3: mean[2]: must be a number, not 'x'"),
        ("bounds: 2", "line 3: bounds[0]: 2.0 is too large; the most is 1"),
        ("bounds: {share: 0}", "line 3: bounds.share: 0.0 is too small; it must be above 0"),
    ],
)
def test_a_wrong_value_is_said_with_line_key_and_what_would_be_right(line: str, said: str) -> None:
    assert problems(f"{LEAST}{line}\n") == [said]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("12", "line 1: name: must be text, not '12'"),
        ("Net", "line 1: name: 'Net' does not match [a-z]+"),
        ("[net]", "line 1: name: must be text, not a list"),
        (r'"net\0"', "line 1: name: holds a NUL character"),
    ],
)
def test_text_must_be_text_that_matches_its_pattern_whole(name: str, said: str) -> None:
    assert problems(f"name: {name}\nkind: small\n")[0] == said


def test_a_choice_outside_the_list_is_said_with_the_nearest_one() -> None:
    assert problems("name: net\nkind: smal\n") == ["line 2: kind: 'smal' is not one of small, large; did you mean 'small'?"]
    assert problems("name: net\nkind: [x]\n") == ["line 2: kind: must be one of small, large, not a list"]


def test_an_unknown_key_is_said_with_the_likely_spelling_or_the_allowed_ones() -> None:
    assert problems(LEAST + "limmit: 3\n") == ["line 3: limmit: unknown key; did you mean 'limit'?"]
    assert problems(LEAST + "layers: [{width: 1, zzz: 2}]\n") == [
        "line 3: layers[0].zzz: unknown key; allowed here: width, bias"
    ]
    assert problems(LEAST + "? [a]\n: 1\n")[0].startswith("line 3: a list: unknown key")


def test_a_key_that_stands_twice_is_refused_on_its_second_line() -> None:
    assert problems(LEAST + "kind: large\n") == ["line 3: kind: stands twice"]


def test_all_problems_of_a_document_are_found_at_once() -> None:
    text = "name: 3\nlayers:\n  - width: 0\n    bais: true\n  - {}\nmean: 1\n"
    assert problems(text) == [
        "line 1: name: must be text, not '3'",
        "line 3: layers[0].width: 0 is too small; the least is 1",
        "line 4: layers[0].bais: unknown key; did you mean 'bias'?",
        "line 5: layers[1].width: is missing (width)",
        "line 6: mean: must be a list, not '1'",
        "line 1: kind: is missing (size class)",
    ]


def test_a_missing_key_of_a_block_is_said_on_the_line_of_the_blocks_own_key() -> None:
    assert problems(LEAST + "bounds:\n\n  share: x\n") == ["line 5: bounds.share: must be a number, not 'x'"]
    reader = DocumentReader()
    reader.read(Document, LEAST + "bounds:\n\n  share: 1\n")
    reader.report(("bounds", "fixed"), "is missing")
    assert str(reader.problems[0]) == "line 3: bounds.fixed: is missing"


def test_an_unknown_key_leaves_its_neighbours_usable_and_a_wrong_type_does_not() -> None:
    reader = DocumentReader()
    reader.read(Document, LEAST + "layers: [{width: 1, zzz: 2}, {width: x}]\n")
    assert not reader.broken(("layers", 0))
    assert reader.broken(("layers", 1))
    assert reader.broken(("layers",))  # something below it is
    assert reader.broken(("layers", 1, "width", "deeper"))  # so is what would lie below


def test_a_tag_never_makes_a_python_object() -> None:
    assert problems("name: !!python/object/apply:os.getcwd []\nkind: small\n") == ["line 1: name: must be text, not a list"]


def test_keys_are_written_dotted_with_list_positions() -> None:
    assert dotted(("branches", 0, "prune", 1, "keep")) == "branches[0].prune[1].keep"


@pytest.mark.parametrize(
    "more",
    [
        "",
        "limit: 3",
        "limit: null",
        "limit: 0",
        "limit: x",
        "limit: 2.5",
        "layers: []",
        "layers: [{width: 1, bias: false}]",
        "layers: [{width: 65}]",
        "layers: [{}]",
        "layers: {}",
        "mean: [1, 2, 3]",
        "mean: [1, 2]",
        "bounds: 0.5",
        "bounds: 1.5",
        "bounds: [0.5]",
        "bounds: [-1]",
        "bounds: {share: 0.5}",
        "bounds: {share: 0}",
        "bounds: {sharing: 1}",
        "bounds: null",
        "zzz: 1",
    ],
)
def test_the_json_schema_accepts_what_the_reader_accepts(more: str) -> None:
    text = f"{LEAST}{more}\n"
    assert _valid(text) == (not problems(text))


@pytest.mark.parametrize("name", ["net", "Net", "a net", "net!", "''", "3"])
def test_the_json_schema_matches_patterns_whole_as_the_reader_does(name: str) -> None:
    text = f"name: {name}\nkind: small\n"
    assert _valid(text) == (not problems(text))


def test_the_json_schema_documents_every_key() -> None:
    schema: dict[str, Any] = json_schema(Document, "a document")
    Draft202012Validator.check_schema(schema)
    assert schema["required"] == ["name", "kind"]
    assert all(field["description"] for field in schema["properties"].values())
    assert schema["properties"]["layers"]["items"]["properties"]["bias"]["default"] is True


def _valid(text: str) -> bool:
    return Draft202012Validator(json_schema(Document, "a document")).is_valid(yaml.safe_load(text))
