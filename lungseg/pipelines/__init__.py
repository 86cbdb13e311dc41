"""What the jobs do, over a cluster: the only modules that import ray, and entry.py, which imports them when asked."""
