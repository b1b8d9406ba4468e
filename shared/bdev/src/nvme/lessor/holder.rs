//! The process that has a queue pair, and what proves that it is dead.

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use nvme_driver::transport::vfio::Holder;

/// Number of the field of /proc/PID/stat that says when the process started, counted from the one after the name (proc(5):
/// field 22, where the name is field 2).
const STARTED: usize = 22 - 3;

/// A process that lives, as it is told from a later one of the same number.
pub(in crate::nvme) fn holder(pid: i32) -> Holder {
    Holder { pid, started: started(pid).unwrap_or(0) }
}

/// Whether no such process is left. One that is a part of this process (a test's) ends with its connection, and of one that
/// is not visible from here there is no better proof.
pub(in crate::nvme) fn is_dead(holder: Holder) -> bool {
    let Holder { pid, started: since } = holder;
    if pid <= 0
        || pid == Pid::this().as_raw()
        || kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH)
    {
        return true;
    }
    // Another process has the number by now.
    since != 0 && started(pid).is_some_and(|now| now != since)
}

/// When a process started, in the kernel's ticks since the machine did.
fn started(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, parentheses too; nothing after it does.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(STARTED)?.parse().ok()
}

#[cfg(test)]
pub(in crate::nvme) mod tests {
    use super::*;
    use std::process::{Child, Command};

    /// A process that lives until it is killed.
    pub fn process() -> Child {
        Command::new("sleep").arg("600").spawn().unwrap()
    }

    #[test]
    fn a_process_is_dead_when_it_is_gone_or_another_has_its_number() {
        let mut child = process();
        let lives = holder(child.id() as i32);
        assert!(lives.started > 0);
        assert!(!is_dead(lives));
        assert!(!is_dead(Holder { started: 0, ..lives }), "not known when it started");
        assert!(is_dead(Holder { started: lives.started - 1, ..lives }), "its number is another's");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(is_dead(lives));
        assert!(is_dead(Holder { started: 0, ..lives }));
        assert!(is_dead(Holder { pid: 0, started: 1 }));
    }
}
