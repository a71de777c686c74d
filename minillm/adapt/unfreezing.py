"""Gradual unfreezing: a new head learns first, and then the layers join it one by one, from the top down."""

from collections.abc import Collection

from torch import nn

from minillm import surgery
from minillm.adapt.layer_order import depths
from minillm.errors import ConfigError
from minillm.train.hooks import Hook, StepReport


class GradualUnfreezing(Hook):
    """A listener of the training loop that lets one more depth of the model learn every few steps.

    A new head is random, and so are the gradients that it sends down at first. While only the head learns they do no
    harm; when the layers below join, they are told something sensible. At the end of the run the model is as before:
    everything that was trainable is.

    Args:
        model: what is trainable now takes part, in the order of `layer_order.depths`; make the optimizer first, since
            an optimizer made of a frozen model knows nothing of what is frozen.
        steps_per_depth: so many steps after one depth the next one joins, at least 1.

    Raises:
        ConfigError: if the number is below 1, or nothing is trainable.

    Source:
        Howard and Ruder 2018, arXiv:1801.06146, section 3.3; there a depth joins after each epoch.

    Example:
        >>> model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2, False) for _ in range(2)])})
        >>> unfreezing = GradualUnfreezing(model, steps_per_depth=10)
        >>> unfreezing.let_learn(step=9)
        >>> list(surgery.trainable(model))
        ['blocks.1.weight']
        >>> unfreezing.let_learn(step=10)
        >>> list(surgery.trainable(model))
        ['blocks.0.weight', 'blocks.1.weight']
    """

    def __init__(self, model: nn.Module, steps_per_depth: int):
        trained, depth = surgery.trainable(model), depths(model)
        if steps_per_depth < 1 or not trained:
            raise ConfigError(
                f"steps_per_depth {steps_per_depth}, {len(trained)} trainable parameters: expected at least 1 of both"
            )
        self.model, self.steps_per_depth = model, steps_per_depth
        self.depth = {name: depth[name] for name in trained}

    def let_learn(self, step: int) -> None:
        """Freeze what does not learn yet in this step, and nothing else of what takes part.

        At step 0 the highest depth that takes part learns, after every `steps_per_depth` steps the next lower one too,
        until all do. A frozen parameter has no gradient.

        Args:
            step: number of steps made before, 0 or more.
        """
        from_the_top = sorted(set(self.depth.values()), reverse=True)
        joined = from_the_top[: 1 + step // self.steps_per_depth]
        for name, parameter in self.model.named_parameters():
            if name in self.depth:
                parameter.requires_grad_(self.depth[name] in joined)
                if self.depth[name] not in joined:
                    parameter.grad = None

    def on_start(self, step: int, n_steps: int, pending: Collection[str]) -> None:
        """Also of a run that is resumed: who learns depends on the step alone."""
        self.let_learn(step)

    def on_step(self, report: StepReport) -> None:
        """What the next step needs."""
        self.let_learn(report.step)

    def on_end(self) -> None:
        """Everything that took part is trainable again."""
        for name, parameter in self.model.named_parameters():
            if name in self.depth:
                parameter.requires_grad_(True)
