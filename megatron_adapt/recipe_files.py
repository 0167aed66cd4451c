"""Recipe files and `path=value` overrides, merged into one tree that remembers where each value was written.

YAML is read by the rules of YAML 1.2 for plain words: `1e-4` is a number, `no` and `2024-01-01` are text; all keys are.
Later layers win: mappings merge, lists and plain values replace. Setting one of a group of alternatives (`model.source`
or `model.from_scratch`, `tokenizer.path` or `.train`, a phase's `tokens`, `steps` or `epochs`, a corpus's `held_out` or
`held_out_path`) removes the others that an earlier layer set. `null` for a corpus in the mix of a phase removes it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_adapt.config import Recipe, is_mix, model_of, step_into
from megatron_adapt.config_types import did_you_mean, got
from megatron_adapt.errors import ConfigError


class Loader(yaml.SafeLoader):
    """PyYAML's loader with the plain words of YAML 1.2 (core schema); only its parser and resolver are used."""

    yaml_implicit_resolvers: dict = {}


_PLAIN_WORDS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
)
for _tag, _words, _first in _PLAIN_WORDS:
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_words})\\Z"), list(_first))


@dataclass(frozen=True)
class Origin:
    """Where a value was written; sorts in the order in which a reader meets the layers."""

    layer: int
    line: int
    text: str

    def __lt__(self, other: Origin) -> bool:
        return (self.layer, self.line) < (other.layer, other.line)


@dataclass(frozen=True)
class Tree:
    """A YAML value: `value` is a dict or list of trees, or a plain value; `origin` is where its key or item stands."""

    value: Any
    origin: Origin

    def plain(self) -> Any:
        """The value without origins."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        return [child.plain() for child in self.value] if isinstance(self.value, list) else self.value

    def origin_of(self, path: Sequence[str | int]) -> Origin:
        """Where the value at `path` was written, or the innermost mapping or list around it that exists."""
        tree = self
        for step in path:
            inside = tree.value if isinstance(tree.value, dict) else dict(enumerate(_items(tree.value)))
            if step not in inside:
                break
            tree = inside[step]
        return tree.origin


def _items(value: Any) -> list:
    return value if isinstance(value, list) else []


Problem = tuple[Origin, str]  # where, and what is wrong


class _Reader:
    """Turns the nodes of one YAML text into a Tree and notes problems that do not stop the reading."""

    def __init__(self, layer: int, label: str, lines: bool) -> None:
        self.layer, self.label, self.lines = layer, label, lines
        self.problems: list[Problem] = []
        self._open: list[yaml.Node] = []

    def origin(self, node: yaml.Node | None) -> Origin:
        line = node.start_mark.line + 1 if node is not None and self.lines else 0
        return Origin(self.layer, line, f"{self.label}:{line}" if line else self.label)

    def tree(self, node: yaml.Node, origin: Origin) -> Tree:
        if any(node is outer for outer in self._open):
            self.problems.append((origin, "an anchor (&) must not contain itself"))
            return Tree(None, origin)
        self._open.append(node)
        if isinstance(node, yaml.MappingNode):
            value: Any = self._mapping(node)
        elif isinstance(node, yaml.SequenceNode):
            value = [self.tree(item, self.origin(item)) for item in node.value]
        else:
            value = self._scalar(node, origin)
        self._open.pop()
        return Tree(value, origin)

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Tree]:
        shared: dict[str, Tree] = {}
        own: dict[str, Tree] = {}
        for key, value in node.value:
            origin = self.origin(key)
            if key.tag == "tag:yaml.org,2002:merge":
                for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    inherited = self.tree(source, origin).value
                    if not isinstance(inherited, dict):
                        self.problems.append((origin, f"'<<' needs a mapping to take keys from, got {got(inherited)}"))
                        continue
                    shared = {**inherited, **shared}
            elif not isinstance(key, yaml.ScalarNode):
                self.problems.append((origin, "a key must be plain text, not a list or mapping"))
            elif key.value in own:
                first = own[key.value].origin.text
                self.problems.append((origin, f"the key '{key.value}' is given twice (first in {first})"))
            else:
                own[key.value] = self.tree(value, origin)
        return {**shared, **own}

    def _scalar(self, node: yaml.ScalarNode, origin: Origin) -> Any:
        kind, text = node.tag.removeprefix("tag:yaml.org,2002:"), node.value
        try:
            if kind == "int":
                return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
            if kind == "float":
                return float(re.sub(r"\.(?=[a-zA-Z])", "", text))
        except ValueError:
            self.problems.append((origin, f"{text!r} is not a number of the type that its tag names"))
            return None
        if kind in ("str", "merge"):
            return text
        if kind in ("bool", "null"):
            return text.lower() == "true" if kind == "bool" else None
        self.problems.append((origin, f"the YAML tag {node.tag!r} is not supported"))
        return None


def _syntax(error: yaml.YAMLError) -> str:
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
    if "'\\t'" in problem:
        return "tabs cannot indent YAML; use spaces"
    if "but found another document" in problem:
        return "a recipe is a single YAML document; remove the second '---'"
    return f"not valid YAML: {problem}"


def read_file(path: Path | str, layer: int, problems: list[Problem]) -> Tree | None:
    """The tree of one recipe file, None where nothing can be read; what is wrong is added to `problems`."""
    reader = _Reader(layer, str(path), lines=True)
    whole = reader.origin(None)
    try:
        node = yaml.compose(Path(path).read_text(encoding="utf-8-sig"), Loader)
    except FileNotFoundError:
        problems.append((whole, "no such file"))
    except OSError as error:
        problems.append((whole, f"cannot be read: {error.strerror}"))
    except UnicodeDecodeError as error:
        problems.append((whole, f"is not UTF-8 text (byte {error.start})"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 0
        problems.append((Origin(layer, line, f"{path}:{line}" if line else str(path)), _syntax(error)))
    else:
        if node is None or (node.value == "" and node.tag.endswith(":null")):
            problems.append((whole, "the file is empty"))
            return None
        tree = reader.tree(node, reader.origin(node))
        if not isinstance(tree.value, dict):
            expected = "the top level must be a mapping (key: value lines)"
            problems.append((tree.origin, f"{expected}, got {got(tree.plain())}"))
            return None
        problems.extend(reader.problems)
        return tree
    return None


def _make_room(mapping: dict[str, Tree], later: dict[str, Tree], schema: Any) -> dict[str, Tree]:
    """`mapping` without the alternatives that `later` displaces."""
    alternatives = getattr(model_of(schema), "alternatives", ())
    if not any(key in later and later[key].value is not None for key in alternatives):
        return dict(mapping)
    return {key: tree for key, tree in mapping.items() if key not in alternatives or key in later}


def merge(base: Tree, later: Tree, schema: Any) -> Tree:
    """`later` laid over `base`; `schema` is the annotation of both."""
    if not (isinstance(base.value, dict) and isinstance(later.value, dict)):
        return later
    merged = _make_room(base.value, later.value, schema)
    for key, tree in later.value.items():
        if key in merged and tree.value is None and is_mix(schema):
            del merged[key]
        else:
            merged[key] = merge(merged[key], tree, step_into(schema, key)) if key in merged else tree
    return Tree(merged, base.origin)


def apply_override(base: Tree, text: str, layer: int, problems: list[Problem]) -> Tree:
    """`base` with the override `text` ('phases.full.optimizer.lr=1e-3'); what is wrong is added to `problems`."""
    reader = _Reader(layer, f"override {text!r}", lines=False)
    origin = reader.origin(None)
    path, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        problems.append((origin, "expected path=value"))
        return base
    if not re.fullmatch(r"[^.\[\]]+(\[-?\d+\])*(\.[^.\[\]]+(\[-?\d+\])*)*", path):
        problems.append((origin, f"{path!r} is not a path such as 'seed' or 'phases[1].optimizer.lr'"))
        return base
    steps = [int(step[1:-1]) if step[0] == "[" else step for step in re.findall(r"\[-?\d+\]|[^.\[\]]+", path)]
    try:
        if value[:1] in ("[", "{", "'", '"'):
            node = yaml.compose(value, Loader)
        else:  # a plain word, never parsed further: '*.txt' or 'a: b' needs no quotes
            tag = Loader("").resolve(yaml.ScalarNode, value, (True, False))
            node = yaml.ScalarNode(tag, value)
        tree = _put(base, steps, reader.tree(node, origin), Recipe, origin)
    except yaml.YAMLError as error:
        problems.append((origin, _syntax(error)))
    except ConfigError as error:
        problems.append((origin, str(error)))
    else:
        problems.extend(reader.problems)
        return tree
    return base


def _put(base: Tree | None, path: list[str | int], value: Tree, schema: Any, origin: Origin) -> Tree:
    """`base` with `value` at `path`: a list is entered by index or by an item's `name`, missing mappings are made."""
    if not path:
        return merge(base, value, schema) if base is not None else value
    step, rest = path[0], path[1:]
    if base is not None and isinstance(base.value, list):
        index = _index(base.value, step)
        items = list(base.value)
        items[index] = _put(items[index], rest, value, step_into(schema, 0), origin)
        return Tree(items, base.origin)
    if isinstance(step, int):
        raise ConfigError(f"[{step}] does not apply: there is no list here")
    mapping = base if base is not None and isinstance(base.value, dict) else Tree({}, origin)
    below = _put(mapping.value.get(step), rest, value, step_into(schema, step), origin)
    if below.value is None and is_mix(schema):
        return Tree({key: tree for key, tree in mapping.value.items() if key != step}, mapping.origin)
    return Tree({**_make_room(mapping.value, {step: below}, schema), step: below}, mapping.origin)


def _index(items: list[Tree], step: str | int) -> int:
    """The position in a list that one step of a path names."""
    if isinstance(step, int) or step.isdigit():
        index = int(step)
        if not -len(items) <= index < len(items):
            raise ConfigError(f"there is no item {index}: the list has {len(items)} (counted from 0)")
        return index
    named = [item.value.get("name") if isinstance(item.value, dict) else None for item in items]
    names = [tree.value if tree is not None else None for tree in named]
    if step not in names:
        known = did_you_mean(step, [name for name in names if isinstance(name, str)], "Names")
        raise ConfigError(f"the list has no item named '{step}'.{known}")
    return names.index(step)
