"""Named corpora without a network: the loading code of the public sets runs on local files of the same form."""

import json
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from minillm.data import corpora
from minillm.data.corpora import articles, corpus_names, documents, hub_rows, until_bytes
from minillm.data.fetch import sha256_of, user_cache_folder
from minillm.errors import ConfigError, DataError

SHAKESPEARE = Path(__file__).parents[2].parent / "shared/data/tinyshakespeare.txt"


def test_names_and_descriptions():
    names = corpus_names()
    known = {"stories-en", "stories-zh", "stories", "python-docs", "tinyworld-en", "tinyworld-zh"}
    assert known | {"tinyworld-feelings", "tinyshakespeare", "tinystories", "wikitext-2"} == set(names)
    assert all(description and "\n" not in description for description in names.values())


def test_unknown_name_lists_the_known_ones_and_the_path_tried():
    with pytest.raises(DataError) as caught:
        documents("storeis")
    message = str(caught.value)
    assert "'storeis'" in message and all(name in message for name in corpus_names())
    assert str(Path("storeis").absolute()) in message


def test_a_path_is_no_name(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("a\n***\nb\n")
    assert list(documents(path)) == ["a", "b"]
    assert list(documents(str(tmp_path / "*.txt"), separator="b")) == ["a\n***"]
    with pytest.raises(DataError, match=r"none\.txt does not exist"):
        documents(tmp_path / "none.txt")


def test_a_name_wins_over_a_file(tmp_path, monkeypatch):
    (tmp_path / "python-docs").write_text("mine")
    monkeypatch.chdir(tmp_path)
    assert len(list(documents("python-docs"))) > 0.9 * len(topics)
    assert list(documents("./python-docs")) == ["mine"]


def test_stories_come_from_the_clone(tmp_path):
    for language, text in (("en", "one\n***\ntwo\n"), ("zh", "三\n")):
        (tmp_path / f"stories_{language}.txt").write_text(text, encoding="utf-8")
    assert list(documents("stories", data_folder=tmp_path)) == ["one", "two", "三\n"]
    (tmp_path / "stories_zh.txt").unlink()
    assert list(documents("stories-en", data_folder=tmp_path)) == ["one", "two"]
    for name in ("stories-zh", "stories"):
        with pytest.raises(DataError, match="come with a clone of the project, not with an installed package"):
            documents(name, data_folder=tmp_path)


def test_python_documentation():
    texts = list(documents("python-docs"))
    assert texts == list(documents("python-docs"))
    remaining = iter(topics[name] for name in sorted(topics))  # the topics in order, each with paragraphs left out
    for text in texts:
        assert any(set(text.split("\n\n")) <= set(topic.split("\n\n")) for topic in remaining)
    per_text = [{" ".join(part.split()) for part in text.split("\n\n")} for text in texts]
    long_paragraphs = [part for parts in per_text for part in parts if len(part) > 40]
    everything = {" ".join(part.split()) for topic in topics.values() for part in topic.split("\n\n")}
    assert len(long_paragraphs) == len(set(long_paragraphs))
    assert everything == {" ".join(part.split()) for text in texts for part in text.split("\n\n")}


def test_a_python_without_documentation(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match="has no documentation topics"):
        documents("python-docs")


def test_made_world_is_parallel_and_ends_at_the_size_asked_for():
    english = list(documents("tinyworld-en", seed=3, n_bytes=20_000))
    size, last = sum(len(text.encode()) for text in english), len(english[-1].encode())
    assert size - last < 20_000 <= size
    assert english == list(documents("tinyworld-en", seed=3, n_bytes=20_000))
    assert english != list(documents("tinyworld-en", seed=4, n_bytes=20_000))
    chinese = list(documents("tinyworld-zh", seed=3, n_bytes=20_000))
    n_both = min(len(english), len(chinese))
    assert [text.count(".") for text in english[:n_both]] == [text.count("。") for text in chinese[:n_both]]
    with pytest.raises(ConfigError, match="n_bytes"):
        list(documents("tinyworld-en", n_bytes=0))


def test_until_bytes_counts_bytes_not_characters():
    assert list(until_bytes(iter(["三", "b", "c", "d"]), 4)) == ["三", "b"]


def test_the_stored_checksum_is_that_of_tinyshakespeare():
    if not SHAKESPEARE.exists():
        pytest.skip("../shared/data/tinyshakespeare.txt is not here")
    assert SHAKESPEARE.stat().st_size == corpora.TINYSHAKESPEARE_BYTES
    assert sha256_of(SHAKESPEARE) == corpora.TINYSHAKESPEARE_SHA256


def test_tinyshakespeare_from_the_cache_needs_no_network(tmp_path):
    if not SHAKESPEARE.exists():
        pytest.skip("../shared/data/tinyshakespeare.txt is not here")
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare" / "input.txt").write_bytes(SHAKESPEARE.read_bytes())
    (text,) = documents("tinyshakespeare", cache_folder=tmp_path)
    assert text.encode() == SHAKESPEARE.read_bytes()


def test_without_a_network_tinyshakespeare_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setenv("https_proxy", "")
    with pytest.raises(DataError, match="cannot be downloaded .*check the network") as caught:
        documents("tinyshakespeare", cache_folder=tmp_path)
    assert "\n" not in str(caught.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def refuse(*_, **__):
    raise ConnectionRefusedError("connection refused")


@pytest.mark.parametrize("name", ["tinystories", "wikitext-2"])
def test_without_a_network_the_hub_sets_say_so(name, tmp_path, monkeypatch):
    calls = []

    def load_dataset(*arguments, **options):
        calls.append((arguments, options))
        raise ConnectionError("Couldn't reach the Hub\nand a second line")

    monkeypatch.setitem(sys.modules, "datasets", type(sys)("datasets"))
    sys.modules["datasets"].load_dataset = load_dataset
    with pytest.raises(DataError, match=f"{name} .*cannot be downloaded .*check the network.*stories") as caught:
        documents(name, split="validation", cache_folder=tmp_path)
    assert "\n" not in str(caught.value)
    (_, options), = calls
    assert options == {"split": "validation", "cache_dir": str(tmp_path / "hub")}


def test_a_missing_datasets_package_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        documents("tinystories")


def test_hub_rows_from_a_local_file_of_the_same_form(tmp_path):
    """In a process of its own: `datasets` starts threads and warns about things that are not ours."""
    rows = ["Once upon a time.", " = A = \n", "", " text \n", " = = Part = = \n", " = B = \n"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    program = f"""
import json, sys
from datasets import load_dataset
from minillm.data.corpora import articles, hub_rows
def load():
    return load_dataset("json", data_files={str(tmp_path / "rows.jsonl")!r}, split="train", cache_dir={str(tmp_path)!r})
print(json.dumps([list(hub_rows(load, "local", "small")), list(articles(hub_rows(load, "local", "small")))]))
"""
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    read, joined = json.loads(done.stdout.strip().splitlines()[-1])
    assert read == rows
    assert joined == ["Once upon a time.\n", " = A = \n\n text \n = = Part = = \n", " = B = \n"]


def test_articles():
    lines = ["", " = One = \n", "", " text = more \n", " = = = Deep = = = \n", " = Two , 2 = \n", " end \n"]
    assert [article.split("\n")[0] for article in articles(lines[1:])] == [" = One = ", " = Two , 2 = "]
    assert "".join(articles(lines)).replace("\n", "") == "".join(lines).replace("\n", "")
    assert list(articles([])) == [] and list(articles(["", "\n"])) == []


def test_parts_only_where_a_set_has_them(tmp_path):
    with pytest.raises(ConfigError, match="split must be one of train, validation, not 'test'"):
        documents("tinystories", split="test")
    with pytest.raises(ConfigError, match="in one piece"):
        documents("python-docs", split="validation")
    with pytest.raises(ConfigError, match="in one piece"):
        documents(tmp_path, split="validation")


def test_the_cache_follows_the_rule_of_each_system():
    home = Path("/home/ada")
    assert user_cache_folder("linux", {"XDG_CACHE_HOME": "/big"}, home) == Path("/big/minillm")
    assert user_cache_folder("linux", {}, home) == home / ".cache/minillm"
    assert user_cache_folder("darwin", {"XDG_CACHE_HOME": "/big"}, home) == home / "Library/Caches/minillm"
    assert user_cache_folder("win32", {"LOCALAPPDATA": "/local"}, home) == Path("/local/minillm/Cache")
    assert user_cache_folder("win32", {}, home) == home / "AppData/Local/minillm/Cache"


def test_the_data_floor_imports_neither_torch_nor_datasets():
    program = (
        "import sys, minillm.data.corpora, minillm.data.packing, minillm.data.batches, minillm.data.split;"
        "next(minillm.data.corpora.documents('tinyworld-en'));"
        "sys.exit(bool({'torch', 'datasets', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_hub_rows_reads_only_the_text():
    assert list(hub_rows(lambda: [{"text": "a", "label": 1}], "x", "y")) == ["a"]
