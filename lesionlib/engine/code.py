"""Which code makes a result: digests of functions and of everything they reach.

The digest of a function covers its own source and that of all functions, classes and constants of
this package that it uses, directly or through others, in any module. It is computed from the syntax
trees, without importing anything; an import that cannot be resolved is an error. Comments and
docstrings do not count, nor do modules that keep results but make none (`NEUTRAL`). An object that
a function gets as an argument is not followed unless the function names its class: annotate it.
"""

import ast
import hashlib
import importlib.util
import json
from functools import cache
from pathlib import Path

PACKAGE = "lesionlib"
NEUTRAL = {f"{PACKAGE}.engine.{name}" for name in (
    "artefacts", "code", "errors", "files", "progress", "provenance", "settings")}  # fmt: skip
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


def _is_ours(name: str) -> bool:
    return name == PACKAGE or name.startswith(f"{PACKAGE}.")


@cache
def _file_of(name: str) -> Path | None:
    """The source file of one of our modules, None if there is no such module."""
    parent = name.rpartition(".")[0]
    if parent and getattr(_file_of(parent), "name", "") != "__init__.py":
        return None
    spec = importlib.util.find_spec(name)
    return Path(spec.origin) if spec and spec.origin else None


def _is_main(node) -> bool:
    """Whether a statement is `if __name__ == "__main__":`, which no importer runs."""
    return isinstance(node, ast.If) and "__name__" in ast.dump(node.test)


def _bound(node) -> set[str]:
    """Names that a statement binds in its own scope."""
    if isinstance(node, SCOPES[:2] + SCOPES[3:]):
        return {node.name}
    found = {n for child in ast.iter_child_nodes(node) if not isinstance(child, ast.Lambda)
             for n in _bound(child)}  # fmt: skip
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
        found.add(node.id)
    if isinstance(node, ast.Import | ast.ImportFrom):
        found |= {(a.asname or a.name).partition(".")[0] for a in node.names}
    if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
        found.add(node.name)
    return found


def _imports(node, module: str):
    """(local name, module, attribute or None) of our own imports below a node."""
    for one in ast.walk(node):
        if isinstance(one, ast.Import):
            for alias in filter(lambda alias: _is_ours(alias.name), one.names):
                if _file_of(alias.name) is None:
                    raise ImportError(f"{module}: there is no module {alias.name}")
                whole = alias.name if alias.asname else PACKAGE
                yield alias.asname or PACKAGE, whole, None
        elif isinstance(one, ast.ImportFrom):
            if one.level:
                raise ImportError(f"{module}: a relative import; name the package ({PACKAGE}.…)")
            for alias in one.names if _is_ours(one.module) else ():
                if alias.name == "*":
                    raise ImportError(f"{module}: from {one.module} import *; name what is used")
                yield alias.asname or alias.name, one.module, alias.name


class _Uses(ast.NodeVisitor):
    """Collects the global names that a piece of code reads, each with its chain of attributes."""

    def __init__(self):
        self.scopes, self.found = [], set()

    def _use(self, name, attributes=()):
        if not any(name in scope for scope in self.scopes):
            self.found.add((name, *attributes))

    def visit_Name(self, node):
        if isinstance(node.ctx, ast.Load):
            self._use(node.id)

    def visit_Attribute(self, node):
        chain, inner = [], node
        while isinstance(inner, ast.Attribute):
            chain.append(inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name):
            self._use(inner.id, chain[::-1])
        else:
            self.visit(inner)

    def _function(self, node):
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        every += [one for one in (arguments.vararg, arguments.kwarg) if one]
        outside = [*getattr(node, "decorator_list", []), *arguments.defaults, *every]
        outside += [one for one in (*arguments.kw_defaults, getattr(node, "returns", None)) if one]
        for one in outside:
            self.visit(one)
        body = node.body if isinstance(node.body, list) else [node.body]
        declared = {n for one in body for x in ast.walk(one) if isinstance(x, ast.Global)
                    for n in x.names}  # fmt: skip
        own = {argument.arg for argument in every}.union(*(_bound(one) for one in body)) - declared
        self.scopes.append(own)
        for one in body:
            self.visit(one)
        self.scopes.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _function

    def _comprehension(self, node):
        self.scopes.append(set().union(*(_bound(part.target) for part in node.generators)))
        self.generic_visit(node)
        self.scopes.pop()

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension


def _without_docstrings(node):
    for one in ast.walk(node):
        body = getattr(one, "body", None)
        if isinstance(one, (*SCOPES[:2], ast.ClassDef, ast.Module)) and body:
            if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                one.body = body[1:] or [ast.Pass()]
    return node


def _only(node, name: str):
    """A statement; of an import, the part that binds `name`: its neighbours do not count."""
    if not isinstance(node, ast.Import | ast.ImportFrom):
        return node
    names = [a for a in node.names if (a.asname or a.name).partition(".")[0] == name]
    part = type(node)(names=names)
    if isinstance(node, ast.ImportFrom):
        part.module, part.level = node.module, node.level
    return part


class Module:
    """A module's (or notebook's) top-level names: which statements bind them, what these use."""

    def __init__(self, name: str, source: str):
        self.name, tree = name, _without_docstrings(ast.parse(source))
        self.imported, self.statements, self.effects = {}, {}, []
        for node in tree.body:
            if _is_main(node):
                continue
            for local, module, attribute in _imports(node, name):
                self.imported[local] = (module, attribute)
            bound = _bound(node) - set(self.imported)
            for one in bound:
                self.statements.setdefault(one, []).append(_only(node, one))
            if not bound and not isinstance(node, ast.Import | ast.ImportFrom | ast.Pass):
                self.effects.append(node)
        self._read = {}

    def read(self, name: str | None):
        """Source and uses of the statements that bind `name` (None: of those that bind nothing)."""
        if name not in self._read:
            nodes = self.effects if name is None else self.statements[name]
            uses = _Uses()
            for node in nodes:
                uses.visit(node)
                local = (
                    {}
                    if node in self.effects
                    else {(module, attribute) for _, module, attribute in _imports(node, self.name)}
                )
                uses.found |= {(None, *one) for one in local}
            self._read[name] = "\n".join(map(ast.unparse, nodes)), uses.found
        return self._read[name]


@cache
def _module(name: str) -> Module:
    path = _file_of(name)
    if path is None:
        raise ImportError(f"there is no module {name}")
    return Module(name, path.read_text())


def _symbols(module: str, attributes) -> list[tuple[str, str | None]]:
    """(module, name) of what `module.a.b` reaches: a definition, or all of a module."""
    while attributes and attributes[0] is not None and _file_of(f"{module}.{attributes[0]}"):
        module, attributes = f"{module}.{attributes[0]}", attributes[1:]
    found, neutral = _module(module), module in NEUTRAL
    if not attributes or attributes[0] is None:
        return [] if neutral else [(module, name) for name in (*found.statements, None)]
    if attributes[0] in found.statements:
        return [] if neutral else [(module, attributes[0])]
    if attributes[0] in found.imported:
        source, attribute = found.imported[attributes[0]]
        return _symbols(source, [attribute, *attributes[1:]] if attribute else attributes[1:])
    if attributes[0].startswith("__"):
        return []
    raise ImportError(f"{module} has no {attributes[0]}")


def _targets(module: Module, uses):
    """Definitions that the uses of some code in `module` lead to."""
    for name, *attributes in uses:
        if name is None:
            source, attribute = attributes
            yield from _symbols(source, [attribute] if attribute else [])
        elif name in module.statements:
            yield module.name, name
        elif name in module.imported:
            source, attribute = module.imported[name]
            yield from _symbols(source, [attribute, *attributes] if attribute else attributes)


def _closure(module: Module, names) -> dict[tuple, str]:
    """Source texts by (module, name) of these definitions and of everything that they reach."""
    texts, waiting = {}, {(module.name, name) for name in names}
    while waiting:
        place = waiting.pop()
        owner = module if place[0] == module.name else _module(place[0])
        texts[place], uses = owner.read(place[1])
        waiting |= {*_targets(owner, uses), (place[0], None)} - set(texts)
    return texts


def _sum(texts: dict) -> str:
    named = {f"{module}:{name or ''}": text for (module, name), text in texts.items() if text}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16]


def code_name(entry) -> str:
    """`package.module:name` of a function or class (of a method: its class); a name stays."""
    if isinstance(entry, str):
        return entry
    return f"{entry.__module__}:{entry.__qualname__.partition('.')[0]}"


@cache
def _digest(name: str) -> str:
    module, _, symbol = name.partition(":")
    places = _symbols(module, [symbol])
    return _sum(_closure(_module(places[0][0]), [symbol for _, symbol in places]))


def code_digests(*entries) -> dict[str, str]:
    """The digest of each function or class and of all that it reaches, by `code_name`."""
    return {name: _digest(name) for name in map(code_name, entries)}


def code_digest(*entries) -> str:
    """One digest of several functions or classes and of all that they reach.

    Entries are functions, classes, or their names as `package.module:name`. ImportError if one of
    them, or something that they import from this package, cannot be found.
    """
    return _sum({(name, None): digest for name, digest in code_digests(*entries).items()})


def lists_parameters(cell: dict) -> bool:
    """Whether a notebook's cell only gives parameters their defaults."""
    return "parameters" in cell["metadata"].get("tags", [])


def notebook_source(path) -> str:
    """The code cells of a notebook in order, without the one of its parameters."""
    cells = json.loads(Path(path).read_text())["cells"]
    code = [c for c in cells if c["cell_type"] == "code" and not lists_parameters(c)]
    return "\n".join("".join(cell["source"]) for cell in code)


@cache
def notebook_digest(path) -> str:
    """Digest of a notebook's code cells and of all that they reach.

    Markdown and the parameters' cell do not count: prose changes nothing, and parameters are
    among the settings.
    """
    source = notebook_source(path)
    module = Module("notebook", source)
    return _sum(
        _closure(module, [*module.statements, None])
        | {("cells", None): ast.unparse(_without_docstrings(ast.parse(source)))}
    )
