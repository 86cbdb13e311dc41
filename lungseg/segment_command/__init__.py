"""The command `lungseg segment`: any files to masks, overlays and a table."""
