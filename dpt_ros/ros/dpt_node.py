# SPDX-License-Identifier: Apache-2.0
"""The lifecycle node ``dpt``: camera topics in, depth and labels out. Wiring only."""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from std_srvs.srv import Trigger

from dpt_ros.engine.frame import Kind
from dpt_ros.engine.inference.network import Networks
from dpt_ros.engine.loading import NetworkError, load_networks
from dpt_ros.engine.pipeline import Pipeline
from dpt_ros.engine.settings import Settings
from dpt_ros.ros.camera.camera_topics import CameraTopics
from dpt_ros.ros.camera.inputs import REVIEW_PERIOD
from dpt_ros.ros.camera.tf import TfTree
from dpt_ros.ros.command_line import run_node
from dpt_ros.ros.diagnostics import ClockMonitor, networks_status, ready_message
from dpt_ros.ros.parameters import Parameters
from dpt_ros.ros.process import keep_large_buffers
from dpt_ros.ros.qos import qos_problems, unused_qos
from dpt_ros.ros.video.decoder import video_problem


class DptNode(LifecycleNode):
    """Depth and labels from camera topics; see docs/topics.md for its names and parameters.

    Args:
        options: of rclpy's node: namespace, context, cli_args, parameter_overrides.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("dpt", **options)
        self._networks: Networks | None = None
        self._pipeline: Pipeline | None = None
        self._kinds: dict[str, Kind] = {}  # of the frames received so far
        self._cameras: dict[str, CameraTopics] = {}
        self._tree = TfTree(self)
        self._state = "unconfigured"
        self._failure = ""  # why the node is not configured
        self._warnings: list[str] = []
        self._device_lost = ""
        self._clock_monitor = ClockMonitor(self)
        self._node_parameters = Parameters(
            self, self._adopt_settings, lambda: self._networks is not None
        )
        # Periods are of real time: a simulated clock may stand still.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 1)
        self._diagnostics_timer = self.create_timer(
            self._settings.diagnostics_period, self._publish_diagnostics, clock=self._steady
        )
        self.create_timer(REVIEW_PERIOD, self._review, clock=self._steady)
        self.create_service(Trigger, "~/reset", self._reset)
        if self._settings.autostart:
            self._start_timer = self.create_timer(0.0, self._start, clock=self._steady)

    @property
    def _settings(self) -> Settings:
        return self._node_parameters.settings

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
        """Load, check and warm the networks; FAILURE with an error message if that fails."""
        with self._logged("configure"):
            self._warnings.clear()
            self._device_lost = ""
            images = tuple(f"{name}/image".lstrip("/") for name in self._settings.cameras or ("",))
            problems = (*self._node_parameters.problems.values(), *qos_problems(self, images))
            self._failure = " ".join(problems)
            if self._settings.image_transport == "video":
                self._failure = self._failure or video_problem()
            if not self._failure:
                try:
                    self._networks = load_networks(self._settings)
                except NetworkError as error:
                    self._failure = str(error)
            if not self.context.ok():  # a signal came while the networks were loaded
                return TransitionCallbackReturn.FAILURE
            if self._networks is None:
                self.get_logger().error(f"Cannot configure: {self._failure}")
                return TransitionCallbackReturn.FAILURE
            for text in self._networks.warnings:
                self.get_logger().info(text)
            for name in self._settings.cameras or ("",):
                settings = partial(self._node_parameters.of_camera, name)
                self._cameras[name] = CameraTopics(
                    self, name, self._networks, settings, tree=self._tree
                )
            self._diagnostics_timer.timer_period_ns = int(self._settings.diagnostics_period * 1e9)
            self._state = "inactive"
            return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and process frames."""
        with self._logged("activate"):
            super().on_activate(state)
            assert self._networks is not None
            self._pipeline = Pipeline(
                self._networks,
                self._settings,
                dict(self._cameras),
                on_warning=self._add_warning,
                now_ns=lambda: self.get_clock().now().nanoseconds,
                known=self._kinds,
            )
            for camera in self._cameras.values():
                camera.open(self._pipeline.submit)
            for text in unused_qos(self):
                self._add_warning(text)
            self._state = "active"
            inputs = chain.from_iterable(camera.subscribed for camera in self._cameras.values())
            outputs = chain.from_iterable(camera.published for camera in self._cameras.values())
            self.get_logger().info(ready_message(self._networks, inputs, outputs))
            return TransitionCallbackReturn.SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe; the networks stay loaded."""
        with self._logged("deactivate"):
            self._stop()
            if self._device_lost:
                return TransitionCallbackReturn.ERROR
            self._state = "inactive"
            return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Destroy the publishers and free the networks."""
        with self._logged("cleanup"):
            self._release()
            self._state = "unconfigured"
            return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """The same as cleanup, from any state and for good."""
        with self._logged("shutdown"):
            self._release()
            self._state = "finalized"
            return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After a failed transition: back to unconfigured, from which configure may succeed."""
        with self._logged("error processing"):
            self._release()
            self._state = "unconfigured"
            self._failure = (
                self._device_lost or f"The node failed while {state.label}: see its log."
            )
            return super().on_error(state)

    @contextmanager
    def _logged(self, transition: str) -> Iterator[None]:
        """Log an exception that leaves a transition: rclpy discards it.

        Once a signal has ended the ROS context every call of rclpy fails; that is no fault.
        """
        try:
            yield
        except Exception as error:
            if self.context.ok():
                text = "".join(traceback.format_exception(error))
                self.get_logger().error(f"Unexpected failure in {transition}: {text}")
            raise

    def _stop(self, timeout: float = 1.0) -> None:
        for camera in self._cameras.values():
            camera.close()
        self._tree.close()
        if self._pipeline is not None:
            self._pipeline.close(timeout)
            self._kinds |= self._pipeline.kinds
            self._device_lost = self._pipeline.lost
            self._pipeline = None

    def _release(self, timeout: float = 1.0) -> None:
        """Stop everything and free the device memory; may be called in any state, repeatedly.

        Args:
            timeout: seconds to wait for the frame being computed.
        """
        self._stop(timeout)
        for camera in self._cameras.values():
            camera.destroy()
        self._cameras.clear()
        self._kinds.clear()
        self._networks = None
        gc.collect()
        # The memory of a lost device cannot be freed.
        if torch.cuda.is_initialized() and not self._device_lost:
            torch.cuda.empty_cache()

    def destroy_node(self) -> None:
        """Free everything at once, then destroy the node; see rclpy."""
        self._release(timeout=0.3)
        super().destroy_node()

    def _add_warning(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.append(text)
            self.get_logger().warning(text)

    # Timers, parameters and the service; called on the executor's thread

    def _adopt_settings(self, settings: Settings) -> None:
        if self._pipeline is not None:
            self._pipeline.settings = settings

    def _review(self) -> None:
        if self._pipeline is not None and self._pipeline.lost:
            self.trigger_deactivate()  # which ends in error processing
        for camera in self._cameras.values():
            camera.review()
        self._clock_monitor.review()

    def _publish_diagnostics(self) -> None:
        name = f"{self.get_fully_qualified_name().lstrip('/')}: networks"
        warnings = [text for text in (*self._warnings, self._clock_monitor.warning) if text]
        status = [networks_status(name, self._state, self._networks, self._failure, warnings)]
        status += [camera.status() for camera in self._cameras.values()]
        msg = DiagnosticArray(status=status)
        msg.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(msg)

    def _reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._pipeline is not None
        response.message = f"The node is {self._state}: there is no filter state to reset."
        if self._pipeline is not None:
            self._pipeline.reset()
            response.message = "Reset: the next frame of each camera is published unfiltered."
        return response


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until Ctrl-C, SIGTERM or the end of the ROS context."""
    keep_large_buffers()
    return run_node("dpt_node", argv, DptNode)


if __name__ == "__main__":
    sys.exit(main())
