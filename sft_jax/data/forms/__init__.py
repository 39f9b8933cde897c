"""Stage 2: a row of any known form -> demonstrations."""
