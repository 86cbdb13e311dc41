"""Read, check and prepare records, and encode the tar members of their samples."""

import functools
import json
import logging
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import combinations

from lungseg import storage
from lungseg.arrays import U8
from lungseg.dataset import duplicates
from lungseg.dataset.shard_format import SAMPLE_ID_FIELDS, class_fields, encode_masks
from lungseg.errors import InputError
from lungseg.imaging import codecs
from lungseg.imaging.geometry import prepare_image, prepare_masks
from lungseg.ingest import record_checks
from lungseg.ingest.crash_isolation import map_isolated, reject_crashed
from lungseg.prepare.shard_plan import ShardPlan
from lungseg.schema import SCHEMA, Record, is_annotated

logger = logging.getLogger(__name__)

READ_THREADS = 4
"""Threads per task that read files ahead, because busy disks and buckets have long latencies."""

FileContents = dict[str, bytes | InputError]


@dataclass(frozen=True)
class EncodedSample:
    """A checked record and the encoded members of its sample; no members where the record is not usable.

    annotated: classes of its masks. overlaps: pairs of them that share pixels.
    """

    record: Record
    members: dict[str, bytes]
    annotated: tuple[str, ...] = ()
    overlaps: tuple[tuple[str, str], ...] = ()


class Stopwatch:
    """Sums seconds by stage. Time in a nested stage counts for the nested one only. Not thread-safe."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inner = 0.0

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        outer, self._inner = self._inner, 0.0
        began = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - began
            self.seconds[stage] += elapsed - self._inner
            self._inner = outer + elapsed


def encode_sample(
    record: Record, plan: ShardPlan, key: bytes | None, watch: Stopwatch, files: FileContents | None = None
) -> EncodedSample:
    """Check, prepare and encode one record; `files` are the contents or errors of files that were read ahead."""

    def read(uri: str) -> bytes:
        with watch.time("read"):
            content = (files or {}).get(uri)
            if isinstance(content, InputError):
                raise content
            return storage.read_bytes(uri) if content is None else content

    with watch.time("decode and check"):
        checked, image, native_masks = record_checks.open_record(record, plan.preprocess, plan.odd_masks, key, read)
        if image is not None:  # for the audit of duplicates
            checked = replace(checked, phash=duplicates.fingerprint(image))
    if image is None or not checked.usable:
        return EncodedSample(checked, {})
    with watch.time("prepare"):
        square, geometry = prepare_image(image, plan.preprocess, checked.orientation)
        masks = None if native_masks is None else prepare_masks(native_masks, geometry)
    with watch.time("encode"):
        meta = {
            "schema": SCHEMA,
            **{name: getattr(checked, name) for name in SAMPLE_ID_FIELDS},
            "geometry": asdict(geometry),
            **({} if masks is None else class_fields(masks, plan.preprocess.classes)),
        }
        members = {"image": codecs.encode_image(square), "json": json.dumps(meta).encode()}
        if masks is None:
            return EncodedSample(checked, members)
        members["mask"] = encode_masks(masks)
    return EncodedSample(checked, members, *_describe_classes(masks, plan.preprocess.classes))


def _describe_classes(masks: U8, classes: Sequence[str]) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Return the annotated classes of masks u8[K,S,S], and the pairs of them that share pixels."""
    own = {name: mask.astype(bool) for name, mask in zip(classes, masks, strict=True) if is_annotated(mask)}
    return tuple(own), tuple(pair for pair in combinations(own, 2) if (own[pair[0]] & own[pair[1]]).any())


def encode_samples(
    plan: ShardPlan, key: bytes | None, watch: Stopwatch, isolated: bool = False
) -> Iterator[EncodedSample]:
    """Encode the records of a plan in order, while threads read the files of the next ones.

    isolated: encode in another process. A record that kills it, as when a codec crashes on damaged bytes, becomes a
    failed record, and the others are encoded in a new process.
    """
    if isolated:
        yield from _encode_isolated(plan, key, watch)
        return

    with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="read") as pool:
        waiting: deque[Future[FileContents]] = deque()
        try:
            for number, record in enumerate(plan.records):
                ahead = plan.records[number + len(waiting) : number + READ_THREADS + 1]
                waiting.extend(pool.submit(_read, record_ahead) for record_ahead in ahead)
                with watch.time("read"):
                    files = waiting.popleft().result()
                yield encode_sample(record, plan, key, watch, files)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _read(record: Record) -> FileContents:
    """Return the contents of a record's files, or the error of a file that cannot be read."""
    files: FileContents = {}
    if not record.usable:
        return files
    for uri in (record.image_uri, *record.mask_uris):
        try:
            files[uri] = storage.read_bytes(uri)
        except InputError as error:
            files[uri] = error
    return files


def _encode_isolated(plan: ShardPlan, key: bytes | None, watch: Stopwatch) -> Iterator[EncodedSample]:
    encode = functools.partial(_encode_one, plan=replace(plan, records=()), key=key)
    for record, result in zip(plan.records, map_isolated(encode, plan.records), strict=True):
        if result is None:
            yield EncodedSample(reject_crashed(record), {})
            continue
        sample, seconds = result
        watch.seconds.update({stage: watch.seconds[stage] + elapsed for stage, elapsed in seconds.items()})
        yield sample


def _encode_one(record: Record, plan: ShardPlan, key: bytes | None) -> tuple[EncodedSample, dict[str, float]]:
    watch = Stopwatch()
    return encode_sample(record, plan, key, watch), dict(watch.seconds)
