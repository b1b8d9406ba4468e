//! `vireo perf`, a user's own way to measure, against the floor in the same run: the real processes with a null device as
//! a lease. What it says of itself alone stands beside it.
//!
//! `make bench` builds the programs and runs it; `cargo bench -p vireo-tests --bench perf` alone finds them where
//! `cargo build --release --workspace --bins` leaves them.

use serde_json::Value;
use std::process::Command;
use vireo_tests::measure::{CLIENT, SERVER, compare, floor, heading};
use vireo_tests::target::{Target, configuration, program, run};

fn main() {
    let tables = "[[bdev]]\nname = \"null0\"\ndriver = \"null\"\nsize = \"1GiB\"\n\
                  [[subsystem]]\nname = \"s0\"\n[[subsystem.namespace]]\nnsid = 1\nbdev = \"null0\"\n\
                  [[endpoint]]\nname = \"vm0\"\nsubsystem = \"s0\"\n";
    let pinned = format!("name = \"w0\"\ncore = {SERVER}\n");
    let target = Target::start(&configuration(tables).replace("name = \"w0\"\n", &pinned));
    target.await_all_ready();
    let address = format!("vfio-user:{}", target.endpoint("vm0").display());
    println!("vireo perf, 4 KiB random reads, one queue pair, polled, mapped doorbells");
    heading();
    for (depth, bar, total) in [(1, "bar: 1.3 floors", 300_000), (128, "bar: 55 ns", 4_000_000)] {
        let name = format!("null, lease, d{depth}");
        compare(&name, bar, || floor(depth, total), || nanoseconds(&[&address], depth));
    }
    for depth in [1, 128] {
        let name = format!("perf by itself, d{depth}");
        let ours = || nanoseconds(&["--self"], depth);
        compare(&name, "base: null, lease", || nanoseconds(&[&address], depth), ours);
    }
}

/// Nanoseconds from one completion to the next, as `vireo perf` counts them.
fn nanoseconds(of: &[&str], depth: u16) -> f64 {
    let mut command = Command::new(program("vireo"));
    let core = CLIENT.to_string();
    command.arg("perf").args(of).args(["--depth", &depth.to_string(), "--cores", &core]);
    command.args(["--time", "500ms", "--warm-up", "100ms", "-o", "json"]);
    let output = run(command);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("json");
    let rate = report["runs"][0]["all"]["iops"].as_f64().expect("a rate");
    1e9 / rate
}
