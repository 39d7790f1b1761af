"""Adapters: LoRA files of PEFT and llama.cpp, where they act on a model, and which of them are in memory."""
