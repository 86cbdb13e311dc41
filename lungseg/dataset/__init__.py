"""Read prepared data: catalog, samples, folds, duplicates."""
