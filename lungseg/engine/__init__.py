"""Training and prediction in plain PyTorch: everything here runs in one process without Ray."""
