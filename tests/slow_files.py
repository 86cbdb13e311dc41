"""Files of slow tests, for their assignment to test processes."""

SHARE_RESULTS = ("tests/cluster/test_bucket.py", "tests/cluster/test_full_disk.py")
"""Files that share the results of undisturbed jobs."""

SLOWEST = (
    "tests/cluster/test_nodes.py",
    *SHARE_RESULTS,
    "tests/cluster/test_submitted.py",
    "tests/pipelines/test_train_killed.py",
    "tests/fuzz/test_files.py",
    "tests/pipelines/test_infer_killed.py",
    "tests/pipelines/test_prepare_killed.py",
    "tests/cluster/test_partition.py",
    "tests/fuzz/test_images.py",
    "tests/test_edge.py",
)
"""By processor time: the longest start first, so that no test process waits for another one at the end."""
