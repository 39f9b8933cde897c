"""What chips can do."""
