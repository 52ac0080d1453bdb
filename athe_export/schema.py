"""Frozen dataclasses as a document schema: YAML -> dataclass with every problem and its line, and JSON Schema.

One declaration serves reading, checking and documenting. It needs PyYAML alone, because a rented training
machine has no more; a validation library would not install there.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from athe_export.dependencies import READ_JOB, require

require(READ_JOB)  # the extras of a device leave it out: nothing there reads YAML
import yaml  # noqa: E402

T = TypeVar("T")
Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a document: 1-based line, dotted key, what is wrong and what would be right."""

    line: int
    path: Path
    message: str
    breaks: bool = True  # False: the value can be relied on all the same

    def __str__(self) -> str:
        return f"line {self.line}: {dotted(self.path)}: {self.message}" if self.path else f"line {self.line}: {self.message}"


def dotted(path: Path) -> str:
    """`('branches', 0, 'keep')` -> `branches[0].keep`."""
    out = ""
    for part in path:
        out += f"[{part}]" if isinstance(part, int) else (f".{part}" if out else part)
    return out


def key(
    help: str,
    *,
    default: Any = dataclasses.MISSING,
    min: float | None = None,
    max: float | None = None,
    above: float | None = None,
    pattern: str | None = None,
    length: int | None = None,
) -> Any:
    """A documented dataclass field; numbers are bounded by min <= x <= max and above < x."""
    rules = {"help": help, "min": min, "max": max, "above": above, "pattern": pattern, "length": length}
    return dataclasses.field(default=default, metadata={k: v for k, v in rules.items() if v is not None})


class DocumentReader:
    """Reads one YAML document into a dataclass tree, collecting problems instead of stopping at the first."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._lines: dict[Path, int] = {}

    def read(self, cls: type[T], text: str) -> T | None:
        """The document as `cls`; fields that are broken are None and named in `problems`."""
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as err:
            mark = getattr(err, "problem_mark", None) or getattr(err, "context_mark", None)
            line = mark.line + 1 if mark else text.count("\n", 0, getattr(err, "position", 0)) + 1
            reason = getattr(err, "problem", None) or str(err).splitlines()[0]
            self.problems.append(Problem(line, (), f"not valid YAML: {reason}"))
            return None
        except RecursionError:
            self.problems.append(Problem(1, (), "not valid YAML: nested too deeply"))
            return None
        if node is None:
            self.problems.append(Problem(1, (), "the document is empty"))
            return None
        value = self._value(cls, node, (), {})
        return value if isinstance(value, cls) else None

    def report(self, path: Path, message: str, breaks: bool = True) -> None:
        """Adds a problem at `path`, on the line of the nearest key that stands in the document."""
        near = path
        while near and near not in self._lines:
            near = near[:-1]
        self.problems.append(Problem(self._lines.get(near, 1), path, message, breaks))

    def broken(self, *prefixes: Path) -> bool:
        """Whether a value at or below any prefix is unusable, so that a check relying on it cannot run."""
        breaking = [p.path for p in self.problems if p.breaks]
        return any(path[: len(pre)] == pre or pre[: len(path)] == path for path in breaking for pre in prefixes)

    def _value(self, kind: Any, node: yaml.Node, path: Path, rules: typing.Mapping[str, Any]) -> Any:
        self._lines.setdefault(path, node.start_mark.line + 1)  # a key's own line stands before its value's
        origin, args = typing.get_origin(kind), typing.get_args(kind)
        if origin in (typing.Union, types.UnionType):
            if _is_null(node):
                return None
            return self._value(next(a for a in args if a is not type(None)), node, path, rules)
        if dataclasses.is_dataclass(kind):
            return self._dataclass(typing.cast(type, kind), node, path)
        if origin is tuple:
            return self._sequence(args[0], node, path, rules)
        return self._scalar(kind, node, path, rules)

    def _dataclass(self, cls: type, node: yaml.Node, path: Path) -> Any:
        shorthand = getattr(cls, "__shorthand__", None)
        if shorthand and not isinstance(node, yaml.MappingNode):
            if isinstance(node, yaml.ScalarNode):
                node = yaml.SequenceNode("tag:yaml.org,2002:seq", [node], node.start_mark, node.end_mark)
            field = next(f for f in dataclasses.fields(cls) if f.name == shorthand)
            value = self._value(_hints(cls)[shorthand], node, path, field.metadata)
            return None if value is None else cls(**{shorthand: value})
        if not isinstance(node, yaml.MappingNode):
            self.report(path, f"must be a mapping of keys, not {_said(node)}")
            return None
        fields = {f.name: f for f in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            name = key_node.value if isinstance(key_node, yaml.ScalarNode) else _said(key_node)
            self._lines[(*path, name)] = key_node.start_mark.line + 1
            if name not in fields:
                close = difflib.get_close_matches(name, fields, n=1)
                hint = f"did you mean {close[0]!r}?" if close else "allowed here: " + ", ".join(fields)
                self.report((*path, name), f"unknown key; {hint}", breaks=False)
            elif name in values:
                self.report((*path, name), "stands twice", breaks=False)
            else:
                values[name] = self._value(_hints(cls)[name], value_node, (*path, name), fields[name].metadata)
        for field in fields.values():
            if field.name not in values and _required(field):
                self.report((*path, field.name), f"is missing ({field.metadata.get('help', '')})")
                values[field.name] = None
        return cls(**values)

    def _sequence(self, item: Any, node: yaml.Node, path: Path, rules: typing.Mapping[str, Any]) -> Any:
        if not isinstance(node, yaml.SequenceNode):
            self.report(path, f"must be a list, not {_said(node)}")
            return None
        if "length" in rules and len(node.value) != rules["length"]:
            self.report(path, f"must have {rules['length']} entries, not {len(node.value)}")
        return tuple(self._value(item, child, (*path, i), rules) for i, child in enumerate(node.value))

    def _scalar(self, kind: Any, node: yaml.Node, path: Path, rules: typing.Mapping[str, Any]) -> Any:
        if not isinstance(node, yaml.ScalarNode) or _is_null(node):
            self.report(path, f"must be {_wanted(kind)}, not {_said(node)}")
            return None
        if typing.get_origin(kind) is typing.Literal:
            choices = typing.get_args(kind)
            by_text = {str(c): c for c in choices}
            if node.value not in by_text:
                close = difflib.get_close_matches(node.value, by_text, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                self.report(path, f"{node.value!r} is not one of {', '.join(by_text)}{hint}")
                return None
            return by_text[node.value]
        value = _parse(kind, node)
        if value is None:
            self.report(path, f"must be {_wanted(kind)}, not {_said(node)}")
            return None
        for complaint in _out_of_bounds(value, rules):
            self.report(path, complaint)
        return value


def _parse(kind: Any, node: yaml.ScalarNode) -> Any:
    text, plain = node.value, node.style is None
    if kind is str:
        return text if node.tag.endswith(":str") or not plain else None
    if not plain:
        return None
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower())
    try:
        return int(text) if kind is int else float(text)
    except ValueError:
        return None


def _out_of_bounds(value: Any, rules: typing.Mapping[str, Any]) -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{value} is not a finite number"
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if "min" in rules and value < rules["min"]:
            yield f"{value} is too small; the least is {rules['min']}"
        if "above" in rules and value <= rules["above"]:
            yield f"{value} is too small; it must be above {rules['above']}"
        if "max" in rules and value > rules["max"]:
            yield f"{value} is too large; the most is {rules['max']}"
    elif isinstance(value, str):
        if "\0" in value:
            yield "holds a NUL character"
        if "pattern" in rules and not re.fullmatch(rules["pattern"], value):
            yield f"{value!r} does not match {rules['pattern']}"


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")


def _wanted(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if typing.get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(str(c) for c in typing.get_args(kind))
    return names.get(kind, str(kind))


def _said(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "empty" if _is_null(node) else repr(node.value)


def json_schema(cls: type, title: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of documents that `DocumentReader.read(cls, ...)` accepts key by key."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **_object_schema(cls)}


def _object_schema(cls: type) -> dict[str, Any]:
    fields, hints = dataclasses.fields(cls), _hints(cls)
    schema: dict[str, Any] = {
        "type": "object",
        "additionalProperties": False,
        "required": [f.name for f in fields if _required(f)],
        "properties": {f.name: _field_schema(hints[f.name], f) for f in fields},
    }
    shorthand = getattr(cls, "__shorthand__", None)
    if shorthand:
        rules = next(f.metadata for f in fields if f.name == shorthand)
        listed = next(a for a in typing.get_args(hints[shorthand]) if a is not type(None))
        return {"anyOf": [schema, _type_schema(typing.get_args(listed)[0], rules), _type_schema(listed, rules)]}
    return schema


def _field_schema(kind: Any, field: dataclasses.Field[Any]) -> dict[str, Any]:
    schema = _type_schema(kind, field.metadata)
    if "help" in field.metadata:
        schema["description"] = field.metadata["help"]
    if not _required(field) and isinstance(field.default, str | int | float | bool):
        schema["default"] = field.default
    return schema


def _type_schema(kind: Any, rules: typing.Mapping[str, Any]) -> dict[str, Any]:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        inner = _type_schema(next(a for a in args if a is not type(None)), rules)
        return {"anyOf": [inner, {"type": "null"}]}
    if dataclasses.is_dataclass(kind):
        return _object_schema(typing.cast(type, kind))
    if origin is tuple:
        schema: dict[str, Any] = {"type": "array", "items": _type_schema(args[0], rules)}
        if "length" in rules:
            schema |= {"minItems": rules["length"], "maxItems": rules["length"]}
        return schema
    if origin is typing.Literal:
        return {"enum": list(args)}
    names = {int: "integer", float: "number", str: "string", bool: "boolean"}
    bounds = {"min": "minimum", "max": "maximum", "above": "exclusiveMinimum"}
    schema = {"type": names[kind], **{bounds[k]: v for k, v in rules.items() if k in bounds}}
    if "pattern" in rules:  # JSON Schema searches, the reader matches the whole text
        schema["pattern"] = f"^(?:{rules['pattern']})$"
    return schema
