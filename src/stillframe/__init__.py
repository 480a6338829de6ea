"""stillframe: restyle video, recomputing only the latent patches that changed."""

from stillframe.autoencoder import TinyVideoAutoencoder
from stillframe.engine import BlockStats, EditStream, StreamSettings
from stillframe.errors import InputError, ModelError, OutputError, StillframeError
from stillframe.methods import Method, methods
from stillframe.pipeline import CausalWanPipeline, CausalWanPipelineOutput
from stillframe.recovery import Recovery, recoveries

__all__ = [
    "BlockStats",
    "CausalWanPipeline",
    "CausalWanPipelineOutput",
    "EditStream",
    "InputError",
    "Method",
    "ModelError",
    "OutputError",
    "Recovery",
    "StillframeError",
    "StreamSettings",
    "TinyVideoAutoencoder",
    "methods",
    "recoveries",
]
