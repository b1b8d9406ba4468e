//! Limits and pauses between real processes, by configuration, admin client and API, while clients do I/O.

use nvme_spec::{Lba, Nsid, NvmOpcode};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use vireo_tests::admin_client::{json, ok, refused, vireo};
use vireo_tests::host::{Host, Neighbour, commands};
use vireo_tests::target::{Target, configuration, one_memory_namespace};
use vireo_tests::wait::{PATIENCE, one_of, until};

const NSID: Nsid = Nsid(1);
/// Commands that each client keeps outstanding.
const DEPTH: usize = 8;
/// What a limit saves up, in seconds.
const BURST: f64 = 0.1;

fn pause_state(target: &Target, controller: &str) -> String {
    let shown = json(target, &["controller", "get", controller]);
    shown["pause_state"].as_str().unwrap_or_default().to_owned()
}

/// A client that keeps reads of a page outstanding.
struct Reader {
    host: Host,
    buffer: nvme_spec::Iova,
    outstanding: usize,
}

impl Reader {
    fn connect(target: &Target, endpoint: &str) -> Self {
        let mut host = Host::connect(target.socket(endpoint));
        let buffer = host.memory.allocate(4096).iova;
        Self { host, buffer, outstanding: 0 }
    }

    fn submit(&mut self) {
        let read = commands::io(NvmOpcode::READ, NSID, Lba(0), 8);
        self.host.submit(0, read.with_prps(self.buffer, nvme_spec::Iova(0)));
        self.outstanding += 1;
    }

    /// Takes one completion, if there is one.
    fn take(&mut self) -> bool {
        let Some(completion) = self.host.poll(0) else { return false };
        assert!(completion.status().is_success(), "{completion:?}");
        self.outstanding -= 1;
        true
    }

    /// Keeps the queue full, and takes one completion or waits a little. Whether there was one.
    fn go_on(&mut self) -> bool {
        while self.outstanding < DEPTH {
            self.submit();
        }
        let taken = self.take();
        if !taken {
            // Not a yield: who does nothing else may be put behind all others for long.
            std::thread::sleep(Duration::from_micros(50));
        }
        taken
    }

    /// Commands that complete within `time`, and how long that was.
    fn count(&mut self, time: Duration) -> (u64, f64) {
        let (start, mut count) = (Instant::now(), 0);
        while start.elapsed() < time {
            count += u64::from(self.go_on());
        }
        (count, start.elapsed().as_secs_f64())
    }

    /// Waits until nothing is outstanding.
    fn drain(&mut self) {
        until("outstanding commands complete", || {
            while self.take() {}
            self.outstanding == 0
        });
    }
}

/// Counts until a count is as it should be: never more than the limit and a burst of it; most of it, however slow the
/// machine is, unless it stalls, which is not made up for.
#[track_caller]
fn keeps(limit: f64, mut count: impl FnMut() -> (u64, f64)) {
    let mut few = Vec::new();
    for _ in 0..8 {
        let (count, seconds) = count();
        let most = limit * (seconds + BURST) + 2.0 * DEPTH as f64;
        assert!(count as f64 <= most, "{count} in {seconds} s are more than {most}");
        if count as f64 >= 0.6 * limit * seconds {
            return;
        }
        few.push((count, seconds));
    }
    panic!("less than most of {limit} a second: {few:?}");
}

/// Has both readers read until each of them has got so much since both began. Answers what they have together, and how long
/// that took.
#[track_caller]
fn until_each_has(enough: u64, readers: &mut [Reader; 2]) -> (u64, f64) {
    let (start, done) = (Instant::now(), [const { AtomicU64::new(0) }; 2]);
    std::thread::scope(|scope| {
        for (reader, own) in readers.iter_mut().zip(&done) {
            let done = &done;
            scope.spawn(move || {
                // Relaxed: numbers that guard nothing.
                while done.iter().any(|done| done.load(Ordering::Relaxed) < enough) {
                    assert!(start.elapsed() < PATIENCE, "both get on: {done:?}");
                    own.fetch_add(u64::from(reader.go_on()), Ordering::Relaxed);
                }
            });
        }
    });
    let together = done.iter().map(|done| done.load(Ordering::Relaxed)).sum();
    (together, start.elapsed().as_secs_f64())
}

/// Two workers, each with an endpoint of its own; `limits` of the namespace that they share, and of `vm0`.
fn shared(namespace: &str, endpoint: &str) -> String {
    configuration("").replace(
        "[[worker]]\nname = \"w0\"\n",
        "[[worker]]\nname = \"w0\"\n[[worker]]\nname = \"w1\"\n",
    ) + "[[bdev]]\nname = \"mem0\"\ndriver = \"malloc\"\nsize = \"16MiB\"\n\
           [[subsystem]]\nname = \"s0\"\n[[subsystem.namespace]]\nnsid = 1\nbdev = \"mem0\"\n"
        + namespace
        + "\n[[endpoint]]\nname = \"vm0\"\nsubsystem = \"s0\"\nworkers = [\"w0\"]\n"
        + endpoint
        + "\n[[endpoint]]\nname = \"vm1\"\nsubsystem = \"s0\"\nworkers = [\"w1\"]\n"
}

#[test]
fn workers_share_a_namespaces_limit_which_changes_under_io() {
    let target = Target::start(&shared("limits = { iops = 1000 }", ""));
    let mut readers = ["vm0", "vm1"].map(|name| Reader::connect(&target, name));
    // What a first command waits for, such as its channel, is none of the limit's.
    for reader in &mut readers {
        reader.submit();
        reader.drain();
    }
    keeps(1000.0, || until_each_has(300, &mut readers));

    target.reload_ok(&shared("limits = { iops = 1000 }", "limits = { bandwidth = \"1MiB\" }"));
    readers.iter_mut().for_each(Reader::drain);
    keeps(256.0, || readers[0].count(Duration::from_secs(1)));
    readers[0].drain();

    target.reload_ok(&shared("", ""));
    one_of(8, || {
        let (count, seconds) = readers[0].count(Duration::from_millis(500));
        assert!(count as f64 > 1500.0 * seconds, "nothing is limited: {count} in {seconds} s");
    });
    readers[0].drain();
    let stats = json(&target, &["stats", "get", "controllers/vm0"]);
    let throttled = stats["stats"][0]["total"]["throttled"].as_str().expect("counted");
    assert!(throttled.parse::<u64>().expect("a number") > 200, "{stats}");
}

#[test]
fn limits_are_set_by_the_admin_client() {
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    ok(&target, &["volume", "create", "data", "--driver", "malloc", "--size", "16MiB"]);
    ok(&target, &["subsystem", "create", "s1"]);
    ok(&target, &["namespace", "create", "s1", "--volume", "data", "--iops", "500"]);
    ok(&target, &["controller", "create", "vm1", "--subsystem", "s1"]);
    let mut reader = Reader::connect(&target, "vm1");
    keeps(500.0, || reader.count(Duration::from_secs(1)));
    let shown =
        json(&target, &["namespace", "limit", "s1/1", "--iops", "none", "--bandwidth", "4MiB"]);
    assert_eq!(shown["limits"], serde_json::json!({ "bandwidth": "4194304" }));
    assert!(ok(&target, &["namespace", "list"]).contains("bandwidth 4 MiB"));
    ok(&target, &["controller", "limit", "vm1", "--read-iops", "300"]);
    reader.drain();
    keeps(300.0, || reader.count(Duration::from_secs(1)));

    let file = target.site().directory().join("export.yaml");
    let document = ok(&target, &["export"]);
    std::fs::write(&file, document.replace("'300'", "'900'").replace("\"300\"", "\"900\""))
        .unwrap();
    let file = file.to_str().expect("UTF-8");
    assert_eq!(ok(&target, &["apply", "-f", file]), "controllers/vm1: limited\n");
    assert_eq!(ok(&target, &["apply", "-f", file]), "nothing to change\n");
    ok(&target, &["controller", "limit", "vm1", "--clear"]);
    ok(&target, &["namespace", "limit", "s1/1", "--clear"]);
    reader.drain();
    assert!(!ok(&target, &["export"]).contains("limits"));

    assert!(refused(&target, &["controller", "limit", "vm1"]).contains("--iops"));
    assert!(
        refused(&target, &["controller", "limit", "vm1", "--iops", "0"]).contains("limits.iops")
    );
    let line = refused(&target, &["controller", "limit", "vm0", "--iops", "5"]);
    assert!(line.contains("configuration file"), "{line}");
}

#[test]
fn verified_io_waits_through_a_pause_and_goes_on() {
    let target = Target::start(&one_memory_namespace(&["vm0", "vm1"]));
    let neighbour = Neighbour::start(target.socket("vm0"), NSID, Lba(0));
    let other = Neighbour::start(target.socket("vm1"), NSID, Lba(4096));
    neighbour.goes_on();
    for _ in 0..2 {
        let paused = json(&target, &["controller", "pause", "vm0", "--timeout", "40s"]);
        assert_eq!(paused["pause_state"], "PAUSE_STATE_PAUSED");
    }
    assert!(ok(&target, &["controller", "list"]).contains("paused"));
    let reads = |target: &Target| {
        let stats = json(target, &["stats", "get", "controllers/vm0"]);
        stats["stats"][0]["total"]["reads"].as_str().map(str::to_owned)
    };
    let before = reads(&target);
    other.goes_on();
    assert_eq!(reads(&target), before, "nothing is done meanwhile");
    for _ in 0..2 {
        let running = json(&target, &["controller", "resume", "vm0"]);
        assert_eq!(running["pause_state"], "PAUSE_STATE_RUNNING");
    }
    neighbour.goes_on();
    // A pause that ends by itself.
    ok(&target, &["controller", "pause", "vm0", "--timeout", "40s", "--max", "200ms"]);
    neighbour.goes_on();
    assert_eq!(pause_state(&target, "vm0"), "PAUSE_STATE_RUNNING");
    neighbour.finish();
    other.finish();
}

#[test]
fn a_pause_outlives_worker_manager_and_client() {
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    let mut reader = Reader::connect(&target, "vm0");
    let is_paused = || pause_state(&target, "vm0") == "PAUSE_STATE_PAUSED";
    ok(&target, &["controller", "pause", "vm0", "--timeout", "40s"]);
    target.kill_and_await_successor("m0");
    until("the manager answers", || vireo(&target, &["controller", "list"]).status.success());
    until("it knows", is_paused);
    target.kill_and_await_successor("w0");
    reader.host.wait("CSTS.CFS", |host| host.csts().cfs().then_some(()));
    until("the successor serves", || target.site().vireo(&["status"]).status.success());
    reader.host.enable();
    reader.host.create_queues(1, 64);
    reader.submit();
    until("it is paused", is_paused);
    assert!(!reader.take(), "its successor fetches nothing either");
    drop(reader);
    let mut reader = Reader::connect(&target, "vm0");
    reader.submit();
    until("it is paused", is_paused);
    assert!(!reader.take(), "nor for the next client");
    ok(&target, &["controller", "resume", "vm0"]);
    reader.drain();
}

#[test]
fn a_pause_is_taken_back_while_commands_are_in_flight() {
    let tables = "[[bdev]]\nname = \"null0\"\ndriver = \"null\"\nsize = \"1GiB\"\nlatency = \"4s\"\n\
                  [[subsystem]]\nname = \"s0\"\n[[subsystem.namespace]]\nnsid = 1\nbdev = \"null0\"\n\
                  [[endpoint]]\nname = \"vm0\"\nsubsystem = \"s0\"\n";
    let target = Target::start(&configuration(tables));
    let mut reader = Reader::connect(&target, "vm0");
    until("it is in flight", || {
        // One that ended before it was looked at is followed by another.
        while reader.take() {}
        if reader.outstanding == 0 {
            reader.submit();
        }
        let line = refused_or_paused(&target);
        line.is_some_and(|line| line.contains("still in flight"))
    });
    assert_eq!(pause_state(&target, "vm0"), "PAUSE_STATE_RUNNING");
    let paused = json(&target, &["controller", "pause", "vm0", "--timeout", "40s"]);
    assert_eq!(paused["pause_state"], "PAUSE_STATE_PAUSED");
    assert!(reader.take(), "it has ended");
    ok(&target, &["controller", "resume", "vm0"]);
}

/// Why a short pause is refused; none if it came about, which is taken back.
fn refused_or_paused(target: &Target) -> Option<String> {
    let output = vireo(target, &["controller", "pause", "vm0", "--timeout", "100ms"]);
    if output.status.success() {
        ok(target, &["controller", "resume", "vm0"]);
        return None;
    }
    Some(String::from_utf8_lossy(&output.stderr).into_owned())
}
