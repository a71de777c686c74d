"""The learner's file: holes where they belong, everything else byte for byte, nothing leaked."""

import ast
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from minillm.course.chapter import read_chapter
from minillm.course.imports import Import, global_names, import_lines
from minillm.course.skeleton import def_source, leaks, reference_file, skeleton, with_function
from minillm.course.source import parse, with_bodies
from minillm.errors import ConfigError, DataError

TOOLS = "import math\n\nLIMIT = 3\n\n\ndef clamp(x):\n    return max(-LIMIT, min(LIMIT, x))\n"

LIBRARY = '''"""A module."""

import functools
import math as m
from collections import Counter, OrderedDict

from minillm.tools import LIMIT, clamp

SCALE = 2.0  # a constant of the module


def keep(function):
    return function


@keep
@functools.cache
def weight(
    x: float,  # a number
    scale: float = SCALE,
) -> "Counter":
    """Docstring — byte for byte, with ünicode.

      Odd   spacing stays.
    """
    # a comment of the solution
    total = Counter({1: m.floor(clamp(x) * scale)}) + shortcut(x)
    return total
    # the solution's last remark


def shortcut(x):
    """Gives `weight` away."""
    return Counter({2: m.ceil(x * SCALE * 7)})


def plain(x: dict[str, int] = {"a": 1}, y=lambda z: z): return x["a"] + y(x["a"] * 3 + LIMIT)


class Box(OrderedDict):
    """A box."""

    size = LIMIT

    def put(self, x):
        """Put x in."""
        text = """
not indented"""
        self[x] = text + str(weight(x)) + str(self.size)
        return self

    # about take

    def take(self, x):
        value = self.pop(x) + SCALE * len(self) - plain(x)
        return value
'''

TOML = """
title = "Things"
given = ["minillm.tools:clamp"]
[[task]]
id = "8.1"
object = "minillm.things:weight"
points = 2
hint = "Count."
remove = ["minillm.things:shortcut"]
[[task]]
id = "8.2"
object = "minillm.things:plain"
points = 1
hint = "Add."
[[task]]
id = "8.3"
object = "minillm.things:Box.put"
points = 3
hint = "Put."
starter = "text = 'begin'"
"""


@pytest.fixture
def chapter(tmp_path: Path):
    (tmp_path / "minillm").mkdir()
    (tmp_path / "minillm" / "tools.py").write_text(TOOLS)
    (tmp_path / "minillm" / "things.py").write_text(LIBRARY)
    folder = tmp_path / "chapters" / "08_things"
    folder.mkdir(parents=True)
    (folder / "exercise.toml").write_text(TOML)
    return read_chapter("08", tmp_path)


def test_signature_decorators_and_docstring_stay_byte_for_byte(chapter):
    text = skeleton(chapter)
    begin, end = LIBRARY.index("@keep"), LIBRARY.index("    # a comment of the solution")
    assert LIBRARY[begin:end] in text
    assert "solution" not in text


def test_holes_name_their_task_with_points_and_hint(chapter):
    text = skeleton(chapter)
    assert '    # TASK 8.1 (2 points)\n    # Count.\n    raise NotImplementedError("task 8.1")\n' in text
    assert 'y=lambda z: z):\n    # TASK 8.2 (1 point)\n    # Add.\n    raise NotImplementedError("task 8.2")\n' in text


def test_starter_replaces_the_hole(chapter):
    assert "        # TASK 8.3 (3 points)\n        # Put.\n        text = 'begin'\n" in skeleton(chapter)


def test_other_methods_and_comments_of_a_class_stay(chapter):
    begin = LIBRARY.index("    # about take")
    assert skeleton(chapter).endswith(LIBRARY[begin:])


def test_removed_object_is_nowhere(chapter):
    assert "shortcut" not in skeleton(chapter)


def test_imports_are_those_of_kept_and_cut_code(chapter):
    head = skeleton(chapter).partition("\n\n\n")[0]
    assert head.endswith(
        "import functools\n"
        "import math as m\n"
        "from collections import Counter, OrderedDict\n\n"
        "from minillm.things import SCALE, keep\n"
        "from minillm.tools import LIMIT, clamp"
    )


def test_the_reference_file_has_the_librarys_bodies(chapter):
    for name in ("weight", "plain", "Box"):
        assert def_source(LIBRARY, name) in reference_file(chapter)


def test_filling_in_gives_the_reference_and_cutting_gives_the_skeleton(chapter):
    empty, full = skeleton(chapter), reference_file(chapter)
    filled, cut = empty, full
    for task in chapter.tasks:
        filled = with_function(filled, task.name, def_source(full, task.name))
        cut = with_function(cut, task.name, def_source(empty, task.name))
    helper = def_source(LIBRARY, "shortcut")
    assert filled == full.replace(helper + "\n\n", "")
    assert cut.replace(helper + "\n\n", "") == empty


def test_the_reference_runs_although_its_helper_is_removed(chapter, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "minillm.tools", ModuleType("minillm.tools"))
    monkeypatch.setitem(sys.modules, "minillm.things", ModuleType("minillm.things"))
    exec(TOOLS, sys.modules["minillm.tools"].__dict__)
    sys.modules["minillm.things"].__dict__.update(SCALE=2.0, keep=lambda function: function)
    names: dict = {}
    exec(compile(reference_file(chapter), "reference", "exec"), names)
    assert names["weight"](2) == {1: 4, 2: 28}


def test_tasks_of_one_class_share_it(chapter, tmp_path):
    file = tmp_path / "chapters" / "08_things" / "exercise.toml"
    file.write_text(
        file.read_text() + '[[task]]\nid="8.4"\nobject="minillm.things:Box.take"\npoints=1\nhint="Take."\n'
    )
    text = skeleton(read_chapter("08", tmp_path))
    assert text.count("class Box") == 1
    assert 'NotImplementedError("task 8.4")' in text
    assert "self.pop" not in text


def test_kept_code_may_not_need_what_is_removed(tmp_path, chapter):
    file = tmp_path / "minillm" / "things.py"
    file.write_text(LIBRARY.replace("value = self.pop(x)", "value = shortcut(x)"))
    with pytest.raises(ConfigError, match="needs shortcut"):
        skeleton(read_chapter("08", tmp_path))


def test_one_name_with_two_meanings_is_an_error(tmp_path, chapter):
    (tmp_path / "minillm" / "more.py").write_text("SCALE = 1\n\n\ndef other(x):\n    return x * SCALE\n")
    file = tmp_path / "chapters" / "08_things" / "exercise.toml"
    file.write_text(file.read_text() + '[[task]]\nid="8.4"\nobject="minillm.more:other"\npoints=1\nhint="H"\n')
    with pytest.raises(ConfigError, match="different things by SCALE"):
        skeleton(read_chapter("08", tmp_path))


def test_the_skeleton_leaks_nothing_and_the_reference_everything(chapter):
    assert leaks(chapter, skeleton(chapter)) == []
    found = "\n".join(leaks(chapter, reference_file(chapter)))
    for task in ("8.1", "8.2", "8.3"):
        assert f"task {task}" in found


def test_a_leak_is_found_in_another_layout(chapter):
    text = "def mine(x, scale):\n    if x:\n"
    text += "        total = ( Counter(\n  {1: m.floor(clamp(x)*scale)}) # hm\n + shortcut(x))\n"
    assert leaks(chapter, text) == ["line 3: total = Counter({1: m.floor(clamp(x) * scale)}) + shortcut(x) (task 8.1)"]


def test_a_removed_objects_body_is_a_leak(chapter):
    assert len(leaks(chapter, def_source(LIBRARY, "shortcut"))) == 1


def test_small_statements_are_no_leak(chapter):
    assert leaks(chapter, "def f(x):\n    return total\n") == []


def test_replacing_a_method_keeps_the_rest(chapter):
    new = with_function(LIBRARY, "Box.take", "def take(self, x):\n    return 1\n")
    begin = LIBRARY.index("    def take")
    assert new == LIBRARY[:begin] + "    def take(self, x):\n        return 1\n"


def test_replacing_keeps_decorators_unless_there_are_new_ones():
    text = "@keep\ndef f(x):\n    return 1\n"
    assert with_function(text, "f", "    def f(x):\n        return 2\n") == "@keep\ndef f(x):\n    return 2\n"
    assert with_function(text, "f", "@other\ndef f(x):\n    return 2\n") == "@other\ndef f(x):\n    return 2\n"


def test_strings_over_several_lines_keep_their_value():
    source = def_source(LIBRARY, "Box.put")
    assert '"""\nnot indented"""' in source
    text = with_function("class Box:\n    def put(self, x):\n        pass\n", "Box.put", source)
    assert ast.dump(ast.parse(text).body[0].body[0].body[1]) == ast.dump(ast.parse(source).body[0].body[1])


@pytest.mark.parametrize("new", ["def g(x):\n    pass\n", "x = 1\n", "def f(x):\n    pass\nx = 1\n"])
def test_replacement_must_be_one_function_of_that_name(new):
    with pytest.raises(ConfigError, match="one definition of f"):
        with_function("def f(x):\n    pass\n", "f", new)


def test_unknown_name_and_broken_text():
    with pytest.raises(ConfigError, match="defines no g"):
        def_source("def f(): pass\n", "g")
    with pytest.raises(DataError, match="line 1"):
        def_source("def f(:\n", "f")


def test_the_last_definition_counts_as_python_says():
    assert def_source("def f():\n    return 1\n\n\ndef f():\n    return 2\n", "f") == "def f():\n    return 2\n"


def test_global_names_leave_out_locals_and_builtins():
    text = "@deco\ndef f(a: Ann, b=default) -> 'Quoted | int':\n"
    text += "    local = a + outer\n    return [i + inner for i in len(local)]\n"
    assert global_names(text) == {"deco", "Ann", "default", "Quoted", "outer", "inner"}


def test_import_lines_are_grouped_and_wrapped():
    names = [Import("minillm.x", f"a_long_name_{number}", "") for number in range(9)]
    text = import_lines([Import("torch", "", ""), Import("torch.nn", "functional", "F"), Import("os", "", ""), *names])
    others = "import os\n\nimport torch\nfrom torch.nn import functional as F\n\n"
    assert text.startswith(others + "from minillm.x import (\n")
    assert max(map(len, text.splitlines())) <= 120


def test_cutting_every_function_of_real_modules_parses_and_keeps_docstrings():
    for module in ("nn/functional", "tokenizers/bpe", "train/loop", "course/source"):
        text = (Path(__file__).parents[2] / "minillm" / f"{module}.py").read_text()
        functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
        cut = with_bodies(text, {node.name: "raise NotImplementedError" for node in functions})
        after = {node.name: node for node in ast.parse(cut).body if isinstance(node, ast.FunctionDef)}
        for node in functions:
            new = after[node.name]
            assert ast.get_docstring(new, clean=False) == ast.get_docstring(node, clean=False)
            assert ast.dump(new.args) == ast.dump(node.args)
            assert len(new.body) == 1 + (ast.get_docstring(node) is not None)


def test_threads_may_parse_at_the_same_time():
    text = (Path(__file__).parents[2] / "minillm/train/optim.py").read_text()
    with ThreadPoolExecutor(4) as pool:
        trees = list(pool.map(lambda _: ast.dump(parse(text)), range(24)))
    assert len(set(trees)) == 1
