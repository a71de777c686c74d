"""Devices, number formats and generators: what is asked for comes, or an error says why not."""

import json

import numpy as np
import pytest
import torch

from minillm import runtime
from minillm.errors import CheckpointError, ConfigError, DeviceError
from minillm.runtime import (
    Rank,
    bf16_speed_ratio,
    choose_device,
    choose_dtype,
    default_generators,
    generator,
    generator_states,
    matmul_flops_per_second,
    restore_generators,
    set_threads,
)

CPU = torch.device("cpu")


def test_cpu_is_always_there_and_auto_finds_something():
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in ("cpu", "cuda", "mps")


def test_a_missing_card_is_an_error_not_a_fallback(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(DeviceError, match=f"{name}.*asked for"):
            choose_device(name)


def test_cards_are_counted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda") == torch.device("cuda", 0)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(DeviceError, match="2 CUDA cards"):
        choose_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "mps:1", "CPU"])
def test_unknown_devices(name):
    with pytest.raises(DeviceError, match="unknown"):
        choose_device(name)


@pytest.mark.parametrize(("ratio", "name"), [(3.9, "bf16"), (1.1, "fp32"), (0.1, "fp32")])
def test_auto_precision_follows_the_probe_and_says_so(monkeypatch, ratio, name):
    monkeypatch.setattr(runtime, "bf16_speed_ratio", lambda: ratio)
    choice = choose_dtype("auto", CPU)
    assert choice.name == name and f"1/{ratio}" in choice.reason
    assert choice.dtype == {"bf16": torch.bfloat16, "fp32": torch.float32}[name]


def test_asked_for_precision_is_not_probed(monkeypatch):
    monkeypatch.delattr(runtime, "bf16_speed_ratio")
    assert [choose_dtype(name, CPU).dtype for name in ("fp32", "bf16", "fp16")] == [
        torch.float32,
        torch.bfloat16,
        torch.float16,
    ]
    with pytest.raises(ConfigError, match="fp8.*known are auto, fp32, bf16, fp16"):
        choose_dtype("fp8", CPU)


def test_the_probe_measures():
    assert 0 < bf16_speed_ratio(size=64, budget_seconds=0.01) < 1000


def test_generators_are_their_own():
    before = torch.get_rng_state()
    assert torch.equal(torch.rand(4, generator=generator(7)), torch.rand(4, generator=generator(7)))
    assert not torch.equal(torch.rand(4, generator=generator(7)), torch.rand(4, generator=generator(8)))
    assert torch.equal(torch.get_rng_state(), before)
    for seed in (-1, 1 << 63):
        with pytest.raises(ConfigError, match="seed"):
            generator(seed)


def test_states_go_through_json_and_back():
    ours, theirs = generator(1), np.random.default_rng(2)
    torch.randn(5, generator=ours), theirs.normal(size=3)
    text = json.dumps(generator_states({"a": ours, "b": theirs}))
    expected = torch.randn(5, generator=ours), theirs.normal(size=3)
    other, another = generator(9), np.random.default_rng(9)
    restore_generators({"a": other, "b": another}, json.loads(text))
    assert torch.equal(torch.randn(5, generator=other), expected[0])
    assert np.array_equal(another.normal(size=3), expected[1])


def test_default_generator_is_the_one_of_dropout():
    generators = default_generators()
    saved = generator_states(generators)
    first = torch.nn.functional.dropout(torch.ones(20))
    restore_generators(generators, saved)
    assert torch.equal(torch.nn.functional.dropout(torch.ones(20)), first)


def test_states_that_do_not_fit_change_nothing():
    ours = generator(1)
    before = ours.get_state()
    states = generator_states({"a": generator(3), "b": np.random.default_rng(1)})
    for names in ({"a": ours, "c": generator(1)}, {"a": ours, "b": generator(1)}):
        with pytest.raises(CheckpointError, match="expected a saved torch state"):
            restore_generators(names, states)
    assert torch.equal(ours.get_state(), before)
    with pytest.raises(CheckpointError, match="does not fit"):
        restore_generators({"a": ours}, {"a": {"kind": "torch", "state": "AAAA"}})


def test_rank_zero_speaks(capsys):
    Rank(0, 2).print("hello", 1)
    Rank(1, 2).print("not me")
    assert capsys.readouterr().out == "hello 1\n"
    for number, size in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ConfigError):
            Rank(number, size)


def test_threads():
    before = torch.get_num_threads()
    try:
        set_threads(1)
        assert torch.get_num_threads() == 1
        set_threads(0)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    with pytest.raises(ConfigError, match="threads"):
        set_threads(-1)


def test_rate_of_matrix_products_counts_two_operations_per_multiplication(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr(runtime.time, "perf_counter", lambda: next(ticks) * 0.5)  # every product takes half a second
    assert matmul_flops_per_second(CPU, torch.float32, size=8, n_times=2) == 2 * 8**3 / 0.5
