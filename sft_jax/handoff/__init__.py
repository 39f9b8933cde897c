"""What the RL stage starts from: the reward model, and the frozen reference of the KL term."""
