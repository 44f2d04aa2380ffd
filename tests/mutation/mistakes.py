"""The single mistakes that can be put into a source file, each as a change of its text.

Left alone are: docstrings, type hints, ``__all__``, the texts of errors, logs and messages (f-strings and
strings with spaces, but for SQL), and arguments whose change nobody could see on the machine at hand.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS = {
    ast.Lt: ("<=", ">="),
    ast.LtE: ("<", ">"),
    ast.Gt: (">=", "<="),
    ast.GtE: (">", "<"),
    ast.Eq: ("!=",),
    ast.NotEq: ("==",),
    ast.Is: ("is not",),
    ast.IsNot: ("is",),
    ast.In: ("not in",),
    ast.NotIn: ("in",),
}
ARITHMETIC = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "*",
    ast.Pow: "*",
    ast.BitAnd: "|",
    ast.BitOr: "&",
    ast.LShift: ">>",
    ast.RShift: "<<",
}
NEIGHBOURS = {"float64": "float32", "min": "max", "max": "min", "any": "all", "all": "any"}
NEIGHBOURS |= {"argmin": "argmax", "argmax": "argmin", "startswith": "endswith", "ceil": "floor"}
SQL = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH|CREATE|DROP|ORDER|WHERE|AND|ON) ")
IN_SQL = (
    (r"<=", "<"),
    (r">=", ">"),
    (r"<(?![=>])", "<="),
    (r"(?<!<)>(?!=)", ">="),
    (r"(?<![<>!=])=", "!="),
    (r" AND ", " OR "),
    (r" OR (?!IGNORE|REPLACE)", " AND "),
    (r" DESC\b", ""),
    (r"ORDER BY (\w+)", "ORDER BY -\\1"),
    (r"\bMAX\(", "MIN("),
    (r"\bMIN\(", "MAX("),
    (r"\bNOT IN\b", "IN"),
    (r" DISTINCT\b", ""),
)
TELLS = {"echo", "warn", "warning", "info", "debug", "error", "exception", "secho", "progress"}
TELLS |= {"TypeVar", "ParamSpec", "NewType"}
UNSEEN_ARGUMENTS = {"strict", "encoding", "daemon", "name", "stacklevel", "help", "description"}
UNSEEN_ARGUMENTS |= {"summary", "tags", "desc", "unit", "check", "capture_output", "metavar"}


@dataclass(frozen=True)
class Mistake:
    """A change of a file's text: ``file[start:end]`` becomes ``text``."""

    line: int
    start: int
    end: int
    text: str
    kind: str

    def changed(self, source: str) -> str:
        """The whole file with the mistake."""
        return source[: self.start] + self.text + source[self.end :]

    def lines(self, source: str) -> tuple[str, str]:
        """The statement's lines that differ, before and after, each as one line."""
        first = source.rfind("\n", 0, self.start) + 1
        end = source.find("\n", self.end)
        end = len(source) if end < 0 else end
        before, after = source[first:end], source[first : self.start] + self.text
        return " ".join(before.split()), " ".join((after + source[self.end : end]).split())


def mistakes(source: str) -> list[Mistake]:
    """All mistakes of a file, in the order of its lines; each gives other code that compiles."""
    found = _Search(source)
    found.visit(ast.parse(source))
    original, kept = ast.dump(ast.parse(source)), {}
    for mistake in sorted(found.all, key=lambda one: (one.start, one.end, one.text)):
        try:
            tree = ast.dump(ast.parse(mistake.changed(source)))
        except SyntaxError:
            continue
        if tree != original:
            kept.setdefault((mistake.start, mistake.end, mistake.text), mistake)
    return list(kept.values())


class _Search(ast.NodeVisitor):
    def __init__(self, source: str) -> None:
        self.source = source
        self.all: list[Mistake] = []
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.lines = source.splitlines()

    def _position(self, line: int, column: int) -> int:
        """From ast's line and column in bytes of UTF-8."""
        text = self.lines[line - 1].encode()[:column].decode()
        return self.starts[line - 1] + len(text)

    def _span(self, node: ast.AST) -> tuple[int, int]:
        return (
            self._position(node.lineno, node.col_offset),
            self._position(node.end_lineno, node.end_col_offset),
        )

    def _text(self, node: ast.AST) -> str:
        start, end = self._span(node)
        return self.source[start:end]

    def put(self, node: ast.AST, text: str, kind: str) -> None:
        self.all.append(Mistake(node.lineno, *self._span(node), text, kind))

    def put_between(self, left: ast.AST, right: ast.AST, old: str, new: str, kind: str) -> None:
        """Change the operator that stands between two operands."""
        start, end = self._span(left)[1], self._span(right)[0]
        place = re.search(rf"(?<!\w){re.escape(old)}(?!\w)", self.source[start:end])
        if place:
            self.all.append(
                Mistake(left.end_lineno, start + place.start(), start + place.end(), new, kind)
            )

    # what is passed over

    def visit_AnnAssign(self, node):
        if node.value is not None:
            self.visit(node.value)

    def visit_arguments(self, node):
        for default in (*node.defaults, *filter(None, node.kw_defaults)):
            self.visit(default)

    def visit_FunctionDef(self, node):
        self.visit(node.args)
        for decorator in node.decorator_list:
            if not any(
                word in ast.unparse(decorator) for word in ("dataclass", "option", "argument")
            ):
                self.visit(decorator)
        self._body(node.body, node)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_ClassDef(self, node):
        self._body(node.body, None)

    def visit_Module(self, node):
        self._body(node.body, None)

    def _body(self, body, function):
        docstring = ast.get_docstring(ast.Module(body, []), clean=False)
        for statement in body[1 if docstring is not None else 0 :]:
            self.visit(statement)
        if function is not None:
            _Statements(self, function).find()

    def visit_Raise(self, node):
        return

    def visit_JoinedStr(self, node):
        self._in_sql(node)

    def visit_Assert(self, node):
        return

    def visit_Import(self, node):
        return

    visit_ImportFrom = visit_Import  # noqa: N815

    def visit_Assign(self, node):
        is_type = re.match(r"(dict|list|tuple|NDArray|Callable)\[", ast.unparse(node.value))
        if ast.unparse(node.targets[0]) not in ("__all__", "__slots__") and not is_type:
            self.visit(node.value)
            for target in node.targets:
                self.visit(target)

    # the mistakes

    def visit_Compare(self, node):
        for left, operator, right in zip(
            [node.left, *node.comparators], node.ops, node.comparators, strict=False
        ):
            old = ast.unparse(ast.Compare(ast.Name("a"), [operator], [ast.Name("b")]))[2:-2]
            for new in COMPARISONS[type(operator)]:
                self.put_between(left, right, old, new, "comparison")
        self.generic_visit(node)

    def visit_BinOp(self, node):
        operands = (node.left, node.right)
        texts = any(
            isinstance(one, ast.JoinedStr)
            or (isinstance(one, ast.Constant) and isinstance(one.value, str))
            for one in operands
        )
        if type(node.op) in ARITHMETIC and not texts:
            old = ast.unparse(ast.BinOp(ast.Name("a"), node.op, ast.Name("b")))[2:-2]
            self.put_between(*operands, old, ARITHMETIC[type(node.op)], "arithmetic")
            self.put(node, self._text(node.left), "term dropped")
        self.generic_visit(node)

    def visit_AugAssign(self, node):
        if type(node.op) in ARITHMETIC:
            old = ast.unparse(ast.BinOp(ast.Name("a"), node.op, ast.Name("b")))[2:-2]
            self.put_between(
                node.target, node.value, f"{old}=", f"{ARITHMETIC[type(node.op)]}=", "arithmetic"
            )
        self.generic_visit(node)

    def visit_BoolOp(self, node):
        word, other = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.put_between(left, right, word, other, "and/or")
        for dropped in range(len(node.values)):
            kept = [f"({self._text(one)})" for i, one in enumerate(node.values) if i != dropped]
            self.put(node, f"({f' {word} '.join(kept)})", "condition dropped")
        self.generic_visit(node)

    def visit_UnaryOp(self, node):
        if isinstance(node.op, ast.Not | ast.USub | ast.Invert):
            self.put(node, f"({self._text(node.operand)})", "sign or not dropped")
        self.generic_visit(node)

    def visit_Constant(self, node):
        value = node.value
        if isinstance(value, bool):
            self.put(node, str(not value), "constant")
        elif isinstance(value, int):
            self.put(node, str(value + 1 if value < 10 else 2 * value), "constant")
        elif isinstance(value, float):
            self.put(node, str(value * 2 if value else 1.0), "constant")
        elif isinstance(value, str) and SQL.match(value):
            self._in_sql(node)
        elif isinstance(value, str | bytes) and value and len(value.split()) == 1:
            quoted = f"x{value}" if isinstance(value, str) else b"x" + value
            self.put(node, repr(quoted), "constant")

    def _in_sql(self, node):
        """Change operators in the text of a statement."""
        start, end = self._span(node)
        text = self.source[start:end]
        if not SQL.match(text.lstrip("rbf\"'")):
            return
        for pattern, new in IN_SQL:
            for place in re.finditer(pattern, text):
                span = (start + place.start(), start + place.end())
                line = self.source.count("\n", 0, span[0]) + 1
                self.all.append(Mistake(line, *span, place.expand(new), "sql"))

    def _forced(self, test, kind, values=("True", "False")):
        if ast.unparse(test) not in ("TYPE_CHECKING", "True", "__name__ == '__main__'"):
            for value in values:
                self.put(test, value, kind)

    def visit_If(self, node):
        if ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
            return
        self._forced(node.test, "condition forced")
        self.generic_visit(node)

    def visit_IfExp(self, node):
        self._forced(node.test, "condition forced")
        self.generic_visit(node)

    def visit_While(self, node):
        self._forced(node.test, "condition forced", ("False",))
        self.generic_visit(node)

    def visit_comprehension(self, node):
        for test in node.ifs:
            self._forced(test, "condition forced", ("True",))
        self.generic_visit(node)

    def visit_Call(self, node):
        name = ast.unparse(node.func).rpartition(".")[2]
        if name in TELLS or name.endswith("Error"):
            return
        if not node.keywords and len(node.args) < 2:
            self._drop_call(node)
        for keyword in node.keywords:
            if keyword.arg and keyword.arg not in UNSEEN_ARGUMENTS:
                self._drop_argument(keyword)
        self.visit(node.func)
        for one in (*node.args, *(k.value for k in node.keywords if k.arg not in UNSEEN_ARGUMENTS)):
            self.visit(one)

    def _drop_call(self, node):
        """``np.rint(x)`` becomes ``x``; ``x.strip()`` and ``f(x).astype(y)`` become ``x`` and ``f(x)``."""
        method = isinstance(node.func, ast.Attribute)
        if node.args and not (method and not isinstance(node.func.value, ast.Name)):
            kept = node.args[0]
        elif method:
            kept = node.func.value
        else:
            return
        if not isinstance(kept, ast.Starred | ast.GeneratorExp):
            self.put(node, f"({self._text(kept)})", "call dropped")

    def _drop_argument(self, keyword):
        start, end = self._span(keyword)
        comma = re.match(r"\s*,[ ]*", self.source[end:])
        before = re.search(r",\s*$", self.source[:start])
        if comma:
            end += comma.end()
        elif before:
            start = before.start()
        self.all.append(Mistake(keyword.lineno, start, end, "", "argument dropped"))

    def visit_Attribute(self, node):
        if node.attr in NEIGHBOURS:
            self.put(node, f"{self._text(node.value)}.{NEIGHBOURS[node.attr]}", "neighbour")
        self.generic_visit(node)

    def visit_Name(self, node):
        if node.id in NEIGHBOURS and isinstance(node.ctx, ast.Load):
            self.put(node, NEIGHBOURS[node.id], "neighbour")

    def visit_Slice(self, node):
        start, end = self._span(node)
        for bound in (node.lower, node.upper):
            if bound is not None:
                first, last = self._span(bound)
                text = self.source[start:first] + self.source[last:end]
                self.put(node, text, "bound dropped")
        self.generic_visit(node)


class _Statements:
    """Statements of a function that are deleted, and values that it returns."""

    def __init__(self, search: _Search, function: ast.FunctionDef) -> None:
        self.search, self.function = search, function
        self.returns = ast.unparse(function.returns) if function.returns else "None"

    def _inside(self) -> Iterator[ast.stmt]:
        waiting = list(self.function.body)
        while waiting:
            node = waiting.pop(0)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
                continue
            yield node
            waiting += ast.iter_child_nodes(node)

    def find(self) -> None:
        nodes = list(self._inside())
        named = [one.arg for one in (*self.function.args.args, *self.function.args.kwonlyargs)]
        for node in nodes:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                named.append(node.targets[0].id)
        for node in nodes:
            if isinstance(node, ast.Return) and node.value is not None:
                self._returned(node)
            elif self._silent(node, named):
                self.search.put(node, "pass", "statement deleted")

    def _returned(self, node: ast.Return) -> None:
        text = self.search._text(node.value)
        new = {"bool": f"not ({text})", "int": f"({text}) + 1", "float": f"({text}) + 1"}
        if text != "None":
            self.search.put(node.value, new.get(self.returns, "None"), "another value returned")

    def _silent(self, node: ast.AST, named: list[str]) -> bool:
        """Whether a function without this statement goes on, so that no NameError tells."""
        if isinstance(node, ast.Expr):
            if isinstance(node.value, ast.Call):
                name = ast.unparse(node.value.func).rpartition(".")[2]
                return name not in TELLS
            return not isinstance(node.value, ast.Constant)
        if isinstance(node, ast.Assign):
            target = node.targets[0]
            return not isinstance(target, ast.Name) or named.count(target.id) > 1
        return isinstance(node, ast.AugAssign | ast.Raise | ast.Continue | ast.Break | ast.Delete)
