"""A learner's functions in the library's place; everything is put back afterwards."""

import sys
from types import ModuleType

import pytest

from minillm.course.substitution import Place, Substitution, load_solution
from minillm.errors import CourseError

LIBRARY = """
import functools

def low(x):
    return ("library low", x)

def high(x):
    return ("library high", low(x))

def uses_default(x, function=low, *, other=low):
    return function(x), other(x)

TABLE = {"low": low, "list": [1]}
CHOICES = [low, high]

class Base:
    def __init__(self):
        self.log = ["base"]

    def size(self):
        return 1

class Thing(Base):
    alias = low
    helper = staticmethod(low)

    def __init__(self):
        super().__init__()
        self.log.append("thing")

    def size(self):
        return super().size() + 1

    @property
    def double(self):
        return 2 * self.size()

    def other(self):
        return "library other"
"""
USER = "from minillm.planted_library import low as renamed, Thing\ndef through(x):\n    return renamed(x)\n"

SOLUTION = """
from minillm.planted_library import Base

def low(x):
    return ("my low", x)

def high(x):
    return ("my high", low(x))

class Thing(Base):
    def __init__(self):
        raise NotImplementedError

    def size(self):
        return super().size() + self.more()

    def more(self):
        return 41

    @property
    def double(self):
        return 20 * self.size()

    def other(self):
        return "my other"
"""
PLACES = [
    Place("1", "minillm.planted_library", "low"),
    Place("2", "minillm.planted_library", "high"),
    Place("3", "minillm.planted_library", "Thing.size"),
    Place("4", "minillm.planted_library", "Thing.double"),
    Place("5", "minillm.planted_library", "Thing.other"),
]


@pytest.fixture
def modules(monkeypatch):
    planted = {}
    for name, text in (("planted_library", LIBRARY), ("planted_user", USER)):
        module = planted[name] = ModuleType(f"minillm.{name}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(text, vars(module))
    monkeypatch.delitem(sys.modules, "planted_solution", raising=False)
    return planted["planted_library"], planted["planted_user"]


@pytest.fixture
def solution(modules):
    yield load_solution(SOLUTION, module_name="planted_solution")
    del sys.modules["planted_solution"]


def test_a_function_is_replaced_wherever_it_is_named(modules, solution):
    library, user = modules
    old = library.low
    substitution = Substitution(solution, PLACES, {"1"})
    mine = ("my low", 7)
    assert library.low(7) == user.through(7) == library.TABLE["low"](7) == library.CHOICES[0](7) == mine
    assert library.high(7) == ("library high", mine) and library.uses_default(7) == (mine, mine)
    assert library.Thing.alias(7) == library.Thing.helper(7) == mine
    substitution.restore()
    assert library.low is library.CHOICES[0] is library.TABLE["low"] is user.renamed is library.Thing.alias is old
    assert library.uses_default(7) == (old(7), old(7)) and library.Thing.helper is old


def test_what_is_not_graded_is_the_librarys(modules, solution):
    Substitution(solution, PLACES, {"2"})
    assert modules[0].high(7) == ("my high", ("library low", 7))


def test_what_the_reference_does_without_is_the_learners_own(modules, solution):
    Substitution(solution, PLACES, {"2"}, own={"1"})
    assert modules[0].high(7) == ("my high", ("my low", 7)) and modules[0].low(7) == ("library low", 7)


def test_a_method_works_in_the_librarys_class(modules, solution):
    library, user = modules
    substitution = Substitution(solution, PLACES, {"3"})
    thing = library.Thing()
    assert thing.log == ["base", "thing"] and thing.size() == 42 and thing.double == 84
    assert thing.other() == "library other" and solution.Thing is library.Thing is user.Thing
    substitution.restore()
    assert library.Thing().size() == 2 and not hasattr(library.Thing, "more") and solution.Thing is not library.Thing


def test_properties_and_own_methods(modules, solution):
    library, _ = modules
    Substitution(solution, PLACES, {"4"}, own={"5"})
    assert library.Thing().double == 40 and library.Thing().other() == "my other"


def test_all_at_once(modules, solution):
    library, _ = modules
    Substitution(solution, PLACES, {place.task_id for place in PLACES})
    assert library.high(1) == ("my high", ("my low", 1)) and library.Thing().double == 840


@pytest.mark.parametrize(("task_id", "name"), [("1", "low"), ("3", "Thing.size")])
def test_a_missing_function_is_named_and_nothing_is_replaced(modules, task_id, name):
    library, _ = modules
    other = load_solution("def high(x): return 0\nThing = 3\n", module_name="planted_other")
    del sys.modules["planted_other"]
    with pytest.raises(CourseError, match=f"no {name} .task {task_id}."):
        Substitution(other, PLACES, {"2", task_id})
    assert library.high(1) == ("library high", ("library low", 1))


def test_a_broken_file_raises_with_its_line():
    with pytest.raises(SyntaxError) as caught:
        load_solution("x = 1\ndef f(:\n", module_name="planted_broken")
    del sys.modules["planted_broken"]
    assert caught.value.lineno == 2 and caught.value.filename == "exercise.py"
