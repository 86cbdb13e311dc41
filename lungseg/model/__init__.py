"""The network, its losses, weights and checkpoints."""
