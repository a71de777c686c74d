"""Our load-balancing loss is that of `transformers`' Mixtral, which counts visits without dividing by K."""

import pytest
import torch

from minillm.nn.moe import choose_experts, load_balancing_loss

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("n_active, n_tokens, n_experts, seed", [(1, 40, 4, 0), (2, 40, 4, 1), (3, 11, 7, 2)])
def test_load_balancing_loss(n_active, n_tokens, n_experts, seed):
    modeling = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    logits = 2.0 * torch.randn(n_tokens, n_experts, generator=torch.Generator().manual_seed(seed))
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = load_balancing_loss(ours, choose_experts(ours, n_active)[0])
    expected = modeling.load_balancing_loss_func((theirs,), n_experts, n_active)
    torch.testing.assert_close(n_active * loss, expected)
    (n_active * loss).backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
