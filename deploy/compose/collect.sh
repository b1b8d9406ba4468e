#!/bin/bash
# collect.sh PROGRAMS IMAGE - lays out an image's file system: Vireo's programs out of a directory, the libraries that
# they load, `sleep` for a container that only holds a namespace, and directories that their user owns.
set -euo pipefail
programs=$1 image=$2 owner=65532:65532

mkdir -p "$image"/usr/bin "$image"/etc/vireo "$image"/run/vireo "$image"/var/lib/vireo "$image"/tmp
install -s -m 755 "$programs"/vireo{,-frontend,-worker,-backend,-manager} "$image/usr/bin/"
install -m 755 "$(readlink -f "$(command -v sleep)")" "$image/usr/bin/sleep"
for program in "$image"/usr/bin/*; do
    # "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)", and the loader by its path alone.
    ldd "$program" | grep -o '/[^ ]*' | sort -u | while read -r library; do
        install -D -m 755 "$(readlink -f "$library")" "$image$library"
    done
done
printf 'root:x:0:0::/:/nonexistent\nvireo:x:65532:65532::/:/nonexistent\n' >"$image/etc/passwd"
printf 'root:x:0:\nvireo:x:65532:\n' >"$image/etc/group"
install -m 644 "$(dirname "$0")/vireo.toml" "$image/etc/vireo/vireo.toml"
if [ "$(id -u)" = 0 ]; then chown "$owner" "$image/run/vireo" "$image/var/lib/vireo"; fi
chmod 750 "$image/run/vireo" "$image/var/lib/vireo"
