"""The mathematics that both GitHub and Jupyter render: a subset, and what leaves it.

GitHub reads Markdown's underscores, stars and backslashes before it looks for mathematics, and Jupyter does not know
GitHub's own escapes; what is safe in both is short enough to be checked line by line.
"""

import re
from collections.abc import Iterator

from minillm.course.fences import blocks

CODE_SPAN = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")
INLINE = re.compile(r"(?<!\\)\$(?P<math>(?:\\.|[^$\\])*)\$")
SPOILT = {"\\{": "\\lbrace", "\\}": "\\rbrace", "\\_": "a word in \\text{}", "\\\\": "a $$ block"}
PAIRS = (("\\left", "\\right"), ("\\begin", "\\end"))


def math_complaints(text: str, where: str = "the text") -> list[tuple[int, str]]:
    """What of a text's mathematics would not come out on GitHub and in Jupyter alike.

    A displayed formula stands between two lines `$$` with a blank line before and after; inline formulas open and close
    on one line, have no space inside their dollars, at most one `_{`, and none of the escapes that Markdown swallows.

    Returns:
        (line, complaint), in order of the lines.

    Example:
        >>> math_complaints("Let $x_{i} + y_{j}$ be it.")
        [(1, 'inline mathematics with two `_{`: GitHub takes the underscores for emphasis; use a $$ block')]
    """
    found: list[tuple[int, str]] = []
    for block in blocks(text, where):
        if block.words[:1] == ("math",):
            found.append((block.line - 1, "a ```math fence is not mathematics in Jupyter; write a $$ block"))
        if block.info is None:
            found += _prose_complaints(block.line, block.text.split("\n"))
    return sorted(found)


def _prose_complaints(first: int, lines: list[str]) -> Iterator[tuple[int, str]]:
    opened: int | None = None
    for index, line in enumerate(lines):
        number = first + index
        if line.strip() == "$$":
            neighbour = lines[index - 1 : index] if opened is None else lines[index + 1 : index + 2]
            if neighbour and neighbour[0].strip():
                side = "before" if opened is None else "after"
                yield number, f"a $$ block needs a blank line {side} it"
            if opened is not None:
                yield from ((opened, words) for words in _formula("\n".join(lines[opened - first + 1 : index])))
            opened = number if opened is None else None
        elif opened is not None:
            if not line.strip():
                yield number, "a blank line ends the paragraph, and with it the $$ block"
            elif re.match(r" {0,3}([=#>]|[-+*] |-+$)", line):
                yield number, "Markdown takes its first sign for a heading or a list; end the line above with it"
        elif "$$" in CODE_SPAN.sub("`", line):
            yield number, "$$ must stand alone on its line"
        else:
            if re.search(r"\$`[^`]+`\$", line):
                yield number, "GitHub's $`...`$ is not mathematics in Jupyter; write $...$"
            yield from ((number, words) for words in _inline_complaints(CODE_SPAN.sub("`", line)))
    if opened is not None:
        yield opened, "this $$ is never closed"


def _inline_complaints(line: str) -> Iterator[str]:
    if re.search(r"(?<!\\)\$", INLINE.sub("", line)):
        yield "a $ without a partner on its line; write \\$ for a dollar, and keep a formula on one line"
    formulas = list(INLINE.finditer(line))
    for match in formulas:
        formula = match["math"]
        yield from _formula(formula)
        if formula != formula.strip() or not formula:
            yield f"no space just inside the dollars of ${formula}$"
        if re.match(r"[0-9A-Za-z]", line[match.end() :]) or re.search(r"[0-9A-Za-z]$", line[: match.start()]):
            yield f"a letter or digit touches ${formula}$ from outside"
        if formula.count("_{") > 1:
            yield "inline mathematics with two `_{`: GitHub takes the underscores for emphasis; use a $$ block"
        yield from (
            f"inline {escape}: Markdown takes the backslash away; use {instead}"
            for escape, instead in SPOILT.items()
            if escape in formula
        )
        if line.lstrip().startswith("|") and "|" in formula:
            yield f"the bar in ${formula}$ ends a cell of the table; write \\vert"
    together = " ".join(match["math"] for match in formulas)
    if len(formulas) > 1 and re.search(r"[})\]]_\{.*_\{", together):
        yield "two formulas on one line whose underscores GitHub may pair as emphasis; break the line or use a $$ block"
    if together.count("*") > 1:
        yield "two * in mathematics on one line: GitHub takes them for emphasis; write \\cdot or \\ast"


def _formula(formula: str) -> Iterator[str]:
    """What is wrong with a formula wherever it stands."""
    if "\\newcommand" in formula or "\\def\\" in formula:
        yield "\\newcommand is not known everywhere: write the command out"
    if "\\begin{align" in formula or "\\begin{eqnarray" in formula:
        yield "align is not rendered everywhere; use aligned, or one $$ block for each line"
    braces = re.sub(r"\\[{}\\]", "", formula)
    if braces.count("{") != braces.count("}"):
        yield f"{braces.count('{')} opening and {braces.count('}')} closing braces in one formula"
    for begin, end in PAIRS:
        opening, closing = (len(re.findall(rf"\\{word[1:]}(?![a-zA-Z])", formula)) for word in (begin, end))
        if opening != closing:
            yield f"{opening} {begin} and {closing} {end} in one formula"
    if re.search(r"<[a-zA-Z]", formula):
        yield "a < before a letter begins an HTML tag; write \\lt, or put a space"
