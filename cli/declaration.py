"""What a stage's `config.py` declares, read from its source: `--help` needs nothing else, and importing it costs more.

Loading msgspec alone takes three times as long as all of this. The source must stay plain enough to be read this way
(literals, names bound to them in the same file, arithmetic); a test compares every stage with the imported truth.
"""

import ast
import operator
from importlib.util import find_spec
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


class Declaration:
    """A stage's name, summary, options, ports (name -> keywords of `Port`) and example."""

    def __init__(self, source: str, struct: str = "") -> None:
        """`struct` names the config where the source has no `STAGE`. Raises ValueError for source it cannot read."""
        tree = ast.parse(source)
        self._classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        self._names = {
            node.targets[0].id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        stage = self._names.get("STAGE")
        said = {word.arg: word.value for word in stage.keywords if word.arg} if isinstance(stage, ast.Call) else {}
        config = said.get("config")
        config_class = self._classes[config.id if isinstance(config, ast.Name) else struct]
        self.name: str = self._value(said["name"]) if "name" in said else ""
        self.example: str = self._value(said["example"]) if "example" in said else ""
        self.summary = " ".join((ast.get_docstring(config_class, clean=False) or "").split())
        self.options = self._options(config_class, "")
        self.ports: dict[str, dict[str, Any]] = {}
        ports = said.get("inputs")
        if isinstance(ports, ast.Dict):
            for key, port in zip(ports.keys, ports.values, strict=True):
                if key is not None and isinstance(port, ast.Call):
                    self.ports[self._value(key)] = {
                        word.arg: self._value(word.value) for word in port.keywords if word.arg is not None
                    }

    def _options(self, config: ast.ClassDef, prefix: str) -> list[Option]:
        options: list[Option] = []
        for node, after in zip(config.body, [*config.body[1:], None], strict=True):
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            name = node.target.id
            if isinstance(node.annotation, ast.Name) and node.annotation.id in self._classes:
                options += self._options(self._classes[node.annotation.id], f"{prefix}{name}.")
                continue
            doc = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            default = REQUIRED if node.value is None else self._value(node.value)
            options.append(Option(prefix + name, self._kind(node.annotation), default, " ".join(str(doc).split())))
        return options

    def _kind(self, node: ast.expr) -> str:
        """What a value of an annotated type looks like on the command line."""
        if isinstance(node, ast.BinOp):  # T | None
            return self._kind(node.left)
        if isinstance(node, ast.Name):
            return _KINDS[node.id] if node.id in _KINDS else self._kind(self._names[node.id])
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            args = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            outer = node.value.id
            if outer == "Annotated":
                return self._kind(args[0])
            if outer == "Literal":
                return "|".join(str(self._value(arg)) for arg in args)
            if outer in ("list", "tuple"):
                return f"{self._kind(args[0])}..."
            return _KINDS[outer]
        raise ValueError(f"line {node.lineno}: {ast.unparse(node)}: a type that help cannot read")

    def _value(self, node: ast.expr) -> Any:
        """The value of a literal, a name bound to one, arithmetic, or `msgspec.field(default_factory=lambda: ...)`."""
        if isinstance(node, ast.Name):
            return self._value(self._names[node.id])
        if isinstance(node, ast.BinOp):
            return _ARITHMETIC[type(node.op)](self._value(node.left), self._value(node.right))
        if isinstance(node, ast.Call) and node.keywords and isinstance(node.keywords[0].value, ast.Lambda):
            return self._value(node.keywords[0].value.body)
        return ast.literal_eval(node)


def read_declaration(command: str) -> Declaration:
    """The declaration of a stage of ours."""
    spec = find_spec(f"postmill.stages.{command}.config")
    assert spec is not None and spec.origin is not None, command
    with open(spec.origin, encoding="utf-8") as file:  # noqa: PTH123  pathlib would be a fifth of the whole time
        return Declaration(file.read())
