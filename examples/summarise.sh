#!/usr/bin/env bash
# Summarises text files, each in one sentence: examples/summarise.sh FILE...
set -euo pipefail

for file in "$@"; do
  printf '%s: ' "$file"
  head -c 4000 -- "$file" | mistralrs --max-tokens 60 --prompt "Summarise this text in one sentence."
done
