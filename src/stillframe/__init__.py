"""stillframe: restyle video, recomputing only the latent patches that changed.

Names are imported when they are first used, so that ``import stillframe`` and the command line's
``--help`` do not wait for torch.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from stillframe.autoencoders.tiny import TinyVideoAutoencoder
    from stillframe.config import EditConfig
    from stillframe.controls import Box, Controls, Cuts, Gop, Guard, Rate, Refresh, Region
    from stillframe.engine.stream import BlockStats, EditStream, StreamSettings
    from stillframe.errors import InputError, ModelError, OutputError, StillframeError
    from stillframe.jobs.edit import edit_file
    from stillframe.jobs.generate import generate_file
    from stillframe.live import LiveSession
    from stillframe.loading.load import load_pipeline
    from stillframe.methods import Method
    from stillframe.methods.prune import InterFramePruning
    from stillframe.pipelines.causal_wan import CausalWanPipeline, CausalWanPipelineOutput
    from stillframe.recovery import Recovery, recoveries

__all__ = [
    "BlockStats",
    "Box",
    "CausalWanPipeline",
    "CausalWanPipelineOutput",
    "Controls",
    "Cuts",
    "EditConfig",
    "EditStream",
    "Gop",
    "Guard",
    "InputError",
    "InterFramePruning",
    "LiveSession",
    "Method",
    "ModelError",
    "OutputError",
    "Rate",
    "Recovery",
    "Refresh",
    "Region",
    "StillframeError",
    "StreamSettings",
    "TinyVideoAutoencoder",
    "edit_file",
    "generate_file",
    "load_pipeline",
    "recoveries",
]

_HOMES = {
    "autoencoders.tiny": ("TinyVideoAutoencoder",),
    "config": ("EditConfig",),
    "controls": ("Box", "Controls", "Cuts", "Gop", "Guard", "Rate", "Refresh", "Region"),
    "engine.stream": ("BlockStats", "EditStream", "StreamSettings"),
    "errors": ("InputError", "ModelError", "OutputError", "StillframeError"),
    "jobs.edit": ("edit_file",),
    "jobs.generate": ("generate_file",),
    "live": ("LiveSession",),
    "loading.load": ("load_pipeline",),
    "methods": ("Method",),
    "methods.prune": ("InterFramePruning",),
    "pipelines.causal_wan": ("CausalWanPipeline", "CausalWanPipelineOutput"),
    "recovery": ("Recovery", "recoveries"),
}


def __getattr__(name: str) -> typing.Any:
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f"stillframe.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'stillframe' has no attribute {name!r}")
