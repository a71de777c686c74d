"""All three at once: copies of the model over dp, its layers over pp, its matrices over tp.

A rank is one place in the grid. It holds, of the stage that its place in the pipeline gives it, the slices that its
place in the tensor-parallel group gives it; the ranks of its data-parallel group hold the same. Nothing of this changes
what is computed: weights, losses and norms are those of one process with the whole batch.

Dimensions: B rows of one data-parallel rank, T positions.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from minillm.errors import ConfigError
from minillm.models.gpt import GPT, GPTConfig
from minillm.parallel.buckets import GradientBuckets
from minillm.parallel.clip import clip_global_gradients
from minillm.parallel.data_parallel import DEFAULT_BUCKET_BYTES, broadcast_module, global_token_count
from minillm.parallel.layout import GPT_PLAN, check_tensor_parallel
from minillm.parallel.mesh import Mesh, MeshSize
from minillm.parallel.pipeline import PipelineEngine, PipelineReport, counts_once, sync_tied_gradients
from minillm.parallel.schedules import make_schedule
from minillm.parallel.shard_model import finish_tensor_gradients, shard_model
from minillm.parallel.stages import PipelineStage, check_pipeline
from minillm.parallel.vocab_loss import VocabParallelLoss
from minillm.train.accumulation import LossSum
from minillm.train.loss import IGNORED, next_token_loss


@dataclass(frozen=True)
class PipelineConfig:
    """How a batch goes through the stages.

    Args:
        schedule: "naive", "gpipe", "1f1b" or "interleaved".
        n_microbatches: parts M of each data-parallel rank's batch.
        n_chunks: stages on each rank, more than 1 only interleaved.
    """

    schedule: str = "1f1b"
    n_microbatches: int = 1
    n_chunks: int = 1


@dataclass(frozen=True)
class GridReport:
    """What a step computed; the same on all ranks, except for `pipeline`.

    Attributes:
        loss: mean over the counted targets of the global batch in nats, a float64 scalar.
        n_tokens: number of those targets.
        pipeline: this rank's view of its pipeline.
    """

    loss: Tensor
    n_tokens: int
    pipeline: PipelineReport


def check_grid(config: GPTConfig, size: MeshSize, pipeline: PipelineConfig | None = None) -> None:
    """Refuse a grid that a decoder cannot be cut into; needs no ranks.

    Args:
        config: the decoder's settings.
        size: of the grid.
        pipeline: schedule and chunks.

    Raises:
        ConfigError: naming what does not fit, and why it must.

    Example:
        >>> config = GPTConfig(vocab_size=8, max_seq_len=8, n_layers=2, n_heads=2, d_model=8)
        >>> check_grid(config, MeshSize(dp=2, pp=2, tp=2))
        >>> check_grid(config, MeshSize(pp=4))
        Traceback (most recent call last):
        minillm.errors.ConfigError: pp=4 with 1 chunk(s) per rank needs 4 layers or more, the model has n_layers 2: ...
    """
    pipeline = pipeline or PipelineConfig()
    if size.tp > 1:
        check_tensor_parallel(config, size.tp)
    check_pipeline(config, size.pp, pipeline.n_chunks)
    make_schedule(pipeline.schedule, size.pp, pipeline.n_microbatches, pipeline.n_chunks)
    if size.tp > 1 and config.n_experts:
        raise ConfigError(f"a mixture of {config.n_experts} experts has no tensor-parallel plan; use dp")


class Parallel3D:
    """This rank's part of a decoder, and everything that makes a training step of it.

    A step is `gradients`, `clip` and the optimizer's own step over `parameters()`; `train_step` does all three.

    Args:
        model: the whole decoder, on the device where it is to be trained; it is used up. All ranks make it; the weights
            of rank 0 are taken.
        mesh: the grid.
        pipeline: schedule, micro-batches and chunks.
        sequence_parallel: whether tensor-parallel ranks share out the positions between the products.
        bucket_bytes: of the gradients that go round over dp together, during the backward pass of the last micro-batch.
        autocast: makes the context for forward passes, for example `Precision.autocast`.

    Attributes:
        part: this rank's part; its parameters have the whole model's names. Its state is put together by
            `minillm.parallel.full_state`.

    Raises:
        ConfigError: as `check_grid`.
        CommError: if the ranks made different models.

    Example:
        >>> from minillm.parallel.threads import launch_threads
        >>> config = GPTConfig(vocab_size=8, max_seq_len=4, n_layers=2, n_heads=2, d_model=4)
        >>> token_ids = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])
        >>> def norm(comm, size):
        ...     grid = Parallel3D(GPT(config, torch.Generator().manual_seed(0)), Mesh(size, comm))
        ...     _ = grid.gradients(token_ids, token_ids.flip(0))
        ...     return f"{grid.clip(1.0).item():.5f}"
        >>> launch_threads(norm, 4, MeshSize(pp=2, tp=2)) == 4 * launch_threads(norm, 1, MeshSize())
        True
    """

    def __init__(
        self,
        model: GPT,
        mesh: Mesh,
        pipeline: PipelineConfig | None = None,
        sequence_parallel: bool = False,
        bucket_bytes: int = DEFAULT_BUCKET_BYTES,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ):
        pipeline = pipeline or PipelineConfig()
        check_grid(model.config, mesh.size, pipeline)
        broadcast_module(model, mesh.world)
        self.config, self.mesh, self.pipeline = model.config, mesh, pipeline
        self.part = PipelineStage(model, mesh.pp.rank, mesh.pp.size, pipeline.n_chunks)
        self.sharding = shard_model(self.part, GPT_PLAN, mesh.tp, sequence_parallel) if mesh.tp.size > 1 else None
        self.part.n_shares = mesh.tp.size if self.sharding and sequence_parallel else 1
        schedule = make_schedule(pipeline.schedule, mesh.pp.size, pipeline.n_microbatches, pipeline.n_chunks)
        self.engine = PipelineEngine(self.part, mesh.pp, schedule, autocast)
        self.names = {parameter: name for name, parameter in self.part.named_parameters()}
        self.buckets = self.make_buckets(bucket_bytes) if mesh.dp.size > 1 else None
        self.n_backward: Counter[Tensor] = Counter()

    def parameters(self) -> list[Tensor]:
        """What this rank trains."""
        return [parameter for parameter in self.names if parameter.requires_grad]

    def gradients(
        self, inputs: Tensor, targets: Tensor, loss_sum: LossSum | None = None, scale: float = 1.0
    ) -> GridReport:
        """Leave in each `.grad` the gradient of the mean loss over the global batch, whole where it was in parts.

        Args:
            inputs: (B, T) token ids of this data-parallel rank; its stages and tensor-parallel ranks have the same.
            targets: (B, T) token ids; -100 is not counted.
            loss_sum: (model, inputs, targets) -> summed loss, where the model gives this rank's part of the vocabulary
                if tp is above 1; None is the cross-entropy. What is no sum over tokens (the balance of experts) is that
                of each micro-batch, as with gradient accumulation.
            scale: factor on the gradients (loss scaling), not on the loss returned.

        Raises:
            ShapeError, CommError: as `PipelineEngine.step`.
        """
        mesh = self.mesh
        if loss_sum is None:
            loss_sum = VocabParallelLoss(mesh.tp) if mesh.tp.size > 1 else next_token_loss
        n_tokens = int((targets != IGNORED).sum())
        if mesh.dp.size > 1:
            n_tokens = global_token_count(n_tokens, mesh.dp)
        self.n_backward.clear()
        report = self.engine.step(inputs, targets, loss_sum, n_tokens, scale)
        loss = report.loss_sum.clone()
        if self.buckets is not None:
            self.buckets.finish(1.0)                               # engine.step has divided by the global count
            mesh.dp.all_reduce(loss)
        if self.sharding is not None:
            finish_tensor_gradients(self.part, self.sharding)
        sync_tied_gradients(self.part, mesh.pp)
        return GridReport(loss / max(n_tokens, 1), n_tokens, report)

    def clip(self, max_norm: float) -> Tensor:
        """Shorten the gradient of the whole model, if it is too long; see `clip_global_gradients`.

        Args:
            max_norm: the largest norm allowed; infinity only measures.

        Returns:
            the norm of the whole model's gradient before clipping, the same on all ranks.
        """
        return clip_global_gradients(self.parameters(), max_norm, [self.mesh.tp, self.mesh.pp], self.is_counted)

    def is_counted(self, parameter: Tensor) -> bool:
        """Whether this rank counts a parameter in sums over tp and pp, in which each number is to appear once."""
        name = self.names[parameter]
        counts_in_tp = self.sharding is None or self.sharding.is_counted(name)
        return counts_in_tp and counts_once(self.part, name)

    def train_step(
        self, optimizer: Optimizer, inputs: Tensor, targets: Tensor, max_norm: float = 1.0
    ) -> tuple[float, float]:
        """One step of training; the optimizer is one over `parameters()` that treats each number alone (AdamW, SGD).

        Returns:
            loss in nats per token and the gradient's norm before clipping.
        """
        report = self.gradients(inputs, targets)
        norm = self.clip(max_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss, norm = torch.stack([report.loss, norm.to(report.loss)]).tolist()
        return loss, norm

    def make_buckets(self, bucket_bytes: int) -> GradientBuckets:
        """The sums over dp, begun as soon as the last micro-batch has added to a gradient."""
        for parameter in self.parameters():
            parameter.register_post_accumulate_grad_hook(self.gradient_grew)
        return GradientBuckets(self.parameters(), self.mesh.dp, bucket_bytes)

    def gradient_grew(self, parameter: Tensor) -> None:
        """Called by autograd each time a micro-batch has added to a gradient."""
        self.n_backward[parameter] += 1
        if self.n_backward[parameter] == self.pipeline.n_microbatches:
            self.buckets.ready(parameter)
