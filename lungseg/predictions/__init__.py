"""Read the files that an inference wrote."""
