#!/usr/bin/env bash
# Answers the questions in a file, one a line; the model is loaded once: examples/ask.sh < questions.txt
# The questions are turns of one conversation, so a later one may refer to an earlier answer.
set -euo pipefail

exec mistralrs -i --max-tokens 100 --system "Answer in one short sentence."
