"""A task for encoder-decoders: strings of digits and their reversal."""

import numpy as np
import torch

from minillm.infer.text_to_text import write_greedily

PADDING, START, END = 0, 1, 2  # digits are 3 to 12


def is_held_out(digits):
    """Strings whose digits add up to a multiple of 7 are never shown."""
    return digits.sum() % 7 == 0


def random_digits(generator):
    return generator.integers(3, 13, generator.integers(2, 9))


def reversal_batches(step, n_rows=64):
    """Inputs and targets of one step."""
    generator = np.random.default_rng(step)
    inputs, targets = np.full((n_rows, 9), PADDING), np.full((n_rows, 9), -100)
    row = 0
    while row < n_rows:
        digits = random_digits(generator)
        if not is_held_out(digits):
            inputs[row, : len(digits)], targets[row, : len(digits)] = digits, digits[::-1]
            targets[row, len(digits)] = END
            row += 1
    return inputs, targets


def share_reversed(model, n_strings=200):
    """Share of strings that the model never saw and reverses without a mistake."""
    generator = np.random.default_rng(99)
    strings = [digits for digits in (random_digits(generator) for _ in range(20 * n_strings)) if is_held_out(digits)]
    strings = strings[:n_strings]
    source = torch.full((len(strings), 9), PADDING)
    for row, digits in enumerate(strings):
        source[row, : len(digits)] = torch.from_numpy(digits)
    written = write_greedily(model, source, source != PADDING, start_id=START, end_id=END, max_new_tokens=9)
    return np.mean([ids == digits[::-1].tolist() for ids, digits in zip(written, strings, strict=True)])
