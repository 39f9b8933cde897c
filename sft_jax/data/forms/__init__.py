"""Stage 2: convert a row of any known form into demonstrations."""
