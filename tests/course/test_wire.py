"""Values over the border: what goes in comes out, and bytes from an enemy do nothing."""

import io
import json
import os
import random
import struct
import sys
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from minillm.course import wire
from minillm.course.wire import Endless, Remote, Seeded, WireError, dumps, loads
from minillm.models.gpt import GPTConfig


def same(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one.cpu(), other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and (one == other or one != one)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -(10**30),
        0.1,
        float("nan"),
        float("-inf"),
        2 + 3j,
        Fraction(-3, 11),
        "héllo \ud800 \x00",
        b"\x00\xff",
        [1, [2, (3, {"a": {4}, 5: frozenset()})]],
        {(1, 2): b"x", None: [], True: 1.0},
        range(3, 9, 2),
        slice(1, None, 2),
        Path("a/b"),
        np.arange(6.0).reshape(2, 3).T,
        np.array(["a", "bc"]),
        np.zeros((0, 3), np.int16),
        np.array(True),
        np.float32(1.5),
        torch.tensor(3.0),
        torch.zeros(2, 0, 3, dtype=torch.int8),
        torch.tensor([[True, False]]),
        torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).T,
        torch.tensor([1 + 2j]).conj(),
        torch.bfloat16,
        torch.device("cpu"),
        GPTConfig(vocab_size=9, max_seq_len=4, n_layers=1, n_heads=1, d_model=4),
    ],
    ids=str,
)
def test_values_come_back(value):
    back = loads(dumps(value))
    assert same(value, back)


@pytest.mark.parametrize("dtype", [x for x in (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.uint16)])
def test_narrow_tensors_come_back_bit_by_bit(dtype):
    value = torch.arange(8, dtype=torch.float32).to(dtype)
    back = loads(dumps(value))
    assert back.dtype == dtype and torch.equal(back.view(torch.uint8), value.view(torch.uint8))


def test_gradients_and_parameters_travel():
    parameter, plain = torch.nn.Parameter(torch.ones(2)), torch.zeros(3, requires_grad=True)
    parameter.grad, plain.grad = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0, 3.0])
    back, other = loads(dumps([parameter, plain]))
    assert type(back) is torch.nn.Parameter and back.grad.tolist() == [3.0, 4.0]
    assert type(other) is torch.Tensor and other.requires_grad and other.grad.tolist() == [1.0, 2.0, 3.0]
    assert not loads(dumps(plain * 2)).requires_grad


def test_one_tensor_in_two_places_stays_one():
    x, array = torch.zeros(2), np.zeros(2)
    a, b, (c, d) = loads(dumps([x, x, (array, array)]))
    assert a is b and c is d and a.data_ptr() != x.data_ptr()


def test_what_becomes_something_else():
    generator, numpy_generator, forever = loads(dumps([Seeded(5), Seeded(5, "numpy"), Endless([1, 2])]))
    assert torch.rand(1, generator=generator) == torch.rand(1, generator=torch.Generator().manual_seed(5))
    assert numpy_generator.random() == np.random.default_rng(5).random()
    assert [next(forever) for _ in range(5)] == [1, 2, 1, 2, 1]


def test_objects_stay_where_they_are():
    kept = []
    module = torch.nn.Linear(1, 1)
    data = dumps({"m": [module]}, keep=lambda value: kept.append(value) or 7)
    assert loads(data) == {"m": [Remote(7, "Linear")]} and kept == [module]
    assert loads(data, find=lambda remote: remote.number + 1) == {"m": [8]}
    with pytest.raises(WireError, match="a Linear cannot be sent"):
        dumps(module)


def test_sets_are_written_in_one_order():
    assert dumps({"b", "a", "c"}) == dumps({"c", "b", "a"})


@pytest.mark.parametrize("value", [[1, 0], [1, -2], [True, 2], [1.5, 2], [1], [1, 2, 3], "12", None])
def test_what_is_no_fraction_is_refused(value):
    with pytest.raises(WireError):
        loads(message({"type": "fraction", "value": value}))


def message(structure, arrays=b""):
    text = structure if isinstance(structure, bytes) else json.dumps(structure).encode()
    return struct.pack(">II", len(text), len(arrays)) + text + arrays


def archive(*entries, compression=zipfile.ZIP_STORED):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as file:
        for name, content in entries:
            file.writestr(name, content)
    return data.getvalue()


def npy(array, **options):
    data = io.BytesIO()
    np.lib.format.write_array(data, array, **options)
    return data.getvalue()


class Bomb:
    def __reduce__(self):
        return os.system, ("touch /tmp/minillm-wire-bomb",)


ARRAY = {"type": "array", "value": "a0"}
HOSTILE = {
    "empty": b"",
    "short header": b"\0\0",
    "length lies": struct.pack(">II", 10, 0) + b"{}",
    "too long": struct.pack(">II", 2**32 - 1, 0),
    "no json": message(b"{"),
    "not ascii": message(b'"\xff"'),
    "deep json": message(b"[" * 10**6),
    "deep values": message(b'{"type":"list","value":[' * 200 + b"]}" * 200),
    "bare list": message([1]),
    "no type": message({"value": 1}),
    "unknown type": message({"type": "pickle", "value": ""}),
    "type is a list": message({"type": [], "value": ""}),
    "no array": message(ARRAY),
    "object array": message(ARRAY, archive(("a0.npy", npy(np.array([Bomb()], dtype=object), allow_pickle=True)))),
    "compressed": message(ARRAY, archive(("a0.npy", npy(np.zeros(9))), compression=zipfile.ZIP_DEFLATED)),
    "huge shape": message(
        ARRAY, archive(("a0.npy", npy(np.zeros(9)).replace(b"(9,), }            ", b"(999999999999,), } ")))
    ),
    "no zip": message(ARRAY, b"PK\x03\x04 nothing"),
    "tensor too large": message({"type": "tensor", "value": "a0", "dtype": "float64", "shape": [2**40]}),
    "negative shape": message(
        {"type": "tensor", "value": "a0", "dtype": "uint8", "shape": [-1, -9]},
        archive(("a0.npy", npy(np.zeros(9, np.uint8)))),
    ),
    "unknown dtype": message({"type": "tensor", "value": "a0", "dtype": "__class__", "shape": []}),
    "foreign class": message({"type": "config", "class": "os:system", "value": []}),
    "class of the course": message({"type": "config", "class": "minillm.course.wire:Seeded", "value": []}),
    "function of ours": message({"type": "config", "class": "minillm.cli:main", "value": []}),
    "module not loaded": message({"type": "config", "class": "minillm.__main__:X", "value": []}),
    "bad fields": message({"type": "config", "class": "minillm.models.gpt:GPTConfig", "value": []}),
    "unhashable in a set": message({"type": "set", "value": [{"type": "list", "value": []}]}),
    "odd pairs": message({"type": "dict", "value": [{"type": "list", "value": [1, 2, 3]}]}),
    "bad hex": message({"type": "bytes", "value": "xyz"}),
    "bad device": message({"type": "device", "value": "cuda:-7:x"}),
    "bad seed": message({"type": "seeded", "value": ["a", "torch"]}),
    "giant integer": message(b"9" * 5000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_refused(name):
    before = set(sys.modules)
    with pytest.raises(WireError):
        loads(HOSTILE[name])
    assert not os.path.exists("/tmp/minillm-wire-bomb") and set(sys.modules) - before <= {"encodings.idna"}


def test_random_damage_never_does_more_than_raise():
    rng = random.Random(0)
    whole = dumps({"value": [torch.ones(3), np.arange(4), "text", {"k": (1, 2.5)}, Seeded(3), b"abc"]})
    refused = 0
    for _ in range(1500):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            loads(bytes(data))
        except WireError:
            refused += 1
    assert refused > 200


def test_forged_booleans_are_booleans():
    tensor = {"type": "tensor", "value": "a0", "dtype": "bool", "shape": [3]}
    back = loads(message(tensor, archive(("a0.npy", npy(np.array([0, 1, 77], np.uint8))))))
    assert back.int().tolist() == [0, 1, 1]


def test_what_is_too_large_is_not_sent(monkeypatch):
    monkeypatch.setattr(wire, "MAX_ARRAY_BYTES", 1000)
    with pytest.raises(WireError, match="at most"):
        dumps(torch.zeros(1000))
