"""`minillm models`: every family and size is listed with its count; two families print as a difference."""

from minillm.cli import main
from minillm.models.registry import difference_table, families, model_config, parameters, sizes
from minillm.verbs.models import in_words


def test_every_family_and_size_is_listed_with_its_parameters(capsys):
    assert main(["models", "--vocab-size", "300", "--max-seq-len", "64"]) == 0
    head, shapes, *lines = capsys.readouterr().out.splitlines()
    assert tuple(head.split()[1:]) == sizes() and shapes.split()[-1] == "24/16/1024"
    for family, line in zip(families(), lines, strict=False):
        assert line.split()[0] == family
        for size in sizes():
            assert in_words(parameters(model_config(family, size, 300, 64))) in line
    assert "(" in lines[families().index("mixtral")] and "(" not in lines[families().index("llama")]


def test_one_family_alone(capsys):
    assert main(["models", "llama"]) == 0
    shown = capsys.readouterr().out
    assert "\nllama " in shown and "\ngpt2 " not in shown


def test_two_families_print_as_a_difference(capsys):
    assert main(["models", "gpt2", "llama", "--size", "tiny", "--vocab-size", "99", "--max-seq-len", "32"]) == 0
    first, second = (model_config(family, "tiny", 99, 32) for family in ("gpt2", "llama"))
    shown = capsys.readouterr().out
    assert shown == difference_table(first, second, "gpt2", "llama") + "\n"
    assert "swiglu" in shown and "rotary" in shown


def test_unknown_names_are_named_with_the_known_ones(refuses):
    refuses(["models", "gpt5", "llama"], "'gpt5'", "mistral")
    refuses(["models", "gpt2", "llama", "--size", "huge"], "'huge'", "nano")
    refuses(["models", "gpt5"], "'gpt5'", "mistral")
    refuses(["models", "--vocab-size", "0"], "vocab_size")
