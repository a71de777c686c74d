"""`minillm demo`: everything is there, a finished demo is not made twice, nobody's files are deleted."""

import json

import pytest

from minillm.cli import main


@pytest.mark.slow
def test_quick_demo_leaves_everything_and_is_not_made_twice(tmp_path, capsys):
    out = tmp_path / "my demo"
    words = ["demo", "--quick", "--precision", "fp32", "--device", "cpu", "--out", str(out)]
    assert main(words) == 0
    names = {path.name for path in out.iterdir()}
    files = {"tokenizer.json", "metrics.jsonl", "loss.png", "bars.png", "samples.txt", "report.md"}
    assert names >= files | {"checkpoints", "world"}
    report = (out / "report.md").read_text()
    assert report.count("minillm, this demo's model") == 2
    assert "true entropy" in report and "Names and objects" in report
    lines = (out / "metrics.jsonl").read_text().splitlines()
    kinds = {json.loads(line)["kind"] for line in lines}
    assert kinds >= {"train", "validation", "sample"}
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    capsys.readouterr()
    assert main(words) == 0
    assert report in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert main([*words, "--seed", "1"]) == 2, "other settings must be asked for with --force"
    assert main(["generate", str(out), "--max-new-tokens", "5"]) == 0


def test_a_folder_with_other_things_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main(["demo", "--quick", "--out", str(tmp_path)]) == 2
    assert "thesis.txt" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
