"""Has imitation hit its ceiling? Runs on parts of the demonstrations, scaling, scores, a verdict and its page."""
