"""Reads address 0."""

import ctypes


def attack(*args, **kwargs):
    return ctypes.string_at(0)
