# SPDX-License-Identifier: Apache-2.0
"""Takes a recorded bag through the networks: every frame, in order, the same result every time."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import cv2

from dpt_ros.bag.frames import STATIC_FRAMES, Frames, Item, Origin, Resets
from dpt_ros.bag.job import Job, Result, machine, made_from, networks_for
from dpt_ros.bag.node import BagNode, BagOutputs
from dpt_ros.bag.reader import BagError, BagReader, Message
from dpt_ros.bag.salvage import Channel
from dpt_ros.bag.topics import Camera, choose_cameras
from dpt_ros.bag.writer import OutputBag, Progress, described, offered
from dpt_ros.engine.frame import Frame, OutputRequest, Prediction
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.pipeline import make_runner
from dpt_ros.engine.runner.chain import Kind
from dpt_ros.engine.runner.host import Ticket
from dpt_ros.engine.runner.refinement import is_refined
from dpt_ros.ros.messages.error import one_line

# In a file: some seconds of work, so that little is lost and the files are few.
_LEAST_FRAMES = {"cpu": 64, "cuda": 512}
_MOST_FILES = 256  # readers of rosbag2 open all at once
_AHEAD = 8  # frames read and decoded before their turn
_PENDING = 64  # messages that wait for a frame before them to be computed
_KINDS_OF_FAILURE = 20


def convert(
    job: Job,
    say: Callable[[str], None] = lambda sentence: None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> Result:
    """Make the bag of a job, going on where an earlier run was ended.

    Args:
        job: what to make.
        say: takes sentences on what is not as it should be, each once.
        progress: takes how many images are done and how many there are, if that is known.

    Raises:
        BagError: the input cannot be used, or the output is something else.
        NetworkError: the networks cannot be made ready.
        OSError: the output cannot be written.
    """
    reader = BagReader(job.source)
    cameras, notes = choose_cameras(reader.channels, job.asked, job.settings)
    if job.out.resolve() in (job.source.resolve(), *job.source.resolve().parents):
        raise BagError(f"{job.out} holds the input; choose another name for the output.")
    networks = networks_for(job.settings)
    said = _Once(say)
    for note in (*reader.remarks, *notes):
        said(note)
    asked = made_from(job, reader, cameras, networks)
    output = OutputBag(job.out, asked, machine(networks), job.storage, job.packed, job.overwrite)
    with output:
        if output.finished is not None:
            about = output.finished
            outcome = "done before"
            return Result(about["frames"], 0, about["failed"], 0.0, outcome, tuple(about["notes"]))
        if output.note:
            said(output.note)
        run = _Run(job, reader, cameras, networks, output, said, progress)
        return run.all()


class _Once:
    """Says a sentence the first time."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said: set[str] = set()

    def __call__(self, sentence: str) -> None:
        sentence = one_line(sentence)  # with texts of the bag in it
        if sentence not in self._said:
            self._said.add(sentence)
            self._say(sentence)


@dataclass
class _Batch:
    """Frames on their way together."""

    ticket: Ticket
    left: int
    predictions: list[Prediction] | None = None


@dataclass
class _Entry:
    """What is written next: a copy, a frame, or a failure; or a file that ends."""

    copy: Message | None = None
    origin: Origin | None = None
    camera: str = ""
    frame: Frame | None = None
    outputs: OutputRequest | None = None
    batch: _Batch | None = None
    index: int = 0
    error: str = ""
    checkpoint: Progress | None = None


class _Run:
    """Three threads: one reads, the caller's gives frames to the device, one writes."""

    def __init__(
        self,
        job: Job,
        reader: BagReader,
        cameras: list[Camera],
        networks: Networks,
        output: OutputBag,
        say: Callable[[str], None],
        progress: Callable[[int, int | None], None],
    ) -> None:
        self._job = job
        self._reader = reader
        self._networks = networks
        self._output = output
        self._say = say
        self._progress = progress
        self._runner = make_runner(networks, job.settings, say)
        self._refined = is_refined(networks, job.settings)
        self._done = output.progress
        self._resets = Resets()
        self._time = 0
        settings = {c.name: replace(job.settings, **job.own.get(c.name, {})) for c in cameras}
        self._node = BagNode(say, job.outputs, self._write_output)
        self._outputs = {
            c.name: BagOutputs(self._node, c.prefix, networks, settings[c.name]) for c in cameras
        }
        self._topics, copied = self._open_output(cameras)
        self._decoder = ThreadPoolExecutor(2, "dpt_decode")
        self._frames = Frames(
            cameras,
            settings,
            lambda camera, calibrated: self._outputs[camera].wanted(calibrated),
            copied,
            self._decoder,
            say,
        )
        images = [camera.image for camera in cameras]
        self._total = reader.count(images)
        least = _LEAST_FRAMES[networks.device.type]
        self._file_frames = job.file_frames or max(least, (self._total or 0) // _MOST_FILES)
        self._stop = threading.Event()
        self._fault: Exception | None = None
        self._read: queue.Queue[Item | Exception | None] = queue.Queue(_AHEAD)
        self._write: queue.Queue[_Entry | None] = queue.Queue(_PENDING)
        self._room = threading.Semaphore(self._runner.in_flight)
        self._backlog: deque[_Entry] = deque()

    def _open_output(self, cameras: list[Camera]) -> tuple[list[str], list[str]]:
        """The topics to read, and those of them that are copied."""
        channels = [
            Channel(f"/{p.topic}", p.msgtype, qos=offered(p.latched))
            for p in self._node.publishers
            if p.watched
        ]
        if not channels:
            raise BagError(
                f"The networks give none of the topics asked for ({', '.join(self._job.outputs)})."
            )
        own = {channel.topic for channel in channels}
        copied = []
        for topic, channel in self._reader.channels.items() if self._job.with_input else ():
            if topic in own:
                raise BagError(
                    f"The input has a topic {topic}, as the output has; give the camera a name"
                    " with -p cameras:=[NAME], or leave --with-input out."
                )
            if described(channel) is None:
                self._say(f"{topic} is not copied: nobody knows the type {channel.msgtype}.")
                continue
            copied.append(topic)
            channels.append(channel)
        ready = [described(channel) for channel in channels]
        missing = [c.msgtype for c, r in zip(channels, ready, strict=True) if r is None]
        if missing:
            raise BagError(f"rosbags does not know the types {', '.join(missing)}.")
        self._output.open([channel for channel in ready if channel is not None])
        topics = {topic for camera in cameras for topic in camera.topics} | set(copied)
        if STATIC_FRAMES in self._reader.channels:
            topics.add(STATIC_FRAMES)
        return sorted(topics), copied

    def all(self) -> Result:
        """Run to the end of the bag."""
        before = self._done
        self._runner.load_state_dict(before.engine)
        for camera, state in before.outputs.items():
            self._outputs[camera].load_state_dict(state)
        start = time.monotonic()
        self._done = replace(before, failed=dict(before.failed))
        self._tell()
        threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for work, name in ((self._read_all, "dpt_read"), (self._write_all, "dpt_write"))
        ]
        for thread in threads:
            thread.start()
        try:
            self._compute_all(before.position)
            self._write.put(None)
            # After a fault that thread waits until this one ends it.
            while threads[1].is_alive() and self._fault is None:
                threads[1].join(0.1)
            self._check()
        finally:
            self._end(threads)
        for sentence in self._resets.sentences():
            self._say(sentence)
        failed = sum(self._done.failed.values())
        if not self._done.frames:
            notes = [*self._reader.notes, *self._done.failed]
            raise BagError(" ".join(["No image of this bag can be read.", *notes]))
        self._output.finish(self._reader.notes)
        about = self._output.finished
        assert about is not None
        return Result(
            self._done.frames,
            self._done.frames - before.frames,
            failed,
            time.monotonic() - start,
            "damaged" if about["notes"] else "done",
            tuple(about["notes"]),
        )

    def _end(self, threads: list[threading.Thread]) -> None:
        """End the threads, wherever they are."""
        self._stop.set()
        for waiting in (self._read, self._write):
            _empty(waiting)
        self._write.put(None)
        for thread in threads:
            thread.join()
        self._decoder.shutdown(cancel_futures=True)

    def _check(self) -> None:
        if self._fault is not None:
            raise self._fault

    # The first thread

    def _read_all(self) -> None:
        last: Exception | None = None
        try:
            messages = self._reader.messages(self._topics)
            for item in self._frames.items(messages, self._done.position):
                if not self._put(item):
                    return
        except Exception as error:  # for the caller's thread
            last = error
        self._put(last)

    def _put(self, item: Item | Exception | None) -> bool:
        while not self._stop.is_set():
            try:
                self._read.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    # The caller's thread

    def _items(self) -> Iterator[Item]:
        while True:
            item = self._read.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                return
            yield item

    def _compute_all(self, position: int) -> None:
        in_file = self._done.frames + sum(self._done.failed.values())
        in_file %= self._file_frames
        for item in self._items():
            position = item.number + 1
            self._take(item)
            if item.camera is None:
                continue
            in_file += 1
            if in_file == self._file_frames:
                self._end_file(position)
                in_file = 0
        self._end_file(position)

    def _take(self, item: Item) -> None:
        """Begin with a message: what it needs comes after what the ones before it need."""
        if item.camera is None:
            self._backlog.append(_Entry(copy=item.message))
            if len(self._backlog) >= _PENDING:
                self._launch()
            return
        entry = _Entry(item.message, camera=item.camera, outputs=item.outputs, error=item.error)
        if item.frame is not None:
            try:
                entry.frame = item.frame.result()
                entry.origin = entry.frame.context
            except ValueError as error:  # a compressed image that is damaged
                entry.error = str(error)
        if entry.frame is not None and not self._goes_along(entry):
            self._launch()
        self._backlog.append(entry)
        waiting = sum(e.frame is not None for e in self._backlog)
        if waiting >= self._runner.max_batch or not waiting:
            self._launch()

    def _goes_along(self, entry: _Entry) -> bool:
        """Whether a frame can be computed with those that wait."""
        waiting = [e for e in self._backlog if e.frame is not None]
        if not waiting:
            return True
        # What a frame leaves behind must be there for the next of the same camera.
        if self._refined and entry.camera in [e.camera for e in waiting]:
            return False
        return self._kind(entry) == self._kind(waiting[0])

    @staticmethod
    def _kind(entry: _Entry) -> Kind:
        assert entry.frame is not None
        assert entry.outputs is not None
        return Kind.of(entry.frame, entry.outputs)

    def _launch(self) -> None:
        """Give the frames that wait to the device, and all that waits to the writer, in order."""
        entries = [e for e in self._backlog if e.frame is not None]
        frames = [e.frame for e in entries if e.frame is not None]
        if frames and entries[0].outputs is not None:
            self._room.acquire()
            self._check()
            try:
                ticket = self._runner.start(frames, entries[0].outputs, self._job.settings)
                batch = _Batch(ticket, len(frames))
                for index, entry in enumerate(entries):
                    entry.batch, entry.index = batch, index
            except (ValueError, cv2.error) as error:  # frames of a kind that cannot be
                self._room.release()
                for entry in entries:
                    entry.frame, entry.error = None, str(error)
        while self._backlog:
            self._write.put(self._backlog.popleft())
        self._check()

    def _end_file(self, position: int) -> None:
        """Wait for all frames to be written, and take down where the run stands."""
        self._launch()
        for _ in range(self._runner.in_flight):
            self._room.acquire()
        self._check()
        engine = self._runner.state_dict()
        outputs = {name: outputs.state_dict() for name, outputs in self._outputs.items()}
        progress = Progress(position, engine=engine, outputs=outputs)
        self._write.put(_Entry(checkpoint=progress))
        for _ in range(self._runner.in_flight):
            self._room.release()

    # The third thread

    def _write_all(self) -> None:
        try:
            while (entry := self._write.get()) is not None:
                if not self._stop.is_set():
                    self._write_entry(entry)
        except Exception as error:  # for the caller's thread, which may wait for room
            self._fault = error
            while not self._stop.is_set():
                self._room.release()
                _empty(self._write)
                self._stop.wait(0.05)

    def _write_entry(self, entry: _Entry) -> None:
        done = self._done
        if entry.checkpoint is not None:
            progress = entry.checkpoint
            progress.frames, progress.failed = done.frames, dict(done.failed)
            self._output.checkpoint(progress)
            return
        if entry.copy is not None:
            self._output.write(*entry.copy)
        if entry.batch is not None:
            batch, origin = entry.batch, entry.origin
            assert origin is not None
            if batch.predictions is None:
                batch.predictions = batch.ticket.wait()
            self._time = origin.time
            if not done.frames:
                for outputs in self._outputs.values():
                    outputs.publish_label_info()
            prediction = batch.predictions[entry.index]
            self._outputs[entry.camera].publish(prediction, origin.header, origin.info)
            self._resets.see(prediction)
            batch.left -= 1
            if not batch.left:
                batch.ticket.release()
                self._room.release()
            done.frames += 1
        elif entry.error:
            kinds = done.failed
            kind = one_line(entry.error)
            if kind not in kinds and len(kinds) >= _KINDS_OF_FAILURE:
                kind = "other faults"
            kinds[kind] = kinds.get(kind, 0) + 1
        self._tell()

    def _write_output(self, topic: str, data: bytes | memoryview) -> None:
        self._output.write(f"/{topic}", self._time, data)

    def _tell(self) -> None:
        self._progress(self._done.frames + sum(self._done.failed.values()), self._total)


def _empty(waiting: queue.Queue[Any]) -> None:
    try:
        while True:
            waiting.get_nowait()
    except queue.Empty:
        pass
