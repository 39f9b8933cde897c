"""One Flax NNX decoder with config switches; knows nothing of data or training."""
