//! A namespace on a drive that is another target of ours: workers that sleep on its interrupts when that pays, which is the
//! default, beside such that poll (`polled = true`), in turn.
//!
//! `make bench` builds the programs and runs it; `cargo bench -p vireo-tests --bench drives` alone finds them where
//! `cargo build --release --workspace --bins` leaves them. Three threads work at a time, the client's, the worker's and the
//! drive's: with fewer cores than that both ways are slower, and what sleeps makes room for the others.

use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Instant;
use vireo_tests::measure::{CLIENT, SERVER, median, ran};
use vireo_tests::target::{Target, configuration, program, run};

/// Alternations.
const ROUNDS: usize = 5;
/// The core of the drive's worker, if there are so many.
const DRIVE: usize = 2;

/// What a run came to.
struct Sample {
    iops: f64,
    /// Nanoseconds.
    mean: f64,
    /// Part of a core that the worker took, and its backend with it.
    share: f64,
}

/// Null devices that answer at once and after a millisecond, each for two clients.
fn drive() -> Target {
    let mut tables = String::new();
    for (name, latency) in [("fast", ""), ("slow", "latency = \"1ms\"\n")] {
        tables += &format!(
            "[[bdev]]\nname = \"{name}\"\ndriver = \"null\"\nsize = \"1GiB\"\n{latency}\
             [[subsystem]]\nname = \"{name}\"\n[[subsystem.namespace]]\nnsid = 1\nbdev = \"{name}\"\n\
             [[endpoint]]\nname = \"{name}0\"\nsubsystem = \"{name}\"\n\
             [[endpoint]]\nname = \"{name}1\"\nsubsystem = \"{name}\"\n"
        );
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let core = if cores > DRIVE { format!("core = {DRIVE}\n") } else { String::new() };
    start(&tables, &core)
}

/// A namespace on that drive.
fn on(endpoint: &Path, options: &str) -> Target {
    let tables = format!(
        "[[bdev]]\nname = \"nv0\"\ndriver = \"nvme\"\ntarget = \"vfio-user:{}\"\n{options}\
         [[subsystem]]\nname = \"s0\"\n[[subsystem.namespace]]\nnsid = 1\nbdev = \"nv0\"\n\
         [[endpoint]]\nname = \"vm0\"\nsubsystem = \"s0\"\n",
        endpoint.display()
    );
    start(&tables, &format!("core = {SERVER}\n"))
}

fn start(tables: &str, of_worker: &str) -> Target {
    let worker = format!("name = \"w0\"\n{of_worker}");
    let target = Target::start(&configuration(tables).replace("name = \"w0\"\n", &worker));
    target.await_all_ready();
    target
}

/// Random reads of 4 KiB by `vireo perf`, polled, on a core of its own.
fn sample(target: &Target, depth: u16) -> Sample {
    let mut command = Command::new(program("vireo"));
    command.args(["perf", &format!("vfio-user:{}", target.endpoint("vm0").display())]);
    command.args(["--depth", &depth.to_string(), "--cores", &CLIENT.to_string()]);
    command.args(["--time", "1s", "--warm-up", "500ms", "-o", "json"]);
    let processes = [target.pid("w0"), target.pid("b0")];
    let used = || processes.iter().map(|&pid| ran(pid)).sum::<std::time::Duration>();
    let (before, started) = (used(), Instant::now());
    let output = run(command);
    let share = (used() - before).as_secs_f64() / started.elapsed().as_secs_f64();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("json");
    let number = |path: &str| {
        let value = report["runs"][0]["all"].pointer(path).and_then(Value::as_f64);
        value.expect("a number")
    };
    Sample { iops: number("/iops"), mean: number("/latency_ns/mean"), share }
}

fn main() {
    let drive = drive();
    println!(
        "a namespace on a drive that is another target of ours, 4 KiB random reads, one queue pair"
    );
    println!(
        "{:<22} {:>9} {:>9}  {:<22} {:>9} {:>9}  {:<22} {:>8} {:>8}",
        "", "IOPS", "polled", "ratio", "mean us", "polled", "ratio", "core %", "polled"
    );
    for (name, depths) in [("fast", &[1, 8, 128][..]), ("slow", &[1])] {
        let ways = [
            on(&drive.endpoint(&format!("{name}0")), ""),
            on(&drive.endpoint(&format!("{name}1")), "polled = true\n"),
        ];
        for &depth in depths {
            let pairs: Vec<[Sample; 2]> =
                (0..ROUNDS).map(|_| ways.each_ref().map(|target| sample(target, depth))).collect();
            let of = |way: usize, figure: &dyn Fn(&Sample) -> f64| {
                median(pairs.iter().map(|pair| figure(&pair[way])).collect())
            };
            let ratio = |figure: &dyn Fn(&Sample) -> f64| {
                let mut ratios: Vec<f64> =
                    pairs.iter().map(|[a, b]| figure(a) / figure(b)).collect();
                ratios.sort_by(f64::total_cmp);
                let (low, high) = (ratios[0], ratios[ROUNDS - 1]);
                format!("{:.2} ({low:.2} to {high:.2})", ratios[ROUNDS / 2])
            };
            let (iops, mean) = (|one: &Sample| one.iops, |one: &Sample| one.mean / 1e3);
            let share = |one: &Sample| one.share * 100.0;
            println!(
                "{:<22} {:>9.0} {:>9.0}  {:<22} {:>9.1} {:>9.1}  {:<22} {:>8.0} {:>8.0}",
                format!("{name} drive, d{depth}"),
                of(0, &iops),
                of(1, &iops),
                ratio(&iops),
                of(0, &mean),
                of(1, &mean),
                ratio(&mean),
                of(0, &share),
                of(1, &share),
            );
        }
    }
}
