#!/bin/sh
# step.sh TITLE LOG COMMAND...: runs a step of the set-up. Prints its title, and keeps in LOG all that COMMAND says. When
# COMMAND fails, prints all of it and the log's place, and ends with COMMAND's code.
title=$1
log=$2
shift 2
echo "$title"
mkdir -p "$(dirname "$log")"
"$@" >"$log" 2>&1 && exit
code=$?
{
  cat "$log"
  echo "This step failed: $title"
  echo "The lines above are all that it said; they are in $log too. Mend the cause and give the same command again: what is done stays."
} >&2
exit $code
