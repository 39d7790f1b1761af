"""Loading: from files and hub repositories to a model that runs.

``pipeline`` loads a model; ``describe`` shows one without loading it; ``quantize_model`` writes one as GGUF. The
formats are read by ``gguf_file``, ``ggml_file`` and ``safetensors_file``, which all give a ``checkpoint`` of mapped
tensors;
``checkpoint_parts`` finds a model's parts in it and ``convert`` prepares them for the kernels. ``hub_files`` and
``hub_model`` fetch files, ``text_source`` chooses tokenizer and chat template, ``kv_budget`` plans the KV cache, and
``fingerprint`` names all that decides its content.

The readers of formats know containers and need neither torch nor numpy; they do not know what tensors are for. The
names of an architecture's parts and metadata come from ``models``. The package does not know the engine, the API or the
command line.
"""
