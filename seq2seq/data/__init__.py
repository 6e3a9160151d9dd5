"""Text in: corpora, tokenizers, batches and the order in which batches come."""
