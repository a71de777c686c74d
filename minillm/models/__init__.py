"""Whole models; each file reads from top to bottom."""
