//! `vireo up` with services that do nothing but speak its protocol: start, death, store, adoption, stop.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Far more than anything here takes; it only bounds a failure.
const PATIENCE: Duration = Duration::from_secs(60);

const CONFIG: &str = r#"
[[worker]]
name = "w0"
[[worker]]
name = "w1"
[[backend]]
name = "b0"
[[frontend]]
name = "f0"
[[bdev]]
name = "m"
driver = "malloc"
size = "1MiB"
[[subsystem]]
name = "s0"
[[subsystem.namespace]]
nsid = 1
bdev = "m"
[[endpoint]]
name = "vm0"
subsystem = "s0"
"#;

/// A directory with all programs, a configuration and a runtime directory.
struct Host {
    directory: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let own = std::env::current_exe().unwrap();
        let fake = own.parent().unwrap().parent().unwrap().join("examples/fake_service");
        for kind in ["backend", "worker", "frontend", "manager"] {
            let program = directory.path().join(format!("vireo-{kind}"));
            std::os::unix::fs::symlink(&fake, program).unwrap();
        }
        // By another process: a descriptor for writing of this one's would be inherited by what other tests start at
        // this moment, and a file that is open for writing cannot be executed.
        let copied = Command::new("cp")
            .arg(env!("CARGO_BIN_EXE_vireo"))
            .arg(directory.path().join("vireo"))
            .status();
        assert!(copied.unwrap().success());
        let host = Self { directory };
        host.write_config(CONFIG);
        std::fs::create_dir(host.run_dir()).unwrap();
        host
    }

    fn run_dir(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    fn write_config(&self, text: &str) {
        let state = self.directory.path().join("state");
        let text = format!("state_dir = \"{}\"\n{text}", state.display());
        std::fs::write(self.directory.path().join("vireo.toml"), text).unwrap();
    }

    /// Has services of these names misbehave.
    fn wish(&self, what: &str, names: &str) {
        std::fs::write(self.run_dir().join(what), names).unwrap();
    }

    fn up(&self) -> Up {
        let mut child = Command::new(self.directory.path().join("vireo"))
            .args(["up", "--config"])
            .arg(self.directory.path().join("vireo.toml"))
            .arg("--runtime-dir")
            .arg(self.run_dir())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (tell, lines) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    break;
                }
            }
        });
        Up { child, lines, seen: Vec::new() }
    }
}

/// A running `vireo up`; killed with all that it started if a test fails.
struct Up {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Up {
    /// The next line that contains `text`.
    fn expect(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("no line with \"{text}\" after\n{}", self.seen.join("\n"));
            };
            self.seen.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
    }

    fn pid_of(&self, service: &str) -> Pid {
        let start = format!("{service}: ");
        let line = self
            .seen
            .iter()
            .rev()
            .find(|line| line.starts_with(&start) && line.contains("(process "));
        let (_, rest) = line.unwrap().split_once("(process ").unwrap();
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Pid::from_raw(digits.parse().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    fn exit_status(&mut self) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < deadline, "vireo up does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        self.expect("stopped");
        assert_eq!(self.exit_status(), 0);
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.signal(Signal::SIGTERM);
            std::thread::sleep(Duration::from_millis(300));
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

fn alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn everything_starts_in_order_and_stops_in_reverse() {
    let host = Host::new();
    let mut up = host.up();
    let ready = up.expect("ready: 1 endpoint");
    assert_eq!(ready, format!("ready: 1 endpoint: vm0 {}/vm0/cntrl", host.run_dir().display()));
    let order: Vec<&str> = up
        .seen
        .iter()
        .filter(|line| line.contains(": started"))
        .map(|line| line.split(':').next().unwrap())
        .collect();
    assert_eq!(order, ["backend b0", "worker w0", "worker w1", "frontend f0", "manager m0"]);
    let pids: Vec<Pid> = order.iter().map(|service| up.pid_of(service)).collect();
    let from = up.seen.len();
    up.signal(Signal::SIGINT);
    up.expect("stopped");
    let ends: Vec<&str> = up.seen[from..]
        .iter()
        .filter(|line| line.contains("exited with status 0"))
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(ends, ["manager", "frontend", "worker", "worker", "backend"]);
    assert_eq!(up.exit_status(), 0);
    assert!(pids.into_iter().all(|pid| !alive(pid)));
    let left: Vec<_> = std::fs::read_dir(host.run_dir()).unwrap().collect();
    assert_eq!(left.len(), 1, "only the lock file is left: {left:?}");
}

#[test]
fn a_killed_service_is_started_at_once_with_its_descriptors() {
    let host = Host::new();
    let mut up = host.up();
    up.expect("ready: 1 endpoint");
    for life in 2.. {
        let pid = up.pid_of("worker w1");
        kill(pid, Signal::SIGKILL).unwrap();
        up.expect("worker w1: killed by SIGKILL; starting again");
        assert!(up.expect("worker w1: started").contains("1 descriptors given back"));
        up.expect(&format!("worker w1: ready: life {life}"));
        // The first three fast deaths cost nothing; the fourth waits a little. A machine that stalls makes lives long.
        if up.seen.iter().any(|line| line.contains("starting again in ")) {
            assert!(life > 4, "{:?}", up.seen);
            break;
        }
        assert!(life < 50, "{:?}", up.seen);
    }
    up.stop();
}

#[test]
fn a_service_that_fails_stops_everything_that_was_started() {
    let host = Host::new();
    host.wish("fake-fails", "f0");
    let mut up = host.up();
    up.expect("vireo: frontend f0 did not start: exited with status 1");
    assert_eq!(up.exit_status(), 1);
    assert!(!alive(up.pid_of("backend b0")) && !alive(up.pid_of("worker w0")));
}

#[test]
fn a_service_that_does_not_stop_is_killed() {
    let host = Host::new();
    host.wish("fake-stubborn", "w0");
    let mut up = host.up();
    up.expect("ready: 1 endpoint");
    let pid = up.pid_of("worker w0");
    up.signal(Signal::SIGTERM);
    up.expect("worker w0: does not stop, killed");
    up.expect("worker w0: killed by SIGKILL");
    up.expect("stopped");
    assert!(!alive(pid));
}

#[test]
fn services_outlive_their_keeper_and_are_adopted_by_the_next() {
    let host = Host::new();
    let mut first = host.up();
    first.expect("ready: 1 endpoint");
    let mut second = host.up();
    second.expect("another vireo up (process ");
    assert_eq!(second.exit_status(), 1);

    let services = ["backend b0", "worker w0", "worker w1", "frontend f0", "manager m0"];
    let pids: Vec<Pid> = services.iter().map(|service| first.pid_of(service)).collect();
    first.signal(Signal::SIGKILL);
    first.exit_status();
    assert!(pids.iter().all(|&pid| alive(pid)));
    kill(pids[1], Signal::SIGKILL).unwrap();

    let mut third = host.up();
    third.expect("ready: 1 endpoint");
    // The adopted manager is asked to take over the file; this one does not know how.
    third.expect("manager: the file is not taken over: refused");
    assert_eq!(third.pid_of("backend b0"), pids[0]);
    // It may still be dying when it is looked for: then it is adopted, and its death is seen.
    if third.pid_of("worker w0") == pids[1] {
        third.expect("worker w0: started");
    }
    assert_ne!(third.pid_of("worker w0"), pids[1], "the dead one was started anew");
    kill(pids[2], Signal::SIGKILL).unwrap();
    third.expect("worker w1: gone; starting again");
    third.expect("worker w1: ready");
    third.stop();
    assert!(pids.into_iter().all(|pid| !alive(pid)));
}

#[test]
fn a_wrong_configuration_starts_nothing() {
    let host = Host::new();
    host.write_config(&CONFIG.replace("size = \"1MiB\"", "sise = \"1MiB\""));
    let mut up = host.up();
    up.expect("bdev[0].sise: unknown key; did you mean \"size\"?");
    assert_eq!(up.exit_status(), 2);
    assert!(up.seen.iter().all(|line| !line.contains("started")));
    assert_eq!(std::fs::read_dir(host.run_dir()).unwrap().count(), 0);
}

#[test]
fn a_missing_program_starts_nothing() {
    let host = Host::new();
    std::fs::remove_file(host.directory.path().join("vireo-frontend")).unwrap();
    let mut up = host.up();
    up.expect("vireo-frontend is not there");
    assert_eq!(up.exit_status(), 1);
    assert!(up.seen.iter().all(|line| !line.contains("started")));
}
