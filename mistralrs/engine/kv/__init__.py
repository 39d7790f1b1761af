"""The KV cache's blocks: allocation, sharing by content, eviction, and a tier on disk.

``kv_cache_manager`` gives blocks to sequences in all KV groups; ``block_pool`` counts references and evicts in one
group; ``kv_connector`` copies blocks to and from ``kv_disk_tier``, whose files ``block_folder`` reads and writes.

The package knows block numbers, token ids, block hashes and bytes. It does not know plans, requests, models, tensors or
the layout of a block.
"""
