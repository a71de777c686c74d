"""The shape comments of the decoder and its parts are true, and the tracer that says so can fail.

The other files of these floors are held to the truth by their own tests when CI runs them with the tracer on.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.shape_comments import checked_shape_comments, comments_of, unheld_comments

import minillm
from minillm.infer.generate import generate
from minillm.infer.packed import pack_linears
from minillm.infer.sampling import GREEDY, SamplingConfig
from minillm.models.gpt import GPT
from minillm.models.registry import families, model_config
from minillm.nn import functional
from minillm.nn.attention import CrossAttention, padding_mask
from minillm.nn.embedding import embedding
from minillm.nn.feedforward import (
    geglu_feed_forward,
    gelu_feed_forward,
    relu2_feed_forward,
    relu_feed_forward,
    swiglu_feed_forward,
)
from minillm.nn.moe import MixtureOfExperts, load_balancing_loss, recorded_routing
from minillm.nn.position import rotary_angles, rotate, scaled_frequencies, sinusoidal_positions
from minillm.nn.relative_position import RelativeBias, alibi_bias, alibi_slopes, relative_distances
from minillm.nn.source_attention import SourceAttention
from minillm.nn.sparse_patterns import block_mask, random_layout, strided_mask, summary_mask
from minillm.nn.tiled_attention import tiled_attention

ROOT = Path(minillm.__file__).parent
DECODER = {
    "nn": (
        "attention attention_kernels cache embedding feedforward functional linear norm position relative_position "
        "source_attention sparse_patterns tiled_attention"
    ),
    "models": "gpt registry",
    "infer": "generate packed sampling",
}


def exercise_the_library():
    """Run every commented line of the three floors at sizes that differ from one another."""
    everything = SamplingConfig(temperature=0.7, top_k=5, top_p=0.9, min_p=0.01, repetition_penalty=1.2)
    for family in families():
        for kernels in functional.KERNELS:
            settings = {"n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "d_model": 24, "kernels": kernels}
            model = GPT(model_config(family, "nano", 13, 9, norm_weight=True, **settings))
            model(torch.randint(13, (3, 7))).sum().backward()
            generate(model, [[1, 2], [3, 4, 5]], 9, everything, generator=torch.Generator().manual_seed(0))
            generate(model, [[1, 2]], 2, GREEDY)
    for settings in ({"position": "sinusoidal"}, {"position": "alibi", "window": 3, "embedding_norm": True}):
        GPT(model_config("gpt2", "nano", 13, 9, n_layers=1, **settings))(torch.randint(13, (3, 7)))
    x, up, down = torch.ones(2, 3, 4), torch.ones(5, 4), torch.ones(4, 5)
    for gated in (swiglu_feed_forward, geglu_feed_forward):
        gated(x, up, up, down)
    for plain in (gelu_feed_forward, relu_feed_forward, relu2_feed_forward):
        plain(x, up, down)
    functional.log_softmax(x)
    source_mask = padding_mask(torch.tensor([0, 4]), 5)
    CrossAttention(24, 4, 2, d_source=10)(torch.ones(2, 3, 24), torch.ones(2, 5, 10), source_mask)
    cross = SourceAttention(24, 4, 2, d_source=10, scale=1.0, kernels="naive")
    cross.attend(torch.ones(2, 3, 24), *cross.keys_values(torch.ones(2, 5, 10)), source_mask, torch.ones(4, 3, 5))
    exercise_positions()
    embedding(torch.ones(2, 3, dtype=torch.long), up)
    for kernels in ("torch", "naive"):
        mixture = MixtureOfExperts(24, 10, 5, 2, capacity_factor=0.5, kernels=kernels)
        with recorded_routing(mixture) as routings:
            mixture(torch.ones(2, 3, 24))
        load_balancing_loss(routings[0].logits, routings[0].chosen)
    plain = model_config("gpt2", "nano", 13, 9, n_layers=1)
    rough = GPT(plain).bfloat16()
    rough(torch.randint(13, (3, 7))).float().sum().backward()
    generate(rough, [[1, 2]], 2, GREEDY)
    pack_linears(rough), pack_linears(GPT(plain))  # old processors have the packed product in fp32 alone


def exercise_positions():
    """The lines of both position modules that no family of decoders runs."""
    positions = torch.arange(5)
    sinusoidal_positions(positions, 6), rotary_angles(positions, 6)
    for scaling in ("none", "linear", "llama3"):
        scaled_frequencies(8, 100.0, scaling, 1.0, trained_len=16)
    rotate(torch.ones(5, 4), torch.ones(5, 2), torch.ones(5, 2), "interleaved")
    RelativeBias(3)(positions[:2], positions)
    tiled_attention(*torch.ones(3, 1, 2, 5, 4), window=3)
    alibi_bias(relative_distances(positions[:2], positions), alibi_slopes(3))
    strided_mask(2, 5, 2), summary_mask(2, 5, 3, 1), block_mask(random_layout(3, 1, 1, 1)[:1], 2, 2, 5)


def test_comments_of_the_library_are_true_and_are_reached():
    seen = set()
    previous = sys.gettrace()
    with checked_shape_comments(ROOT, seen):
        exercise_the_library()
    assert sys.gettrace() is previous
    files = [ROOT / floor / f"{name}.py" for floor, names in DECODER.items() for name in names.split()]
    written = {(str(path), comment.line) for path in files for comment in comments_of(str(path)).values()}
    missed = sorted(written - seen)
    assert not missed, f"shape comments that no line of this test reached: {missed}"


STATEMENTS = {  # with {} for what makes the statement false, and for what makes it true; x is (2, 3)
    "plain": ("y = x{}  # (B, C)", ".sum(0)", ""),
    "size": ("y = torch.zeros({}, 3)  # (B, C)", "5", "2"),
    "number": ("y = x[:, :2]  # (B, {})", "4", "2"),
    "several lines": ("y = torch.cat(\n        ({}),\n        dim=0,\n    )  # (B, C)", "x, x", "x,"),
    "tuple": ("y, z = x, x{}  # (B, C)", ".T", ""),
    "nested tuple": ("y, (z, w) = x, (x, x{})  # (B, C)", ".T", ""),
    "attribute": ("keep.y = x{}  # (B, C)", ".T", ""),
    "annotated": ("y: torch.Tensor = x{}  # (B, C)", ".T", ""),
    "added": ("y = 0\n    y += x{}  # (B, C)", ".T", ""),
    "return": ("return x{}  # (B, C)", ".T", ""),
    "return over lines": ("return torch.cat(\n        ({}),\n    )  # (B, C)", "x, x", "x,"),
    "leading": ("y = x{}  # (..., C)", ".T", ""),
    "loop": ("for row in x{}:  # (C)\n        row + 1", ".T", ""),
    "sizes of a round": ("for a in (x, x.T):\n        a = a * 1  # (R, S)\n        b = a.sum({})  # (R)", "0", "1"),
    "sizes around a loop": ("for a in (x, x{}):\n        a = a * 1  # (B, S)", ".T", ""),
}


@pytest.mark.parametrize("name", STATEMENTS)
@pytest.mark.parametrize("lie", [True, False])
def test_tracer_catches_lies_only(tmp_path, name, lie):
    pattern, wrong, right = STATEMENTS[name]
    statement = pattern.format(wrong if lie else right)
    path = tmp_path / f"module_{abs(hash((name, lie)))}.py"
    body = f"    x = x * 1  # (B, C)\n    {statement}\n    return None\n"
    path.write_text(f"import torch\n\n\ndef f(x, keep=torch.nn.Module()):\n{body}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    seen = set()
    if lie:
        with pytest.raises(AssertionError, match="comment says"), checked_shape_comments(tmp_path):
            module.f(torch.ones(2, 3))
    else:
        with checked_shape_comments(tmp_path, seen):
            module.f(torch.ones(2, 3))
        assert len(seen) == 1 + statement.count("#")


UNHELD = """
def f(x):
    y = (
        x.mT  # (B, C, T)
        .mT
    )  # (B, T, C)
    f(x)  # (B, T)
    z: int  # (B, T)
    places = {}  # (sentence, field) -> place
    return y, z  # the two (B, T)
"""


def test_comments_that_nothing_can_make_false_are_found(tmp_path):
    path = tmp_path / "unheld.py"
    path.write_text(UNHELD)
    assert unheld_comments(str(path)) == [4, 7, 8]


def traced(folder: Path, comment: str) -> subprocess.CompletedProcess:
    """Run the tracer as CI does, on a library of one function and its test."""
    (folder / "library").mkdir(exist_ok=True)
    library = f"def f(x):\n    y = x.T  # ({comment})\n    return y\n\n\ndef g(x):\n    return x  # (B, C)\n"
    (folder / "library" / "one.py").write_text(library)
    test = "import numpy\nfrom library.one import f\n\n\ndef test():\n    f(numpy.ones((2, 3)))\n"
    (folder / "test_one.py").write_text(test)
    run = "import sys; from helpers.shape_comments import main; from pathlib import Path; sys.path.insert(0, '.'); "
    run += "sys.exit(main(['test_one.py'], Path('library').resolve()))"
    environment = os.environ | {"PYTHONPATH": str(ROOT.parent / "tests"), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, "-c", run], cwd=folder, env=environment, capture_output=True, text=True)


def test_a_session_fails_for_lies_and_for_comments_that_no_test_reached(tmp_path):
    truth, lie = traced(tmp_path, "C, B"), traced(tmp_path, "C, B, T")
    assert truth.returncode == 1 and "1 passed" in truth.stdout, truth.stdout + truth.stderr
    assert "1 shape comments were held to the truth" in truth.stdout
    assert "one.py:7: no test reached this" in truth.stdout and "one.py:2" not in truth.stdout
    assert lie.returncode == 1 and "1 failed" in lie.stdout and "comment says (C, B, T)" in lie.stdout
