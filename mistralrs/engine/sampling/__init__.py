"""Sampling: from logits to tokens.

``sampling_input`` is what goes in and comes out; ``logits_processors`` change scores (penalties, DRY of
``dry_penalty``, bias, masks); ``sampler_stages`` are temperature, top-k, top-p and the others in any order; ``sampler``
does all of it for a batch, with a fast path for the usual stages; ``buffer_tensor`` makes tensors of the logits.

The package knows logits, token ids and sampling parameters. It does not know sequences, requests, text or grammars: a
mask comes from outside.
"""
