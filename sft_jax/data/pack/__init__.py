"""Stage 4: tokenised examples -> data sets on disk, packing plans, batches."""
