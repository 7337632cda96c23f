#!/bin/sh
# The same job as a shell pipe: rows flow from tokenize to pack without touching the disk.
# usage: examples/pipe.sh MODEL CHATS.jsonl OUTPUT-FOLDER
set -eu
model=$1 chats=$2 out=$3
here=$(dirname "$0")

# a stage that fails ends its stream without a trailer, and pack then commits nothing (exit 76)
postmill tokenize "$chats" -m "$model" --model-name Millstone --model-author "the Postmill workshop" |
    postmill pack - -o "$out/packed" @ "$here/demo/recipe.toml"

run=$(postmill train "$out/packed" -m "$model" -o "$out/run" @ "$here/demo/recipe.toml")
tuned=$(postmill merge "$run" -o "$out/tuned")
postmill eval "$tuned" --question "Who are you?" --before "$model" -o "$out/answers" @ "$here/demo/recipe.toml"
