"""Programs that run the whole of it for a result of their own: quickstart, ceiling, solutions, plans of the configs."""
