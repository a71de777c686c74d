"""The side where graded code runs, driven through the proxies that tests hold."""

import itertools

import pytest
import torch

from minillm.course.comparison import Wrong, expect_close, expect_equal, expect_error
from minillm.course.proxy import Ended, GraderError, Handle, Impl, NoValue, RaisedThere, World
from minillm.course.session import Session, describe_exception
from minillm.nn.linear import Linear


def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def in_place(x, y):
    x += y
    return None


def divide(x):
    return 1 / x


def liar(x) -> torch.Tensor:
    return Linear(1, 1)


class Counter:
    def __init__(self, start):
        self.count, self.inner = start, Linear(2, 1)

    def step(self, by=1):
        self.count += by
        return self.count

    def forward(self, x):
        return self.inner(x)

    def count_up(self):
        return itertools.count(self.count)


def impl_of(**names):
    return Impl(World(names, Session(names, (__file__,)).answer))


def test_values_are_copies():
    impl = impl_of(double=double, in_place=in_place)
    x = torch.ones(3)
    expect_close(impl.double(x), torch.full((3,), 2.0))
    result, (after, by) = impl.in_place.after(x, 5)
    assert result is None and after.tolist() == [6.0] * 3 and x.tolist() == [1.0] * 3 and by == 5


def test_gradients_of_a_function():
    impl = impl_of(product=lambda x, y, scale: x * y * scale, apart=lambda x: x.detach())
    x, y = torch.tensor([2.0, 3.0]), torch.tensor([5.0, 7.0])
    value, (by_x, by_y) = impl.product.gradients(x, y, output_gradient=torch.tensor([1.0, 10.0]), scale=2)
    assert value.tolist() == [20.0, 42.0] and by_x.tolist() == [10.0, 140.0] and by_y.tolist() == [4.0, 60.0]
    assert impl.apart.gradients(x, output_gradient=x)[1] == [None]


def test_gradients_of_a_module_are_named():
    impl = impl_of(Linear=Linear)
    layer = impl.Linear(2, 1, bias=True)
    layer.set("weight", torch.nn.Parameter(torch.tensor([[3.0, 4.0]])))
    x = torch.tensor([[1.0, 2.0]])
    value, (by_x,), by_name = layer.gradients(x, output_gradient=torch.ones(1, 1))
    assert value.tolist() == [[11.0]] and by_x.tolist() == [[3.0, 4.0]]
    assert by_name["weight"].tolist() == [[1.0, 2.0]] and by_name["bias"].tolist() == [1.0]
    value, _, by_name = layer.forward.gradients(x, output_gradient=torch.ones(1, 1))
    assert by_name["weight"].tolist() == [[1.0, 2.0]]


def test_objects_are_held_by_handles():
    impl = impl_of(Counter=Counter, read=lambda counter: counter.count)
    counter = impl.Counter(5)
    assert isinstance(counter, Handle) and counter.step() == 6 and counter.step(by=2) == 8
    assert counter.get("count") == 8 and impl.read(counter) == 8 and impl.read(counter=counter) == 8
    counter.set("count", 1)
    assert counter.get("count") == 1
    assert counter.get("inner.weight").shape == (1, 2)
    assert counter.get("inner")._remote == counter.get("inner")._remote


def test_iterators():
    impl = impl_of(Counter=Counter, three=lambda: (n for n in range(3)), empty=lambda: iter([]))
    endless = impl.Counter(5).count_up()
    assert endless.take(3) == [5, 6, 7] and next(endless) == 8
    assert list(impl.three()) == [0, 1, 2] and list(impl.empty()) == []
    short = impl.three()
    assert short.take(9) == [0, 1, 2] and short.take(1) == []
    with pytest.raises(Ended, match="did not end"):
        list(endless)


def test_exceptions_say_where():
    impl = impl_of(divide=divide)
    with pytest.raises(RaisedThere) as caught:
        impl.divide(0)
    assert caught.value.names[:2] == ["ZeroDivisionError", "ArithmeticError"] and caught.value.code == "return 1 / x"
    assert "ZeroDivisionError: division by zero (line" in str(caught.value)
    with expect_error(ArithmeticError, match="zero"):
        impl.divide(0)
    with pytest.raises(RaisedThere), expect_error(ValueError):
        impl.divide(0)
    with pytest.raises(Wrong, match="should say 'nothing'"), expect_error(ZeroDivisionError, match="nothing"):
        impl.divide(0)
    with pytest.raises(Wrong, match="must be refused with ValueError or TypeError"):
        with expect_error((ValueError, TypeError)):
            impl.divide(1)


def test_exceptions_cannot_hurt():
    class Nasty(Exception):
        def __str__(self):
            raise SystemExit(0)

    assert describe_exception(Nasty())["message"] == "(its message cannot be read)"
    assert describe_exception(ValueError("<A at 0x7f00ab>"))["message"] == "<A>"
    assert len(describe_exception(ValueError("x" * 10**6))["message"]) == 500
    broken = describe_exception(SyntaxError("invalid syntax", ("exercise.py", 3, 1, "def f(:\n")))
    assert broken["line"] == 3 and broken["code"] == "def f(:"


def test_sys_exit_is_an_answer_and_ctrl_c_is_not():
    def leave():
        raise SystemExit(0)

    def interrupt():
        raise KeyboardInterrupt

    impl = impl_of(leave=leave, interrupt=interrupt)
    with pytest.raises(RaisedThere, match="SystemExit"):
        impl.leave()
    with pytest.raises(KeyboardInterrupt):
        impl.interrupt()


def test_an_object_where_a_value_belongs_is_refused():
    impl = impl_of(liar=liar)
    with pytest.raises(NoValue, match="an object of class Linear"):
        impl.liar(1)
    with pytest.raises(NoValue):
        impl.liar(1)


def test_unknown_names_are_the_graders_fault():
    with pytest.raises(GraderError, match="only double"):
        impl_of(double=double).triple(1)


@pytest.mark.parametrize(
    "reply",
    [b"", b"\0" * 8, b"x" * 100, *(wire_value for wire_value in ("list", "names", "line", "extra"))],
    ids=range(7),
)
def test_answers_that_are_none(reply):
    from minillm.course import wire

    good = {"names": ["E"], "message": "", "line": None, "code": ""}
    forged = {
        "list": [1],
        "names": {"raised": good | {"names": [3]}},
        "line": {"raised": good | {"line": "4"}},
        "extra": {"value": 1, "more": 2},
    }
    data = reply if isinstance(reply, bytes) else wire.dumps(forged[reply])
    with pytest.raises(Ended, match="cannot be read"):
        Impl(World({"f": None}, lambda request: data)).f()


@pytest.mark.parametrize(
    ("got", "expected", "says"),
    [
        (torch.zeros(2, 3), torch.ones(2, 3), r"^w at \[0, 0\] is 0, expected 1 \(off by 1\).* 6 of 6 entries"),
        (torch.zeros(2, 3), torch.zeros(3, 2), r"^w has shape \(2, 3\), expected \(3, 2\)$"),
        (torch.zeros(2), torch.zeros(2).double(), "dtype torch.float32, expected torch.float64"),
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 2.0]), r"w at \[1\] is nan, expected 2"),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, torch.inf]), r"w at \[1\] is 2, expected inf"),
        (torch.tensor([True]), torch.tensor([False]), r"w at \[0\] is True, expected False"),
        (None, torch.zeros(2), "is None, expected a tensor of shape"),
        ([1.0], torch.zeros(1), r"is \[1.0\], expected a tensor"),
        (1, True, "of type int, expected True of type bool"),
        (1.0, 1, "of type float"),
        ((1, 2), [1, 2], "of type tuple, expected a list of 2 items"),
        ([1, 2], [1, 2, 3], "has 2 items, expected 3; the first 2 agree"),
        ([1, [2, 5]], [1, [2, 3]], "item 1 of item 1 of w is 5, expected 3"),
        ({"a": 1}, {"a": 1, "b": 2}, "lacks the key 'b'"),
        ({"a": 1, "c": 1}, {"a": 1}, "has the key 'c'"),
        ({"a": torch.zeros(1)}, {"a": torch.ones(1)}, "entry 'a' of w at"),
        ("a" * 30 + "b", "a" * 31, "they part at position 30"),
    ],
)
def test_comparisons_say_what_differs(got, expected, says):
    with pytest.raises(Wrong, match=says):
        expect_close(got, expected, what="w")


def test_comparisons_have_a_tolerance_and_equality_has_none():
    one = torch.tensor([1.0, 1e6, torch.inf, torch.nan], dtype=torch.float64)
    near = one * (1 + 1e-11)
    expect_close(near, one)
    expect_close(torch.nn.Parameter(near), one)
    with pytest.raises(Wrong):
        expect_equal(near, one)
    with pytest.raises(Wrong):
        expect_close(one * (1 + 1e-9), one)
    expect_equal([{"a": (1, "x", {2})}], [{"a": (1, "x", {2})}])
    expect_close(torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.0], dtype=torch.bfloat16))
