"""Weights stored by columns are the same weights."""

import torch

from minillm.infer.generate import generate
from minillm.infer.layout import store_by_columns
from minillm.infer.sampling import GREEDY
from minillm.models.gpt import GPT
from minillm.models.registry import model_config


def test_shapes_values_and_text_stay():
    config = model_config("gpt2", "nano", vocab_size=11, max_seq_len=32, tie_embeddings=False)
    rows, columns = (GPT(config, torch.Generator().manual_seed(0)).double().eval() for _ in range(2))
    assert store_by_columns(columns) is columns
    for (name, by_row), by_column in zip(rows.named_parameters(), columns.parameters(), strict=True):
        assert torch.equal(by_row, by_column)
        moved = name.endswith("weight") and by_row.dim() == 2 and "embedding" not in name
        assert by_column.t().is_contiguous() == moved or by_row.dim() == 1, name
    ids = torch.arange(10)[None]
    torch.testing.assert_close(columns(ids), rows(ids), rtol=1e-12, atol=1e-12)
    assert generate(columns, [[1, 2], [3]], 12, GREEDY) == generate(rows, [[1, 2], [3]], 12, GREEDY)
