"""Small faults planted into a function by its syntax tree: a grader that lets one of them pass is not good enough.

`mutants(source)` gives every fault our rules know, always in the same order. Faults that cannot be told from the
original (the same byte code) are left out; what remains and still behaves alike must be argued in the chapter's
`equivalent.toml`. Docstrings, annotations, decorators and the messages of errors are no behaviour and stay as they are,
and so do `device=`, which no test on a machine with one device can see, and `strict=` of `zip`, a second belt.

Source: the idea is DeMillo, Lipton and Sayward 1978, "Hints on Test Data Selection"; leaving out equal byte code is
Papadakis et al. 2015, "Trivial Compiler Equivalence".
"""

import ast
import re
import tomllib
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

from minillm.errors import DataError

OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.MatMult: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
NEGATED_BY_OPERATOR = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
NEUTRAL_CALLS = frozenset({"contiguous", "list", "tuple", "iter", "bool", "cast", "super", "isinstance"})
SYMMETRIC_CALLS = frozenset({"transpose", "swapaxes", "max", "min", "maximum", "minimum", "gcd"})
NEVER_REMOVED = (ast.Pass, ast.Import, ast.ImportFrom, ast.Global, ast.Nonlocal, ast.With)
COUNTED = frozenset({"range", "arange"})
UNSEEN_KEYWORDS = (None, "device", "strict")
DIMENSIONS = re.compile(r"[A-Z0-9. ]+")  # "... B T D"
FINITE = 1e4  # stands in for infinity: the mistake of a mask that is only very negative
LONGEST = 100  # characters of source quoted in a description


@dataclass(frozen=True)
class Mutant:
    """One planted fault.

    Args:
        description: what became what; unique among the mutants of one function.
        line: line of the fault, counted from the first line of the function's source.
        source: the whole function with the fault in it; comments are gone.
    """

    description: str
    line: int
    source: str


def mutants(source: str) -> list[Mutant]:
    """Every fault that the rules of this module can plant into one function, in the order of its source.

    Args:
        source: one `def` with its decorators; a method may be indented.

    Raises:
        DataError: if the source is not exactly one function.

    Example:
        >>> [mutant.description for mutant in mutants("def area(a, b):\\n    return a * b\\n")]
        ['`return a * b` removed', '`a * b` became `a / b`']
    """
    function = parse_function(source)
    shift = 1 - min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
    seen, repeats, found = {behaviour(function)}, Counter(), []
    for place in places_in_function(function, names_bound_in(function)):
        for fault in place.faults():
            with place.replaced_by(fault.new):
                text, meaning = ast.unparse(function), behaviour(function)
            if meaning is None or meaning in seen:
                continue
            seen.add(meaning)
            repeats[fault.description] += 1
            times = repeats[fault.description]
            description = fault.description + (f" ({times})" if times > 1 else "")
            found.append(Mutant(description, place.line + shift, text + "\n"))
    return found


def choose(found: Sequence[Mutant], at_most: int) -> list[Mutant]:
    """An even choice that is the same each time: first and last belong to it, the others lie evenly between.

    Example:
        >>> choose("abcdefg", 4)
        ['a', 'c', 'e', 'g']
    """
    if len(found) <= at_most:
        return list(found)
    if at_most < 2:
        return list(found[:at_most])
    return [found[round(number * (len(found) - 1) / (at_most - 1))] for number in range(at_most)]


@dataclass(frozen=True)
class Equivalent:
    """A mutant that no test can tell from the original, and why not."""

    task: str
    mutant: str
    reason: str


def read_equivalents(folder: Path) -> list[Equivalent]:
    """The argued mutants of a chapter: tables `[[equivalent]]` with `task`, `mutant` (its description) and `reason`.

    Args:
        folder: the chapter's folder; without an `equivalent.toml` there are none.

    Raises:
        DataError: if the file is no TOML, or a row lacks something, has something unknown, is there twice,
            or argues with fewer than three words.
    """
    path = folder / "equivalent.toml"
    if not path.is_file():
        return []
    try:
        rows = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path} is not TOML: {error}") from error
    if rows.keys() - {"equivalent"}:
        raise DataError(f"{path}: unknown {sorted(rows.keys() - {'equivalent'})}; expected [[equivalent]] tables only")
    found = []
    for row in rows.get("equivalent", []):
        if row.keys() != {"task", "mutant", "reason"} or not all(isinstance(value, str) for value in row.values()):
            raise DataError(f"{path}: {row} must have the strings task, mutant and reason, and nothing else")
        if len(row["reason"].split()) < 3:
            raise DataError(f"{path}: the reason {row['reason']!r} is no argument; say why no test can tell")
        found.append(Equivalent(**row))
    twice = [key for key, times in Counter((each.task, each.mutant) for each in found).items() if times > 1]
    if twice:
        raise DataError(f"{path}: {twice} are there more than once")
    return found


def parse_function(source: str) -> ast.FunctionDef:
    """The syntax tree of a source that is exactly one function, which may be indented.

    Raises:
        DataError: if it is anything else.
    """
    indented = source[:1] in (" ", "\t")
    try:
        body = ast.parse("if True:\n" + source if indented else source).body
    except SyntaxError as error:
        raise DataError(f"expected the source of one function, found what Python cannot read: {error}") from error
    body = body[0].body if indented else body
    if len(body) != 1 or not isinstance(body[0], ast.FunctionDef):
        raise DataError(f"expected the source of one function, found {[type(node).__name__ for node in body]}")
    return body[0]


def behaviour(function: ast.FunctionDef) -> tuple | None:
    """What the compiler makes of a function, without line numbers; None if it makes nothing, or nothing sensible."""
    tree = ast.fix_missing_locations(ast.Module([function], []))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SyntaxWarning)
            return _meaning(compile(ast.unparse(tree), "<mutant>", "exec"))
    except SyntaxError:
        return None


def _meaning(code: CodeType) -> tuple:
    constants = tuple(_meaning(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts)
    return code.co_code, constants, code.co_names, code.co_varnames, code.co_cellvars, code.co_freevars


def names_bound_in(function: ast.FunctionDef) -> frozenset[str]:
    """Parameters and every name that is assigned somewhere inside."""
    return frozenset(node.arg for node in ast.walk(function) if isinstance(node, ast.arg)) | names_stored_in(function)


def names_stored_in(tree: ast.AST) -> set[str]:
    """Names that get a value somewhere in a tree."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


@dataclass(frozen=True)
class Fault:
    """What takes the place of a node (of a statement: a list), and how to say so."""

    new: ast.AST | list
    description: str


@dataclass
class Place:
    """A node of the tree that can be exchanged: `parent.field`, or `parent.field[index]`."""

    parent: ast.AST
    field: str
    index: int | None
    node: ast.AST
    local_names: frozenset[str]
    removable: bool = True

    @property
    def line(self) -> int:
        """Line of the node in the source that was parsed."""
        node = self.node.value if isinstance(self.node, ast.keyword) else self.node
        return getattr(node, "lineno", 0)

    def replaced_by(self, new: ast.AST | list) -> "Replaced":
        """A context in which the tree has `new` here."""
        return Replaced(self, new)

    def faults(self) -> Iterator[Fault]:
        """All faults of this node."""
        if isinstance(self.node, ast.stmt):
            yield from faults_of_statement(self.node, self.removable)
        else:
            yield from faults_of_expression(self.node, self.parent, self.local_names)


class Replaced:
    """The tree with another node in one place, and the old one back in the end."""

    def __init__(self, place: Place, new: ast.AST | list) -> None:
        self.place, self.new = place, new

    def __enter__(self) -> None:
        place = self.place
        if place.index is None:
            setattr(place.parent, place.field, self.new)
            return
        siblings = getattr(place.parent, place.field)
        self.old = list(siblings)
        siblings[place.index : place.index + 1] = self.new if isinstance(self.new, list) else [self.new]

    def __exit__(self, *_: object) -> None:
        place = self.place
        if place.index is None:
            setattr(place.parent, place.field, place.node)
        else:
            getattr(place.parent, place.field)[:] = self.old


def places_in_function(function: ast.FunctionDef, names: frozenset[str]) -> Iterator[Place]:
    """The places of its defaults and of its body, without the docstring; outer ones before inner ones."""
    for field in ("defaults", "kw_defaults"):
        for index, default in enumerate(getattr(function.args, field)):
            if default is not None:
                yield from _place(function.args, field, index, default, names)
    bound = {arg.arg for arg in ast.walk(function.args) if isinstance(arg, ast.arg)}
    yield from _places_in_body(function, "body", names, bound)


def _places_in_body(parent: ast.AST, field: str, names: frozenset[str], bound: set[str]) -> Iterator[Place]:
    """Statements and what is in them; `bound` collects the names that have a value so far."""
    for index, statement in enumerate(getattr(parent, field)):
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue                                           # a docstring, or an ellipsis
        if isinstance(statement, ast.FunctionDef):
            yield from places_in_function(statement, names)
            bound.add(statement.name)
            continue
        alone = isinstance(statement, ast.Raise) and isinstance(parent, ast.If) and len(getattr(parent, field)) == 1
        yield Place(parent, field, index, statement, names, not alone and not _first_binding(statement, bound))
        if isinstance(statement, ast.Raise):
            continue
        for inner, value in ast.iter_fields(statement):
            if inner in ("body", "orelse", "finalbody"):
                yield from _places_in_body(statement, inner, names, bound)
            elif inner == "handlers":
                for handler in value:
                    yield from _places_in_body(handler, "body", names, bound)
            elif inner not in ("annotation", "targets", "target", "op"):
                yield from _places_in_field(statement, inner, value, names)
            elif inner in ("targets", "target"):
                yield from _places_in_targets(value if isinstance(value, list) else [value], names)
        bound |= names_stored_in(statement)


def _first_binding(statement: ast.stmt, bound: set[str]) -> bool:
    """Whether a plain assignment gives its names their first value: without it everything after would fail at once."""
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    if not isinstance(statement, ast.Assign | ast.AnnAssign):
        return False
    nodes = [node for target in targets for node in ast.walk(target)]
    if any(isinstance(node, ast.Attribute | ast.Subscript) for node in nodes):
        return False
    return not any(node.id in bound for node in nodes if isinstance(node, ast.Name))


def _places_in_targets(targets: list[ast.AST], names: frozenset[str]) -> Iterator[Place]:
    """In `x[1:] = y` the slice counts, the name does not."""
    for target in targets:
        for node in ast.walk(target):
            if isinstance(node, ast.Subscript):
                yield from _place(node, "slice", None, node.slice, names)


def _places_in_field(parent: ast.AST, field: str, value: object, names: frozenset[str]) -> Iterator[Place]:
    for index, node in enumerate(value if isinstance(value, list) else [value]):
        if isinstance(node, ast.AST):
            yield from _place(parent, field, index if isinstance(value, list) else None, node, names)


def _place(parent: ast.AST, field: str, index: int | None, node: ast.AST, names: frozenset[str]) -> Iterator[Place]:
    """An expression and everything in it that may change."""
    if isinstance(node, ast.keyword) and node.arg in UNSEEN_KEYWORDS:
        return
    if isinstance(node, ast.expr | ast.Slice | ast.keyword) and not isinstance(node, ast.JoinedStr | ast.Starred):
        yield Place(parent, field, index, node, names)
    if isinstance(node, ast.Lambda):
        yield from _place(node, "body", None, node.body, names)
    if isinstance(node, ast.Lambda) or is_negative_number(node):
        return
    for inner, value in ast.iter_fields(node):
        if inner in ("ctx", "op", "ops", "format_spec", "target", "func") and not isinstance(value, ast.Attribute):
            continue
        if inner == "args" and _checks(node):
            for number, argument in enumerate(value):
                if not _is_label(argument):
                    yield from _place(node, "args", number, argument, names)
        elif isinstance(node, ast.JoinedStr):
            for part in value:
                if isinstance(part, ast.FormattedValue):
                    yield from _place(part, "value", None, part.value, names)
        else:
            yield from _places_in_field(node, inner, value, names)


def _checks(node: ast.AST) -> bool:
    """Whether strings in a call are mostly for messages, as in `check_shape("query", query, "B T D", sizes)`."""
    return isinstance(node, ast.Call) and (_called(node) == "warn" or _called(node).startswith(("check_", "_check")))


def _is_label(argument: ast.expr) -> bool:
    """Whether a string is text for people; names of dimensions are not."""
    if isinstance(argument, ast.JoinedStr):
        return not all(DIMENSIONS.fullmatch(str(getattr(part, "value", ""))) for part in argument.values[:1])
    text = argument.value if isinstance(argument, ast.Constant) else None
    return isinstance(text, str) and DIMENSIONS.fullmatch(text) is None


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def faults_of_statement(node: ast.stmt, removable: bool) -> Iterator[Fault]:
    """Removal, other kinds of errors, contexts and handlers left out, loops left otherwise."""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and _called(node.exc).endswith("Error"):
        other = ast.Raise(ast.Call(ast.Name("RuntimeError"), node.exc.args, []), node.cause)
        yield Fault(other, f"`raise {_called(node.exc)}` became `raise RuntimeError`")
    if isinstance(node, ast.With) or (isinstance(node, ast.Try) and node.handlers):
        yield Fault(list(node.body), f"`{first_line(node)}` left out, its body kept")
    if isinstance(node, ast.AugAssign):
        yield Fault(ast.AugAssign(node.target, OPERATORS[type(node.op)](), node.value),
                    f"`{quote(node)}` with `{sign(OPERATORS[type(node.op)])}`")
        plain = ast.Assign([node.target], node.value)
        yield Fault(plain, f"`{quote(node)}` became `{quote(plain)}`")
    if isinstance(node, ast.Break | ast.Continue):
        other = ast.Continue() if isinstance(node, ast.Break) else ast.Break()
        yield Fault(other, f"`{quote(node)}` became `{quote(other)}`")
    if removable and not isinstance(node, NEVER_REMOVED):
        yield Fault(ast.Pass(), f"`{first_line(node)}` removed")


def faults_of_expression(node: ast.AST, parent: ast.AST, local_names: frozenset[str]) -> Iterator[Fault]:
    """Other operators, constants, conditions, arguments and slices."""
    if isinstance(parent, ast.If | ast.While | ast.IfExp) and node is parent.test:
        yield from _negated(node)
    if isinstance(parent, ast.comprehension) and any(node is condition for condition in parent.ifs):
        yield from _negated(node)
        yield Fault(ast.Constant(True), f"`if {quote(node)}` removed from a comprehension")
    where = ""
    if isinstance(node, ast.Constant) or is_negative_number(node):
        where = " in the signature" if isinstance(parent, ast.arguments) else f" in `{quote(parent)}`"
    for rule in RULES.get(type(node), ()):
        for new in rule(node, parent, local_names):
            yield Fault(new, f"`{quote(node)}` became `{quote(new)}`{where}")


def _negated(test: ast.expr) -> Iterator[Fault]:
    by_operator = isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], NEGATED_BY_OPERATOR)
    if not by_operator and not (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)):
        yield Fault(ast.UnaryOp(ast.Not(), test), f"`if {quote(test)}` became `if not ...`")


def is_negative_number(node: ast.AST) -> bool:
    """Whether a node is written `-1`, which Python parses as an operation."""
    return (
        isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant)
    )


def _operators(node: ast.BinOp, parent: ast.AST, local_names: frozenset[str]) -> Iterator[ast.expr]:
    if not (isinstance(node.left, ast.Constant | ast.JoinedStr) and isinstance(getattr(node.left, "value", ""), str)):
        yield ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)


def _comparisons(node: ast.Compare, parent: ast.AST, local_names: frozenset[str]) -> Iterator[ast.expr]:
    for index, operator in enumerate(node.ops):
        changed = [*node.ops[:index], OPERATORS[type(operator)](), *node.ops[index + 1 :]]
        yield ast.Compare(node.left, changed, node.comparators)


def _conditions(node: ast.BoolOp, parent: ast.AST, local_names: frozenset[str]) -> Iterator[ast.expr]:
    yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    for index in range(len(node.values)):
        rest = node.values[:index] + node.values[index + 1 :]
        yield rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)


def _signs(node: ast.UnaryOp, parent: ast.AST, local_names: frozenset[str]) -> Iterator[ast.expr]:
    yield node.operand
    if is_negative_number(node):
        yield from (ast.UnaryOp(ast.USub(), each) for each in _constants(node.operand, node, local_names))


def _constants(node: ast.Constant, parent: ast.AST, local_names: frozenset[str]) -> Iterator[ast.expr]:
    value = node.value
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        yield from (ast.Constant(value + 1), ast.Constant(value - 1))
    elif isinstance(value, float):
        yield from (ast.Constant(value + 1), ast.Constant(value * 2))
    elif isinstance(value, str):
        yield ast.Constant("other " + value)
    elif isinstance(value, bytes):
        yield ast.Constant(b"other " + value)
    elif value is None and not isinstance(parent, ast.Compare):
        yield ast.Constant("other")


def _attributes(node: ast.Attribute, parent: ast.AST, local_names: frozenset[str]) -> Iterator[ast.expr]:
    if node.attr == "inf":
        yield ast.Constant(FINITE)
    if node.attr in ("T", "mT"):
        yield node.value


def _calls(node: ast.Call, parent: ast.AST, local_names: frozenset[str]) -> Iterator[ast.expr]:
    swappable = _called(node) not in NEUTRAL_CALLS | SYMMETRIC_CALLS and not _checks(node)
    for index in range(len(node.args) - 1 if swappable else 0):
        first, second = node.args[index : index + 2]
        if not isinstance(first, ast.Starred) and not isinstance(second, ast.Starred):
            yield ast.Call(node.func, [*node.args[:index], second, first, *node.args[index + 2 :]], node.keywords)
    for keyword in node.keywords:
        if keyword.arg not in UNSEEN_KEYWORDS:
            yield ast.Call(node.func, node.args, [each for each in node.keywords if each is not keyword])
    if _called(node) in COUNTED and node.args:
        stop = 0 if len(node.args) == 1 else 1
        if not isinstance(node.args[stop], ast.Constant | ast.UnaryOp | ast.Starred):
            shorter = ast.BinOp(node.args[stop], ast.Sub(), ast.Constant(1))
            yield ast.Call(node.func, [*node.args[:stop], shorter, *node.args[stop + 1 :]], node.keywords)
    if not isinstance(parent, ast.Expr) and _called(node) not in NEUTRAL_CALLS and not _only_moves(node):
        yield from _without_call(node, local_names)


def _only_moves(node: ast.Call) -> bool:
    """Whether a call such as `x.to(device)` or `x.to(y.device)` brings a tensor to a device, and nothing more."""
    names = [getattr(argument, "attr", getattr(argument, "id", "")) for argument in node.args]
    return _called(node) == "to" and names == ["device"] and not node.keywords


def _without_call(node: ast.Call, local_names: frozenset[str]) -> Iterator[ast.expr]:
    """`x.abs()` -> `x`; `math.sqrt(d)` -> `d`."""
    root = node.func
    while isinstance(root, ast.Attribute | ast.Subscript | ast.Call):
        root = root.func if isinstance(root, ast.Call) else root.value
    if isinstance(node.func, ast.Attribute) and not (isinstance(root, ast.Name) and root.id not in local_names):
        yield node.func.value
    elif node.args and not isinstance(node.args[0], ast.Starred):
        yield node.args[0]


def _slices(node: ast.Slice, parent: ast.AST, local_names: frozenset[str]) -> Iterator[ast.expr]:
    for field in ("lower", "upper", "step"):
        bound = getattr(node, field)
        bounds = {"lower": node.lower, "upper": node.upper, "step": node.step}
        if bound is not None:
            yield ast.Slice(**(bounds | {field: None}))
        if field != "step" and bound is not None and not isinstance(bound, ast.Constant | ast.UnaryOp):
            yield ast.Slice(**(bounds | {field: ast.BinOp(bound, ast.Add(), ast.Constant(1))}))


RULES = {
    ast.BinOp: (_operators,), ast.Compare: (_comparisons,), ast.BoolOp: (_conditions,), ast.UnaryOp: (_signs,),
    ast.Constant: (_constants,), ast.Attribute: (_attributes,), ast.Call: (_calls,), ast.Slice: (_slices,),
}  # fmt: skip


def sign(operator: type[ast.operator]) -> str:
    """How an operator is written, as in `+=`."""
    return ast.unparse(ast.AugAssign(ast.Name("a"), operator(), ast.Name("b")))[2:-2]


def first_line(node: ast.stmt) -> str:
    """The first line of a statement, shortened, with "..." for the others."""
    lines = ast.unparse(ast.fix_missing_locations(node)).splitlines()
    return shortened(lines[0]) + (" ..." if len(lines) > 1 else "")


def quote(node: ast.AST) -> str:
    """The source of a node on one line, shortened in the middle."""
    return shortened(" ".join(ast.unparse(ast.fix_missing_locations(node)).split()))


def shortened(text: str) -> str:
    """A long text without its middle."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
