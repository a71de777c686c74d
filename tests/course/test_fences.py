"""The line scanner agrees with a real Markdown parser about what stands between fences."""

from pathlib import Path

import mistune
import pytest

from minillm.course.fences import blocks, fenced, prose_lines
from minillm.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
TEXTS = {
    "plain": "a\n\n```python\nx = 1\n```\n\nb\n",
    "longer fence": "````markdown\n```python\nx\n```\n````\nafter\n",
    "tildes": "~~~console\n$ ls ```\n~~~\n",
    "backticks in prose": "say ```x``` here\n\n```python show\ny\n```\n",
    "empty": "```text\n```\n",
    "two in a row": "```python\na\n```\n```python\nb\n```\n",
    "indented closing": "```python\nif x:\n    y\n  ```\nafter\n",
    "closing with words is none": "```python\n``` no\n```\n",
    "blank lines inside": "```python\n\na\n\n\nb\n```",
}


def by_mistune(text: str) -> list[tuple[str, str]]:
    tokens = mistune.create_markdown(renderer=None)(text)
    return [
        (token.get("attrs", {}).get("info", ""), token["raw"].rstrip("\n"))
        for token in tokens
        if token["type"] == "block_code"
    ]


@pytest.mark.parametrize("name", TEXTS)
def test_same_blocks_as_a_markdown_parser(name):
    ours = [(block.info, block.text.rstrip("\n")) for block in blocks(TEXTS[name]) if block.info is not None]
    assert ours == by_mistune(TEXTS[name])


def test_same_blocks_in_our_own_pages():
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("chapters/*/README.md")]:
        text = path.read_text(encoding="utf-8")
        ours = [(block.info, block.text.rstrip("\n")) for block in blocks(text) if block.info is not None]
        assert ours == by_mistune(text), path


def test_lines_are_numbered_as_in_the_file():
    text = "one\n```python\nthree\n```\nfive\n\nseven"
    assert [(block.line, block.text) for block in blocks(text)] == [(1, "one"), (3, "three"), (5, "five\n\nseven")]
    assert prose_lines(text) == [(1, "one"), (5, "five"), (6, ""), (7, "seven")]


def test_an_open_fence_is_named():
    with pytest.raises(DataError, match="chapter 8, line 3: the fence ```python is never closed"):
        blocks("a\n\n```python\nx\n", "chapter 8")


def test_fenced_text_comes_back_whole():
    for text in ("x", "```\ny\n```", "say `````"):
        (block,) = blocks(fenced(text, "python"))
        assert (block.info, block.text) == ("python", text)
