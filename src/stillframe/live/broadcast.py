"""A live source edited and sent on: `Feed` in, a session between, an outlet out, paced by `Player`.

Sound goes round the model and waits for its pictures.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from stillframe.config import EditConfig
from stillframe.errors import OutputError
from stillframe.live.editor import EditedFrame
from stillframe.live.feed import Feed, SourceFacts, pauses
from stillframe.live.outlet import Outlet
from stillframe.live.playout import Playout
from stillframe.live.session import LiveSession
from stillframe.live.sound import SoundBuffer
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.video import Source
from stillframe.video.fit import fit_to_grid

__all__ = ["BroadcastReport", "Player", "broadcast"]

_TICK_S = 0.005
_LOOK_S = 0.1
_SILENCE_S = 2.0
_REPEAT_S = 1.0
_MOST_WAITING = 512
_END_S = 2.0
_MINUTE_S = 60.0
_REMEMBERED = 100_000


class BroadcastReport(NamedTuple):
    """What became of a broadcast.

    Attributes:
        seconds: from the first frame that was sent to the last.
        frames_in, frames_out: read and sent.
        dropped: frames that were left out because editing or sending was too slow.
        returns: how often the source, and the place to send to, came back.
        latency_p50, latency_p95: seconds from a frame's arrival until it was handed to the
            encoder; None without a frame.
        drift: by how much the median of the last minute is above that of the first, in seconds.
    """

    seconds: float
    frames_in: int
    frames_out: int
    dropped: int
    returns: int
    latency_p50: float | None
    latency_p95: float | None
    drift: float | None


class Latencies:
    """Seconds from arrival to sending: of the first minute, and of the latest frames."""

    def __init__(self) -> None:
        self._first: list[float] = []
        self._latest: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED)
        self._begun: float | None = None

    def add(self, now: float, late: float) -> None:
        """A frame that was sent now."""
        self._begun = now if self._begun is None else self._begun
        if now - self._begun <= _MINUTE_S:
            self._first.append(late)
        self._latest.append((now, late))

    def told(self) -> tuple[float, float, float, float] | None:
        """Seconds in all, median, 95th percentile, drift; None if there was no frame."""
        if self._begun is None:
            return None
        times, late = np.array(self._latest).T
        last = late[times >= times[-1] - _MINUTE_S]
        drift = np.median(last) - np.median(self._first)
        median, high = np.quantile(late, (0.5, 0.95))
        return float(times[-1] - self._begun), float(median), float(high), float(drift)


class Player:
    """Hands edited frames and sound to an outlet when they are due, on a thread of its own.

    Args:
        session: that frames come from.
        feed: that the source is read by.
        sound: that waits.
        open_outlet: opens the outlet, at first and again when it was lost.
        reconnect: seconds for which a lost one is opened again.
        stop: true ends it at once.
        tell: called with a sentence when the outlet goes and comes.

    Attributes:
        error: why it ended, if not as it should.
        sent, dropped: frames that went out, and that were left out here.
        returns: how often the outlet came back.
        latencies: from a frame's arrival until it was sent.
    """

    def __init__(
        self,
        session: LiveSession,
        feed: Feed,
        sound: SoundBuffer,
        open_outlet: Callable[[], Outlet],
        reconnect: float,
        stop: Callable[[], bool],
        tell: Callable[[str], None],
    ) -> None:
        self.error: Exception | None = None
        self.sent = self.dropped = self.returns = 0
        self._session, self._feed, self._sound = session, feed, sound
        self._open, self._reconnect, self._stop, self._tell = open_outlet, reconnect, stop, tell
        self._outlet = open_outlet()
        self._playout = Playout()
        self._frames: deque[EditedFrame] = deque()
        self._lock = threading.Lock()
        self._over = False
        self._origin: float | None = None
        self._newest, self._last = -np.inf, -np.inf
        self._shown_at = 0.0
        self._picture: np.ndarray[Any, np.dtype[np.uint8]] | None = None
        self.latencies = Latencies()
        self._collector = threading.Thread(target=self._collect, daemon=True)
        self._thread = threading.Thread(target=self._run, name="stillframe-player", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._collector.start()
        self._thread.start()

    @property
    def over(self) -> bool:
        """Whether all is sent, or nothing can be any more."""
        return not self._thread.is_alive()

    def join(self, seconds: float) -> None:
        """Wait for it."""
        self._thread.join(seconds)

    def _collect(self) -> None:
        """Take frames from the session as soon as they are there: it waits for that."""
        try:
            for frame in self._session:
                with self._lock:
                    self._playout.arrived(frame.timestamp, time.monotonic())
                    self._newest = frame.timestamp
                    self._frames.append(frame)
                    if len(self._frames) > _MOST_WAITING:
                        self._frames.popleft()
                        self.dropped += 1
        except Exception as error:
            self.error = error
        self._over = True

    def _run(self) -> None:
        try:
            while not self._stop() and self.error is None:
                ended = self._over
                try:
                    self._send()
                except OutputError as error:
                    if not self._reopen(error):
                        break
                if ended and not self._frames:
                    break
                time.sleep(_TICK_S)
        except Exception as error:
            self.error = error
        finally:
            self._outlet.close()

    def _send(self) -> None:
        """All that is due."""
        now = time.monotonic()
        with self._lock:
            position = self._playout.position(now)
            due = []
            while self._frames and self._frames[0].timestamp <= position:
                due.append(self._frames.popleft())
        for frame in due:
            if frame.timestamp <= self._last:
                self.dropped += 1
                continue
            self._show(frame.pixels, frame.timestamp, now)
            self.sent += 1
            self.latencies.add(now, now - frame.arrived)
        if self._origin is None:
            return
        if self._feed.away and self._picture is not None and now - self._shown_at > _REPEAT_S:
            # whoever watches is kept
            self._show(self._picture, position, now)
        # sound does not run ahead of pictures that are late, unless there are none
        reached = max(self._newest, self._last)
        waits = now - self._shown_at < _SILENCE_S
        self._outlet.play(self._sound.take(min(position, reached) if waits else position))

    def _show(self, pixels: np.ndarray[Any, np.dtype[np.uint8]], at: float, now: float) -> None:
        if self._origin is None:
            self._origin = at
            self._sound.start(at)
        self._outlet.show(pixels, at - self._origin)
        self._picture, self._last, self._shown_at = pixels, at, now

    def _reopen(self, error: OutputError) -> bool:
        """Open a lost outlet again; false if it is to stop.

        Raises:
            OutputError: it cannot be, for all the time that it was tried.
        """
        self._outlet.close()
        self._origin = None
        if self._reconnect <= 0:
            raise error
        self._tell(f"{error}; trying again for {self._reconnect:g} s")
        end = time.monotonic() + self._reconnect
        for pause in pauses(self._reconnect):
            wake = time.monotonic() + pause
            while time.monotonic() < min(wake, end):
                if self._stop():
                    return False
                time.sleep(_LOOK_S)
            try:
                self._outlet = self._open()
            except OutputError:
                continue
            self.returns += 1
            self._tell("the output is there again")
            return True
        raise error


def broadcast(
    pipe: CausalWanPipeline,
    source: Source,
    open_outlet: Callable[[SourceFacts], Outlet],
    *,
    prompt: str,
    config: EditConfig,
    height: int | None = None,
    width: int | None = None,
    reconnect: float = 60.0,
    stop: Callable[[], bool],
    tell: Callable[[str], None],
) -> BroadcastReport:
    """Edit a live source until it ends or `stop` says so.

    Args:
        pipe: the model.
        source: what is read.
        open_outlet: opens where the result goes; its facts are those of the edited frames.
        prompt, config: how to edit.
        height, width: of the edited frames, see `fit_to_grid`.
        reconnect: seconds for which a source or an outlet that went away is tried again.
        stop: true ends it.
        tell: called with sentences about what happens.

    Raises:
        InputError: the source cannot be opened, or went away.
        OutputError: the same of the outlet.
        SessionError: the model failed.
    """
    sound = SoundBuffer()
    ending = threading.Event()

    def stopped() -> bool:
        return ending.is_set() or stop()

    feed = Feed(source, sound, reconnect, stopped, tell)
    feed.start()
    if source.listens:
        tell(f"waiting for a sender at {source.name}")
    while feed.facts is None and not feed.over and not stop():
        time.sleep(_LOOK_S)
    if feed.error is not None:
        raise feed.error
    facts = feed.facts
    if facts is None:
        return BroadcastReport(0.0, 0, 0, 0, 0, None, None, None)
    try:
        fit = fit_to_grid(
            facts.width, facts.height, multiple=pipe.frame_multiple, target_height=height,
            target_width=width, max_short_side=pipe.config.default_height,
        )  # fmt: skip
        edited = facts._replace(width=fit.width, height=fit.height)
        with LiveSession(
            pipe, prompt, config=config, height=fit.height, width=fit.width
        ) as session:
            player = Player(
                session, feed, sound, lambda: open_outlet(edited), reconnect, stopped, tell
            )
            tell(
                f"{source.name} is {facts.width}x{facts.height}, edited at {fit.width}x{fit.height}"
            )
            player.start()
            feed.give_to(session)
            while not (feed.over or player.over or stop()):
                time.sleep(_LOOK_S)
            if not player.over and not stop():
                session.end()
                while not (player.over or stop()):
                    time.sleep(_LOOK_S)
            ending.set()
            session.close()
            player.join(2 * _END_S)
            dropped = session.dropped
    finally:
        ending.set()
        feed.join(_END_S)
    if player.error is not None:
        raise player.error
    if feed.error is not None:
        raise feed.error
    return _report(player, feed, dropped)


def _report(player: Player, feed: Feed, dropped: int) -> BroadcastReport:
    told = player.latencies.told()
    seconds, median, high, drift = (0.0, None, None, None) if told is None else told
    returns, dropped = feed.returns + player.returns, dropped + player.dropped
    return BroadcastReport(seconds, feed.frames, player.sent, dropped, returns, median, high, drift)
