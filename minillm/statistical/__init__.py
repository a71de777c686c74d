"""Language models that count, and compressors: what every neural model has to beat."""
