"""The state of a pipeline's calls between ``apply`` and ``remove``.

A pipeline's session runs while the pipeline is being called, and only then: another pipeline that
shares its denoisers is not disturbed.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from stillframe.errors import InputError
from stillframe.hooks.attachment import RUNNING, Attachment, attachment_of
from stillframe.hooks.families import Family
from stillframe.hooks.passes import Pass
from stillframe.hooks.pruning import Clip, ClipPlan, Geometry, Plans
from stillframe.hooks.splitting import TimeWindows
from stillframe.hooks.standin import Branch, StandIn

__all__ = ["Session", "begin", "remove"]

_SESSIONS: WeakKeyDictionary[Any, Session] = WeakKeyDictionary()


class Session:
    """A pipeline with pruning applied; as a context manager it is removed on leaving.

    Attributes:
        current: the pass that is running; None: none, or one that is diffusers' own.
        plan: which tokens of the clip are computed; None: every one. A call in which some frames
            are given, not denoised, has another one, which is here after it.
        geometry: how the pipeline cuts a video into tokens.
        standin: what stands in for keys and values of the others.
        windows: of time, that a denoiser is called on one after another; None: on the whole clip.
    """

    def __init__(
        self,
        pipe: Any,
        family: Family,
        clip: Clip | None,
        geometry: Geometry,
        standin: StandIn,
        source: Tensor | None,
    ) -> None:
        self.plan = self._own = None if clip is None else clip.plan()
        self.clip, self.geometry, self.standin = clip, geometry, standin
        self._pipe, self._family = ref(pipe), family
        applied = _SESSIONS.get(pipe)
        self._class: Any = type(pipe) if applied is None else applied._class
        self._attached: list[Attachment] = []
        self._source = source
        self._call: dict[str, Any] = {}
        self.windows: TimeWindows | None = None
        self._clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pipe = self._pipe()
        if pipe is not None and _SESSIONS.get(pipe) is self:
            remove(pipe)

    @property
    def kept_share(self) -> float:
        """Share of tokens that are computed, 0 to 1."""
        return 1.0 if self.plan is None else self.plan.kept_share

    def attach(self) -> None:
        """Hang hooks on the pipeline's denoisers, and have its calls run in this session."""
        pipe: Any = self._pipe()
        for denoiser in self._family.denoisers(pipe):
            attachment = attachment_of(denoiser) or Attachment(self._family, denoiser)
            attachment.sessions.append(self)
            self._attached.append(attachment)
        pipe.__class__ = _tracked(self._class)

    def detach(self) -> None:
        """Undo `attach`."""
        pipe: Any = self._pipe()
        pipe.__class__ = self._class
        for attachment in self._attached:
            attachment.sessions.remove(self)
            if not attachment.sessions:
                attachment.detach()

    def _clear(self) -> None:
        self._steps: dict[str, int] = {}
        self._time: Any = None
        self._calls = 0
        self._step = 0
        self._work: _Work | None = None
        self._nested = False
        self.current: Pass | None = None
        self._plans: dict[torch.device, Plans] = {}
        self.standin.reset()

    @contextmanager
    def running(self, call: dict[str, Any]) -> Iterator[None]:
        """While the pipeline is called with these arguments; nothing is kept after it."""
        self._clear()
        self._call = call
        token = RUNNING.set(self)
        try:
            yield
        finally:
            RUNNING.reset(token)
            self._call = {}
            self._clear()

    def begin(self, attachment: Attachment, given: dict[str, Any]) -> dict[str, Any] | None:
        """Begin a denoiser's call with these arguments by name.

        Returns:
            arguments that it is called with instead; None: it is called as it was.
        """
        if self._nested:
            return None
        latents: Tensor = given[self._family.latents]
        plan = None if self.plan is None else self._plan(latents, given["timestep"])
        if plan is not None and plan.everything:
            plan = None
        if plan is None and self.windows is None:
            return None
        name = self._name(attachment)
        step = self._steps.get(name, 0)
        self._steps[name] = step + 1
        self._work = _Work(
            attachment, given, plan, name, step, self._spans(attachment, given, step)
        )
        entered = self._enter(self._work, self._work.spans[0])
        return entered if len(self._work.spans) > 1 else None

    def _spans(
        self, attachment: Attachment, given: dict[str, Any], step: int
    ) -> Sequence[range | None]:
        """The clip's frames in every window of a step; None: all of them at once."""
        if self.windows is None:
            return [None]
        latents: Tensor = given[self._family.latents]
        if latents.ndim != 5:
            raise InputError(
                f"windows need latents of frames, rows and columns, this pipeline's have "
                f"{latents.ndim} axes"
            )
        leading, frames = self._frames(latents)
        spans = self.windows.spans(frames - leading, self._moved(step))
        if len(spans) == 1:
            return [None]
        if getattr(attachment.denoiser, "is_cache_enabled", False):
            raise InputError(
                f"enable_cache keeps what a pass over the whole clip gave, and this clip is "
                f"denoised in {len(spans)} windows: call disable_cache first"
            )
        if step != self._step:
            self._step = step
            for plans in self._plans.values():
                plans.forget_parts()
        return spans

    def _moved(self, step: int) -> int:
        """The step whose windows are those of a step."""
        # what a stand-in keeps of a window must be of the same frames at the next step
        return 0 if self.standin.stores else step

    def _enter(self, work: _Work, span: range | None) -> dict[str, Any]:
        """Set up the pass of one window; the arguments that the denoiser is called with in it."""
        given, source, branch = work.given, self._source, work.branch
        if span is not None:
            count = self._frames(given[self._family.latents])[1]
            given = self._family.part(given, self._numbers(work, span), count)
            branch = f"{branch} {span.start}"
            if source is not None:
                source = source.narrow(self._family.frame_dim, span.start, len(span))
        if work.plan is not None:
            self._prune(work, given, span, (id(work.attachment), branch), source)
        return given

    def _prune(
        self,
        work: _Work,
        given: dict[str, Any],
        span: range | None,
        branch: Branch,
        source: Tensor | None,
    ) -> None:
        """Set up a pass in which not all is computed."""
        latents: Tensor = given[self._family.latents]
        plans, denoiser = self._plans[latents.device], work.attachment.denoiser
        plan, coarser = plans.of(span), functools.partial(plans.of, span)
        if plan.everything:
            return
        if self.standin.stores and getattr(denoiser, "is_cache_enabled", False):
            raise InputError(
                f"the stand-in {self.standin.name!r} keeps keys and values of every layer, and "
                f"enable_cache skips layers: use 'neighbour' beside it"
            )
        begun = functools.partial(Pass, plan, self.standin, branch, coarser=coarser)
        if source is not None and not self.standin.known(branch):
            # the stand-in sees the source's clean latents once
            self.current = begun(whole=True)
            clean = self._family.with_source(latents, source)
            time = torch.zeros_like(given["timestep"])
            self._call_again(denoiser, {**given, self._family.latents: clean, "timestep": time})
        whole = self.standin.whole(branch, work.step)
        if not whole or self.standin.observes:
            self.current = begun(whole=whole)

    def _call_again(self, denoiser: nn.Module, given: dict[str, Any]) -> Any:
        """What a denoiser gives in the pass that is set up, while the pipeline is calling it."""
        self._nested = True
        try:
            return denoiser(**given)
        finally:
            self._nested = False

    def end(self, output: Any) -> Any:
        """End it: the output of all windows, with places that are not computed where their
        providers end."""
        work = self._work
        if self._nested or work is None or output is None:
            return output
        self._work = None
        made = self._finished(work, _sample(output))
        if isinstance(output, tuple):
            return made, *output[1:]
        output.sample = made
        return output

    def _finished(self, work: _Work, output: Tensor) -> Tensor:
        latents: Tensor = work.given[self._family.latents]
        if self.windows is not None and len(work.spans) > 1:
            leading, frames = self._frames(latents)
            shares = self.windows.shares(frames - leading, self._moved(work.step))
            outputs = self._of_windows(work, output)
            output = self.windows.average(outputs, shares, self._family.frame_dim)
        if work.plan is None:
            return output
        weight = self._family.weight(self._scheduler, work.given["timestep"])
        return self._family.restored(output, latents, work.plan, self.geometry.patch, weight)

    def _of_windows(self, work: _Work, output: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Frames' numbers and the output of every window, of which the first one has run."""
        for number, span in enumerate(work.spans):
            assert span is not None
            if number:
                given = self._enter(work, span)
                output = _sample(self._call_again(work.attachment.denoiser, given))
            yield self._numbers(work, span), output

    def _numbers(self, work: _Work, span: range) -> Tensor:
        """Of the frames that a denoiser is called with, those of a window: what is in front of the
        clip is in front of each."""
        leading = self._frames(work.given[self._family.latents])[0]
        return torch.tensor([*range(leading), *(leading + frame for frame in span)])

    def _frames(self, latents: Tensor) -> tuple[int, int]:
        """Latent frames that a denoiser is called with: in front of the clip, and all."""
        grid = self._family.grid(latents, self.geometry, self._call)
        return self._family.leading(self._call, grid), grid[0]

    @property
    def _scheduler(self) -> Any:
        pipe: Any = self._pipe()
        return pipe.scheduler

    def _plan(self, latents: Tensor, timestep: Tensor) -> ClipPlan:
        """The plan with what this call puts in front of the clip, checked and on the device."""
        if latents.device not in self._plans:
            self._plans[latents.device] = self._planned(latents, timestep)
        return self._plans[latents.device].of()

    def _planned(self, latents: Tensor, timestep: Tensor) -> Plans:
        assert self.clip is not None
        plan = self._own
        assert plan is not None
        grid = self._family.grid(latents, self.geometry, self._call)
        leading, frames = self._frames(latents)
        called = frames - leading, *grid[1:]
        if called != tuple(plan.keep.shape):
            planned, asked = (" x ".join(map(str, x)) for x in (plan.keep.shape, called))
            raise InputError(
                f"what was applied has {planned} latent frames, rows and columns of tokens, the "
                f"pipeline was called for {asked}: give both the same length and size"
            )
        if timestep.ndim == 2 and timestep.shape[1] > 1:  # one for every token
            times = timestep[0].view(frames, -1)[leading:]
            given = (times < times.max()).any(1).to(plan.keep.device)
            if bool(given.any()):
                plan = self.clip.plan(given)
        self.plan = plan
        return Plans(self.clip, plan, leading, latents.device)

    def _name(self, attachment: Attachment) -> str:
        """The branch of guidance: its cache context, or which call at this timestep it is."""
        if attachment.context.branch is not None:
            return attachment.context.branch
        time = getattr(self._pipe(), "_current_timestep", None)
        self._calls = self._calls + 1 if time is self._time and time is not None else 0
        self._time = time
        return str(self._calls)


class _Work(NamedTuple):
    """A denoiser's call by the pipeline.

    Attributes:
        given: arguments by name.
        plan: of the clip; None: all is computed.
        branch: of guidance.
        step: of this branch, counted from 0.
        spans: the clip's frames in every window; None: all of them at once.
    """

    attachment: Attachment
    given: dict[str, Any]
    plan: ClipPlan | None
    branch: str
    step: int
    spans: Sequence[range | None]


def _sample(output: Any) -> Tensor:
    """What a denoiser predicts, of what it returns."""
    sample: Tensor = output[0] if isinstance(output, tuple) else output.sample
    return sample


@functools.cache
def _tracked(kind: Any) -> Any:
    """A pipeline's class whose calls run in its session; in all else it is that class."""

    @functools.wraps(kind.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(kind.__call__).bind_partial(self, *args, **kwargs).arguments
        session = _SESSIONS.get(self)
        if session is None:  # a copy of a pipeline
            return kind.__call__(self, *args, **kwargs)
        with session.running(given):
            return kind.__call__(self, *args, **kwargs)

    names = {"__call__": call, "__module__": kind.__module__, "__doc__": kind.__doc__}
    tracked = type(kind.__name__, (kind,), names)
    tracked.__qualname__ = kind.__qualname__
    return tracked


def begin(pipe: Any, session: Session) -> None:
    """Have a pipeline's calls run in a session, in the place of what was applied."""
    remove(pipe)
    session.attach()
    _SESSIONS[pipe] = session


def remove(pipe: Any) -> None:
    """Leave a pipeline as it was before `apply`; nothing happens where nothing was applied."""
    session = _SESSIONS.pop(pipe, None)
    if session is not None:
        session.detach()
