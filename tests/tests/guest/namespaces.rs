//! Namespaces that come, grow and go while the guest runs.

use vireo_tests::guest::Guest;
use vireo_tests::target::{Target, configuration};

use crate::FUNCTIONS;

#[test]
fn the_driver_sees_namespaces_come_grow_and_go_under_io() {
    let tables = |size: &str, more: &str| {
        configuration(&format!(
            "[[bdev]]\nname = \"mem0\"\ndriver = \"malloc\"\nsize = \"{size}\"\n\
             [[bdev]]\nname = \"mem1\"\ndriver = \"malloc\"\nsize = \"32MiB\"\n\
             [[bdev]]\nname = \"disk\"\ndriver = \"file\"\npath = \"@DIR@/disk.img\"\ncreate = true\nsize = \"64MiB\"\n\
             [[subsystem]]\nname = \"s0\"\nserial = \"HOT\"\n\
             [[subsystem.namespace]]\nnsid = 1\nbdev = \"mem0\"\n{more}\
             [[endpoint]]\nname = \"vm0\"\nsubsystem = \"s0\"\n"
        ))
    };
    let second = "[[subsystem.namespace]]\nnsid = 2\nbdev = \"mem1\"\n";
    let third = "[[subsystem.namespace]]\nnsid = 3\nbdev = \"disk\"\n";
    let target = Target::start(&tables("64MiB", ""));
    let script = r#"
within 20 namespace 1
first=$(namespace 1)
# Verified I/O on the first namespace all the time.
(verify "$first" 32M --time_based=0 --loops=3) &
background=$!
tell ready
expect added "$(await)"
within 10 namespace 2 && within 10 namespace 3
verify "$(namespace 2)" 8M
verify "$(namespace 3)" 8M
tell used
expect grown "$(await)"
within 10 sh -c "[ \$(blockdev --getsize64 $first) = $((96 << 20)) ]"
tell seen
expect removed "$(await)"
within 10 sh -c '! ls /sys/class/nvme/nvme0/ | grep -q "nvme0n[23]$"' || true
gone() { ! namespace 2 >/dev/null && ! namespace 3 >/dev/null; }
within 10 gone
wait $background
# The new blocks hold data.
verify "$first" 8M --offset=80M
tell done
"#;
    let script = format!("{FUNCTIONS}{script}");
    let mut guest =
        Guest::new(&script).drive(target.endpoint("vm0")).controlled().seconds(150).start();
    guest.expect_line("ready");
    target.reload_ok(&tables("64MiB", &format!("{second}{third}")));
    guest.tell("added");
    guest.expect_line("used");
    target.reload_ok(&tables("96MiB", &format!("{second}{third}")));
    guest.tell("grown");
    guest.expect_line("seen");
    target.reload_ok(&tables("96MiB", ""));
    guest.tell("removed");
    guest.expect_line("done");
    guest.finish();
    assert!(target.stop().success());
}
