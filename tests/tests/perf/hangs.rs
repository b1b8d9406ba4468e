//! Targets that die or hang in the middle of a run.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use vireo_tests::command::{Ended, vireo};
use vireo_tests::cores::beside;
use vireo_tests::target::{Target, configuration};

use crate::{address, perf};

/// Far less than what a run of a minute has left, far more than its end may take.
const SOON: Duration = Duration::from_secs(40);

/// A run of a minute on a file, in the middle: it has written all of its range.
fn in_the_middle(line: &str) -> (Target, std::thread::JoinHandle<Ended>) {
    let tables = "[[bdev]]\nname = \"disk\"\ndriver = \"file\"\npath = \"@DIR@/disk\"\ncreate = true\nsize = \"4MiB\"\n\
                  [[subsystem]]\nname = \"s0\"\n[[subsystem.namespace]]\nnsid = 1\nbdev = \"disk\"\n\
                  [[endpoint]]\nname = \"vm0\"\nsubsystem = \"s0\"\n";
    let target = Target::start(&configuration(tables));
    let endpoint = address(target.endpoint("vm0"));
    let line = format!("T --depth 8 --pattern write --size 64KiB --connect-timeout 4s {line}");
    let words: Vec<String> = perf(&line, &endpoint).into_iter().map(str::to_owned).collect();
    let run = std::thread::spawn(move || vireo(words.iter().map(String::as_str)));
    let disk = target.site().directory().join("disk");
    vireo_tests::wait::until("the load has written its whole range", || {
        let data = std::fs::read(&disk).unwrap_or_default();
        let mut blocks = data.get(..64 << 10).unwrap_or_default().chunks(4096);
        blocks.len() > 0 && blocks.all(|block| block.iter().any(|&byte| byte != 0))
    });
    (target, run)
}

#[test]
fn a_target_that_dies_ends_the_run_soon() {
    let _cores = beside();
    let (target, run) = in_the_middle("--time 60s");
    let died = Instant::now();
    kill(target.pid("f0"), Signal::SIGKILL).expect("kill a process of our own");
    let ended = run.join().expect("the thread that waits");
    assert!(died.elapsed() < SOON, "{:?}", died.elapsed());
    assert_eq!(ended.output.status.code(), Some(1), "{}", ended.stderr());
    assert!(ended.stderr().contains("is gone"), "{}", ended.stderr());
    assert_eq!(ended.stderr().lines().count(), 1, "{}", ended.stderr());
}

#[test]
fn a_target_that_hangs_ends_the_run_soon() {
    let _cores = beside();
    // The worker: I/Os do not end, and the controller cannot be reset. The frontend: I/Os go on, nothing else does; only
    // if a disk is so slow that the controller is asked how it is, nobody answers.
    for (process, line, statuses) in [("w0", "--time 60s", [1, 1]), ("f0", "--time 2s", [0, 1])] {
        let (target, run) = in_the_middle(line);
        let pid = target.pid(process);
        kill(pid, Signal::SIGSTOP).expect("stop a process of our own");
        let stopped = Instant::now();
        let ended = run.join().expect("the thread that waits");
        let took = stopped.elapsed();
        kill(pid, Signal::SIGCONT).expect("let it go on");
        // An I/O's time-out of 2 s, its half, and three quarters of 4 s; or the run's own 2 s and what closing may take.
        assert!(took < SOON, "{process}: {took:?}");
        let status = ended.output.status.code().expect("it ends by itself");
        assert!(statuses.contains(&status), "{process}: {status}: {}", ended.stderr());
        if status == 1 {
            assert!(ended.stderr().contains("hangs"), "{}", ended.stderr());
            assert_eq!(ended.stderr().lines().count(), 1, "{}", ended.stderr());
        }
    }
}
