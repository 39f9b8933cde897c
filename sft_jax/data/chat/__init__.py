"""Stage 3: a demonstration -> tokens and loss weights, by the tokenizer's own chat template."""
