"""Grammars to constraints: which tokens may come next.

``compile_grammar`` checks and compiles a grammar, given as a kind and a text; ``constraint`` is its state in an answer.
The modules named after kinds (``regex_grammar``, ``yacc_grammar``, ``json_grammar`` and others) translate a text into
the language of llguidance, which computes the masks, and refuse by name whatever that does not hold to the letter.
``token_table`` gives a vocabulary's tokens as bytes.

The package knows texts, tokens and masks. It does not know models, requests, logits or sampling, and needs neither
torch nor numpy.
"""
