"""Metrics files: whole lines only, cut where a resumed run goes on."""

import json

import pytest

from minillm.errors import DataError
from minillm.train.metrics import MetricsWriter, read_metrics


def write(path, steps, **options):
    with MetricsWriter(path, **options) as writer:
        for step in steps:
            writer.write(kind="train", step=step, loss=1.0 / step)
    return path


def test_lines_come_back(tmp_path):
    path = write(tmp_path / "run" / "metrics.jsonl", [1, 2, 3])
    assert read_metrics(path)[1] == {"kind": "train", "step": 2, "loss": 0.5}
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert read_metrics(path, kind="validation") == []


def test_a_new_run_starts_a_new_file_and_a_resumed_one_is_cut(tmp_path):
    path = write(tmp_path / "m.jsonl", [1, 2, 3, 4])
    write(path, [3, 4, 5], after_step=2)
    assert [entry["step"] for entry in read_metrics(path)] == [1, 2, 3, 4, 5]
    write(path, [7])
    assert [entry["step"] for entry in read_metrics(path)] == [7]


def test_pending_kinds_are_cut_at_the_step_itself(tmp_path):
    path = tmp_path / "m.jsonl"
    with MetricsWriter(path) as writer:
        for step in (1, 2, 3):
            writer.write(kind="train", step=step)
            writer.write(kind="validation", step=step)
    MetricsWriter(path, after_step=2, pending=("validation",)).close()
    assert [(e["kind"], e["step"]) for e in read_metrics(path)] == [("train", 1), ("validation", 1), ("train", 2)]


def test_each_line_is_in_the_file_at_once(tmp_path):
    writer = MetricsWriter(tmp_path / "m.jsonl")
    writer.write(step=1, text="行\u2028\n", value=float("nan"))
    assert read_metrics(tmp_path / "m.jsonl") == [{"step": 1, "text": "行\u2028\n", "value": None}]
    writer.close()


def test_a_half_written_last_line_is_left_out_and_cut(tmp_path):
    path = write(tmp_path / "m.jsonl", [1, 2])
    for rest in ('{"step": 3, "lo', '{"step": 3}', "\x00\x00"):
        path.write_text('{"step": 1}\n{"step": 2}\n' + rest)
        assert [entry["step"] for entry in read_metrics(path)] == [1, 2]
        MetricsWriter(path, after_step=9).close()
        assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_damage_in_the_middle_and_missing_files(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"m\.jsonl, line 2"):
        read_metrics(path)
    with pytest.raises(DataError, match="No such file"):
        read_metrics(tmp_path / "none.jsonl")
