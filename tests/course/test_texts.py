"""Each check of the pages catches its fault, and lets a page without it pass."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from nbformat import v4

from minillm.course.markdown_math import math_complaints
from minillm.course.syllabus import BEGIN, END
from minillm.course.texts import (
    anchors,
    code_complaints,
    command_complaints,
    course_complaints,
    link_complaints,
    notebook_complaints,
    page_complaints,
)

ROOT = Path(__file__).resolve().parents[2]

GOOD_MATHEMATICS = r"""
Let $x_{i}$ be one, $q \cdot k$ two, and a price of \$5 three; `$HOME` and ``$$`` are code.

$$
\operatorname{Var}(q \cdot k) = \sum_{i} a_{i} b_{i} = \begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix},
\qquad \left( a < b \right) \{1\}
$$

| a | b |
| --- | --- |
| $\vert x \vert$ | $w(1-w)$, ($n$) |

```console
$ minillm data   # costs $$
```
"""

BAD_MATHEMATICS = {
    "two subscripts": ("a\n$x_{i} y_{j}$", 2, "two `_{`"),
    "subscripts of two formulas": (r"$\hat{x}_{i}$ and $y_{j}$", 1, "pair as emphasis"),
    "escaped brace": (r"$\{1, 2\}$", 1, "\\lbrace"),
    "escaped underscore": (r"$a\_b$", 1, "text{}"),
    "line break": (r"$a \\ b$", 1, "takes the backslash"),
    "new command": ("$$\n\\newcommand{\\R}{x}\n$$", 1, "newcommand"),
    "align": ("$$\n\\begin{align} a \\end{align}\n$$", 1, "aligned"),
    "alone": ("It is $$ x $$ here.", 1, "alone on its line"),
    "no blank before": ("a\n$$\nx\n$$", 2, "blank line before"),
    "no blank after": ("$$\nx\n$$\nb", 3, "blank line after"),
    "blank inside": ("$$\nx\n\ny\n$$", 3, "ends the paragraph"),
    "never closed": ("a\n\n$$\nx", 3, "never closed"),
    "heading inside": ("$$\nx\n= y\n$$", 3, "heading or a list"),
    "list inside": ("$$\nx\n- y\n$$", 3, "heading or a list"),
    "no partner": ("costs $5", 1, "without a partner"),
    "over two lines": ("a $x\n+ y$", 1, "without a partner"),
    "space inside": ("a $ x$ b", 1, "no space"),
    "letter outside": ("the $n$th", 1, "touches"),
    "github's own": ("a $`x`$ b", 1, "not mathematics in Jupyter"),
    "math fence": ("```math\nx\n```", 1, "math fence"),
    "bar in a table": ("| $|x|$ | b |", 1, "\\vert"),
    "stars": ("$a*b$ and $c*d$", 1, "two *"),
    "braces": ("$x^{2$", 1, "closing braces"),
    "left without right": ("$$\n\\left( x )\n$$", 1, "1 \\left and 0 \\right"),
    "tag": ("$a<b$", 1, "HTML"),
}


def test_good_mathematics_passes():
    assert math_complaints(GOOD_MATHEMATICS) == []


@pytest.mark.parametrize("name", BAD_MATHEMATICS)
def test_bad_mathematics_is_named_with_its_line(name):
    text, line, words = BAD_MATHEMATICS[name]
    complaints = math_complaints(text)
    assert any(number == line and words in complaint for number, complaint in complaints), complaints


def test_headings_have_the_anchors_that_github_gives():
    lines = "# Why divide by √d?", "", "## `show(x)`, twice", "### A *b* — c", "# Why divide by √d?"
    text = "\n".join([*lines, "```text", "# no", "```", "## [a](b.md) 1.2"])
    github = {"why-divide-by-d", "showx-twice", "a-b--c", "why-divide-by-d-1", "a-12"}
    assert anchors(text) == github


def test_links(tmp_path):
    page = tmp_path / "chapters" / "08_a" / "README.md"
    page.parent.mkdir(parents=True)
    (tmp_path / "README.md").write_text("# Map of all\n")
    good = """# Here we go
[a](../../README.md) [b](../../README.md#map-of-all) [c](#here-we-go) [d](https://x.org/#y) `[e](nowhere)` [f](../)
[g]: ../../README.md
```text
[h](nowhere)
```
"""
    page.write_text(good)
    assert link_complaints(good, page, tmp_path) == []
    for link, words in {
        "[a](../../READ.md)": "there is no READ.md",
        "[a](../../readme.md)": "there is no readme.md",
        "![a](figure.png)": "there is no chapters/08_a/figure.png",
        "[a](#there)": "no heading; there are here-we-go",
        "[a](../../README.md#maps)": "no heading; there are map-of-all",
        "[a](../../../x.md)": "leaves the repository",
        "[a](/README.md)": "leaves the repository",
        "[a]: ../b.md": "there is no chapters/b.md",
    }.items():
        ((line, complaint),) = link_complaints(f"# Here we go\n\n{link}\n", page, tmp_path)
        assert line == 3 and words in complaint, link


def test_code():
    good = "```python\nx = 1\n```\n```python show\nx =\n```\n```console\n$ ls\n```\n```\nanything\n```\n"
    assert code_complaints(good) == []
    assert code_complaints("a\n```python\nx = 1\ny = = 2\n```\n") == [(4, "this cell is not Python: invalid syntax")]
    assert "console fence" in code_complaints("```bash\nls\n```\n")[0][1]
    assert "known are show" in code_complaints("```python noeval\nx\n```\n")[0][1]


def console(*lines: str) -> str:
    return "\n".join(["```console", *lines, "```"])


@pytest.mark.parametrize(
    "line",
    [
        "$ minillm train --data my_notes.txt --dry-run --no-resume",
        ".venv/bin/python -m minillm evaluate runs/docs",
        "minillm --help",
        "$ git clone <address> minillm && cd minillm",
        "$ make test        # make nothing",
        "python -m minillm.course.notebook chapters/syllabus.toml --preset tiny",
        ".venv/bin/python -m pytest tests/course/test_texts.py::console -q",
    ],
)
def test_commands_that_exist_pass(line):
    assert command_complaints(console(line)) == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("$ minillm learn", "no verb learn"),
        ("minillm train --stepz 3", "train has no setting --stepz"),
        ("cd x && make everything", "no target everything"),
        ("python -m minillm.no_such --x", "no module minillm.no_such"),
        ("pytest tests/no_such.py", "there is no tests/no_such.py"),
        (".venv/bin/python -m minillm learn", "no verb learn"),
    ],
)
def test_commands_that_do_not_exist_are_named(line, words):
    ((number, complaint),) = command_complaints("a\n\n" + console(line))
    assert number == 4 and words in complaint


def test_output_behind_a_prompt_is_no_command():
    assert command_complaints(console("$ minillm data", "minillm learns nothing")) == []


def png(width: int, height: int, noise: bool = False) -> str:
    import base64

    from matplotlib.image import imsave

    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).random((height, width, 3)) if noise else np.zeros((height, width, 3))
    imsave(buffer, pixels, format="png")
    return base64.b64encode(buffer.getvalue()).decode()


def written(path: Path, *outputs, tags=()) -> Path:
    cell = v4.new_code_cell("x", outputs=list(outputs), metadata={"tags": list(tags)})
    path.write_text(json.dumps(v4.new_notebook(cells=[cell])))
    return path


def test_notebooks_are_small_and_hold_what_a_reader_can_use(tmp_path):
    path = tmp_path / "a.ipynb"
    picture = v4.new_output("display_data", data={"image/png": png(400, 300)})
    failure = v4.new_output("error", ename="ValueError", evalue="", traceback=["ValueError"])
    text = v4.new_output("execute_result", data={"text/plain": "3"})
    assert notebook_complaints(written(path, picture, text)) == []
    assert notebook_complaints(written(path, failure, tags=["raises-exception"])) == []
    for output, words in {
        "cell 1: it failed with ValueError": failure,
        "figure 01-1: 1000 x 10 pixels": v4.new_output("display_data", data={"image/png": png(1000, 10)}),
        "kB, at most 60": v4.new_output("display_data", data={"image/png": png(200, 200, noise=True)}),
        "address in memory": v4.new_output("execute_result", data={"text/plain": "<Line2D at 0x...>"}),
        "output is text/html": v4.new_output("display_data", data={"text/html": "<b>x</b>"}),
        "at most 400": v4.new_output("stream", text="x" * 400_001),
    }.items():
        (complaint,) = notebook_complaints(written(path, words))
        assert output in complaint


def test_faults_of_a_course_are_found_together(tmp_path):
    chapter = tmp_path / "chapters" / "08_attention"
    chapter.mkdir(parents=True)
    row = '[[part.chapter]]\nnumber = "08"\nfolder = "08_attention"\nquestion = "Which?"\n'
    (tmp_path / "chapters" / "syllabus.toml").write_text(f'[[part]]\nnumber = "I"\ntitle = "Text"\n{row}')
    (tmp_path / "Makefile").write_text("all:\n")
    (tmp_path / "README.md").write_text(f"{BEGIN}\n{END}\n[a](nowhere.md)\n")
    found = [str(each) for each in course_complaints(tmp_path)]
    assert found[0] == "README.md:3: the link nowhere.md leads nowhere: there is no nowhere.md"
    assert "chapters/08_attention: there is no README.md, the chapter's text" in found
    assert any(each.startswith("README.md: the table of chapters is old") for each in found)
    assert any(each.startswith("notebooks/08_attention.ipynb: there is no notebook yet") for each in found)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md"])
def test_our_own_pages_are_good(page):
    assert [str(complaint) for complaint in page_complaints(ROOT / page)] == []
