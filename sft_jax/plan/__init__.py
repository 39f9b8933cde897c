"""The planner: memory, time and cost of a run on hardware you don't have."""
