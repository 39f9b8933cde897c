"""Has imitation hit its ceiling? Runs on subsets of the demonstrations, a scaling fit, scores, a verdict, its page."""
