"""Records to the encoded members of their samples: read, checked, prepared, timed."""

import functools
import json
import logging
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

from lungseg import storage
from lungseg.dataset import duplicates
from lungseg.dataset.shard_format import SAMPLE_ID_FIELDS
from lungseg.errors import InputError
from lungseg.imaging import codecs
from lungseg.imaging.geometry import prepare_image, prepare_mask
from lungseg.ingest import record_checks
from lungseg.ingest.crash_isolation import crashed, each_apart
from lungseg.prepare.shard_plan import ShardPlan
from lungseg.schema import SCHEMA, Record

logger = logging.getLogger(__name__)

READ_THREADS = 4
"""Threads of a task that read ahead: on a disk that is busy, and in a bucket, reading is waiting."""

FileContents = dict[str, bytes | InputError]


@dataclass(frozen=True)
class EncodedSample:
    """A checked record and, where it can be used, the encoded members of its sample."""

    record: Record
    members: dict[str, bytes]


class Stopwatch:
    """Adds up seconds by stage; time in a stage inside another counts for the inner one alone. One thread each."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inner = 0.0

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Count what is done inside for this stage."""
        outer, self._inner = self._inner, 0.0
        began = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - began
            self.seconds[stage] += took - self._inner
            self._inner = outer + took


def encode_sample(
    record: Record, plan: ShardPlan, key: bytes | None, watch: Stopwatch, files: FileContents | None = None
) -> EncodedSample:
    """Read (or take from `files` what was read), check, prepare and encode one record."""

    def read(uri: str) -> bytes:
        with watch.time("read"):
            found = (files or {}).get(uri)
            if isinstance(found, InputError):
                raise found
            return storage.read_bytes(uri) if found is None else found

    with watch.time("decode and check"):
        checked, image, native_mask = record_checks.open_record(record, plan.preprocess, plan.odd_masks, key, read)
        if image is not None:  # the audit's: nobody else asks for it
            checked = replace(checked, phash=duplicates.fingerprint(image))
    if image is None or not checked.usable:
        return EncodedSample(checked, {})
    with watch.time("prepare"):
        square, geometry = prepare_image(image, plan.preprocess)
        classes = len(plan.preprocess.classes)
        mask = None if native_mask is None else prepare_mask(native_mask, geometry, classes)
    with watch.time("encode"):
        meta = {
            "schema": SCHEMA,
            **{name: getattr(checked, name) for name in SAMPLE_ID_FIELDS},
            "geometry": asdict(geometry),
        }
        members = {"image": codecs.encode_image(square), "json": json.dumps(meta).encode()}
        if mask is not None:
            members["mask"] = codecs.encode_mask(mask) if classes == 1 else codecs.encode_labels(mask)
    return EncodedSample(checked, members)


def encode_samples(
    plan: ShardPlan, key: bytes | None, watch: Stopwatch, apart: bool = False
) -> Iterator[EncodedSample]:
    """Pack the plan's records in their order, while threads read the files of the next ones.

    `apart`: each in a process of their own, so that one that ends its process (a codec may crash over broken bytes)
    becomes a failed record, and the others are packed.
    """
    if apart:
        yield from _pack_apart(plan, key, watch)
        return

    with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="read") as pool:
        waiting: deque[Future[FileContents]] = deque()
        try:
            for number, record in enumerate(plan.records):
                ahead = plan.records[number + len(waiting) : number + READ_THREADS + 1]
                waiting.extend(pool.submit(_read, one) for one in ahead)
                with watch.time("read"):
                    files = waiting.popleft().result()
                yield encode_sample(record, plan, key, watch, files)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _read(record: Record) -> FileContents:
    """Read a record's files; what cannot be read becomes its error."""
    files: FileContents = {}
    if not record.usable:
        return files
    for uri in (record.image_uri, *record.mask_uris):
        try:
            files[uri] = storage.read_bytes(uri)
        except InputError as error:
            files[uri] = error
    return files


def _pack_apart(plan: ShardPlan, key: bytes | None, watch: Stopwatch) -> Iterator[EncodedSample]:
    """Pack in another process, and start a new one where it died."""
    work = functools.partial(_pack_one, plan=replace(plan, records=()), key=key)
    for record, done in zip(plan.records, each_apart(work, plan.records), strict=True):
        if done is None:
            yield EncodedSample(crashed(record), {})
            continue
        packed, seconds = done
        watch.seconds.update({stage: watch.seconds[stage] + took for stage, took in seconds.items()})
        yield packed


def _pack_one(record: Record, plan: ShardPlan, key: bytes | None) -> tuple[EncodedSample, dict[str, float]]:
    watch = Stopwatch()
    return encode_sample(record, plan, key, watch), dict(watch.seconds)
