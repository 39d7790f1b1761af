"""A second real model, Gemma 3 270M in Q4_K_M: run only where `make gemma` has fetched it."""
