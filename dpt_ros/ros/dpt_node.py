# SPDX-License-Identifier: Apache-2.0
"""The lifecycle node ``dpt``: camera topics in, depth and labels out. Wiring only."""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from std_srvs.srv import Trigger

from dpt_ros.engine.frame import Frame, Prediction
from dpt_ros.engine.inference.network import NetworkError, Networks, load_networks
from dpt_ros.engine.pipeline import Pipeline
from dpt_ros.engine.runner.chain import Kind
from dpt_ros.engine.runner.cuda import DeviceLostError
from dpt_ros.engine.settings import Settings
from dpt_ros.ros import process as signals
from dpt_ros.ros.camera.camera_topics import CameraTopics
from dpt_ros.ros.camera.image_subscription import REVIEW_PERIOD, keep_large_buffers
from dpt_ros.ros.camera.tf import TfTree
from dpt_ros.ros.command_line import start_ros
from dpt_ros.ros.diagnostics import networks_status
from dpt_ros.ros.node_messages import ClockWatch, ready
from dpt_ros.ros.parameters import Parameters

_PATIENCE = 1.7  # seconds from a signal to the end, of the two that are promised


class DptNode(LifecycleNode):
    """Depth and labels from camera topics; see docs/topics.md for its names and parameters.

    Args:
        options: of rclpy's node: namespace, context, cli_args, parameter_overrides.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("dpt", **options)
        self._networks: Networks | None = None
        self._pipeline: Pipeline | None = None
        self._kinds: dict[str, Kind] = {}  # of the frames that the cameras sent so far
        self._cameras: dict[str, CameraTopics] = {}
        self._tree = TfTree(self)
        self._state = "unconfigured"
        self._why = ""
        self._notes: list[str] = []
        self._lost = ""
        self._clock_watch = ClockWatch(self)
        self._clock_said = ""
        self._given = Parameters(self, self._adopt_settings, lambda: self._networks is not None)
        # Periods are of real time: a simulated clock may stand still.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 1)
        self._diagnostics_timer = self.create_timer(
            self._settings().diagnostics_period, self._publish_diagnostics, clock=self._steady
        )
        self.create_timer(REVIEW_PERIOD, self._review, clock=self._steady)
        self.create_service(Trigger, "~/reset", self._reset)
        if self._settings().autostart:
            self._start_timer = self.create_timer(0.0, self._start, clock=self._steady)

    def _settings(self) -> Settings:
        return self._given.settings

    # Lifecycle

    def _start(self) -> None:
        self.destroy_timer(self._start_timer)
        if self._state != "unconfigured":
            return
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()
        elif self.context.ok():
            self.get_logger().error(
                "The node stays unconfigured; dpt_status shows the reason. Correct the parameter,"
                " then restart the node or, with a ROS install, run ros2 lifecycle set"
                f" {self.get_fully_qualified_name()} configure."
            )

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load, check and warm the networks; FAILURE with a sentence when that cannot be done."""
        with self._traced("configure"):
            self._why = " ".join(self._given.problems.values())
            self._notes.clear()
            self._lost = ""
            if not self._why:
                try:
                    self._networks = load_networks(self._settings())
                except NetworkError as error:
                    self._why = str(error)
            if not self.context.ok():  # a signal came while the networks were made
                return TransitionCallbackReturn.FAILURE
            if self._networks is None:
                self.get_logger().error(f"Cannot configure: {self._why}")
                return TransitionCallbackReturn.FAILURE
            for note in self._networks.notes:
                self.get_logger().info(note)
            for name in self._settings().cameras or ("",):
                settings = partial(self._given.of_camera, name)
                self._cameras[name] = CameraTopics(
                    self, name, self._networks, settings, tree=self._tree
                )
            self._diagnostics_timer.timer_period_ns = int(
                self._settings().diagnostics_period * 1e9
            )
            self._state = "inactive"
            return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and let frames flow."""
        with self._traced("activate"):
            super().on_activate(state)
            assert self._networks is not None
            self._pipeline = Pipeline(
                self._networks,
                self._settings(),
                on_prediction=self._publish,
                on_drop=self._count_drop,
                on_error=self._report_failure,
                on_warning=self._take_note,
                now_ns=lambda: self.get_clock().now().nanoseconds,
                known=self._kinds,
            )
            for camera in self._cameras.values():
                camera.open(self._pipeline.submit)
            self._state = "active"
            self.get_logger().info(ready(self._networks, self._cameras.values()))
            return TransitionCallbackReturn.SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop the flow; the networks stay loaded."""
        with self._traced("deactivate"):
            self._stop()
            if self._lost:
                return TransitionCallbackReturn.ERROR
            self._state = "inactive"
            return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the networks and take the topics away."""
        with self._traced("cleanup"):
            self.release()
            self._state = "unconfigured"
            return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """As cleanup, from any state and for good."""
        with self._traced("shutdown"):
            self.release()
            self._state = "finalized"
            return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After a fault in a transition: back to unconfigured, from where configure may help."""
        with self._traced("error processing"):
            self.release()
            self._state = "unconfigured"
            self._why = self._lost or f"The node failed while {state.label}; the log says why."
            return super().on_error(state)

    @contextmanager
    def _traced(self, transition: str) -> Iterator[None]:
        """Log what escapes from a transition, for rclpy swallows it without a word.

        Once a signal has ended the ROS context every call of rclpy fails; that is no fault.
        """
        try:
            yield
        except Exception as error:
            if self.context.ok():
                text = "".join(traceback.format_exception(error))
                self.get_logger().error(f"Unexpected failure in {transition}: {text}")
            raise

    def _stop(self, patience: float = 1.0) -> None:
        for camera in self._cameras.values():
            camera.close()
        self._tree.close()
        if self._pipeline is not None:
            self._pipeline.close(patience)
            self._kinds |= self._pipeline.kinds
            self._pipeline = None

    def release(self, patience: float = 1.0) -> None:
        """Stop everything and free the device memory; may be called in any state, repeatedly.

        Args:
            patience: seconds to wait for the frame being computed.
        """
        self._stop(patience)
        for camera in self._cameras.values():
            camera.destroy()
        self._cameras.clear()
        self._kinds.clear()
        self._networks = None
        gc.collect()
        # A device that is lost has nothing to give back.
        if torch.cuda.is_initialized() and not self._lost:
            torch.cuda.empty_cache()

    # Frames; called on the pipeline's threads

    def _publish(self, prediction: Prediction) -> None:
        if camera := self._cameras.get(prediction.frame.source):
            camera.publish(prediction)

    def _count_drop(self, frame: Frame, reason: str) -> None:
        if camera := self._cameras.get(frame.source):
            camera.drop(reason)

    def _take_note(self, sentence: str) -> None:
        if sentence not in self._notes:
            self._notes.append(sentence)
            self.get_logger().warning(sentence)

    def _report_failure(self, frame: Frame, error: Exception) -> None:
        if isinstance(error, DeviceLostError):
            self._lost = str(error)
        camera = self._cameras.get(frame.source)
        if camera and self.context.ok():
            camera.fail(error)

    # The rest

    def _adopt_settings(self, settings: Settings) -> None:
        if self._pipeline is not None:
            self._pipeline.settings = settings

    def _review(self) -> None:
        if self._lost and self._state == "active":
            self.trigger_deactivate()  # which ends in error processing
        for camera in self._cameras.values():
            camera.review()
        warning = self._clock_watch.warning()
        if warning and not self._clock_said:
            self.get_logger().warning(warning)
        self._clock_said = warning

    def _publish_diagnostics(self) -> None:
        name = f"{self.get_fully_qualified_name().lstrip('/')}: networks"
        notes = [*self._notes, *filter(None, [self._clock_watch.warning()])]
        status = [networks_status(name, self._state, self._networks, self._why, notes)]
        status += [camera.status() for camera in self._cameras.values()]
        stamp = self.get_clock().now().to_msg()
        msg = DiagnosticArray(status=status)
        msg.header.stamp = stamp
        self._diagnostics.publish(msg)

    def _reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._pipeline is not None
        response.message = f"The node is {self._state}: it has no past to forget."
        if self._pipeline is not None:
            self._pipeline.reset()
            response.message = "The next frame of each camera goes out as the networks give it."
        return response


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until Ctrl-C, SIGTERM or the end of the ROS context."""
    keep_large_buffers()
    signals.end_quietly()
    start_ros("dpt_node", argv)
    if argv is None:
        # What was imported stays: the collector need not walk over torch again and again.
        gc.freeze()
        _end_in_time()
    _spin()
    if argv is None:
        _end_process()
    return 0


def _made() -> DptNode:
    try:
        return DptNode()
    except RuntimeError as error:  # rclpy's, where the middleware lacks what was asked for
        if signals.came:
            raise
        text = re.sub(r", at [^ ,]+:[0-9]+", "", str(error)).replace("\n", " ")
        raise SystemExit(f"dpt_node: {text}.") from error


def _spin() -> None:
    executor = SingleThreadedExecutor()
    try:
        # rclpy ends the wait for work; this also breaks into a long load.
        signals.raise_from_here()
        executor.add_node(_made())
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except RuntimeError:
        # What becomes of a signal in the middle of a call of rclpy, and of what pybind converts.
        if not signals.came:
            raise
    finally:
        signals.ignore()
        for node in executor.get_nodes():
            node.release(patience=0.3)
            node.destroy_node()
        rclpy.try_shutdown()


def _end_in_time() -> None:
    """See to it that a signal ends the process even in a call that does not return.

    A name server that does not answer holds up a download for ten seconds, a driver for longer.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # gets the number of each signal

    def wait() -> None:
        while os.read(reader, 1)[0] not in signals.ENDS:
            pass
        time.sleep(_PATIENCE)
        os.write(2, b"dpt_node: A call does not return; the process ends without it.\n")
        os._exit(0)

    threading.Thread(target=wait, name="dpt_end", daemon=True).start()


def _end_process() -> NoReturn:
    """End at once: torch alone needs a second or more to be taken down object by object.

    What outlives a process, the middleware's shared memory, goes with the node's last objects.
    """
    gc.collect()
    signals.end_process(0)


if __name__ == "__main__":
    sys.exit(main())
