# SPDX-License-Identifier: Apache-2.0
"""Faults of a GPU, thrown at every stage of a rehearsed frame: retried or counted, never kept."""

from __future__ import annotations

import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from helpers.gpu_rehearsal import (
    Kernels,
    RehearsalStreams,
    RehearsedNetwork,
    rehearsal,
)
from helpers.networks import embedded_networks
from helpers.runner_frames import ALL, DEFAULT, run, same_video, video_frame
from torch.utils._python_dispatch import TorchDispatchMode

from dpt_ros.engine import triton_launch
from dpt_ros.engine.faults import AccelerationError, DeviceLostError, is_out_of_memory
from dpt_ros.engine.frame import Kind, OutputRequest, Prediction
from dpt_ros.engine.inference import kernels
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.pipeline import Pipeline
from dpt_ros.engine.runner.cuda import StreamRunner
from dpt_ros.engine.runner.host import HostRunner

# Full memory, in the words of torch, CUDA, cuDNN, cuBLAS, the host's allocator and a Jetson.
FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    RuntimeError('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":1131'),
]
OTHER = [
    torch.AcceleratorError("CUDA error: invalid argument\nmore lines"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
]
# Where frames are before their graphs, while these are captured, and with them.
BEFORE = ("buffer", "upload", "compute", "predict", "download")
CAPTURE = ("capture", "branch", "instantiate")
AFTER = ("replay", "upload", "compute", "download")


class Faulty(RehearsalStreams):
    """A rehearsed GPU with faults to come at one stage."""

    def __init__(self, rehearsed: Kernels) -> None:
        super().__init__(rehearsed)
        self.at, self.times, self.error = "", 0, RuntimeError()
        self.dead = False
        self.held: list[weakref.ref[torch.Tensor]] = []

    def plan(self, stage: str, error: Exception, times: int = 1) -> None:
        self.at, self.error, self.times = stage, error, times

    def fail(self, stage: str) -> None:
        if stage == self.at and self.times:
            self.times -= 1
            activations = torch.empty(1)
            self.held.append(weakref.ref(activations))
            raise type(self.error)(*self.error.args)

    def buffer(self, shape, dtype):
        self.fail("buffer")
        return super().buffer(shape, dtype)

    def event(self):
        made = super().event()
        made.wait = self.wait
        return made

    def wait(self) -> None:
        self.fail("wait")
        if self.dead:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def record_event(self, event, lane: str) -> None:
        self.fail(lane)
        super().record_event(event, lane)

    @contextmanager
    def branch(self) -> Iterator[None]:
        with super().branch():
            if self._kernels.capturing:
                self.fail("branch")
            yield

    def begin_capture(self) -> None:
        self.fail("capture")

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        replay = super().capture(work)
        self.fail("instantiate")

        def repeat() -> None:
            self.fail("replay")
            replay()

        return repeat

    def synchronize(self) -> None:
        if self.dead:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


class HostFrames:
    """What the host's runner gives for each frame of the video, computed once for all tests."""

    def __init__(self) -> None:
        self._runner, self._made = HostRunner(embedded_networks(), DEFAULT), list[Prediction]()

    def __getitem__(self, number: int) -> Prediction:
        while len(self._made) <= number:
            self._made += run(self._runner, [video_frame(len(self._made))], ALL, DEFAULT)
        return self._made[number]


@pytest.fixture(scope="module")
def host() -> HostFrames:
    return HostFrames()


@pytest.fixture(scope="module")
def gpu() -> Networks:
    return embedded_networks(RehearsedNetwork, shared=False)


@pytest.fixture
def rehearsed() -> Iterator[Kernels]:
    with rehearsal() as made:
        yield made


class Rehearsed:
    """A runner on faulty streams beside the host's, fed the same frames."""

    def __init__(self, host: HostFrames, gpu: Networks, made: Kernels) -> None:
        self.streams, self.notes = Faulty(made), list[str]()
        self.runner = StreamRunner(gpu, DEFAULT, self.streams, self._note)
        self.host, self.made, self.number = host, made, 0
        backend = self.runner._networks.labels.backend
        inner = backend._predict

        def predict(*args: object) -> object:
            self.streams.fail("predict")
            return inner(*args)

        self.undo = lambda: setattr(backend, "_predict", inner)
        backend._predict = predict

    def _note(self, sentence: str) -> None:
        # What is said comes before memory is freed: by then nothing of the failed work may live.
        assert [one() for one in self.streams.held] == [None] * len(self.streams.held)
        self.notes.append(sentence)

    def frames(self, count: int) -> None:
        for _ in range(count):
            with self.made.paused():
                expected = self.host[self.number]
            same_video(run(self.runner, [video_frame(self.number)], ALL, DEFAULT)[0], expected)
            self.number += 1


@pytest.fixture
def both(host, gpu, rehearsed) -> Iterator[Rehearsed]:
    made = Rehearsed(host, gpu, rehearsed)
    yield made
    made.undo()


STAGES = [(0, s) for s in BEFORE] + [(2, s) for s in CAPTURE] + [(3, s) for s in AFTER]


@pytest.mark.parametrize(("after", "stage"), STAGES)
def test_a_frame_that_meets_full_memory_is_tried_again_and_leaves_one_trace(both, after, stage):
    both.frames(after)
    both.streams.plan(stage, FULL[(after + len(stage)) % len(FULL)])
    both.frames(4)  # compared with a host that saw each frame once
    assert both.streams.times == 0
    assert len(both.notes) == 1
    assert "The memory of cpu ran out" in both.notes[0]


@pytest.mark.parametrize("error", FULL, ids=str)
def test_full_memory_is_recognised_in_everybodys_words(both, error):
    assert is_out_of_memory(error)
    both.frames(1)
    both.streams.plan("compute", error)
    both.frames(2)
    assert len(both.notes) == 1
    both.streams.plan("compute", error, times=2)
    with pytest.raises(torch.OutOfMemoryError):
        run(both.runner, [video_frame(both.number)], ALL, DEFAULT)
    both.frames(4)


def test_what_fails_inside_of_something_else_is_told_by_its_innermost_cause(both):
    both.frames(2)
    both.streams.plan("branch", FULL[2])
    both.frames(3)
    assert "The memory of cpu ran out" in both.notes[0]
    try:
        try:
            raise FULL[2]
        except RuntimeError:
            raise RuntimeError("CUDA error: capturing stream has unjoined work") from None
    except RuntimeError as error:
        assert is_out_of_memory(error)


@pytest.mark.parametrize("stage", CAPTURE)
@pytest.mark.parametrize("error", OTHER, ids=str)
def test_work_that_cannot_be_captured_is_launched_and_the_note_says_why(both, stage, error):
    both.frames(2)
    both.streams.plan(stage, error)
    both.frames(4)
    assert len(both.notes) == 1
    assert "cannot be captured in a CUDA graph" in both.notes[0]
    assert str(error).splitlines()[0] in both.notes[0]


@pytest.mark.parametrize(("after", "stage"), [(0, s) for s in BEFORE] + [(3, s) for s in AFTER])
@pytest.mark.parametrize("error", OTHER, ids=str)
def test_another_fault_fails_its_frame_alone_and_leaves_no_trace(both, after, stage, error):
    both.frames(after)
    both.streams.plan(stage, error)
    with pytest.raises(type(error), match=r"invalid argument|EXECUTION_FAILED"):
        both.runner.start([video_frame(both.number)], ALL, DEFAULT)
    both.frames(4)  # compared with a host that never saw the frame
    assert both.notes == []


@pytest.mark.parametrize("error", [FULL[2], *OTHER], ids=str)
def test_a_fault_that_shows_when_the_results_are_waited_for_is_the_frames_own(both, error):
    both.frames(3)
    both.streams.plan("wait", error)
    ticket = both.runner.start([video_frame(both.number)], ALL, DEFAULT)
    with pytest.raises(RuntimeError) as caught:
        ticket.wait()
    assert isinstance(caught.value, torch.OutOfMemoryError) == is_out_of_memory(error)
    ticket.release()
    run(both.runner, [video_frame(both.number + 1)], ALL, DEFAULT)


@pytest.mark.parametrize("error", OTHER, ids=str)
@pytest.mark.parametrize("stage", ["upload", "compute", "wait"])
def test_a_device_that_does_not_come_back_is_lost(both, stage, error):
    both.frames(3)
    both.streams.plan(stage, error)
    both.streams.dead = True
    with pytest.raises(DeviceLostError, match=r"cpu is lost \(.*\); .* started again"):
        both.runner.start([video_frame(both.number)], ALL, DEFAULT).wait()
    with pytest.raises(DeviceLostError):
        both.runner.start([video_frame(both.number)], ALL, DEFAULT)


@pytest.mark.parametrize(
    "kernel", ["classify_kernel", "group_norm_one_kernel", "preprocess_kernel"]
)
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_kernel_that_cannot_be_built_is_replaced_by_plain_torch(both, rehearsed, kernel, after):
    both.frames(after)
    rehearsed.broken = kernel
    if after == 3:
        both.runner._free()  # as for full memory: kernels are launched again
    both.frames(4)
    assert len(both.notes) == 1
    assert f"The Triton kernel {kernel} cannot be used, so plain torch is" in both.notes[0]
    assert not triton_launch.triton_enabled()


@pytest.mark.parametrize(
    "raised",
    [
        RuntimeError("Failed to find C compiler. Please specify via CC environment variable"),
        FileNotFoundError(2, "No such file or directory", "gcc"),
        subprocess.CalledProcessError(1, ["gcc", "Python.h: No such file or directory"]),
        PermissionError(13, "Permission denied", "~/.triton/cache"),
        ImportError("libcuda.so.1: cannot open shared object file"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_triton_raises_ends_as_one_error_that_says_what_is_used_instead(raised):

    class Refuses:
        __name__ = "some_kernel"

        def __getitem__(self, grid: object) -> Callable[..., None]:
            def launch(*args: object, **options: object) -> None:
                raise raised

            return launch

    with pytest.raises(AccelerationError, match="some_kernel cannot be used, so plain torch is"):
        triton_launch.run(Refuses(), (1,), (torch.zeros(1),), {}, 4)


def test_the_probe_says_why_triton_is_not_used_and_turns_it_off(monkeypatch):
    monkeypatch.setattr(triton_launch, "_enabled", True)
    # Triton's own error where there is no driver.
    assert "without fused Triton kernels" in kernels.probe(torch.device("cpu"))
    assert not triton_launch.triton_enabled()
    monkeypatch.setattr(triton_launch, "_enabled", True)
    monkeypatch.setattr(triton_launch, "find_spec", lambda name: None)
    assert "triton is not installed" in kernels.probe(torch.device("cpu"))


def test_without_triton_every_frame_is_the_hosts(both, monkeypatch):
    monkeypatch.setattr(triton_launch, "find_spec", lambda name: None)
    both.frames(5)
    assert both.notes == []
    assert both.made.calls == {}


def test_kernels_without_a_compiler_on_the_path_are_refused_by_triton_with_an_exception():
    # The real build of Triton's launcher, in a process of its own that finds no compiler.
    code = (
        "import os; os.environ['PATH'] = ''; os.environ.pop('CC', None)\n"
        "from triton.runtime.build import compile_module_from_src\n"
        "try:\n    compile_module_from_src('int main() {}', 'nothing')\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "compiler" in done.stdout, done.stderr


class Received:
    """The receiver of a pipeline's frames: what came, in order."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self.errors: list[Exception] = []
        self._arrived = threading.Semaphore(0)

    def publish(self, prediction: Prediction) -> None:
        self._add(f"prediction of {prediction.frame.source}")

    def drop(self, reason: str) -> None:
        self._add(reason)

    def fail(self, error: Exception) -> None:
        self.errors.append(error)
        self._add("error")

    def _add(self, outcome: str) -> None:
        self.outcomes.append(outcome)
        self._arrived.release()

    def wait(self) -> None:
        assert self._arrived.acquire(timeout=30)


@pytest.mark.parametrize("stage", ["compute", "wait"])
def test_a_failed_frame_keeps_nothing_alive_and_the_next_ones_flow(both, stage):
    received = Received()
    pipeline = Pipeline(both.runner._networks, DEFAULT, {"": received}, runner=both.runner)
    try:
        for number, expected in enumerate(("prediction of ", "error", "prediction of ")):
            if expected == "error":
                both.streams.plan(stage, OTHER[1])
            pipeline.submit(video_frame(number), ALL)
            received.wait()
            assert received.outcomes[-1] == expected
            if expected == "error":
                assert [one() for one in both.streams.held] == [None]
                assert received.errors[0].__cause__ is None
                assert "EXECUTION_FAILED" in str(received.errors[0])
    finally:
        pipeline.close()


def test_warming_up_leaves_nothing_but_the_capture_to_the_first_real_frame(both, rehearsed):
    kind = Kind.of(video_frame(0), ALL)
    both.runner.warm_up({"": kind}, DEFAULT, lambda: False)
    variants = set(rehearsed.variants)
    both.frames(1)
    assert rehearsed.variants == variants
    (program,) = both.runner._programs.values()
    assert not program.wants_capture  # it has its graph
    both.frames(3)  # and the blank frames are in nobody's past


def test_warming_up_takes_the_batches_that_there_are_cameras_for(both):
    kind = Kind.of(video_frame(0), ALL)
    both.runner.warm_up(dict.fromkeys(("front", "rear", "left"), kind), DEFAULT, lambda: False)
    assert sorted(batch for _, _, batch in both.runner._programs) == [1, 2]
    both.runner._free()
    both.runner.warm_up({}, DEFAULT, lambda: False)
    assert not both.runner._programs
    both.runner.warm_up({"": kind}, DEFAULT, lambda: True)  # the pipeline was closed
    assert not both.runner._programs


def test_warming_up_takes_the_same_steps_as_frames_with_odometry(both):
    def names(work: Callable[[], object]) -> set[str]:
        seen: set[str] = set()

        class Observation(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                seen.add(func.overloadpacket.__name__)
                return func(*args, **(kwargs or {}))

        with Observation():
            work()
        return seen

    kind = Kind.of(video_frame(0), OutputRequest())
    warm = names(lambda: both.runner.warm_up({"": kind}, DEFAULT, lambda: False))
    settings = replace(DEFAULT, cuda_graphs=False)
    real = names(
        lambda: [run(both.runner, [video_frame(k)], OutputRequest(), settings) for k in range(3)]
    )
    assert real <= warm


def test_graphs_whose_memory_is_never_enough_are_given_up(both):
    both.streams.plan("capture", FULL[0], times=10**9)
    both.frames(9)
    assert len(both.notes) == 2
    assert "The memory of cpu ran out" in both.notes[0]
    assert "cannot be captured in a CUDA graph" in both.notes[1]


def test_a_kernel_that_cannot_be_loaded_in_a_capture_is_no_fault_of_the_capture(both, rehearsed):
    both.frames(2)
    rehearsed.broken = "classify_kernel"
    both.frames(4)
    assert len(both.notes) == 1
    assert "The Triton kernel classify_kernel cannot be used" in both.notes[0]
    assert both.runner._graphs


def test_cameras_that_wait_together_are_all_given_out(both):
    received = Received()
    begin = threading.Event()

    class Waits:
        """The runner, which begins when all cameras have sent their frame."""

        in_flight, max_batch = 3, 4

        def __getattr__(self, name: str) -> object:
            return getattr(both.runner, name)

        def warm_up(self, *args: object) -> None:
            begin.wait(30)

    names = ("front", "rear", "left", "right")
    pipeline = Pipeline(
        both.runner._networks,
        DEFAULT,
        dict.fromkeys(names, received),
        runner=Waits(),
    )
    try:
        for name in names:
            pipeline.submit(video_frame(0, name), ALL)
        begin.set()
        for _ in names:
            received.wait()
        assert received.outcomes == [f"prediction of {name}" for name in names]
        assert set(pipeline.kinds) == set(names)
    finally:
        begin.set()
        pipeline.close()
