#!/bin/bash
# build.sh [PROGRAMS [OUT [VERSION]]] - makes the Debian package of programs that are built already.
#   PROGRAMS  the directory they lie in, target/release unless given
#   OUT       the directory of the package, target/debian unless given
#   VERSION   the package's version, the tree's unless given
# Man pages and completions are made by the program that goes into the package. Prints the package's path.
set -euo pipefail
tree=$(cd "$(dirname "$0")/../.." && pwd)
PATH=$tree/target/tools/bin:$PATH
programs=$(realpath "${1:-$tree/target/release}")
out=${2:-$tree/target/debian}
version=${3:-}

# cargo-deb takes programs from a target directory's "release" alone: one is made of copies, which it may strip.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/release" "$out"
for program in vireo vireo-frontend vireo-worker vireo-backend vireo-manager; do
    cp "$programs/$program" "$work/release/$program"
done
"$work/release/vireo" generate man "$work/release/man"
gzip -9n "$work"/release/man/*
"$work/release/vireo" generate completions "$work/release/completions"

arguments=(--no-build --strip --quiet --package vireo --output "$(realpath "$out")")
[ -z "$version" ] || arguments+=(--deb-version "$version")
cd "$tree"
CARGO_TARGET_DIR=$work cargo-deb "${arguments[@]}"
