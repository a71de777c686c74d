"""Notebooks say what their text says, come out the same every time, and a cell that fails is shown."""

import io
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat import v4

from minillm.course import freshness, notebook
from minillm.course.execution import execute, with_a_palette
from minillm.course.notebook import build, figures, main, notebook_of, notebook_text, relinked
from minillm.course.quotation import quoted, quoted_by_name, show
from minillm.errors import CourseError

ROOT = Path(__file__).resolve().parents[2]
SYLLABUS = """
[[part]]
number = "I"
title = "Text"

[[part.chapter]]
number = "08"
folder = "08_attention"
question = "Which?"
"""
TEXT = '''\
# Attention

Weights sum to one: see [the next](../09_positions/README.md#top), [code](../../minillm/nn/functional.py).

```python
PRESET = "default"  # "tiny", "default" or "gpu"
import sys
from pathlib import Path
n_steps = {"tiny": 2, "default": 3, "gpu": 4}[PRESET]
print(PRESET, n_steps, Path.cwd() / "chapters", object())
sys.stdout.flush()
print("progress  50%|#####     | 1/2", file=sys.stderr)
print("done")
```

## A picture

```python
import matplotlib.pyplot as plt
from minillm.errors import CourseError
show(CourseError)
plt.plot([1, 2, 3])
plt.show()
```

```python show
never = run
```

```console
$ minillm doctor
```

```python raises-exception
raise CourseError("a fault that is meant")
```
'''


def clone(folder: Path, text: str = TEXT) -> Path:
    """A folder that looks like a clone with one chapter; returns the chapter's folder."""
    chapter = folder / "chapters" / "08_attention"
    chapter.mkdir(parents=True)
    (folder / "chapters" / "syllabus.toml").write_text(SYLLABUS)
    (chapter / "README.md").write_text(text)
    return chapter


@pytest.fixture(scope="module")
def chapter(tmp_path_factory):
    return clone(tmp_path_factory.mktemp("clone with a space"))


@pytest.fixture(scope="module")
def built(chapter):
    return build(chapter)


def outputs(book: nbformat.NotebookNode) -> list[list]:
    return [cell.outputs for cell in book.cells if cell.cell_type == "code"]


def test_cells_are_the_text_in_order(built):
    kinds = [cell.cell_type for cell in built.cells]
    assert kinds == ["code", "markdown", "code", "markdown", "code", "markdown", "code"]
    assert built.cells[0].source.startswith("# Finds the clone")
    assert built.cells[1].source.startswith("# Attention\n\nWeights sum")
    assert built.cells[3].source == "## A picture"
    assert "```python\nnever = run\n```\n\n```console\n$ minillm doctor\n```" in built.cells[5].source
    assert built.cells[6].metadata.tags == ["raises-exception"]


def test_outputs_hold_nothing_of_this_machine(built, chapter):
    first, words, picture, fault = outputs(built)
    assert first == []
    assert [output.output_type for output in words] == ["stream"]
    assert words[0].text == "default 3 ./chapters <object object at 0x...>\ndone\n"
    assert fault[0].traceback == ["CourseError: a fault that is meant"]
    text = notebook_text(built)
    for secret in (str(chapter.parents[1]), str(ROOT), "shell.execute", "iopub", sys.version.split()[0]):
        assert secret not in text
    assert built.metadata.language_info == {"name": "python"}
    assert "% |" not in text and "progress" not in "".join(str(each) for each in words)


def test_quotation_is_the_source(built):
    quotation = outputs(built)[2][0]
    assert quotation.data["text/plain"].startswith("# minillm/errors.py\nclass CourseError(MinillmError):")
    assert quotation.data["text/markdown"] == f"```python\n{quotation.data['text/plain']}\n```"
    assert quotation.metadata.minillm == {"quotes": "minillm.errors:CourseError", "docstring": True}


def test_pictures_are_small_png(built):
    from matplotlib.image import imread

    ((name, png),) = figures(built)
    pixels = imread(io.BytesIO(png))
    assert name == "05-2"
    assert 300 < pixels.shape[1] <= 640 and 0 < np.ptp(pixels[..., 0])
    assert len(png) < 12_000


def test_a_palette_keeps_what_the_eye_sees():
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    figure, buffer = Figure(figsize=(5, 3), dpi=80), io.BytesIO()
    left, right = figure.subplots(1, 2)
    left.plot(np.sin(np.arange(50)), label="a line")
    left.legend()
    right.imshow(np.arange(400).reshape(20, 20))
    figure.savefig(buffer, format="png")
    small = with_a_palette(buffer.getvalue())
    before, after = (imread(io.BytesIO(png))[..., :3] for png in (buffer.getvalue(), small))
    assert len(small) < 0.6 * len(buffer.getvalue())
    assert before.shape == after.shape
    assert np.abs(before - after).max() < 0.15 and np.abs(before - after).mean() < 0.002


def test_a_second_run_gives_the_same_bytes(built, chapter, tmp_path, capsys):
    out, pictures = tmp_path / "new" / "08.ipynb", tmp_path / "pictures"
    assert main([str(chapter), "--out", str(out), "--png-dir", str(pictures)]) == 0
    assert out.read_text() == notebook_text(built)
    assert (pictures / "05-2.png").read_bytes() == figures(built)[0][1]
    assert "7 cells, 1 figures" in capsys.readouterr().out


def test_preset_is_put_in_and_the_ids_follow_from_the_source(chapter):
    tiny, default = build(chapter, "tiny", execute=False), build(chapter, "default", execute=False)
    assert tiny.cells[2].source.startswith('PRESET = "tiny"  # "tiny", "default" or "gpu"\n')
    same = [a.id == b.id for a, b in zip(tiny.cells, default.cells, strict=True)]
    assert same == [True, True, False, True, True, True, True]
    assert tiny.metadata.minillm.source == default.metadata.minillm.source
    changed = notebook_of(TEXT.replace("## A picture", "## The picture"), chapter, "default")
    assert sum(a.id != b.id for a, b in zip(changed.cells, default.cells, strict=True)) == 1


def test_equal_cells_get_different_ids(chapter):
    book = notebook_of(TEXT + "```python\n1\n```\n```python\n1\n```\n", chapter, "tiny")
    ids = [cell.id for cell in book.cells]
    assert len(set(ids)) == len(ids) and ids[-1] == ids[-2] + "-2"
    assert notebook_text(book)


@pytest.mark.parametrize("text", ["no code", "```python\nx = 1\n```\n", '```python\nPRESET = "a"\nPRESET = "b"\n```\n'])
def test_the_first_cell_must_have_the_preset(chapter, text):
    with pytest.raises(CourseError, match='line PRESET = "default", once'):
        notebook_of(text, chapter, "tiny")


def test_unknown_chapter_and_preset_are_named(chapter, tmp_path, capsys):
    with pytest.raises(CourseError, match="known are tiny, default, gpu"):
        build(chapter, "huge")
    with pytest.raises(CourseError, match="expected a chapter's folder"):
        build(tmp_path)
    assert main([str(chapter), "--preset", "tiny", "--no-execute"]) == 2
    assert "--out FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[a](../../minillm/nn/norm.py)", "[a](../minillm/nn/norm.py)"),
        ("[a](exercise.py), [b](../17_b/README.md)", "[a](../chapters/08_attention/exercise.py), [b](17_b.ipynb)"),
        ("![a](figure.png)", "![a](../chapters/08_attention/figure.png)"),
        ("[a](https://x.org/y) [b](#here) [c](mailto:x@y)", "[a](https://x.org/y) [b](#here) [c](mailto:x@y)"),
        ("[a](../../README.md#map)", "[a](../README.md#map)"),
        ("[all](../README.md)", "[all](../chapters/README.md)"),
    ],
)
def test_links_hold_in_the_folder_of_notebooks(line, expected):
    assert relinked(line, Path("chapters/08_attention")) == expected


FINDING = notebook.FIRST_CELL.split("\nfrom minillm")[0]  # the rest of the cell imports the library, which takes time


def python(code: str, folder: Path) -> str:
    answer = subprocess.run([sys.executable, "-I", "-c", code], cwd=folder, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def test_first_cell_finds_the_clone_from_any_folder_of_it(chapter):
    cell = FINDING.format(address="") + "\nprint(Path.cwd())"
    for folder in (chapter, chapter.parents[1]):
        assert python(cell, folder) == str(chapter.parents[1])


def test_first_cell_makes_a_clone_where_there_is_none(chapter, tmp_path):
    """git and pip are replaced: the one copies, the other does nothing."""
    fake = f"""
import shutil, subprocess
done = []
def run(words, check):
    done.append(words[:2])
    if words[0] == "git":
        shutil.copytree({str(chapter.parents[1])!r}, words[-1])
subprocess.run = run
"""
    cell = FINDING.format(address="https://example.org/minillm")
    code = fake + cell + "\nprint(len(done), done[:1], Path.cwd().name)"
    assert python(code, tmp_path) == "2 [['git', 'clone']] minillm"
    assert python(code, tmp_path) == "0 [] minillm"  # a second run of the cell finds what the first one made


def run_cells(*sources: str, cell_seconds: int = 60, all_seconds: int = 60) -> nbformat.NotebookNode:
    book = v4.new_notebook(cells=[v4.new_code_cell(source) for source in sources])
    execute(book, ROOT, cell_seconds, all_seconds, "chapter 08")
    return book


def test_a_failing_cell_is_shown():
    with pytest.raises(CourseError, match=r"(?s)08: cell 2\n-+\nx = \[\]\nx\[1\]\n.*IndexError: list index out"):
        run_cells("1 + 1", "x = []\nx[1]")


def test_a_warning_is_a_fault():
    with pytest.raises(CourseError, match=r"(?s)cell 1 wrote to stderr.*mind the gap.*The cell:\nimport warnings"):
        run_cells("import warnings\nwarnings.warn('mind the gap')")


def test_a_cell_that_ends_the_kernel_is_shown():
    with pytest.raises(CourseError, match=r"(?s)08: cell 1\n-+\nimport os; os.*ended the kernel: .*died\nlast words"):
        run_cells("import os; os.write(2, b'last words'); os._exit(3)", all_seconds=30)


@pytest.mark.parametrize(("cell_seconds", "all_seconds"), [(1, 60), pytest.param(60, 3, marks=pytest.mark.slow)])
def test_a_cell_that_never_ends_is_stopped(cell_seconds, all_seconds):
    with pytest.raises(CourseError, match=r"(?s)chapter 08: cell 1.*took too long"):
        run_cells("while True: pass", cell_seconds=cell_seconds, all_seconds=all_seconds)


def test_progress_bars_leave_nothing():
    book = run_cells("from tqdm import tqdm\nfor _ in tqdm(range(3)): pass\nfor _ in tqdm(iter('ab')): pass")
    assert book.cells[0].outputs == []


def test_show_prints_outside_a_notebook(capsys):
    show(math_like)
    assert capsys.readouterr().out == 'def math_like(x):\n    """What it does."""\n    return x  # as it is\n'
    assert quoted(math_like, docstring=False) == "def math_like(x):\n    return x  # as it is"


def math_like(x):
    """What it does."""
    return x  # as it is


def test_show_takes_methods_properties_and_classes():
    from minillm.runtime import DtypeChoice, Rank

    assert quoted(Rank.print).startswith("# minillm/runtime.py\ndef print(self")
    assert quoted(Rank(0).print) == quoted(Rank.print) == quoted_by_name("minillm.runtime:Rank.print")
    assert quoted(DtypeChoice.dtype).startswith("# minillm/runtime.py\n@property\ndef dtype(self)")
    assert quoted(Rank, docstring=False).startswith("# minillm/runtime.py\n@dataclass(frozen=True)\nclass Rank:\n")
    assert "The place of this" not in quoted(Rank, docstring=False)
    for nothing in (math.sqrt, 3, "text"):
        with pytest.raises(CourseError, match="expected a function"):
            quoted(nothing)
    with pytest.raises(CourseError, match="not there any more"):
        quoted_by_name("minillm.runtime:no_such_name")


def test_fresh_notebooks_stay_and_stale_ones_are_named(built, chapter, tmp_path, capsys):
    folder = clone(tmp_path)
    path = tmp_path / "notebooks" / "08_attention.ipynb"
    assert freshness.stale(folder) == "there is no notebook yet"
    path.parent.mkdir()

    def reason(change=lambda book: None, text=None):
        book = nbformat.from_dict(json.loads(notebook_text(built)))
        change(book)
        path.write_text(text if text is not None else notebook_text(book))
        return freshness.stale(folder)

    def misquote(book):
        next(freshness.quotations(book))[2].data["text/plain"] += "!"

    def undo_run(book):
        book.cells[0].execution_count = None

    assert reason() is None
    assert freshness.refresh(folder) is None
    assert "preset tiny" in reason(lambda book: book.metadata.minillm.update(preset="tiny"))
    assert "not been run" in reason(undo_run)
    assert reason(misquote) == "it quotes minillm.errors:CourseError, which has changed since"
    assert "quotes" in freshness.refresh(folder)  # without a kernel: nothing but the quotation changes
    assert path.read_text() == notebook_text(built)
    (folder / "README.md").write_text(TEXT.replace("sum to one", "add up to one"))
    assert reason() == "the chapter's text has changed since"
    with pytest.raises(CourseError, match="is not a notebook"):
        reason(text="{")


def test_index_links_what_is_finished(built, tmp_path, capsys):
    folder = clone(tmp_path)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "08_attention.ipynb").write_text(notebook_text(built))
    (tmp_path / "notebooks" / "07_old.ipynb").write_text("{}")
    assert freshness.main(["--check"], tmp_path) == 1
    printed = capsys.readouterr().out
    assert "00_index.ipynb: it is not that" in printed and "07_old.ipynb: no finished chapter" in printed
    (tmp_path / "notebooks" / "07_old.ipynb").unlink()
    assert freshness.main([], tmp_path) == 0 and freshness.main(["--check"], tmp_path) == 0
    index = (tmp_path / "notebooks" / "00_index.ipynb").read_text()
    assert "| 08 | [attention](08_attention.ipynb) | Which? | [text](../chapters/08_attention/README.md) |" in index
    shutil.rmtree(folder)
    assert "planned" in notebook_text(freshness.index_notebook(tmp_path))
