"""The mutator: what it plants, what it leaves alone, and that every fault really is one."""

import ast
import inspect
from collections import Counter

import pytest

from minillm.course.mutants import choose, mutants, read_equivalents
from minillm.errors import DataError


def descriptions(source):
    return [mutant.description for mutant in mutants(source)]


def body(mutant):
    return ast.unparse(ast.parse(mutant.source).body[0].body)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("return a + b", {"return a - b", "pass"}),
        ("return a // b", {"return a / b", "pass"}),
        ("return a @ b", {"return a * b", "pass"}),
        ("return a < b", {"return a <= b", "pass"}),
        ("return a <= b < 3",
         {"return a < b < 3", "return a <= b <= 3", "return a <= b < 4", "return a <= b < 2", "pass"}),
        ("return a is None", {"return a is not None", "pass"}),
        ("return a and b", {"return a or b", "return a", "return b", "pass"}),
        ("return not a", {"return a", "pass"}),
        ("return ~a", {"return a", "pass"}),
        ("return a[:b]", {"return a[:]", "return a[:b + 1]", "pass"}),
        ("return a[1:]", {"return a[:]", "return a[2:]", "return a[0:]", "pass"}),
        ("return a[-1]", {"return a[1]", "return a[-2]", "return a[-0]", "pass"}),
        ("return a[::2]", {"return a[:]", "return a[::3]", "return a[::1]", "pass"}),
        ("return True", {"return False", "pass"}),
        ("return 'mean'", {"return 'other mean'", "pass"}),
        ("return 0.5", {"return 1.5", "return 1.0", "pass"}),
        ("return a.sum(dim=1)", {"return a.sum()", "return a.sum(dim=2)", "return a.sum(dim=0)", "return a", "pass"}),
        ("return math.sqrt(a)", {"return a", "pass"}),
        ("return math.inf", {"return 10000.0", "pass"}),
        ("return a.mT", {"return a", "pass"}),
        ("return f(a, b)", {"return f(b, a)", "return a", "pass"}),
        ("return range(a)", {"return range(a - 1)", "return a", "pass"}),
        ("return [x for x in a if x]", {"return [x for x in a if not x]", "return [x for x in a if True]", "pass"}),
        ("return a if b else 0", {"return a if not b else 0", "return a if b else 1", "return a if b else -1", "pass"}),
    ],
)  # fmt: skip
def test_what_is_planted_into_a_line(line, expected):
    assert {body(mutant) for mutant in mutants(f"def f(a, b):\n    {line}\n")} == expected


def test_statements():
    source = "def f(a):\n    a = a * 2\n    a += b\n    g(a)\n    for x in a:\n        break\n    return a\n"
    found = descriptions(source)
    assert "`a = a * 2` removed" in found and "`g(a)` removed" in found and "`for x in a: ...` removed" in found
    assert "`break` became `continue`" in found and "`a += b` became `a = b`" in found and "`a += b` with `-=`" in found


def test_a_first_assignment_is_not_removed_because_nothing_would_be_left_to_test():
    assert "`y = x` removed" not in descriptions("def f(x):\n    y = x\n    return y\n")
    assert "`self.y = x` removed" in descriptions("def f(self, x):\n    self.y = x\n")


def test_contexts_and_handlers():
    source = """def f(x):
    with no_grad():
        try:
            g(x)
        except KeyError as error:
            raise ValueError(x) from error
"""
    assert "`with no_grad(): ...` left out, its body kept" in descriptions(source)
    assert "`try: ...` left out, its body kept" in descriptions(source)
    assert "`raise ValueError` became `raise RuntimeError`" in descriptions(source)


def test_defaults_change_but_not_annotations_decorators_docstrings_and_messages():
    source = '''@decorated(3)
def f(x: Literal["a"] = None, n: "int" = 1, *, flag: bool = False) -> Annotated[int, 5]:
    """Two numbers, 7 and 8."""
    check_shape("x", x, "B T")
    if n > x:
        raise ValueError(f"{n + 1} is above {x}, by 2")
    y: Literal["b"] = x
    return y
'''
    for mutant in mutants(source):
        old, new = ast.parse(source).body[0], ast.parse(mutant.source).body[0]
        assert ast.get_docstring(old) == ast.get_docstring(new)
        assert [ast.unparse(each) for each in old.decorator_list] == [ast.unparse(each) for each in new.decorator_list]
        assert ast.unparse(old.returns) == ast.unparse(new.returns)
        assert [a.annotation and ast.unparse(a.annotation) for a in old.args.args] == [
            a.annotation and ast.unparse(a.annotation) for a in new.args.args
        ]
    found = descriptions(source)
    assert {"`None` became `'other'` in the signature", "`1` became `2` in the signature"} <= set(found)
    assert "`False` became `True` in the signature" in found
    assert not [each for each in found if "'x'" in each and "became" in each and "'other x'" in each]
    assert "`'B T'` became `'other B T'` in `check_shape('x', x, 'B T')`" in found
    assert not [each for each in found if "n + 1" in each], "the text of a message is no behaviour"


def test_device_is_left_alone():
    assert descriptions("def f(n, device):\n    return arange(n, device=device).to(device)\n") == [
        "`return arange(n, device=device).to(device)` removed",
        "`arange(n, device=device)` became `arange(n - 1, device=device)`",
        "`arange(n, device=device)` became `n`",
    ]


def test_transposing_the_other_way_round_is_no_fault():
    assert not [each for each in descriptions("def f(a):\n    return a.transpose(x, y)\n") if "transpose(y, x)" in each]


def test_every_mutant_compiles_differs_from_the_original_and_from_all_others():
    source = inspect.getsource(ast)
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    n_mutants = 0
    for function in functions[:25]:
        text = ast.get_source_segment(source, function)
        found = mutants(text)
        n_mutants += len(found)
        assert len({mutant.source for mutant in found} | {ast.unparse(function) + "\n"}) == len(found) + 1
        assert max(Counter(mutant.description for mutant in found).values(), default=1) == 1
        n_lines = len(text.splitlines())
        for mutant in found:
            compile(mutant.source, "mutant", "exec")
            assert 1 <= mutant.line <= n_lines
    assert n_mutants > 300


def test_the_same_mutants_each_time():
    source = "def f(a, b=2):\n    return g(a, b)[1:] + {a, b}\n"
    assert mutants(source) == mutants(source)


def test_lines_count_from_the_decorator_and_methods_may_be_indented():
    source = "    @property\n    def f(self):\n        # a comment\n        return self.a * 2\n"
    assert {mutant.line for mutant in mutants(source)} == {4}
    assert all(mutant.source.startswith("@property\ndef f(self):") for mutant in mutants(source))


def test_equal_byte_code_is_no_mutant():
    assert not [each for each in mutants("def f():\n    x = 1\n    pass\n") if "pass" in each.description]
    # `0` and `-0` compile to the same constant
    assert "`0` became `-0`" not in descriptions("def f(a):\n    return a[0]\n")


@pytest.mark.parametrize("source", ["x = 1\n", "def f(): pass\ndef g(): pass\n", "class A: pass\n", "def f(:\n", ""])
def test_only_one_function_is_taken(source):
    with pytest.raises(DataError, match="expected the source of one function"):
        mutants(source)


def test_an_even_choice():
    assert choose(list(range(10)), 20) == list(range(10))
    assert choose(list(range(101)), 5) == [0, 25, 50, 75, 100]
    assert choose(list(range(10)), 1) == [0] and choose(list(range(10)), 0) == []


def test_equivalents_are_read_and_must_be_argued(tmp_path):
    assert read_equivalents(tmp_path) == []
    file = tmp_path / "equivalent.toml"
    row = '[[equivalent]]\ntask = "8.1"\nmutant = "`a` became `b`"\nreason = "{}"\n'
    file.write_text(row.format("a and b are the same object"))
    [only] = read_equivalents(tmp_path)
    assert (only.task, only.mutant) == ("8.1", "`a` became `b`")
    for text, message in (
        (row.format("same"), "is no argument"),
        (row.format("they are the same") * 2, "more than once"),
        ('[[equivalent]]\ntask = "8.1"\n', "must have the strings"),
        ("[[other]]\n", "unknown"),
        ("[[", "not TOML"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            read_equivalents(tmp_path)
