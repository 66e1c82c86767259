"""One training under a mask; all overrides of Trainer live here."""
