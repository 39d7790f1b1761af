"""LoRA files of PEFT and llama.cpp: reading, writing and merging them, and the parts that they act on."""
