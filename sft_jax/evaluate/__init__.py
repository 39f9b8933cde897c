"""What a run changed: behaviour on held-out requests before and after, and the ceiling that imitation hits."""
