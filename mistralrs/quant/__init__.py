"""Storage types of weights: their layouts, reference decoders in torch, and quantization.

``types`` is the table of types. ``dequantize`` decodes a matrix by the decoders of ``legacy``, ``kquants`` and
``ggml_versions``; ``requantize_lossless`` turns types without kernels, which ``iquants`` and ``ggml_versions`` unpack,
into integers with scales. ``quantize`` chooses types for ``--isq``; ``scale_search`` quantizes, as the reference
implementation of the kernels.

The decoders are slow and exact: every faster implementation is tested against them. The package knows blocks, rows and
types. It does not know files, models, devices or kernels.
"""
