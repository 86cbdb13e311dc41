"""The network, what it is trained by and measured with. No Ray here, and nothing of lungseg.data."""
