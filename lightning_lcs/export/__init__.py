"""Exports levels to the formats of other runtimes, and writes files of single levels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_lcs.utils.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_lcs.export.bits import load_bits as load_bits
    from lightning_lcs.export.bits import save_bits as save_bits
    from lightning_lcs.export.int8_onnx import export_int8 as export_int8
    from lightning_lcs.export.int8_torch import int8_network as int8_network
    from lightning_lcs.export.level_file import save_level as save_level
    from lightning_lcs.export.level_times import time_levels as time_levels
    from lightning_lcs.export.onnx import export_onnx as export_onnx
    from lightning_lcs.export.packing import pack_bits as pack_bits
    from lightning_lcs.export.packing import unpack_bits as unpack_bits
    from lightning_lcs.export.registry import ExportedFile as ExportedFile
    from lightning_lcs.export.registry import register_format as register_format
    from lightning_lcs.export.sparse import load_sparse as load_sparse
    from lightning_lcs.export.sparse import pack_sparse as pack_sparse
    from lightning_lcs.export.sparse import save_sparse as save_sparse
    from lightning_lcs.export.sparse import unpack_sparse as unpack_sparse
    from lightning_lcs.export.sparse_layers import use_sparse_layers as use_sparse_layers
    from lightning_lcs.export.torch_export import export_torch as export_torch

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "ExportedFile": "lightning_lcs.export.registry",
        "export_int8": "lightning_lcs.export.int8_onnx",
        "export_onnx": "lightning_lcs.export.onnx",
        "export_torch": "lightning_lcs.export.torch_export",
        "int8_network": "lightning_lcs.export.int8_torch",
        "load_bits": "lightning_lcs.export.bits",
        "load_sparse": "lightning_lcs.export.sparse",
        "pack_bits": "lightning_lcs.export.packing",
        "pack_sparse": "lightning_lcs.export.sparse",
        "register_format": "lightning_lcs.export.registry",
        "save_bits": "lightning_lcs.export.bits",
        "save_level": "lightning_lcs.export.level_file",
        "save_sparse": "lightning_lcs.export.sparse",
        "time_levels": "lightning_lcs.export.level_times",
        "unpack_bits": "lightning_lcs.export.packing",
        "unpack_sparse": "lightning_lcs.export.sparse",
        "use_sparse_layers": "lightning_lcs.export.sparse_layers",
    },
)
