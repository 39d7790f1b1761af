"""Adapters: LoRA files of PEFT and llama.cpp, orderings, X-LoRA's configuration and classifier, where all of these act
on a model, and which adapters are in memory."""
