"""Stage 4: tokenised examples -> datasets on disk, packing plans, batches."""
