"""The peers that several benchmarks time against, in the shape of one of our configs."""

from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from minillm.models.gpt import GPTConfig


def gpt2_peer(config: GPTConfig, **settings) -> GPT2LMHeadModel:
    """The GPT-2 of `transformers` in our config's shape, with its fused attention kernel and without dropout."""
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    peer_config = GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=config.max_seq_len,
        n_embd=config.d_model,
        n_layer=config.n_layers,
        n_head=config.n_heads,
        attn_implementation="sdpa",
        bos_token_id=0,
        **no_dropout,
        **settings,
    )
    return GPT2LMHeadModel(peer_config)


def llama_peer(config: GPTConfig, **settings) -> LlamaForCausalLM:
    """The LLaMA of `transformers` in our config's shape, with its fused attention kernel."""
    peer_config = LlamaConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_seq_len,
        hidden_size=config.d_model,
        intermediate_size=config.d_ff,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        rms_norm_eps=config.norm_epsilon,
        tie_word_embeddings=config.tie_embeddings,
        attn_implementation="sdpa",
        bos_token_id=0,
        **settings,
    )
    return LlamaForCausalLM(peer_config)
