#!/bin/sh
# Cargo runs this in place of rustc for the packages of the workspace, when
# `cargo xtask fuzz` asks it to: they get the counters that libFuzzer reads, all by
# stable options. docs/fuzzing.md
exec "$@" \
    -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares
