//! Processes under a keeper that wants to hear of them.

use ipc::fd_store::{Launched, NotifySocket, launch, signal};
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use vireo_tests::target::program;
use vireo_tests::wait::PATIENCE;

const CONFIGURATION: &str = r#"
[[worker]]
name = "w0"
[[backend]]
name = "b0"
[[frontend]]
name = "f0"
"#;

/// A process that ends with the test.
struct Running(Launched);

impl Drop for Running {
    fn drop(&mut self) {
        signal(self.0.pidfd.as_fd(), Signal::SIGKILL).ok();
        waitpid(self.0.pid, None).ok();
    }
}

/// Reads what the process says until it has said `WATCHDOG=1` so often.
fn fed(socket: &NotifySocket, times: usize) -> Duration {
    let start = Instant::now();
    let mut left = times;
    while left > 0 {
        assert!(start.elapsed() < PATIENCE, "the watchdog starves");
        match socket.receive().unwrap() {
            Some(received) => left -= usize::from(received.notification.watchdog),
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    start.elapsed()
}

#[test]
fn a_workers_watchdog_is_fed_as_often_as_its_keeper_asks() {
    is_fed_as_often_as_its_keeper_asks("vireo-worker", "w0");
}

#[test]
fn a_backends_watchdog_is_fed_as_often_as_its_keeper_asks() {
    is_fed_as_often_as_its_keeper_asks("vireo-backend", "b0");
}

#[track_caller]
fn is_fed_as_often_as_its_keeper_asks(service: &str, name: &str) {
    let directory = tempfile::tempdir().unwrap();
    let (at, notify) = (directory.path(), directory.path().join("notify"));
    let place = at.display();
    let text = format!("runtime_dir = \"{place}\"\nstate_dir = \"{place}\"\n{CONFIGURATION}");
    let file = at.join("vireo.toml");
    std::fs::write(&file, text).unwrap();
    let socket = NotifySocket::bind(&notify).unwrap();
    let program = program(service);
    let arguments =
        [OsStr::new("--config"), file.as_os_str(), OsStr::new("--name"), OsStr::new(name)];
    // A second.
    let variables =
        [("NOTIFY_SOCKET", notify.as_os_str()), ("WATCHDOG_USEC", OsStr::new("1000000"))];
    let _running = Running(launch(&program, &arguments, &variables, std::iter::empty()).unwrap());
    fed(&socket, 1);
    let five = fed(&socket, 5);
    assert!(five >= Duration::from_millis(500), "fed five times within {five:?}: not as asked");
}
