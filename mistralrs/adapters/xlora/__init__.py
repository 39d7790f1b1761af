"""X-LoRA: its configuration, its classifier, and the executor that runs a model with it."""
