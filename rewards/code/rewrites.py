"""What is changed in a row's tests before they run: the order of a comparison, and counted asserts.

A call may change its arguments in place, and the tests see that. In `assert f(xs) == sorted(xs)`
what is expected would then be worked out from what the program left in `xs`: a program that empties
its argument and returns nothing would be right. So what is worked out from an argument beside the
call is worked out before it. `f(xs) is None and xs == [1, 2]` looks at `xs` afterwards, as it says.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence, Set

from grpo.outside.rows.code_rows import defined_names


def expected_first(tree: ast.Module, program: Set[str], setup: str) -> ast.Module | None:
    """The tests with what they expect worked out before the program is called.

    program: names that come from the program. setup: text whose functions, like the tests' own,
    get their arguments in the order that is written. Works on `tree` itself; None where no order
    has to change.
    """
    if not _given(tree) - program:  # every argument is made for its call: nobody sees it change
        return None
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    own |= set(defined_names(setup))
    return ast.fix_missing_locations(_ExpectedFirst(program, own).visit(tree))


def counted_asserts(tree: ast.Module) -> ast.Module:
    """The tests with `assert x` made `__check__(lambda: x)`: one failure does not hide others."""
    return ast.fix_missing_locations(_CountAsserts().visit(tree))


class _CountAsserts(ast.NodeTransformer):
    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        arguments = ast.arguments(
            posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[]
        )
        test = ast.Lambda(args=arguments, body=node.test)
        call = ast.Call(ast.Name("__check__", ast.Load()), args=[test], keywords=[])
        return ast.copy_location(ast.Expr(call), node)


class _ExpectedFirst(ast.NodeTransformer):
    def __init__(self, program: Set[str], own: Set[str]) -> None:
        self.program = program
        self.own = own
        self.count = 0

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        (last,) = node.comparators[-1:]
        if len(node.comparators) == 1 and self._worked_out(last, _given(node.left)):
            name = self._name()
            node.comparators = [ast.Name(name, ast.Load())]
            return self._before([(name, last)], node)
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if self._worked_out(node.right, _given(node.left)):
            name, right = self._name(), node.right
            node.right = ast.Name(name, ast.Load())
            return self._before([(name, right)], node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """`isclose(f(xs), sum(xs))`, but not the program's own calls, or helpers of the tests."""
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id in self.own | self.program:
            return node
        given: set[str] = set()
        hoisted: list[tuple[str, ast.expr]] = []
        for place, argument in enumerate(node.args):
            called = any(isinstance(part, ast.Call) for part in ast.walk(argument))
            if called and self._worked_out(argument, given):
                hoisted.append((self._name(), argument))
                node.args[place] = ast.Name(hoisted[-1][0], ast.Load())
            given |= _given(argument)
        return self._before(hoisted, node) if hoisted else node

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        # what is iterated may not hold the assignments that this makes
        node.ifs = [self.visit(condition) for condition in node.ifs]
        return node

    def _name(self) -> str:
        self.count += 1
        return f"_expected_{self.count}_"

    def _worked_out(self, node: ast.expr, given: Set[str]) -> bool:
        """Whether a value is made of what a call beside it was given, and by no call of its own."""
        if isinstance(node, ast.Name | ast.Starred):
            return False
        names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        return bool(names & given) and not names & self.program

    def _before(self, values: Sequence[tuple[str, ast.expr]], node: ast.expr) -> ast.expr:
        """`(name := value, …, node)[-1]`"""
        stored = [ast.NamedExpr(ast.Name(name, ast.Store()), value) for name, value in values]
        every = ast.Tuple([*stored, node], ast.Load())
        index = ast.UnaryOp(ast.USub(), ast.Constant(1))
        return ast.copy_location(ast.Subscript(every, index, ast.Load()), node)


def _given(node: ast.AST) -> set[str]:
    """Variables that calls within an expression get as they are, so that they can change them."""
    found: set[str] = set()
    for call in ast.walk(node):
        if isinstance(call, ast.Call):
            for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
                held: ast.expr = argument
                while isinstance(held, ast.Attribute | ast.Subscript | ast.Starred):
                    held = held.value
                if isinstance(held, ast.Name):
                    found.add(held.id)
    return found
