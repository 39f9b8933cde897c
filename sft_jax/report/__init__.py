"""Output for people: terminal tables, progress during a run, and self-contained HTML pages."""
