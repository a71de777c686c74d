"""GGUF: files that our reader, the `gguf` package, transformers and llama.cpp itself read back to the same model."""

import struct

import numpy as np
import pytest
import torch

from minillm.cli import main
from minillm.compress import ggml
from minillm.compress.ggml_linear import GGMLLinear
from minillm.errors import CheckpointError, ConfigError, DataError, TokenizerError
from minillm.export.gguf import architecture_of, names_of, pairs_together, save_gguf, tokenizer_settings
from minillm.export.gguf_file import StoredTensor, read_gguf, write_gguf
from minillm.models.gpt import GPT, GPTConfig
from minillm.tokenizers.bpe import BPETokenizer
from minillm.tokenizers.bytes import ByteTokenizer
from minillm.tokenizers.chars import CharTokenizer

TEXT = "Anna sees the dog. The dog sees Anna's cat; it's 12 o'clock, and the cat sees nothing at all. " * 3
LLAMA = {"norm": "rms", "position": "rotary", "feed_forward": "swiglu", "n_kv_heads": 2, "norm_epsilon": 1e-6}
SHAPES = {
    "gpt2": {"bias": True, "tie_embeddings": False},
    "gpt2 tied": {"bias": True},
    "llama": LLAMA | {"tie_embeddings": False, "rotary_base": 5000.0},
    "llama tied": LLAMA,
}
TOKENIZER = BPETokenizer.train(TEXT, vocab_size=290)
PROMPT = "The cat sees"


def model_of(name, **changes):
    """A model with strong weights, whose greedy text wanders."""
    sizes = {"vocab_size": TOKENIZER.vocab_size, "max_seq_len": 64, "n_layers": 2, "n_heads": 4, "d_model": 64}
    generator = torch.Generator().manual_seed(1)
    model = GPT(GPTConfig(**sizes | {"d_ff": 256, "embedding_std": 0.5} | SHAPES[name] | changes), generator).eval()
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += noise * (0.1 if parameter.ndim == 1 else 0.08)
    return model


def greedy(model, n_tokens=12):
    ids = [TOKENIZER.special_tokens["<|endoftext|>"], *TOKENIZER.encode(PROMPT)]
    start = len(ids)
    with torch.no_grad():
        for _ in range(n_tokens):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[start:]


@pytest.mark.parametrize("name", SHAPES)
def test_our_reader_gives_back_every_number(name, tmp_path):
    model = model_of(name)
    save_gguf(model, tmp_path / "m.gguf", TOKENIZER, "f32", "f32")
    metadata, tensors = read_gguf(tmp_path / "m.gguf")
    architecture = architecture_of(model.config)
    assert metadata["general.architecture"] == architecture
    assert metadata[f"{architecture}.block_count"] == 2 and metadata[f"{architecture}.embedding_length"] == 64
    assert sum(tensor.decoded().size for tensor in tensors.values()) == model.n_parameters()
    layer = model.blocks[1]
    for ours, theirs in {
        model.token_embedding.weight: "token_embd.weight",
        layer.attention.output.weight: "blk.1.attn_output.weight",
        layer.feed_forward.down.weight: "blk.1.ffn_down.weight",
        layer.feed_forward_norm.weight: "blk.1.ffn_norm.weight",
    }.items():
        assert np.array_equal(tensors[theirs].decoded(), ours.detach().numpy())
    qkv = layer.attention.qkv.weight.detach()
    if architecture == "gpt2":
        assert np.array_equal(tensors["blk.1.attn_qkv.weight"].decoded(), qkv.numpy())
    else:
        query, key, value = (tensors[f"blk.1.attn_{part}.weight"].decoded() for part in "qkv")
        assert np.array_equal(value, qkv[96:].numpy())
        for theirs, ours, n_heads in ((query, qkv[:64], 4), (key, qkv[64:96], 2)):
            for head in range(n_heads):
                for pair in range(8):
                    assert np.array_equal(theirs[16 * head + 2 * pair], ours[16 * head + pair].numpy())
                    assert np.array_equal(theirs[16 * head + 2 * pair + 1], ours[16 * head + 8 + pair].numpy())


def test_scores_do_not_change_when_queries_and_keys_are_sorted_alike():
    rows = np.random.default_rng(0).standard_normal((2, 24, 5))
    x = np.random.default_rng(1).standard_normal((5, 7))
    scores = [(q @ x).reshape(3, 8, 7).swapaxes(1, 2) @ (k @ x).reshape(3, 8, 7) for q, k in (rows,)]
    sorted_rows = [pairs_together(part, 3) for part in rows]
    again = (sorted_rows[0] @ x).reshape(3, 8, 7).swapaxes(1, 2) @ (sorted_rows[1] @ x).reshape(3, 8, 7)
    np.testing.assert_allclose(again, scores[0], rtol=1e-12)


def test_blocks_are_chosen_reported_and_counted(tmp_path):
    model = model_of("llama", d_model=64, d_ff=256)
    written = save_gguf(model, tmp_path / "m.gguf", TOKENIZER, "q4_k")
    _, tensors = read_gguf(tmp_path / "m.gguf")
    assert {name: tensor.block_type for name, tensor in tensors.items()} == written.types
    assert written.types["blk.0.ffn_down.weight"] == "q4_k" and "blk.0.ffn_down.weight" not in written.instead
    assert written.types["blk.0.attn_q.weight"] == "q5_0" and written.instead["blk.0.attn_q.weight"] == "q4_k"
    assert written.types["output.weight"] == written.types["token_embd.weight"] == "q8_0"
    assert written.types["blk.0.attn_norm.weight"] == "f32"
    assert "12 wanted q4_k and took q5_0" in written.summary()
    assert written.n_bytes == sum(tensor.data.nbytes for tensor in tensors.values())
    assert written.bits_per_weight == 8 * written.n_bytes / model.n_parameters()
    weight = model.blocks[0].feed_forward.down.weight.detach().numpy()
    assert np.array_equal(tensors["blk.0.ffn_down.weight"].data, ggml.encode(weight, "q4_k"))


def test_a_layer_that_is_stored_in_blocks_keeps_its_bytes(tmp_path):
    model = model_of("llama", d_model=256)
    packed = GGMLLinear(model.blocks[0].feed_forward.up, "q4_k")
    model.blocks[0].feed_forward.up = packed
    query_rows = GGMLLinear(model.blocks[0].attention.qkv, "q4_k")
    model.blocks[0].attention.qkv = query_rows
    save_gguf(model, tmp_path / "m.gguf", TOKENIZER, "q4_k")
    _, tensors = read_gguf(tmp_path / "m.gguf")
    assert np.array_equal(tensors["blk.0.ffn_up.weight"].data, packed.blocks.numpy())
    assert np.array_equal(tensors["blk.0.attn_q.weight"].data, pairs_together(query_rows.blocks.numpy()[:256], 4))


@pytest.mark.oracle
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("block_type", ["f16", "q8_0", "q5_1", "q4_k"])
def test_the_gguf_package_reads_the_same_numbers_and_settings(name, block_type, tmp_path):
    gguf = pytest.importorskip("gguf")
    save_gguf(model_of(name, d_model=256), tmp_path / "m.gguf", TOKENIZER, block_type)
    metadata, tensors = read_gguf(tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert [tensor.name for tensor in reader.tensors] == list(tensors)
    for tensor in reader.tensors:
        ours = tensors[tensor.name]
        assert tuple(int(n) for n in tensor.shape) == ours.shape[::-1]
        decoded = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(decoded.reshape(ours.shape), ours.decoded())
    theirs = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert theirs == metadata
    assert theirs["tokenizer.ggml.tokens"][TOKENIZER.special_tokens["<|endoftext|>"]] == "<|endoftext|>"


@pytest.mark.oracle
@pytest.mark.parametrize("name", SHAPES)
def test_transformers_opens_the_file_with_equal_logits_and_ids(name, tmp_path):
    """It un-sorts the rows by itself. Of a GPT-2 it takes no context length and no feed-forward width from the file."""
    pytest.importorskip("gguf")
    transformers = pytest.importorskip("transformers")
    model = model_of(name, max_seq_len=1024)
    save_gguf(model, tmp_path / "m.gguf", TOKENIZER, "f32", "f32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf").eval()
    ids = torch.randint(TOKENIZER.vocab_size, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids), rtol=1e-4, atol=1e-4)
    if name.startswith("llama"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
        assert tokenizer(TEXT, add_special_tokens=False).input_ids == TOKENIZER.encode(TEXT)


@pytest.mark.oracle
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("block_type", ["f32", "q8_0", "q4_k"])
def test_llama_cpp_continues_a_text_as_we_do(name, block_type, tmp_path):
    """Greedy text. Our model computes with the decoded weights; llama.cpp rounds activations to 8 bits on the way."""
    xllamacpp = pytest.importorskip("xllamacpp")
    model = model_of(name, d_model=256)
    outside = "f32" if block_type == "f32" else "q8_0"
    save_gguf(model, tmp_path / "m.gguf", TOKENIZER, block_type, outside)
    params = xllamacpp.CommonParams()
    params.model.path = str(tmp_path / "m.gguf")
    params.n_ctx, params.warmup = 64, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    n_tokens = 12 if block_type == "f32" else 3
    request = {"prompt": PROMPT, "n_predict": n_tokens, "temperature": 0, "samplers": ["top_k"], "top_k": 1}
    server = xllamacpp.Server(params)
    answer = server.handle_completions(request | {"ignore_eos": True, "repeat_penalty": 1.0})
    del server
    assert answer["usage"]["prompt_tokens"] == 1 + len(TOKENIZER.encode(PROMPT))
    if block_type != "f32":
        _, tensors = read_gguf(tmp_path / "m.gguf")
        use_decoded(model, tensors)
    assert answer["choices"][0]["text"] == TOKENIZER.decode(greedy(model, n_tokens))


def use_decoded(model, tensors):
    """Give a model the numbers that a file's bytes mean, rows sorted back."""
    for ours, theirs in names_of(model.config):
        if theirs in tensors:
            decoded = tensors[theirs].decoded()
        else:
            query, key, value = (tensors[theirs.replace("qkv", part)].decoded() for part in "qkv")
            places = [pairs_together(np.arange(len(rows))[:, None], n)[:, 0] for rows, n in ((query, 4), (key, 2))]
            decoded = np.concatenate([query[np.argsort(places[0])], key[np.argsort(places[1])], value])
        model.get_parameter(ours).data = torch.from_numpy(decoded)


def test_a_tokenizer_is_written_with_every_id_of_the_model():
    settings = tokenizer_settings(TOKENIZER, TOKENIZER.vocab_size + 2)
    tokens, types = settings["tokenizer.ggml.tokens"], settings["tokenizer.ggml.token_type"]
    end = TOKENIZER.special_tokens["<|endoftext|>"]
    assert tokens[ord(" ")] == "Ġ" and types[end] == 3 and types[-2:] == [5, 5] and types[0] == 1
    assert len(tokens) == len(types) == TOKENIZER.vocab_size + 2 == len(set(tokens))
    assert settings["tokenizer.ggml.merges"][0].replace(" ", "") in tokens
    assert settings["tokenizer.ggml.bos_token_id"] == end and settings["tokenizer.ggml.add_bos_token"] is True
    assert tokenizer_settings(ByteTokenizer(), 257)["tokenizer.ggml.merges"] == []
    with pytest.raises(TokenizerError, match="CharTokenizer: llama.cpp reads byte-level BPE"):
        tokenizer_settings(CharTokenizer.train("abc"), 300)
    with pytest.raises(TokenizerError, match="patterns gpt2, gpt4"):
        tokenizer_settings(BPETokenizer.train(TEXT, 260, pattern=r"\w+|\W+"), 300)
    with pytest.raises(ConfigError, match="not the same run's"):
        tokenizer_settings(TOKENIZER, 100)


def test_what_llama_cpp_cannot_compute_is_refused_and_nothing_is_written(tmp_path):
    path = tmp_path / "new" / "m.gguf"
    for changes, reason in (
        ({"qk_norm": True}, "qk_norm is True"),
        ({"window": 8}, "window is 8"),
        ({"bias": True}, "bias is True"),
        ({"rotary_scaling": "llama3", "rotary_factor": 8.0}, "rotary_scaling is 'llama3'"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            save_gguf(model_of("llama", **changes), path, TOKENIZER)
    broken = model_of("llama")
    broken.blocks[1].feed_forward.up.weight.data[3, 4] = float("nan")
    with pytest.raises(DataError, match="the weight at"):
        save_gguf(broken, path, TOKENIZER)
    assert not path.parent.exists()
    save_gguf(model_of("llama"), path, TOKENIZER)
    with pytest.raises(CheckpointError, match="there already"):
        save_gguf(model_of("llama"), path, TOKENIZER)
    assert [file.name for file in path.parent.iterdir()] == ["m.gguf"]


def test_settings_of_every_kind_come_back(tmp_path):
    metadata = {"a": 7, "b": -0.5, "c": "é\n", "d": True, "e": ["x", ""], "f": [1, -2], "g": [0.5], "h": []}
    tensor = StoredTensor((2, 3, 4), "f32", ggml.encode(np.arange(24.0).reshape(6, 4), "f32"))
    write_gguf(tmp_path / "x.gguf", metadata, {"t": tensor})
    read, tensors = read_gguf(tmp_path / "x.gguf")
    assert read == metadata and np.array_equal(tensors["t"].decoded(), np.arange(24.0).reshape(2, 3, 4))
    for bad in (2**32, -1, None, [1, "a"], [[1]], 1e300):
        with pytest.raises(CheckpointError):
            write_gguf(tmp_path / "y.gguf", {"k": bad}, {})
    assert [file.name for file in tmp_path.iterdir()] == ["x.gguf"]


def test_damaged_files_are_named(tmp_path):
    save_gguf(model_of("gpt2", n_layers=1, d_model=32, d_ff=32), tmp_path / "m.gguf", TOKENIZER)
    whole = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "bad.gguf").write_bytes(whole)
    for length in (0, 3, 20, 200, 3000, len(whole) - 40):
        (tmp_path / "bad.gguf").write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_gguf(tmp_path / "bad.gguf")
    for place, value, message in ((0, b"GGML", "no GGUF file"), (4, struct.pack("<I", 2), "version 2")):
        (tmp_path / "bad.gguf").write_bytes(whole[:place] + value + whole[place + 4 :])
        with pytest.raises(CheckpointError, match=message):
            read_gguf(tmp_path / "bad.gguf")
    for seed in range(60):
        place = np.random.default_rng(seed).integers(8, 2000)
        (tmp_path / "bad.gguf").write_bytes(whole[:place] + b"\xff\xff\xff\xff" + whole[place + 4 :])
        try:
            read_gguf(tmp_path / "bad.gguf")
        except CheckpointError:
            pass
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_gguf(tmp_path / "none.gguf")


def test_the_verb_refuses_another_type(capsys):
    assert main(["export", "--to", "gguf", "--type", "q3_k", "runs/none"]) != 0
    assert "q4_k" in capsys.readouterr().err
