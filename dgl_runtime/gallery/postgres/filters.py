"""Filters of a search in PostgreSQL: a condition in SQL is parsed, and only what is known here is said anew.

PostgreSQL sees no letter of a condition: names become columns, texts and numbers become parameters, and
whatever else a condition may hold (functions of the server, other tables) is refused by name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from sqlglot import errors
from sqlglot import expressions as exp
from sqlglot.dialects.dialect import Dialect

from dgl_runtime.gallery.filters import COLUMNS, LONGEST_TEXT, does_not_work, no_such_column
from dgl_runtime.names import nfc
from dgl_runtime.tables.text_files import is_text

_LONGEST_PATTERN = 200  # bytes of a LIKE or GLOB pattern
_TAKEN = (
    "AND, OR, NOT, comparisons, BETWEEN, IN (...), LIKE, GLOB with * and ?, IS, + - * ||, and "
    "lower, upper, length, abs, round, coalesce"
)
_FIRST_FILE = """(SELECT files.name FROM files WHERE files.video_id = videos.id
    ORDER BY files.id LIMIT 1)"""
_MODIFIED = """(SELECT to_char(to_timestamp(max(files.mtime_ns) / 1000000000) AT TIME ZONE 'UTC',
    'YYYY-MM-DD HH24:MI:SS') FROM files WHERE files.video_id = videos.id)"""
_NUMBER, _TEXT, _TRUTH, _NULL = "number", "text", "truth", "null"
_OF_CLIPS = {
    "video": (_FIRST_FILE, _TEXT),
    "start_s": ("clips.start_s", _NUMBER),
    "end_s": ("clips.end_s", _NUMBER),
    "duration_s": ("videos.duration_s", _NUMBER),
    "modified": (_MODIFIED, _TEXT),
}
_COMPARED = {
    exp.EQ: "=",
    exp.NEQ: "<>",
    exp.LT: "<",
    exp.LTE: "<=",
    exp.GT: ">",
    exp.GTE: ">=",
    exp.NullSafeEQ: "IS NOT DISTINCT FROM",
    exp.NullSafeNEQ: "IS DISTINCT FROM",
}
_COUNTED = {exp.Add: "+", exp.Sub: "-", exp.Mul: "*"}
# Parts that are read here, where they are not these two: this, expression.
_PARTS: dict[type[exp.Expr], set[str]] = {
    exp.Between: {"this", "low", "high"},
    exp.In: {"this", "expressions"},
    exp.Round: {"this", "decimals"},
    exp.Coalesce: {"this", "expressions", "is_nvl", "is_null"},
    exp.DPipe: {"this", "expression", "safe"},
    exp.Literal: {"this", "is_string"},
}
# What each function takes and gives.
_FUNCTIONS = {
    exp.Lower: ('lower({} COLLATE "C")', _TEXT, _TEXT),
    exp.Upper: ('upper({} COLLATE "C")', _TEXT, _TEXT),
    exp.Length: ("length({})", _TEXT, _NUMBER),
    exp.Abs: ("abs({})", _NUMBER, _NUMBER),
}


@dataclass(frozen=True)
class Condition:
    """A condition as PostgreSQL takes it.

    Attributes:
        where: As it was given.
        known: The columns that it may name.
        among: What follows ``FROM clips``, with a %s for each of the values.
        values: Texts and numbers, in their order.
    """

    where: str
    known: tuple[str, ...]
    among: str
    values: tuple[object, ...]


@dataclass(frozen=True)
class _Term:
    sql: str
    kind: str
    values: tuple[object, ...] = ()


class _NotTakenError(Exception):
    """What is wrong with a condition, in words."""


def read_condition(where: str, metadata: Mapping[str, bool]) -> Condition:
    """Read what follows WHERE in SQL, such as ``camera = 'north' AND start_s < 60``.

    Args:
        where: It may name ``COLUMNS`` and those of the metadata.
        metadata: These, and whether each holds numbers alone.

    Raises:
        GalleryError: It is no such condition.
    """
    known = (*COLUMNS, *metadata)
    try:
        trees = Dialect.get_or_raise("sqlite").parse_into(exp.Condition, nfc(where))
        if len(trees) != 1 or trees[0] is None:
            raise _NotTakenError(f"it is {len(trees)} statements, expected one condition")
        term = _truth(_Reader(metadata).read(trees[0]))
    except _NotTakenError as error:
        raise does_not_work(where, str(error), known) from error
    except errors.ParseError as error:
        told = error.errors[0].get("description") if error.errors else None
        raise does_not_work(where, f"it is no condition ({told or 'not SQL'})", known) from error
    except errors.SqlglotError as error:
        raise does_not_work(where, "it is no condition (not SQL)", known) from error
    except (RecursionError, ArithmeticError) as error:
        raise does_not_work(where, "it is too deep, or a number too large", known) from error
    among = f"JOIN videos ON videos.id = clips.video_id WHERE {term.sql}"
    return Condition(where, known, among, term.values)


class _Reader:
    """Reads the tree of a condition; the parser is sqlglot's, for the SQL of SQLite."""

    def __init__(self, metadata: Mapping[str, bool]) -> None:
        self._metadata = metadata
        self._readers: dict[type[exp.Expr], Callable[..., _Term]] = {
            exp.Paren: lambda node: self.read(node.this),
            exp.And: lambda node: self._joined(node, "AND"),
            exp.Or: lambda node: self._joined(node, "OR"),
            exp.Not: lambda node: _term("(NOT {})", _TRUTH, _truth(self.read(node.this))),
            exp.Between: self._between,
            exp.In: self._in,
            exp.Is: self._is_null,
            exp.Like: self._like,
            exp.Glob: self._like,
            exp.Neg: lambda node: _term("(- {})", _NUMBER, _number(self.read(node.this))),
            exp.DPipe: lambda node: self._pair(node, "({} || {})", _text, _TEXT),
            exp.Round: self._round,
            exp.Coalesce: self._coalesce,
            exp.Literal: _literal,
            exp.Null: lambda _: _Term("NULL", _NULL),
            exp.Boolean: lambda node: _Term("true" if node.this else "false", _TRUTH),
            exp.Column: self._column,
        }

    def read(self, node: exp.Expr) -> _Term:
        kind = type(node)
        term = self._read(node, kind)
        known = _PARTS.get(kind, {"this", "expression"}) | {"negate"}
        if more := [part for part, value in node.args.items() if value and part not in known]:
            raise _NotTakenError(f"{kind.__name__} with {more[0]} is not taken")
        return _term("(NOT {})", _TRUTH, term) if node.args.get("negate") else term

    def _read(self, node: exp.Expr, kind: type[exp.Expr]) -> _Term:
        if kind in self._readers:
            return self._readers[kind](node)
        if kind in _COMPARED:
            return _compared(self.read(node.this), _COMPARED[kind], self.read(node.expression))
        if kind in _COUNTED:
            return self._pair(node, f"({{}} {_COUNTED[kind]} {{}})", _number, _NUMBER)
        if kind in _FUNCTIONS:
            sql, takes, gives = _FUNCTIONS[kind]
            inner = self.read(node.this)
            return _term(sql, gives, _text(inner) if takes == _TEXT else _number(inner))
        name = node.name if kind is exp.Anonymous else kind.__name__
        raise _NotTakenError(
            f"{name} is not taken by a gallery in PostgreSQL, which takes {_TAKEN}"
        )

    def _pair(self, node: exp.Expr, sql: str, cast: Callable[[_Term], _Term], kind: str) -> _Term:
        return _term(sql, kind, cast(self.read(node.this)), cast(self.read(node.expression)))

    def _joined(self, node: exp.Expr, word: str) -> _Term:
        return self._pair(node, f"({{}} {word} {{}})", _truth, _TRUTH)

    def _between(self, node: exp.Expr) -> _Term:
        parts = [self.read(one) for one in (node.this, node.args["low"], node.args["high"])]
        return _among(parts, "BETWEEN {} AND {}")

    def _in(self, node: exp.Expr) -> _Term:
        if not node.expressions:
            raise _NotTakenError("IN takes a list in parentheses")
        parts = [self.read(one) for one in (node.this, *node.expressions)]
        return _among(parts, f"IN ({', '.join(['{}'] * len(node.expressions))})")

    def _is_null(self, node: exp.Expr) -> _Term:
        if type(node.expression) is not exp.Null:
            raise _NotTakenError("IS takes NULL, a text or a number")
        return _term("({} IS NULL)", _TRUTH, self.read(node.this))

    def _like(self, node: exp.Expr) -> _Term:
        pattern = node.expression
        if not isinstance(pattern, exp.Literal) or not pattern.is_string:
            raise _NotTakenError("LIKE and GLOB take a pattern in 'single quotes'")
        written = _literal(pattern)
        text = str(written.values[0])
        if len(text.encode()) > _LONGEST_PATTERN:
            raise _NotTakenError(f"a pattern has at most {_LONGEST_PATTERN} bytes")
        value = _text(self.read(node.this))
        if isinstance(node, exp.Like):  # as in SQLite, A is a, and \ means itself
            lower = '(lower({} COLLATE "C") LIKE lower({} COLLATE "C") ESCAPE \'\')'
            return _term(lower, _TRUTH, value, written)
        if "[" in text:
            raise _NotTakenError("GLOB takes * and ?, no [")
        for letter in "\\%_":
            text = text.replace(letter, f"\\{letter}")
        like = _Term("%s::text", _TEXT, (text.replace("*", "%").replace("?", "_"),))
        return _term("({} LIKE {})", _TRUTH, value, like)

    def _round(self, node: exp.Expr) -> _Term:
        value = _number(self.read(node.this))
        if (digits := node.args.get("decimals")) is None:
            return _term("round({}::numeric)", _NUMBER, value)
        sql = "round({}::numeric, ({})::integer)"
        return _term(sql, _NUMBER, value, _number(self.read(digits)))

    def _coalesce(self, node: exp.Expr) -> _Term:
        terms = [self.read(one) for one in (node.this, *node.expressions)]
        kinds = {term.kind for term in terms} - {_NULL}
        if len(kinds) > 1:
            raise _NotTakenError("coalesce takes texts or numbers, not both")
        kind = kinds.pop() if kinds else _NULL
        return _term(f"coalesce({', '.join(['{}'] * len(terms))})", kind, *terms)

    def _column(self, node: exp.Expr) -> _Term:
        name = node.name
        if any(node.args.get(part) for part in ("table", "db", "catalog")) or isinstance(
            node.this, exp.Star
        ):
            raise _NotTakenError(f"{node.sql()} is not taken; a name stands alone")
        if name.lower() in _OF_CLIPS:
            return _Term(*_OF_CLIPS[name.lower()])
        for own, is_number in self._metadata.items():
            if nfc(own).lower() == name.lower():
                kind, cast = (_NUMBER, "::numeric") if is_number else (_TEXT, "")
                return _Term(f"(videos.metadata ->> %s::text){cast}", kind, (own,))
        raise _NotTakenError(no_such_column(name, (*COLUMNS, *self._metadata)))


def _term(sql: str, kind: str, *parts: _Term) -> _Term:
    """Terms in the places of a text."""
    values = tuple(value for part in parts for value in part.values)
    return _Term(sql.format(*(part.sql for part in parts)), kind, values)


def _literal(node: exp.Expr) -> _Term:
    if not node.is_string:
        return _Term("%s::numeric", _NUMBER, (Decimal(node.name),))
    if not is_text(node.name) or len(node.name.encode()) > LONGEST_TEXT:
        raise _NotTakenError(
            f"it holds a text of more than {LONGEST_TEXT:,} bytes, or a character that no text has"
        )
    return _Term("%s::text", _TEXT, (node.name,))


def _compared(one: _Term, sign: str, other: _Term) -> _Term:
    if _TEXT in (one.kind, other.kind):
        return _term(f'({{}} {sign} {{}} COLLATE "C")', _TRUTH, _text(one), _text(other))
    return _term(f"({{}} {sign} {{}})", _TRUTH, _number(one), _number(other))


def _among(parts: Sequence[_Term], said: str) -> _Term:
    """The first compared with the others; it is said once, or what is nested would double at each level."""
    if any(part.kind == _TEXT for part in parts):
        return _term(f'({{}} COLLATE "C" {said})', _TRUTH, *map(_text, parts))
    return _term(f"({{}} {said})", _TRUTH, *map(_number, parts))


def _truth(term: _Term) -> _Term:
    if term.kind == _TEXT:
        raise _NotTakenError("a text stands where a condition is expected")
    if term.kind == _NUMBER:
        return _term("({} <> 0)", _TRUTH, term)
    return _term("{}::boolean", _TRUTH, term) if term.kind == _NULL else term


def _text(term: _Term) -> _Term:
    if term.kind not in (_TEXT, _NULL):
        raise _NotTakenError(
            "a number stands where a text is expected: texts stand in 'single quotes', numbers do not"
        )
    return _term("{}::text", _TEXT, term) if term.kind == _NULL else term


def _number(term: _Term) -> _Term:
    if term.kind == _TEXT:
        raise _NotTakenError(
            "a text stands where a number is expected: texts stand in 'single quotes', numbers do not"
        )
    if term.kind == _TRUTH:
        return _term("({}::integer)", _NUMBER, term)
    return _term("{}::numeric", _NUMBER, term) if term.kind == _NULL else term
