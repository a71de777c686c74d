"""The loss of a mixture of experts: its parts, and that the training loop lowers them without the model knowing."""

import pytest
import torch
from torch import nn

from minillm.errors import ConfigError
from minillm.nn.moe import MixtureOfExperts, load_balancing_loss, recorded_routing, router_z_loss
from minillm.train.accumulation import accumulate_gradients
from minillm.train.loss import next_token_loss
from minillm.train.mixture import MixtureLoss


class SmallModel(nn.Module):
    """Two layers of experts between an embedding and a head."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Embedding(7, 6, _weight=torch.randn(7, 6, generator=generator))
        self.layers = nn.ModuleList(
            MixtureOfExperts(6, 8, n_experts=4, n_active=1, std=0.5, generator=generator) for _ in range(2)
        )

    def forward(self, ids):
        x = self.embedding(ids)
        for layer in self.layers:
            x = x + layer(x)
        return x @ self.embedding.weight.T


def batch():
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randint(7, (2, 3, 5), generator=generator)
    targets[0, :2] = -100
    return inputs, targets


def test_it_is_the_plain_loss_and_two_losses_per_layer():
    model, (inputs, targets) = SmallModel(), batch()
    with recorded_routing(model) as routings:
        plain = next_token_loss(model, inputs, targets)
    balance = sum(load_balancing_loss(routing.logits, routing.chosen) for routing in routings)
    z = sum(router_z_loss(routing.logits) for routing in routings)
    expected = plain + 13 * (0.3 * balance + 0.2 * z)  # 13 counted targets
    torch.testing.assert_close(MixtureLoss(0.3, 0.2)(model, inputs, targets), expected)
    assert len(routings) == 2 and balance > 2.0


def test_without_experts_it_is_the_plain_loss():
    model, (inputs, targets) = nn.Embedding(7, 7), batch()
    assert torch.equal(MixtureLoss()(model, inputs, targets), next_token_loss(model, inputs, targets))


def test_the_losses_reach_the_router_through_the_loop():
    inputs, targets = batch()
    gradients = []
    for loss_sum in (next_token_loss, MixtureLoss(1.0, 0.0)):
        model = SmallModel()
        accumulate_gradients(model, inputs, targets, 1, loss_sum)
        gradients.append(model.layers[0].router.weight.grad)
    assert not torch.allclose(*gradients)


@pytest.mark.parametrize("factors", [{"balance": -1.0}, {"z": float("nan")}])
def test_negative_factors_are_refused(factors):
    with pytest.raises(ConfigError, match=f"{next(iter(factors))} is"):
        MixtureLoss(**factors)
