"""The written documentation against the code: a key, verb, option, field or file that changes must change there too."""

from __future__ import annotations

import dataclasses
import importlib
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from athe_export import errors
from athe_export.bundle.manifest import Manifest
from athe_export.recipe import Recipe, load_recipe
from athe_export.verbs import app

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
    + [ROOT / folder / "README.md" for folder in ("recipes", "calibration", "artifacts")]
)
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))

page = pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])


# --- docs/recipe.md ---------------------------------------------------------------------------------------------------


def _inner(kind: Any) -> tuple[Any, bool]:
    """The type without `| None`, and whether null is allowed."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return next(a for a in typing.get_args(kind) if a is not type(None)), True
    return kind, False


def _type_cell(kind: Any) -> str:
    kind, nullable = _inner(kind)
    if typing.get_origin(kind) is typing.Literal:
        said = " or ".join(f"`{c}`" for c in typing.get_args(kind))
    elif typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        names = {float: "numbers", int: "whole numbers", str: "texts"}
        choices = " or ".join(f"`{c}`" for c in typing.get_args(item)) if typing.get_origin(item) is typing.Literal else None
        said = "list of " + (choices or names.get(item, "mappings"))
    else:
        said = {int: "whole number", float: "number", str: "text", bool: "true or false"}.get(kind, "mapping")
    return said + (" or null" if nullable else "")


def _default_cell(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    if dataclasses.is_dataclass(field.default):
        return "its defaults"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return "`" + yaml.safe_dump(value, default_flow_style=True).splitlines()[0] + "`"


def _bounds_cell(rules: Mapping[str, Any]) -> str:
    said = []
    if "length" in rules:
        said.append(f"{rules['length']} entries")
    if "pattern" in rules:
        said.append(f"`{rules['pattern']}`")
    if "min" in rules:
        said.append(f"{rules['min']} to {rules['max']}" if "max" in rules else f"at least {rules['min']}")
    if "above" in rules:
        said.append(f"above {rules['above']}" + (f", at most {rules['max']}" if "max" in rules else ""))
    return ", ".join(said)


def _recipe_rows(cls: type, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(key, type, default, bounds) of every recipe key, nested keys dotted, `[]` after a list."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind, _ = _inner(hints[field.name])
        name = prefix + field.name
        yield f"`{name}`", _type_cell(hints[field.name]), _default_cell(field), _bounds_cell(field.metadata)
        if typing.get_origin(kind) is tuple and dataclasses.is_dataclass(typing.get_args(kind)[0]):
            yield from _recipe_rows(typing.get_args(kind)[0], f"{name}[].")
        elif dataclasses.is_dataclass(kind):
            yield from _recipe_rows(typing.cast(type, kind), f"{name}.")


def _table_rows(path: Path) -> list[tuple[str, ...]]:
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]


def test_every_recipe_key_stands_in_its_document_with_type_default_and_bounds() -> None:
    written = {row[:4] for row in _table_rows(ROOT / "docs/recipe.md") if len(row) == 5 and row[4]}
    lacking = [row for row in _recipe_rows(Recipe) if row not in written]
    assert not lacking, "docs/recipe.md needs these rows:\n" + "\n".join(f"| {' | '.join(r)} | … |" for r in lacking)


def test_no_recipe_key_is_documented_that_does_not_exist() -> None:
    known = {row[0] for row in _recipe_rows(Recipe)}
    written = {row[0] for row in _table_rows(ROOT / "docs/recipe.md") if len(row) == 5 and row[0].startswith("`")}
    assert written == known


@pytest.mark.parametrize("path", RECIPES, ids=[p.stem for p in RECIPES])
def test_every_shipped_recipe_is_decoded_with_its_own_numbers(path: Path) -> None:
    recipe, text = load_recipe(path).recipe, (ROOT / "recipes/README.md").read_text()
    _, _, section = text.partition(f"## {path.stem}\n")
    section = section.partition("\n## ")[0]
    for branch in recipe.branches:
        cuts = ", ".join(f"{s.keep:g} after block {s.after_blocks}" for s in branch.prune) or "none"
        tokens = ", ".join(str(k) for _, k in branch.kept_tokens(recipe.model.patches)) or str(recipe.model.patches)
        row = f"| `{branch.name}` | {cuts} | {tokens} of {recipe.model.patches} | {branch.heads} of {recipe.model.heads} |"
        assert row in section, f"recipes/README.md, section {path.stem}, needs the row {row}"
    if recipe.router is not None:
        threshold = next((k, v) for k, v in vars(recipe.router.threshold).items() if v is not None)
        assert f"`{threshold[0]}: {threshold[1]}`" in section, f"recipes/README.md, section {path.stem}, needs {threshold}"


# --- docs/bundle-format.md --------------------------------------------------------------------------------------------


def _manifest_fields(cls: type, prefix: str = "") -> Iterator[str]:
    for name, hint in typing.get_type_hints(cls).items():
        kind, _ = _inner(hint)
        yield prefix + name
        if typing.get_origin(kind) is tuple and hasattr(typing.get_args(kind)[0], "_fields"):
            yield from _manifest_fields(typing.get_args(kind)[0], f"{prefix}{name}[].")
        elif hasattr(kind, "_fields"):
            yield from _manifest_fields(typing.cast(type, kind), f"{prefix}{name}.")


def test_every_manifest_field_stands_in_the_bundle_format() -> None:
    written = {row[0] for row in _table_rows(ROOT / "docs/bundle-format.md")}
    lacking = [name for name in _manifest_fields(Manifest) if f"`{name}`" not in written]
    assert not lacking, "docs/bundle-format.md lacks " + ", ".join(lacking)


# --- the command line -------------------------------------------------------------------------------------------------


def _commands() -> dict[str, set[str]]:
    """Verb (`recipes copy` for a verb of a group) -> its options."""
    found: dict[str, set[str]] = {}

    def walk(command: Any, words: tuple[str, ...]) -> None:
        options = {name for p in command.params for name in (*p.opts, *p.secondary_opts) if name.startswith("-")}
        found[" ".join(words)] = options | {"--help"}
        for name, sub in getattr(command, "commands", {}).items():
            walk(sub, (*words, name))

    walk(typer.main.get_command(app), ())
    return found


def _command_lines(text: str) -> Iterator[str]:
    """What stands after `athe-export` in code, up to a pipe, redirection, comment or the end of the code."""
    code = [*re.findall(r"^```[^\n]*\n(.*?)^```", text, re.M | re.S)]
    code += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    for block in code:
        for match in re.finditer(
            r"(?<![\w\[\"/.-])(?:\.venv/bin/)?athe-export(?= )([^\n|>;&#`]*)", block.replace("\\\n", " ")
        ):
            yield match[1].strip()


@page
def test_every_command_in_the_documents_exists_with_its_options(page: Path) -> None:
    commands = _commands()
    for line in _command_lines(page.read_text()):
        words = line.split()
        verb = next((" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in commands), None)
        if verb is None and not words[0].startswith("-"):
            pytest.fail(f"{page.name} names a verb that does not exist: athe-export {line}")
        for word in words:
            if word.startswith("-"):
                assert word.split("=")[0] in commands[verb or ""], f"{page.name}: no option {word} in: athe-export {line}"


def test_every_verb_stands_in_the_readme() -> None:
    named = {" ".join(line.split()) for line in _command_lines((ROOT / "README.md").read_text())}
    lacking = [v for v in _commands() if v and v != "recipes" and not any(n.startswith(v) for n in named)]
    assert not lacking


def test_the_readme_lists_exactly_the_exit_codes_that_there_are() -> None:
    kinds = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.AtheExportError)]
    section = (ROOT / "README.md").read_text().partition("## Exit codes")[2].partition("\n## ")[0]
    written = {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.M)}
    assert written == {0, 130} | {e.exit_code for e in kinds}


# --- links and names --------------------------------------------------------------------------------------------------


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@page
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), f"{page.relative_to(ROOT)} links to {target}, which is not there"
        if anchor:
            assert anchor in _anchors(found), f"{page.relative_to(ROOT)} links to {target}, which has no such heading"


@page
def test_python_in_the_documents_imports_what_exists(page: Path) -> None:
    for module, names in re.findall(r"^from (athe_export[\w.]*) import ([\w, ]+)$", page.read_text(), re.M):
        for name in names.split(","):
            assert hasattr(importlib.import_module(module), name.strip()), f"{page.name}: {module} has no {name}"


def test_the_design_page_names_every_module() -> None:
    text = (ROOT / "docs/design.md").read_text()
    modules = [p.relative_to(ROOT / "athe_export") for p in (ROOT / "athe_export").rglob("*.py")]
    lacking = [str(m) for m in modules if m.name not in ("__init__.py",) and f"`{m.as_posix()}`" not in text]
    assert not lacking, "docs/design.md does not say what these are: " + ", ".join(lacking)
