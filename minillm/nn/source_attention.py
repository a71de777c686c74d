"""Cross-attention in two steps, for decoders that look at the same source again and again while they generate."""

from torch import Tensor

from minillm.nn.attention import CrossAttention, merge_heads, mix_heads, split_heads


class SourceAttention(CrossAttention):
    """`CrossAttention` whose keys and values can be computed once: attend(x, *keys_values(source), mask) is forward.

    Settings and weights are those of `CrossAttention`.

    Source:
        Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3; keeping keys and values: Shazeer 2019, arXiv:1911.02150,
        section 2.4.
    """

    def keys_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """What a source offers and gives: computed once for all the steps of generation that look at it.

        Args:
            source: (B, S, W).

        Returns:
            Keys and values, each (B, G, S, D), for `attend`.
        """
        key, value = self.key_value(source).chunk(2, dim=-1)
        return split_heads(key, self.n_kv_heads), split_heads(value, self.n_kv_heads)

    def attend(
        self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """`forward` with the keys and values that `keys_values` made of the source, and a bias when there is one.

        Args:
            x: (B, T, C).
            key: (B, G, S, D).
            value: (B, G, S, D).
            mask: as in `forward`.
            bias: numbers added to the scores, broadcastable to (B, H, T, S), or None.

        Returns:
            (B, T, C).
        """
        query = split_heads(self.query(x), self.n_heads)           # (B, H, T, D)
        return self.output(merge_heads(mix_heads(query, key, value, mask, kernels=self.kernels, bias=bias)))
