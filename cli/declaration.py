"""What a stage's `config.py` declares, read from its source: `--help` needs nothing else, and importing it costs more.

Loading msgspec alone takes three times as long as all of this. The source must stay plain enough to be read this way
(literals, names bound to them in the same file or imported from another of ours, arithmetic); a test compares every
stage with the imported truth.
"""

import ast
import operator
from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

REQUIRED = object()
"""The default of an option that has none."""

_KINDS = {"str": "text", "int": "n", "float": "x", "bool": "bool", "Any": "json", "dict": "json"}
_ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Pow: operator.pow,
    ast.Div: operator.truediv,
}


class Option:
    """A config field: path (`lora.rank`), kind (`n`, `x`, `text`, `bool`, `json`, `a|b`, `n...`), default, meaning."""

    def __init__(self, path: str, kind: str, default: Any, doc: str) -> None:
        self.path, self.kind, self.default, self.doc = path, kind, default, doc


class Source:
    """The classes and names of one module, and where it imports others from."""

    def __init__(self, text: str) -> None:
        self.classes: dict[str, ast.ClassDef] = {}
        self.names: dict[str, ast.expr] = {}
        self.imported: dict[str, tuple[str, str]] = {}
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef):
                self.classes[node.name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.names[node.targets[0].id] = node.value
            elif isinstance(node, ast.ImportFrom) and node.module:
                self.imported |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}

    def find(self, name: str) -> "tuple[Source, ast.expr | ast.ClassDef]":
        """Where `name` is defined, here or in the module it comes from, and as what. Raises KeyError."""
        if name in self.classes:
            return self, self.classes[name]
        if name in self.names:
            return self, self.names[name]
        module, attribute = self.imported[name]
        return read_module(module).find(attribute)

    def value(self, node: ast.expr) -> Any:
        """The value of a literal, a name bound to one, arithmetic, or `msgspec.field(default_factory=lambda: ...)`."""
        if isinstance(node, ast.Name):
            where, node_value = self.find(node.id)
            assert isinstance(node_value, ast.expr)
            return where.value(node_value)
        if isinstance(node, ast.BinOp):
            return _ARITHMETIC[type(node.op)](self.value(node.left), self.value(node.right))
        if isinstance(node, ast.Call) and node.keywords and isinstance(node.keywords[0].value, ast.Lambda):
            return self.value(node.keywords[0].value.body)
        return ast.literal_eval(node)


_READ: dict[str, Source] = {}


def read_module(name: str) -> Source:
    """The source of a module, read once."""
    if name not in _READ:
        spec = find_spec(name)
        assert spec is not None and spec.origin is not None, name
        with open(spec.origin, encoding="utf-8") as file:  # noqa: PTH123  pathlib would be a fifth of the whole time
            _READ[name] = Source(file.read())
    return _READ[name]


class Declaration:
    """A stage's name, summary, options, ports (name -> keywords of `Port`) and example.

    `chosen` names what a choice is, by path; others have their default.
    """

    def __init__(self, source: Source, struct: str = "", chosen: Mapping[str, str] = MappingProxyType({})) -> None:
        """`struct` names the config where the source has no `STAGE`. Raises ValueError for source it cannot read."""
        stage = source.names.get("STAGE")
        said = {word.arg: word.value for word in stage.keywords if word.arg} if isinstance(stage, ast.Call) else {}
        config = said.get("config")
        where, config_class = source.find(config.id if isinstance(config, ast.Name) else struct)
        assert isinstance(config_class, ast.ClassDef)
        self.chosen = chosen
        self.name: str = source.value(said["name"]) if "name" in said else ""
        self.example: str = source.value(said["example"]) if "example" in said else ""
        self.shards = "shards" in said
        self.first: tuple[str, ...] = source.value(said["first"]) if "first" in said else ()
        output = said.get("output")
        self.is_service = isinstance(output, ast.Constant) and output.value == ""
        self.summary = " ".join((ast.get_docstring(config_class, clean=False) or "").split())
        self.choices: dict[str, list[str]] = {}
        """Names that a choice can be, by its path."""
        self.options = self._options(where, config_class, "")
        self.ports: dict[str, dict[str, Any]] = {}
        ports = said.get("inputs")
        if isinstance(ports, ast.Dict):
            for key, port in zip(ports.keys, ports.values, strict=True):
                if key is not None and isinstance(port, ast.Call):
                    self.ports[source.value(key)] = {
                        word.arg: source.value(word.value) for word in port.keywords if word.arg is not None
                    }

    def _options(self, source: Source, config: ast.ClassDef, prefix: str) -> list[Option]:
        options: list[Option] = []
        for node, after in zip(config.body, [*config.body[1:], None], strict=True):
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            if isinstance(node.annotation, ast.Subscript) and ast.unparse(node.annotation.value) == "ClassVar":
                continue
            path = prefix + node.target.id.removesuffix("_")
            text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            doc = " ".join(str(text).split())
            table = _choice_table(source, node.annotation)
            if table is not None:
                options += self._choice(source, node, table, path, doc)
                continue
            group = _struct(source, node.annotation)
            if group is not None:
                options += self._options(*group, f"{path}.")
                continue
            default = REQUIRED if node.value is None else source.value(node.value)
            options.append(Option(path, _kind(source, node.annotation), default, doc))
        return options

    def _choice(self, source: Source, node: ast.AnnAssign, table: dict[str, str], path: str, doc: str) -> list[Option]:
        """The option that chooses, and those of what is chosen."""
        assert isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name), path
        where, struct = source.find(node.value.func.id)
        assert isinstance(struct, ast.ClassDef)
        default = _tag(struct)
        name = self.chosen.get(path, default)
        if name != default:
            module, _, attribute = _reference(source, node.annotation, table, name).partition(":")
            where, struct = read_module(module).find(attribute)
            assert isinstance(struct, ast.ClassDef)
        self.choices[path] = list(table)
        kind = "|".join(table)
        return [Option(path, kind, default, doc), *self._options(where, struct, f"{name}.")]


def _tag(struct: ast.ClassDef) -> str:
    return str(next(ast.literal_eval(word.value) for word in struct.keywords if word.arg == "tag"))


def _note(source: Source, annotation: ast.expr) -> tuple[Source, ast.Call] | None:
    """The `Choice(...)` in an annotation, where it is written."""
    if not (isinstance(annotation, ast.Subscript) and isinstance(annotation.slice, ast.Tuple)):
        return None
    for note in annotation.slice.elts[1:]:
        if isinstance(note, ast.Name) and (note.id in source.names or note.id in source.imported):
            try:
                where, note_node = source.find(note.id)
            except (KeyError, AssertionError):
                continue
            if (
                isinstance(note_node, ast.Call)
                and isinstance(note_node.func, ast.Name)
                and note_node.func.id == "Choice"
            ):
                return where, note_node
    return None


def _choice_table(source: Source, annotation: ast.expr) -> dict[str, str] | None:
    found = _note(source, annotation)
    if found is None:
        return None
    where, call = found
    table: dict[str, str] = where.value(next(word.value for word in call.keywords if word.arg == "table"))
    return table


def _reference(source: Source, annotation: ast.expr, table: dict[str, str], name: str) -> str:
    """`module:struct` of a name of a choice, ours or an installed package's. Raises ConfigError (2)."""
    if name in table:
        return table[name]
    from postmill.stages.tables import added, closest

    target = _note(source, annotation)
    assert target is not None
    others = added(target[0].value(next(word.value for word in target[1].keywords if word.arg == "group")))
    if name not in others:
        from postmill.io.errors import ConfigError

        names = [*table, *others]
        raise ConfigError(f"{name}: no such name{closest(name, names)}; there are {', '.join(names)}")
    return others[name]


def _struct(source: Source, annotation: ast.expr) -> tuple[Source, ast.ClassDef] | None:
    """The class of a group, or None for an annotation that is an option's type."""
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.slice, ast.Tuple):  # Annotated[Group, ...]
        annotation = annotation.slice.elts[0]
    if not isinstance(annotation, ast.Name) or annotation.id in _KINDS:
        return None
    if annotation.id not in source.classes and annotation.id not in source.imported:
        return None
    where, declared = source.find(annotation.id)
    return (where, declared) if isinstance(declared, ast.ClassDef) else None


def _kind(source: Source, node: ast.expr) -> str:
    """What a value of an annotated type looks like on the command line."""
    if isinstance(node, ast.BinOp):  # T | None
        return _kind(source, node.left)
    if isinstance(node, ast.Name):
        if node.id in _KINDS:
            return _KINDS[node.id]
        where, declared = source.find(node.id)
        assert isinstance(declared, ast.expr)
        return _kind(where, declared)
    if not (isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name)):
        raise ValueError(f"line {node.lineno}: {ast.unparse(node)}: a type that help cannot read")
    args = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    outer = node.value.id
    if outer == "Annotated":
        return _kind(source, args[0])
    if outer == "Literal":
        return "|".join(str(source.value(arg)) for arg in args)
    return f"{_kind(source, args[0])}..." if outer in ("list", "tuple") else _KINDS[outer]


def read_declaration(command: str, argv: list[str] | None = None) -> Declaration:
    """The declaration of a stage of ours, with the choices that `argv` makes."""
    source = read_module(f"postmill.stages.{command}.config")
    declared = Declaration(source)
    chosen = {path: name for path in declared.choices if (name := _said(argv or [], path))}
    return Declaration(source, chosen=chosen) if chosen else declared


def _said(argv: list[str], path: str) -> str:
    """What argv says of an option, by its path or its last part: the word after its flag, or behind its `=`."""
    flags = ["--" + name.replace("_", "-") for name in (path, path.rpartition(".")[2])]
    text = ""
    for word, after in zip(argv, [*argv[1:], ""], strict=False):
        name, has_value, value = word.partition("=")
        if name in flags:
            text = value if has_value else after
    return text
