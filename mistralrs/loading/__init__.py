"""Loading: from files and hub repositories to a model that runs.

``pipeline`` loads a model; ``describe`` shows one without loading it; ``quantize_model`` writes one as GGUF. The
formats are read by ``gguf_file``, ``ggml_file`` and ``safetensors_file``, which all give a ``checkpoint`` of mapped
tensors; ``architecture_lookup`` finds its architecture, ``checkpoint_parts`` a model's parts in it, and ``convert``
prepares them for the kernels. ``hub_files`` and ``hub_model`` fetch files, ``text_source`` chooses tokenizer and chat
template, ``vocabulary_check`` compares the tokenizer with the embedding, ``kv_budget`` plans the KV cache, and
``fingerprint`` hashes everything that the cache's content depends on.

The readers of formats handle containers and need neither torch nor numpy; the meaning of tensors and metadata comes
from ``models``. The package never deals with the engine, the API or the command line.
"""
