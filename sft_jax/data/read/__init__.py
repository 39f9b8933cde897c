"""Stage 1: read files, Parquet, TFDS, the hub and buckets into rows with file and line."""
