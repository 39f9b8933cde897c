"""Stage 1: files, Parquet, TFDS, hubs and buckets -> rows that know their file and line."""
