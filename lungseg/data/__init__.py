"""From an archive's files to the batches of one rank. No Ray here, and torch in loader alone."""
