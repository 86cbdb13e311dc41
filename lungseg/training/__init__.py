"""Train one run on one rank."""
