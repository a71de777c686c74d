"""The loss of a model with a mixture of experts: cross-entropy, and what keeps the router even and calm."""

from dataclasses import dataclass

from torch import Tensor, nn

from minillm.errors import ConfigError
from minillm.nn.moe import load_balancing_loss, recorded_routing, router_z_loss
from minillm.train.accumulation import LossSum
from minillm.train.loss import IGNORED, next_token_loss


@dataclass(frozen=True)
class MixtureLoss:
    """A `loss_sum` of the training loop: a loss plus, per counted target and layer, the router's two losses.

    The model is watched from outside (`recorded_routing`); for one without experts it is the plain loss.

    Args:
        balance: factor of `load_balancing_loss`.
        z: factor of `router_z_loss`.
        loss_sum: the loss that the model is trained for.

    Raises:
        ConfigError: if a factor is negative.

    Source:
        Fedus et al. 2021, arXiv:2101.03961, section 2.2 (0.01); Zoph et al. 2022, arXiv:2202.08906, section 3.2
        (0.001).
    """

    balance: float = 0.01
    z: float = 0.001
    loss_sum: LossSum = next_token_loss

    def __post_init__(self):
        for name in ("balance", "z"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected 0 or more")

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss summed over the counted targets; arguments as those of `next_token_loss`."""
        with recorded_routing(model) as routings:
            loss = self.loss_sum(model, inputs, targets)
        extra = sum(
            self.balance * load_balancing_loss(routing.logits, routing.chosen) + self.z * router_z_loss(routing.logits)
            for routing in routings
        )
        return loss + (targets != IGNORED).sum() * extra
