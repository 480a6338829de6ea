"""Live editing: sessions that take frames as they come and give edited frames back."""

from stillframe.live.client import RemoteSession, Session
from stillframe.live.editor import EditedFrame
from stillframe.live.process import WorkerProcess
from stillframe.live.session import LiveSession
from stillframe.live.telemetry import BlockTelemetry, Clock, SystemClock, Telemetry
from stillframe.live.worker import SessionError, Worker

__all__ = [
    "BlockTelemetry",
    "Clock",
    "EditedFrame",
    "LiveSession",
    "RemoteSession",
    "Session",
    "SessionError",
    "SystemClock",
    "Telemetry",
    "Worker",
    "WorkerProcess",
]
