"""Families of denoisers that the hooks know, one file each."""

from stillframe.hooks.families import cogvideox, hunyuan, ltx, unet_motion, wan
from stillframe.hooks.families.base import Family, Processor, families, find_family, register
from stillframe.hooks.families.transformer import TransformerFamily

__all__ = [
    "Family",
    "Processor",
    "TransformerFamily",
    "cogvideox",
    "families",
    "find_family",
    "hunyuan",
    "ltx",
    "register",
    "unet_motion",
    "wan",
]
