"""Starting points for the RL stage: the reward model and the frozen reference policy."""
