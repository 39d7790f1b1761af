"""The engine: one thread that owns the model, batches the steps of many sequences and streams their tokens.

``engine`` takes requests from other threads, and its thread runs ``engine_core``, which holds ``open_requests`` and
advances them step by step; ``scheduler`` plans the steps and records their results; ``batch`` and ``model_runner`` hand
them to the decoder; ``request_state`` turns sampled tokens into ``events``; ``admission`` checks requests. The KV cache
is in ``kv``, the choice of tokens in ``sampling``. ``grammar_compiler`` makes a request's ``sequence_constraint``;
``step_masks`` computes the tokens that grammars allow in a step; ``request_hooks`` are functions of the caller.

The engine knows token ids, blocks and events. It does not know model files, chat templates, HTTP or the terminal. The
scheduler and the KV cache's bookkeeping use no tensors.
"""
