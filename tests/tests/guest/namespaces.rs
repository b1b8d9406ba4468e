//! Namespaces that come, grow and go, and are limited and paused, while the guest runs.

use serde_json::Value;
use std::time::{Duration, Instant};
use vireo_tests::guest::Guest;
use vireo_tests::target::{Target, configuration};
use vireo_tests::wait::{PATIENCE, until, within};

use crate::FUNCTIONS;

/// Commands a second while the namespace is limited: far fewer than the guest does without.
const LIMIT: u64 = 400;
/// How long it is paused.
const PAUSE: Duration = Duration::from_secs(2);

/// Answer of the admin client, which is asked again where a process was too slow for it.
#[track_caller]
fn ask(target: &Target, arguments: &[&str]) -> Value {
    let mut said = String::new();
    let answer = within(PATIENCE, || {
        let output = target.site().vireo(&[arguments, &["-o", "json"]].concat());
        said = String::from_utf8_lossy(&output.stderr).into_owned();
        output.status.success().then_some(output.stdout)
    });
    let answer = answer.unwrap_or_else(|| panic!("{arguments:?}: {said}\n{}", target.log()));
    serde_json::from_slice(&answer).expect("JSON")
}

/// Commands that the target counted on the namespace, and those of them that waited for a limit.
fn counted(target: &Target) -> (u64, u64) {
    let stats = ask(target, &["stats", "get", "subsystems/s0/namespaces/1"]);
    let total = &stats["stats"][0]["total"];
    let count = |key: &str| total[key].as_str().map_or(0, |text| text.parse().expect("a number"));
    (count("reads") + count("writes") + count("others"), count("throttled"))
}

/// What the guest does while its namespace is limited: no more than that. `throttled` had waited before.
fn keeps_to_the_limit(target: &Target, throttled: u64) {
    until("commands wait for the limit", || counted(target).1 > throttled);
    let (start, (before, _)) = (Instant::now(), counted(target));
    let mut after = before;
    until("commands pass all the same", || {
        after = counted(target).0;
        after > before + LIMIT
    });
    // From before the first look to after the last one; half as much again, and what is in flight at the ends.
    let most = 1.5 * LIMIT as f64 * (start.elapsed().as_secs_f64() + 0.1) + 64.0;
    assert!(((after - before) as f64) < most, "{} commands are more than {most}", after - before);
}

/// Nothing is done while it is paused.
fn waits_through_a_pause(target: &Target) {
    ask(target, &["namespace", "pause", "s0/1", "--timeout", "60s"]);
    until("it is paused", || {
        let shown = ask(target, &["namespace", "get", "s0/1"]);
        shown["pause_state"] == "PAUSE_STATE_PAUSED"
    });
    let (start, before) = (Instant::now(), counted(target));
    while start.elapsed() < PAUSE {
        assert_eq!(counted(target), before, "a paused namespace works");
    }
    ask(target, &["namespace", "resume", "s0/1"]);
    until("it goes on", || counted(target).0 > before.0 + 100);
}

#[test]
fn the_driver_sees_namespaces_come_grow_and_go_and_neither_limits_nor_pauses() {
    let limited = |size: &str, limits: &str, more: &str| {
        configuration(&format!(
            "[[bdev]]\nname = \"mem0\"\ndriver = \"malloc\"\nsize = \"{size}\"\n\
             [[bdev]]\nname = \"mem1\"\ndriver = \"malloc\"\nsize = \"32MiB\"\n\
             [[bdev]]\nname = \"disk\"\ndriver = \"file\"\npath = \"@DIR@/disk.img\"\ncreate = true\nsize = \"64MiB\"\n\
             [[subsystem]]\nname = \"s0\"\nserial = \"HOT\"\n\
             [[subsystem.namespace]]\nnsid = 1\nbdev = \"mem0\"\n{limits}{more}\
             [[endpoint]]\nname = \"vm0\"\nsubsystem = \"s0\"\n"
        ))
    };
    let tables = |size: &str, more: &str| limited(size, "", more);
    let second = "[[subsystem.namespace]]\nnsid = 2\nbdev = \"mem1\"\n";
    let third = "[[subsystem.namespace]]\nnsid = 3\nbdev = \"disk\"\n";
    let target = Target::start(&tables("64MiB", ""));
    let script = r#"
within 60 namespace 1
first=$(namespace 1)
# Verified I/O on the first namespace all the time.
(verify "$first" 32M --time_based=0 --loops=3) &
background=$!
tell ready
expect added "$(await)"
within 60 namespace 2 && within 60 namespace 3
verify "$(namespace 2)" 8M
verify "$(namespace 3)" 8M
tell used
expect grown "$(await)"
within 60 sh -c "[ \$(blockdev --getsize64 $first) = $((96 << 20)) ]"
tell seen
expect removed "$(await)"
within 60 sh -c '! ls /sys/class/nvme/nvme0/ | grep -q "nvme0n[23]$"' || true
gone() { ! namespace 2 >/dev/null && ! namespace 3 >/dev/null; }
within 60 gone
wait $background
# The new blocks hold data.
verify "$first" 8M --offset=80M
# A limit and a pause make I/O slow, and nothing else.
(until [ -e /tmp/enough ]; do verify "$first" 8M; done) &
background=$!
tell busy
expect enough "$(await)"
touch /tmp/enough
wait $background
! dmesg | grep -iE 'nvme nvme[0-9]+: .*(timeout|abort|failed|unusual)'
tell done
"#;
    let script = format!("{FUNCTIONS}{script}");
    let mut guest =
        Guest::new(&script).drive(target.endpoint("vm0")).controlled().seconds(400).start();
    guest.expect_line("ready");
    target.reload_ok(&tables("64MiB", &format!("{second}{third}")));
    guest.tell("added");
    guest.expect_line("used");
    target.reload_ok(&tables("96MiB", &format!("{second}{third}")));
    guest.tell("grown");
    guest.expect_line("seen");
    target.reload_ok(&tables("96MiB", ""));
    guest.tell("removed");
    guest.expect_line("busy");
    let (_, throttled) = counted(&target);
    target.reload_ok(&limited("96MiB", &format!("limits = {{ iops = {LIMIT} }}\n"), ""));
    keeps_to_the_limit(&target, throttled);
    target.reload_ok(&tables("96MiB", ""));
    waits_through_a_pause(&target);
    guest.tell("enough");
    guest.expect_line("done");
    guest.finish();
    assert!(target.stop().success());
}
