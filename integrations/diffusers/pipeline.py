"""stillframe's pipeline, for ``DiffusionPipeline.from_pretrained(model, custom_pipeline=...)``.

diffusers copies this file and looks for the one pipeline class in it; stillframe must be installed.
"""

from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = ["CausalWanPipeline"]
