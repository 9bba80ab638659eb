"""Mutants of a module by cosmic-ray, and which tests reach the line that one changes."""

from __future__ import annotations

import ast
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names


@dataclass(frozen=True)
class Mutant:
    """A module's text with one small change.

    Attributes
    ----------
    line
        Where it was changed.
    operator
        What cosmic-ray calls the change.
    code
        The changed text.
    before, after
        The line or lines that differ.
    """

    line: int
    operator: str
    code: str
    before: str
    after: str


def mutants_of(source: str, size: int | None, seed: int) -> list[Mutant]:
    """Draw mutants of a module, or make all of them, that differ when run.

    From the module, that is, and from one another. Those that Python refuses or warns of when it
    compiles them are left out.
    """
    places = list(_places(source))
    random.Random(seed).shuffle(places)
    seen = {_meaning(source)}
    found: list[Mutant] = []
    for line, name, occurrence in places:
        if len(found) == size:
            break
        code = mutate_code(source, get_operator(name)(), occurrence)
        meaning = None if code is None else _meaning(code)
        if code is not None and meaning is not None and meaning not in seen:
            seen.add(meaning)
            operator = name.partition("/")[2]
            found.append(Mutant(line, operator, code, *_difference(source, code)))
    return sorted(found, key=lambda mutant: mutant.line)


def _places(source: str) -> Iterator[tuple[int, str, int]]:
    """Line, operator and number of every change that cosmic-ray can make."""
    nodes = list(ast_nodes(get_ast(source)))
    for name in operator_names():
        operator = get_operator(name)
        if operator.arguments():  # replaces variables that one names to it
            continue
        places = [place for node in nodes for place in operator().mutation_positions(node)]
        for occurrence, ((line, _), _) in enumerate(places):
            yield line, name, occurrence


class _Unannotated(ast.NodeTransformer):
    """Drop what nothing reads: annotations, and the ``*`` of a signature, which is no product."""

    def visit_arguments(self, node: ast.arguments) -> ast.AST:
        node.args = [*node.posonlyargs, *node.args, *node.kwonlyargs]
        node.defaults += [default for default in node.kw_defaults if default is not None]
        node.posonlyargs, node.kwonlyargs, node.kw_defaults = [], [], []
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)


def _meaning(code: str) -> str | None:
    """Equal where code does the same, but for equivalence that one has to think about."""
    try:
        with warnings.catch_warnings(action="error", category=SyntaxWarning):
            compile(code, "<mutant>", "exec")
    except SyntaxError:
        return None
    return ast.dump(_Unannotated().visit(ast.parse(code)))


def _difference(source: str, code: str) -> tuple[str, str]:
    old, new = source.splitlines(), code.splitlines()
    start = next(k for k, (a, b) in enumerate(zip(old, new, strict=False)) if a != b)
    same = next(k for k, (a, b) in enumerate(zip(old[::-1], new[::-1], strict=False)) if a != b)
    parts = old[start : len(old) - same], new[start : len(new) - same]
    before, after = (" ".join(line.strip() for line in part) for part in parts)
    return before, after


def reaching(source: str, line: int, reached: Mapping[int, Sequence[str]]) -> set[str]:
    """Tests that reach the statement at a line, or, of what runs at import, the module.

    Parameters
    ----------
    reached
        Per line the tests that reach it; ``""`` among them if it was reached at import.
    """
    tests = {test for k in _statement(source, line) for test in reached.get(k, ())}
    if "" in tests:
        tests.update(test for some in reached.values() for test in some)
    return tests - {""}


def _statement(source: str, line: int) -> range:
    """Lines of the smallest statement at a line, without the block that it may hold."""
    best = range(line, line + 1)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and node.end_lineno is not None:
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
            body = getattr(node, "body", None)
            last = max(node.lineno, body[0].lineno - 1) if body else node.end_lineno
            if first <= line <= last and (len(best) == 1 or last - first < len(best)):
                best = range(first, last + 1)
    return best
