"""Inference fast and exact: recordings of any length, and streams. A checkpoint alone runs transformers' modules.

The Hub files know this package by one guarded import in the model's file; `VERSION` says which of them it fits.
"""

from .packing import PackedModel
from .recordings import decode_recordings, encode_recordings, packed_parts
from .stream import MimiBridgeStream

VERSION = 1  # raised whenever the model's file and these names no longer fit those before

__all__ = ["VERSION", "MimiBridgeStream", "PackedModel", "decode_recordings", "encode_recordings", "packed_parts"]
