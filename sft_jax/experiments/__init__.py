"""End-to-end programs: quickstart, the ceiling and solutions experiments, and the plans of the shipped configs."""
