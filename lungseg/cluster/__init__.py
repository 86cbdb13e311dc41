"""Ray connection, resources and shared storage of a cluster."""
