"""Check that a global batch can be divided among ranks and accumulated batches."""

DEFAULT_BATCH_SIZE = 8
"""Images per step of the reference project and of every recipe; --optim.scale-lr is relative to it."""


def global_batch_problem(global_size: int, ranks: int, accumulate_steps: int, min_batch_size: int) -> str:
    """Say why a global batch cannot be divided equally, and which values to pass instead; "" if it can."""
    size, rest = divmod(global_size, ranks * accumulate_steps)
    if not rest and size >= min_batch_size:
        return ""
    among = f"{ranks} ranks" + (f" x {accumulate_steps} accumulated batches" if accumulate_steps > 1 else "")
    reason = (
        f"cannot be divided equally among {among}"
        if rest
        else f"is 1 image for each of {among}, but batch norm has no variance over one image"
    )
    remedies = (
        [f"--workers-per-run {_listed(possible)}"]
        if (possible := _possible_ranks(global_size, accumulate_steps, min_batch_size))
        else []
    )
    unit = ranks * accumulate_steps
    near = sorted({max(size, min_batch_size) * unit, max(size + 1, min_batch_size) * unit})
    remedies.append(f"--loader.global-batch-size {_listed(near)}")
    if not rest:
        remedies.append("--compute.batch-norm sync (GPUs) or frozen")
    return f"--loader.global-batch-size {global_size} {reason}: pass {', or '.join(remedies)}"


def _possible_ranks(global_size: int, accumulate_steps: int, min_batch_size: int) -> list[int]:
    """List the numbers of ranks that divide a global batch, at most the five largest."""
    if global_size % accumulate_steps:
        return []
    images = global_size // accumulate_steps
    return [ranks for ranks in range(1, images // min_batch_size + 1) if images % ranks == 0][-5:]


def _listed(values: list[int]) -> str:
    *first, last = map(str, values)
    return f"{', '.join(first)} or {last}" if first else last
