//! Linux guests with Debian's own NVMe driver on drives of ours. Boots cost seconds, so each test does much; guests at a
//! time are limited over the whole machine.

mod admin;
mod doorbells;
mod driver;
mod drives;
mod io;
mod machines;
mod namespaces;

use vireo_tests::target::configuration;

/// Bash functions for the scripts: `verify DEVICE SIZE [OPTION...]` writes at random, reads back, checks each block's
/// CRC; `expect WANTED GOT`.
pub const FUNCTIONS: &str = r#"
verify() {
    local device=$1 size=$2 result
    shift 2
    result=$(mktemp)
    fio --name=verify --filename="$device" --ioengine=libaio --direct=1 --iodepth=16 --rw=randwrite \
        --bsrange=4k-64k --size="$size" --verify=crc32c --do_verify=1 --verify_fatal=1 --eta=never \
        --output-format=json --output="$result" "$@" ||
        { head -c 1500 "$result"; return 1; }
    # What it remarks on its options stands before the result.
    sed -i -n '/^{/,$p' "$result"
    jq -e '([.jobs[].error] | add) == 0 and ([.jobs[].read.io_bytes] | add) > 0' "$result" >/dev/null
}
expect() { [ "$1" = "$2" ] || { echo "wanted '$1', got '$2'" >&2; return 1; }; }
blocks() { blockdev --getsz "$1"; }
"#;

/// A malloc and a file device of one subsystem, `more` tables behind them, and endpoints `vm0` and `vm1` with `options`.
pub fn two_devices(options: &str, more: &str) -> String {
    configuration(&format!(
        "[[bdev]]\nname = \"mem0\"\ndriver = \"malloc\"\nsize = \"128MiB\"\n\
         [[bdev]]\nname = \"disk\"\ndriver = \"file\"\npath = \"@DIR@/disk.img\"\ncreate = true\nsize = \"256MiB\"\n\
         [[subsystem]]\nname = \"s0\"\nserial = \"GUEST0001\"\n\
         [[subsystem.namespace]]\nnsid = 1\nbdev = \"mem0\"\n\
         [[subsystem.namespace]]\nnsid = 2\nbdev = \"disk\"\n{more}\
         [[endpoint]]\nname = \"vm0\"\nsubsystem = \"s0\"\n{options}\
         [[endpoint]]\nname = \"vm1\"\nsubsystem = \"s0\"\n{options}"
    ))
}
