"""The shape comments of nn, models and infer are true, and the tracer that says so can fail."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from helpers.shape_comments import checked_shape_comments, comments_of

import minillm
from minillm.infer.generate import generate
from minillm.infer.packed import pack_linears
from minillm.infer.sampling import GREEDY, SamplingConfig
from minillm.models.gpt import GPT
from minillm.models.registry import families, model_config
from minillm.nn import functional
from minillm.nn.attention import CrossAttention, padding_mask
from minillm.nn.embedding import embedding
from minillm.nn.feedforward import gelu_feed_forward, relu2_feed_forward, swiglu_feed_forward

ROOT = Path(minillm.__file__).parent


def exercise_the_library():
    """Run every commented line of the three floors at sizes that differ from one another."""
    everything = SamplingConfig(temperature=0.7, top_k=5, top_p=0.9, min_p=0.01, repetition_penalty=1.2)
    for family in families():
        for kernels in ("torch", "naive"):
            settings = {"n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "d_model": 24, "kernels": kernels}
            model = GPT(model_config(family, "nano", 13, 9, norm_weight=True, **settings))
            model(torch.randint(13, (3, 7))).sum().backward()
            generate(model, [[1, 2], [3, 4, 5]], 9, everything, generator=torch.Generator().manual_seed(0))
            generate(model, [[1, 2]], 2, GREEDY)
    x, up, down = torch.ones(2, 3, 4), torch.ones(5, 4), torch.ones(4, 5)
    swiglu_feed_forward(x, up, up, down), gelu_feed_forward(x, up, down), relu2_feed_forward(x, up, down)
    functional.log_softmax(x)
    source_mask = padding_mask(torch.tensor([0, 4]), 5)
    CrossAttention(24, 4, 2, d_source=10)(torch.ones(2, 3, 24), torch.ones(2, 5, 10), source_mask)
    embedding(torch.ones(2, 3, dtype=torch.long), up)
    plain = model_config("gpt2", "nano", 13, 9, n_layers=1)
    rough = GPT(plain).bfloat16()
    rough(torch.randint(13, (3, 7))).float().sum().backward()
    generate(rough, [[1, 2]], 2, GREEDY)
    pack_linears(rough)


def test_comments_of_the_library_are_true_and_are_reached():
    seen = set()
    previous = sys.gettrace()
    with checked_shape_comments(ROOT, seen):
        exercise_the_library()
    assert sys.gettrace() is previous
    files = [path for floor in ("nn", "models", "infer") for path in (ROOT / floor).glob("*.py")]
    written = {(str(path), comment.line) for path in files for comment in comments_of(str(path)).values()}
    # Python does not trace what the autograd engine calls from its own threads: backward passes stay unseen.
    missed = {(file, line) for file, line in written - seen if not file.endswith("norm.py")}
    assert not missed, f"shape comments that no line of this test reached: {sorted(missed)}"


LIES = {
    "plain": "y = x.sum(0)  # (B, C)",
    "size": "y = torch.zeros(5, 3)  # (B, C)",
    "number": "y = x[:, :2]  # (B, 4)",
    "several lines": "y = torch.cat(\n        (x, x),\n        dim=0,\n    )  # (B, C)",
    "tuple": "y, z = x, x.T  # (B, C)",
    "added": "y = 0\n    y += x.T  # (B, C)",
    "return": "return x.T  # (B, C)",
    "return over lines": "return torch.cat(\n        (x, x),\n    )  # (B, C)",
    "leading": "y = x.T  # (..., C)",
}


@pytest.mark.parametrize("name", LIES)
@pytest.mark.parametrize("lie", [True, False])
def test_tracer_catches_lies_only(tmp_path, name, lie):
    statement = LIES[name]
    if not lie:
        for wrong, right in ((".T", ""), (".sum(0)", ""), ("(5, 3)", "(2, 3)"), ("4)", "2)"), ("(x, x)", "(x,)")):
            statement = statement.replace(wrong, right)
    path = tmp_path / f"module_{abs(hash((name, lie)))}.py"
    path.write_text(f"import torch\n\n\ndef f(x):\n    x = x * 1  # (B, C)\n    {statement}\n    return None\n")
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
        assert len(seen) == 2
