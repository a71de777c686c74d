"""Chapter 12, GPT: fill in the holes (15 points).

`minillm course test 12` tests this file, `minillm course test 12 12.1` one task of it.
Each docstring says what its function must do; the chapter explains why.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minillm.errors import SamplingError, ShapeError
from minillm.infer.generate import token_places
from minillm.infer.sampling import SamplingConfig, keep_min_p, keep_top_k, penalize_repetition
from minillm.models.gpt import GPT, GPTConfig, make_feed_forward, make_norm
from minillm.nn.attention import SelfAttention
from minillm.nn.cache import KVCache
from minillm.nn.feedforward import GATED


class Block(nn.Module):
    """One layer of the decoder: x + attention(norm(x)), then x + feed_forward(norm(x)).

    Args:
        config: the decoder's settings.
        generator: where the initial weights come from; None is torch's own default generator.

    Source:
        Radford et al. 2019, "Language models are unsupervised multitask learners", section 2.3 (norm before each part,
        output weights scaled by 1/sqrt(2 L) at the start).
    """

    def __init__(self, config: GPTConfig, generator: torch.Generator | None = None):
        super().__init__()
        output_std = 0.0 if config.zero_outputs else 0.02 / math.sqrt(2 * config.n_layers)
        self.attention_norm = make_norm(config)
        self.attention = SelfAttention(
            config.d_model,
            config.n_heads,
            config.n_kv_heads,
            bias=config.bias,
            qk_norm=config.qk_norm,
            max_score=config.max_score,
            output_std=output_std,
            kernels=config.kernels,
            generator=generator,
            alibi=config.position == "alibi",
            window=config.window,
            rotary_layout=config.rotary_layout,
        )
        self.feed_forward_norm = make_norm(config)
        self.feed_forward = make_feed_forward(config, output_std, generator)
        self.dropout = config.dropout

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        rotation: tuple[Tensor, Tensor] | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Add to each vector what attention finds in the sequence, then what the feed-forward layer makes of the sum.

        Each part reads a normalised copy (its own norm) and its output passes through `drop` before it is added; the
        vectors themselves are passed on unchanged otherwise.

        Args:
            x: (B, T, C).
            mask: as all that follow, an argument of `SelfAttention.forward`; they are handed on in this order.
            causal: hide later positions.
            rotation: cosine and sine of the rotary angles, or None.
            cache: keys and values of earlier positions, or None.
            layer: which layer of the cache this is.

        Returns:
            (B, T, C).
        """
        # TASK 12.1 (3 points)
        # What is normalised is only what a part reads: the vectors themselves go on as they are. Attention needs
        # everything that you were given, in the same order. The feed-forward layer starts from what attention has
        # added. Both outputs pass through `self.drop`.
        raise NotImplementedError("task 12.1")

    def drop(self, x: Tensor) -> Tensor:
        """Dropout while training, nothing otherwise."""
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


def next_token_targets(token_ids: Tensor, counted: Tensor | None = None, ignore_index: int = -100) -> Tensor:
    """The target of each position is the token after it; where there is none to learn it is `ignore_index`.

    Args:
        token_ids: (..., T) integer ids, also the model's inputs.
        counted: (..., T) bool, True for each token that is to be predicted, False for padding and for whatever else
            the model shall read but not learn to write; None counts all.
        ignore_index: what the loss leaves out.

    Returns:
        (..., T) in the dtype of `token_ids`; the last position has no token after it.

    Raises:
        ShapeError: if `counted` has another shape or is not bool.

    Example:
        >>> ids = torch.tensor([[7, 8, 9, 0]])
        >>> next_token_targets(ids).tolist()
        [[8, 9, 0, -100]]
        >>> next_token_targets(ids, torch.tensor([[True, True, True, False]])).tolist()  # the 0 is padding
        [[8, 9, -100, -100]]
    """
    # TASK 12.2 (2 points)
    # Begin with a tensor full of `ignore_index` and copy the ids into it, one place to the left. `counted` speaks
    # of the token that is predicted, and that token has moved: the mask must move with it.
    raise NotImplementedError("task 12.2")


def parameters_by_part(config: GPTConfig) -> dict[str, int]:
    """Where the learned numbers of a decoder are.

    A linear map from d_in to d_out has d_in * d_out weights, and d_out biases where `config.bias` asks for them.

    Args:
        config: the shape.

    Returns:
        The numbers of each part, all layers together, under seven names:
        "token embedding": one vector of width C per id.
        "position embedding": one vector per place up to max_seq_len if positions are learned, else 0.
        "token shift": one number per channel if `config.token_shift`, else 0.
        "attention": the map to queries (C numbers), keys and values (G heads of width D each), and the map that mixes
            the heads (C to C). Normalised queries and keys learn nothing.
        "feed-forward": up (C to F) and down (F to C); "swiglu" and "geglu" have a gate (C to F) besides.
        "norms": two per layer, one at the end, and one more if `config.embedding_norm`; each with C scales if
            `config.norm_weight`, and, if it is a "layer" norm and `config.bias`, with C shifts; an "rms" norm has none.
        "head": one vector per id, unless `config.tie_embeddings` uses those of the token embedding; no bias.

    Example:
        >>> parameters_by_part(model_config("gpt2", "nano", vocab_size=100, max_seq_len=32))["attention"]  # 2 layers
        33280
    """
    # TASK 12.3 (3 points)
    # Write down the shape of each matrix of one block first: with G < H the map to queries, keys and values is
    # narrower than 3 C. Then ask of each setting which part it changes: `bias`, `norm`, `norm_weight`,
    # `feed_forward` (is it in `GATED`?), `position`, `token_shift`, `embedding_norm`, `tie_embeddings`.
    # `config.d_head` is the width of a head.
    raise NotImplementedError("task 12.3")


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest likeliest tokens whose probabilities sum to at least p; the others become -inf.

    Args:
        logits: (..., V); -inf is allowed.
        p: in (0, 1]; the likeliest token always stays.

    Returns:
        (..., V), a new tensor; kept scores are as they were. Of equally likely tokens those with the smaller ids stay.

    Source:
        Holtzman et al. 2019, arXiv:1904.09751, section 3.1 (nucleus sampling).

    Example:
        >>> logits = torch.tensor([[0.5, 0.2, 0.3]]).log()
        >>> keep_top_p(logits, 0.7).isfinite().tolist()
        [[True, False, True]]
    """
    # TASK 12.4 (2 points)
    # Sort each row from the likeliest token down. A token is dropped when the tokens before it already sum to p:
    # so the sum in question leaves the token itself out. `scatter` along the order of the sort brings the
    # decision back to the places the tokens had.
    raise NotImplementedError("task 12.4")


def filter_logits(logits: Tensor, config: SamplingConfig, seen: Tensor | None = None) -> Tensor:
    """Apply every filter that the config asks for, in the order of its fields; temperature 0 divides by nothing.

    A setting that is off (see `SamplingConfig`) changes no score. Each filter works on what the one before it left:
    top-p sums the probabilities of the tokens that top-k kept, at the temperature asked for.

    Args:
        logits: (B, V) scores; they are not changed.
        config: the settings.
        seen: (B, V) bool, tokens that already occurred; needed for a repetition penalty other than 1.

    Returns:
        (B, V) scores; softmax of them is the distribution to draw from.

    Raises:
        SamplingError: if top_k exceeds V, or seen tokens are needed and missing.
    """
    # TASK 12.5 (2 points)
    # One `if` per field of the config, from the top down, each handing its result to the next. Which value means
    # "off" stands in the docstring of `SamplingConfig`; a temperature of 0 is such a value.
    raise NotImplementedError("task 12.5")


def logits_after(model: GPT, rows: Sequence[list[int]], cache: KVCache | None = None) -> Tensor:
    """The model's scores of the token after each row.

    Rows are padded on the left to equal length (with any id); a mask hides the padding, and positions count from each
    row's first token. With a cache only the places that it does not hold yet go through the model, and they see all
    places: their token ids and positions are cut to the new ones, the mask is not.

    Args:
        model: the model; `model.hidden` takes token ids (B, T), cache, mask (B, S) and positions (B, T) and gives the
            last vectors (B, T, C), `model.logits` turns vectors (..., C) into scores (..., V).
        rows: B lists of at least one id, none longer than the model's context.
        cache: what the model remembers of the same rows when they were shorter, `cache.length` padded places; the new
            ones are added to it. None computes everything.

    Returns:
        (B, V): each row's scores are those it would get alone and without a cache.
    """
    # TASK 12.6 (3 points)
    # Three things have the length of the padded rows: ids, mask and positions. The cache holds the first
    # `cache.length` places, so ids and positions lose those, but the new tokens must still see them: the mask
    # stays whole. The scores asked for are those after the last place only.
    raise NotImplementedError("task 12.6")
