"""Small wrong changes of Python source, made from its syntax tree."""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_COMPARISONS: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_ARITHMETIC: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.Pow: ast.Mult,
}


@dataclass(frozen=True, slots=True)
class Mutant:
    """A changed module: where, what, and its whole text."""

    line: int
    what: str
    text: str


def mutants(source: str) -> Iterator[Mutant]:
    """Give every mutant of a module, in the order of its lines.

    Left alone is what no behaviour hangs on: docstrings, sentences of errors, imports, `__all__`.
    """
    tree = ast.parse(source)
    skipped = _skipped(tree)
    nodes = [node for node in ast.walk(tree) if id(node) not in skipped]
    for index, node in sorted(enumerate(nodes), key=lambda pair: getattr(pair[1], "lineno", 0)):
        for number, what in enumerate(_options(node)):
            changed = copy.deepcopy(tree)
            left = _skipped(changed)
            again = [inner for inner in ast.walk(changed) if id(inner) not in left]
            _apply(changed, again[index], number)
            ast.fix_missing_locations(changed)
            yield Mutant(getattr(node, "lineno", 0), what, ast.unparse(changed))


def _skipped(tree: ast.Module) -> set[int]:
    """Nodes that are no behaviour, by identity."""
    out: set[int] = set()

    def leave(node: ast.AST) -> None:
        out.update(id(inner) for inner in ast.walk(node))

    for node in ast.walk(tree):
        says = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if says or isinstance(node, (ast.Import, ast.ImportFrom, ast.JoinedStr)):
            leave(node)
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            for argument in node.exc.args:  # the sentence
                leave(argument)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            given = (*node.args.args, *node.args.kwonlyargs, *node.args.posonlyargs)
            for annotation in (node.returns, *(argument.annotation for argument in given)):
                if annotation is not None:
                    leave(annotation)
        elif isinstance(node, ast.Assign):
            if any(isinstance(name, ast.Name) and name.id == "__all__" for name in node.targets):
                leave(node)
        elif isinstance(node, ast.AnnAssign):  # X | Y of types; bounds in it do matter
            inside = ast.walk(node.annotation)
            out.update(id(inner) for inner in inside if isinstance(inner, ast.BinOp))
        elif isinstance(node, ast.keyword) and node.arg == "description":
            leave(node)
    return out


def _options(node: ast.AST) -> list[str]:
    """What can be done to a node, in words."""
    if isinstance(node, ast.Compare):
        return [
            f"{type(op).__name__} -> {_COMPARISONS[type(op)].__name__}"
            for op in node.ops
            if type(op) in _COMPARISONS
        ]
    if isinstance(node, ast.BoolOp):
        return ["and <-> or"]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ["not x -> x"]
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        return [f"{type(node.op).__name__} -> {_ARITHMETIC[type(node.op)].__name__}"]
    if isinstance(node, (ast.If, ast.While, ast.IfExp)):
        return ["condition -> not"]
    if isinstance(node, ast.comprehension):
        return ["condition left out" for _ in node.ifs]
    if isinstance(node, ast.Constant):
        return _constants(node)
    if isinstance(node, ast.Raise):
        return ["raise -> pass"]
    if isinstance(node, ast.Return) and node.value is not None:
        known = isinstance(node.value, ast.Constant) and node.value.value is None
        return [] if known else ["return -> return None"]
    if isinstance(node, (ast.Break, ast.Continue)):
        return ["break <-> continue"]
    if isinstance(node, ast.Expr) and isinstance(node.value, (ast.Call, ast.YieldFrom, ast.Yield)):
        return ["statement -> pass"]
    if isinstance(node, ast.AugAssign) and type(node.op) in _ARITHMETIC:
        return [f"{type(node.op).__name__}= -> {_ARITHMETIC[type(node.op)].__name__}="]
    return []


def _constants(node: ast.Constant) -> list[str]:
    value = node.value
    if isinstance(value, bool):
        return ["True <-> False"]
    if isinstance(value, (int, float)):
        return ["number + 1", "number - 1"]
    if isinstance(value, str) and value:
        return ["text -> other text"]
    return []


def _apply(tree: ast.Module, node: ast.AST, number: int) -> None:
    if isinstance(node, ast.Compare):
        places = [at for at, op in enumerate(node.ops) if type(op) in _COMPARISONS]
        at = places[number]
        node.ops[at] = _COMPARISONS[type(node.ops[at])]()
    elif isinstance(node, ast.BoolOp):
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.UnaryOp):
        _replace(tree, node, node.operand)
    elif isinstance(node, (ast.BinOp, ast.AugAssign)):
        node.op = _ARITHMETIC[type(node.op)]()
    elif isinstance(node, (ast.If, ast.While, ast.IfExp)):
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, ast.comprehension):
        del node.ifs[number]
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            node.value = not node.value
        elif isinstance(node.value, str):
            node.value = "other " + node.value
        elif isinstance(node.value, (int, float)):
            node.value += 1 if number == 0 else -1
    elif isinstance(node, (ast.Raise, ast.Expr)):
        _replace(tree, node, ast.Pass())
    elif isinstance(node, ast.Return):
        node.value = ast.Constant(None)
    elif isinstance(node, ast.Break):
        _replace(tree, node, ast.Continue())
    elif isinstance(node, ast.Continue):
        _replace(tree, node, ast.Break())


def _replace(tree: ast.Module, old: ast.AST, new: ast.AST) -> None:
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
            elif isinstance(value, list) and any(entry is old for entry in value):
                value[next(at for at, entry in enumerate(value) if entry is old)] = new
