"""One answer on the output: its text, its code, its thinking, or a JSON object."""
