"""Fixtures of the graders: `impl` is the library, or the file given by `--solution`; `rng` is fresh for every case."""

import re

import pytest

from minillm.course.chapter import read_chapter
from minillm.course.grader import case_rng, grading
from minillm.course.proxy import library_impl


def chapter_number(path):
    return re.match(r"test_(\d\d)_", path.name)[1]


def pytest_generate_tests(metafunc):
    marked = grading(metafunc.function)
    if "rng" in metafunc.fixturenames:
        cases = marked.cases if marked else 1
        metafunc.parametrize("rng", range(cases), indirect=True, ids=[f"case{n}" for n in range(1, cases + 1)])


@pytest.fixture
def rng(request):
    return case_rng(0, request.function.__name__, request.param)


@pytest.fixture(scope="module")
def chapter(request):
    return read_chapter(chapter_number(request.path))


@pytest.fixture
def impl(request, chapter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return library_impl(chapter)
