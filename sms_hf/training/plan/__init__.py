"""Pure values: what a run will do."""
