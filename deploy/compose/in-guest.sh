#!/bin/bash
# What the guest of the profile "guest" does: shows its drive, and checks what it writes to both namespaces.
set -euo pipefail
nvme list
for nsid in 1 2; do
    within 10 namespace "$nsid" >/dev/null
    fio --name="namespace-$nsid" --filename="$(namespace "$nsid")" --rw=randwrite --bs=4k --size=16M --direct=1 \
        --iodepth=16 --ioengine=io_uring --verify=crc32c --verify_fatal=1 --minimal >/dev/null
    echo "namespace $nsid: 16 MiB written at random, read again and checked"
done
