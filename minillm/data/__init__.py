"""From text to batches: reading, named corpora, splitting, packing into memory-mapped shards, deterministic batches."""
