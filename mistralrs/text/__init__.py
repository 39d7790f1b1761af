"""Text to tokens and back: tokenizers, chat templates and the text of streamed tokens.

``tokenizer`` encodes and decodes; the modules named after formats (``json_vocabulary``, ``gguf_vocabulary``,
``sentencepiece_model``, ``tiktoken_model``) read vocabularies, ``gguf_metadata`` writes one. ``chat_template`` turns
conversations into prompts, ``prompt_tokens`` turns prompts into ids, ``stream`` turns sampled tokens into text.

Chat templates and some tokenizers are foreign code. ``worker`` runs them in other processes, whose side is
``worker_process`` with ``rendering``, ``sandbox``, ``conversation`` and ``control``.

The package knows texts, vocabularies and the files' formats. It does not know where files come from, which model uses
them or how tokens are chosen, and does not need torch.
"""
