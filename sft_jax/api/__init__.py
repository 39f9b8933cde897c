"""What a notebook or script sees, and what every command calls: `load`, `Model`, `Run`."""
