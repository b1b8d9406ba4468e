//! What a running target costs: the real processes, and the driver library as their client over vfio-user.
//!
//! `make bench` builds the programs and runs it; `cargo bench -p vireo-tests --bench processes` alone finds them where
//! `cargo build --release --workspace --bins` leaves them. Arguments after `--` choose parts: `speed`, `tracing`, `idle`, `memory`.

#[path = "../tests/telemetry/collector.rs"]
#[allow(dead_code, reason = "tests look at what it got; here it only has to take it")]
mod collector;

use collector::Collector;
use nix::unistd::Pid;
use nvme_driver::{
    Completed, Controller, DmaBuffer, Namespace, Options, QueueOptions, QueuePair, Request,
    ShadowDoorbells,
};
use nvme_spec::{Lba, Nsid};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vireo_tests::client::Pinned;
use vireo_tests::measure::{CLIENT, SERVER, compare, counted, floor, heading, median, ran};
use vireo_tests::target::{Target, configuration, program, run};

/// Bytes of the memory device.
const DEVICE: u64 = 1 << 30;
/// Bytes of a read.
const READ: usize = 4096;
/// How long an idle target is looked at.
const IDLE: Duration = Duration::from_secs(5);
/// Reads of an idle target whose time is taken.
const WAKES: usize = 41;
/// What a read of an idle target comes after: longer than the longest nap.
const REST: Duration = Duration::from_millis(20);

/// A client: a queue pair and its buffers.
struct Client {
    // Declared before the controller: it is to go first.
    queue: QueuePair,
    buffers: Vec<DmaBuffer>,
    namespace: Namespace,
    controller: Controller,
    random: u64,
}

impl Client {
    fn connect(target: &Target, endpoint: &str, nsid: u32, depth: u16) -> Self {
        let address = format!("vfio-user:{}", target.endpoint(endpoint).display());
        let shadow =
            if endpoint == "shadow" { ShadowDoorbells::Offered } else { ShadowDoorbells::Auto };
        let options = Options { shadow_doorbells: shadow, ..Options::default() };
        let controller = Controller::connect_with(&address, &options).expect("a client is let in");
        let namespace = controller.namespace(Nsid(nsid)).expect("it is there");
        let options = QueueOptions { depth, interrupt: false };
        let queue = controller.queue_pair(&options).expect("a queue pair is granted");
        let memory = controller.allocate(usize::from(depth) * READ).expect("memory");
        let buffers = memory.into_chunks(READ);
        Self { queue, buffers, namespace, controller, random: 0x9E37_79B9_7F4A_7C15 }
    }

    /// Nanoseconds per read of `total` reads at random places, as many outstanding as there are buffers.
    fn run(&mut self, total: u64) -> f64 {
        let Self { queue, buffers, namespace, random, .. } = self;
        let places = namespace.bytes() / READ as u64;
        let per_read = READ as u64 / u64::from(namespace.block_size());
        let mut next = |queue: &mut QueuePair, buffer| {
            *random ^= *random << 13;
            *random ^= *random >> 7;
            *random ^= *random << 17;
            let place = (u128::from(*random) * u128::from(places)) >> 64;
            let request = Request::read(namespace, Lba(place as u64 * per_read), buffer);
            queue.submit(request).expect("there is room");
        };
        let start = Instant::now();
        let (mut submitted, mut completed) = (0, 0);
        while let Some(buffer) = buffers.pop() {
            next(queue, buffer);
            submitted += 1;
        }
        while completed < submitted {
            completed += queue.poll(usize::MAX, |queue, Completed { buffer, result, .. }| {
                result.expect("a read succeeds");
                let buffer = buffer.expect("it comes back");
                if submitted < total {
                    submitted += 1;
                    next(queue, buffer);
                } else {
                    buffers.push(buffer);
                }
            }) as u64;
        }
        start.elapsed().as_nanos() as f64 / completed as f64
    }
}

/// A target with a null and a memory device, both as a lease (namespaces 1 and 2) and as a ring (3 and 4), with an
/// endpoint for each way to ring doorbells.
fn target(memory: bool) -> Target {
    target_with(memory, "")
}

/// The same with further tables.
fn target_with(memory: bool, more: &str) -> Target {
    let mut tables = String::new();
    let mut namespaces = String::new();
    let drivers = if memory { &["null", "malloc"][..] } else { &["null"] };
    for channel in ["lease", "ring"] {
        for driver in drivers {
            let nsid = namespaces.matches("nsid").count() + 1;
            tables += &format!(
                "[[bdev]]\nname = \"{driver}-{channel}\"\ndriver = \"{driver}\"\n\
                 size = {DEVICE}\nchannel = \"{channel}\"\n"
            );
            namespaces +=
                &format!("[[subsystem.namespace]]\nnsid = {nsid}\nbdev = \"{driver}-{channel}\"\n");
        }
    }
    tables += &format!("[[subsystem]]\nname = \"s0\"\n{namespaces}");
    for doorbells in ["mapped", "shadow"] {
        tables += &format!(
            "[[endpoint]]\nname = \"{doorbells}\"\nsubsystem = \"s0\"\ndoorbells = \"{doorbells}\"\n"
        );
    }
    tables += more;
    let pinned = format!("name = \"w0\"\ncore = {SERVER}\n");
    let target = Target::start(&configuration(&tables).replace("name = \"w0\"\n", &pinned));
    target.await_all_ready();
    target
}

fn processes(target: &Target) -> Vec<(&'static str, Pid)> {
    let mut found = vec![("vireo up", target.supervisor())];
    let services = [("manager", "m0"), ("frontend", "f0"), ("worker", "w0"), ("backend", "b0")];
    found.extend(services.map(|(what, name)| (what, target.pid(name))));
    found
}

/// Resident bytes of a process: its own, and those that it shares.
fn resident(pid: Pid) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10
    };
    (field("RssAnon:") + field("RssFile:"), field("RssShmem:"))
}

fn speed() {
    let target = target(true);
    let null = |nsid, depth, total: u64| {
        counted(|| {
            let worker = target.pid("w0");
            let mut client = Client::connect(&target, "mapped", nsid, depth);
            let pinned = Pinned::to(CLIENT);
            client.run(total / 10);
            let (before, start) = (ran(worker), Instant::now());
            let time = client.run(total);
            let share = (ran(worker) - before).as_secs_f64() / start.elapsed().as_secs_f64();
            // A ring's worker shares its core with the backend here.
            (time, if nsid > 2 { 1.0 } else { pinned.share().min(share) })
        })
    };
    // Memory that was never written is read from one page of zeroes.
    for nsid in [2, 4] {
        fill(&target, nsid);
    }
    println!("running processes, mapped doorbells");
    heading();
    compare("null, lease, d1", "base: floor", || floor(1, 200_000), || null(1, 1, 200_000));
    compare(
        "null, lease, d128",
        "bar: 55 ns",
        || floor(128, 3_000_000),
        || null(1, 128, 3_000_000),
    );
    compare("null, ring, d1", "base: lease", || null(1, 1, 50_000), || null(3, 1, 5_000));
    compare("null, ring, d128", "base: lease", || null(1, 128, 500_000), || null(3, 128, 200_000));
    compare("malloc, ring, d1", "base: lease", || null(2, 1, 50_000), || null(4, 1, 5_000));
    compare(
        "malloc, ring, d128",
        "base: lease",
        || null(2, 128, 500_000),
        || null(4, 128, 200_000),
    );
}

/// What it costs to be watched.
fn tracing() {
    let collector = Collector::start();
    let keys = format!("[telemetry]\notlp = \"{}\"\nsample = 0\n", collector.endpoint());
    let target = target_with(false, &keys);
    let sampled = |interval: u32| {
        let mut command = std::process::Command::new(program("vireo"));
        let interval = interval.to_string();
        command.args(["trace", "update", "w0", "--sample", &interval, "--runtime-dir"]);
        command.arg(target.site().run_dir());
        let output = run(command);
        assert!(output.status.success(), "{output:?}");
    };
    let read = |depth: u16, total: u64| {
        let mut client = Client::connect(&target, "mapped", 1, depth);
        let _pinned = Pinned::to(CLIENT);
        client.run(total / 10);
        client.run(total)
    };
    let traced = |interval, depth, total| {
        sampled(interval);
        read(depth, total)
    };
    println!("\nbeing watched, null, lease; spans go to a collector on the same two cores");
    heading();
    for (depth, total) in [(1, 100_000), (32, 1_000_000)] {
        for (name, interval) in [("1 in 1000 traced", 1000), ("each traced", 1)] {
            let name = format!("{name}, d{depth}");
            let base = || traced(0, depth, total);
            compare(&name, "base: tracing off", base, || traced(interval, depth, total));
        }
        let name = format!("scraped every second, d{depth}");
        // Long enough that some scrapes fall into it.
        let total = total * 20;
        let base = || traced(0, depth, total);
        compare(&name, "base: not scraped", base, || {
            sampled(0);
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        scrape(&target);
                        std::thread::park_timeout(Duration::from_secs(1));
                    }
                });
                let time = read(depth, total);
                stop.store(true, Ordering::Relaxed);
                time
            })
        });
    }
}

/// Reads the metrics once.
fn scrape(target: &Target) {
    let socket = target.site().run_dir().join("metrics.sock");
    let mut stream = UnixStream::connect(socket).expect("metrics are served");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: vireo\r\n\r\n").expect("ask");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

/// Writes a device once.
fn fill(target: &Target, nsid: u32) {
    let mut client = Client::connect(target, "mapped", nsid, 1);
    let bytes = 1_usize << 20;
    let mut buffer = client.controller.allocate(bytes).expect("memory");
    buffer.copy_from(&vec![1; bytes]);
    let blocks = bytes as u64 / u64::from(client.namespace.block_size());
    for place in 0..DEVICE / bytes as u64 {
        let request = Request::write(&client.namespace, Lba(place * blocks), buffer);
        client.queue.submit(request).expect("there is room");
        let done = client.queue.wait_next().expect("one is outstanding");
        done.result.expect("a write succeeds");
        buffer = done.buffer.expect("it comes back");
    }
}

fn idle() {
    let target = target(false);
    println!(
        "\nidle, one client connected and a queue pair open    all processes      wake-up: median, longest"
    );
    for (doorbells, bar) in [("mapped", 10), ("shadow", 3)] {
        let mut client = Client::connect(&target, doorbells, 1, 1);
        client.run(1000);
        std::thread::sleep(Duration::from_secs(1));
        let processes = processes(&target);
        let used = || processes.iter().map(|&(_, pid)| ran(pid)).sum::<Duration>();
        let (before, start) = (used(), Instant::now());
        std::thread::sleep(IDLE);
        let part = (used() - before).as_secs_f64() / start.elapsed().as_secs_f64() * 100.0;
        let wakes: Vec<f64> = (0..WAKES)
            .map(|_| {
                std::thread::sleep(REST);
                client.run(1) / 1000.0
            })
            .collect();
        let longest = wakes.iter().copied().fold(0.0, f64::max);
        println!(
            "{doorbells:<50} {part:>6.2} % of a core  {:>9.1} us {longest:>9.1} us  bar: {bar} %",
            median(wakes)
        );
    }
}

fn memory() {
    let target = target(false);
    let mut client = Client::connect(&target, "mapped", 1, 128);
    client.run(100_000);
    println!("\nresident memory with one controller     own    shared");
    let mebi = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let mut sum = 0;
    for (what, pid) in processes(&target) {
        let (own, shared) = resident(pid);
        sum += own + shared;
        println!("{what:<34} {:>7.1} {:>9.1} MiB", mebi(own), mebi(shared));
    }
    println!("{:<34} {:>7.1} MiB, shared memory counted at each  bar: 100 MiB", "all", mebi(sum));
}

fn main() {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let parts: [(&str, fn()); 4] =
        [("speed", speed), ("tracing", tracing), ("idle", idle), ("memory", memory)];
    for (name, part) in parts {
        if wanted.is_empty() || wanted.iter().any(|want| want == name) {
            part();
        }
    }
}
