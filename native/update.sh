#!/bin/sh
# Builds the native module and puts it in place by a rename, so that processes that have the old one
# mapped go on undisturbed and no reader ever sees half a file.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
target="$here/../src/o3storage/_native.abi3.so"
cd "$here"
cargo build --release --locked --features pyo3/extension-module "$@"
cp target/release/lib_native.so "$target.$$.tmp"
strip "$target.$$.tmp" 2>/dev/null || true
mv "$target.$$.tmp" "$target"
