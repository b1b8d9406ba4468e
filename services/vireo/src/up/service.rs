//! One service under the keeper.

use super::backoff::Backoff;
use super::directory::Running;
use ipc::fd_store::{FdStoreError, Kept, launch, signal, watch};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use service::config::Kind;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Most descriptors kept for one service (FileDescriptorStoreMax of the units).
const KEPT: usize = 4096;
/// How long a service that feeds its watchdog may be silent.
pub const WATCHDOG: Duration = Duration::from_secs(30);

/// What to start, and how it is.
#[derive(Debug)]
pub struct Service {
    /// What it is.
    pub kind: Kind,
    /// Which one.
    pub name: String,
    /// How it is.
    pub state: State,
    /// The last line that it said of itself.
    pub status: String,
    program: PathBuf,
    config: PathBuf,
    kept: Kept,
    backoff: Backoff,
}

/// How a service is.
#[derive(Debug)]
pub enum State {
    /// Not started yet, or stopped for good.
    Stopped,
    /// It runs.
    Running(Process),
    /// It died and is started again then.
    Waiting {
        /// When.
        until: Instant,
    },
}

/// A running service.
#[derive(Debug)]
pub struct Process {
    /// Its number, its own as long as it is not reaped.
    pub pid: Pid,
    /// It said READY=1, or was adopted.
    pub ready: bool,
    pidfd: OwnedFd,
    since: Instant,
    /// When it last said WATCHDOG=1; absent until it has once.
    fed: Option<Instant>,
    /// Ours to reap; an adopted one is not.
    child: bool,
}

impl Service {
    /// A service that does not run yet.
    pub fn new(kind: Kind, name: &str, program: PathBuf, config: PathBuf) -> Self {
        Self {
            kind,
            name: name.to_owned(),
            state: State::Stopped,
            status: String::new(),
            program,
            config,
            kept: Kept::new(KEPT),
            backoff: Backoff::default(),
        }
    }

    /// Starts it with what was kept for it.
    pub fn start(&mut self, variables: &[(&str, &OsStr)]) -> Result<(), FdStoreError> {
        self.kept.prune();
        let arguments = [
            OsStr::new("--config"),
            self.config.as_os_str(),
            OsStr::new("--name"),
            OsStr::new(&self.name),
        ];
        let launched = launch(&self.program, &arguments, variables, self.kept.entries())?;
        self.status.clear();
        self.state = State::Running(Process {
            pid: launched.pid,
            ready: false,
            pidfd: launched.pidfd,
            since: Instant::now(),
            fed: None,
            child: true,
        });
        Ok(())
    }

    /// Takes over a process that an earlier keeper started.
    pub fn adopt(&mut self, running: &Running) -> Result<(), FdStoreError> {
        let pid = Pid::from_raw(running.pid);
        let pidfd = watch(pid)?;
        let since = Instant::now();
        let process = Process { pid, ready: true, pidfd, since, fed: None, child: false };
        self.state = State::Running(process);
        Ok(())
    }

    /// The running process.
    pub fn process(&self) -> Option<&Process> {
        match &self.state {
            State::Running(process) => Some(process),
            State::Stopped | State::Waiting { .. } => None,
        }
    }

    /// A second pidfd, to wait on.
    pub fn pidfd(&self) -> Option<OwnedFd> {
        self.process()?.pidfd.try_clone().ok()
    }

    /// True if it runs and said that it is ready.
    pub fn is_ready(&self) -> bool {
        self.process().is_some_and(|process| process.ready)
    }

    /// Sends a signal, if it runs.
    pub fn signal(&self, number: Signal) {
        if let Some(process) = self.process() {
            // It may have died in this moment.
            signal(process.pidfd.as_fd(), number).ok();
        }
    }

    /// When it counts as hanging, if it does not say WATCHDOG=1 before. Only a service that has said it once is held to
    /// it.
    pub fn hangs_at(&self) -> Option<Instant> {
        self.process()?.fed.map(|fed| fed + WATCHDOG)
    }

    /// Its silence counts from now on.
    pub fn excuse_silence(&mut self) {
        if let State::Running(process) = &mut self.state {
            process.fed = process.fed.map(|_| Instant::now());
        }
    }

    /// Kills it if it hangs; true if it did. Its death is told by its pidfd, as any other.
    pub fn kill_if_hanging(&mut self, now: Instant) -> bool {
        let hangs = self.hangs_at().is_some_and(|at| at <= now);
        if hangs {
            self.signal(Signal::SIGKILL);
            if let State::Running(process) = &mut self.state {
                process.fed = None;
            }
        }
        hangs
    }

    /// It said that it is ready, or that it lives.
    pub fn hear(&mut self, ready: bool, lives: bool) {
        if let State::Running(process) = &mut self.state {
            process.ready |= ready;
            if lives {
                process.fed = Some(Instant::now());
            }
        }
    }

    /// Does what it asked of its store.
    pub fn keep(&mut self, received: ipc::fd_store::Received) -> ipc::fd_store::Outcome {
        self.kept.prune();
        self.kept.apply(&received.notification.store, received.fds)
    }

    /// How many descriptors are kept for it.
    pub fn kept(&self) -> usize {
        self.kept.len()
    }

    /// Forgets what is kept.
    pub fn forget(&mut self) {
        self.kept.clear();
    }

    /// Reaps the process whose death its pidfd has shown; says how it ended, and when to start it again. `None` if it
    /// has not ended.
    pub fn reap(&mut self) -> Option<(String, Instant)> {
        let State::Running(process) = &self.state else { return None };
        let how = if process.child {
            match waitpid(process.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => return None,
                Ok(WaitStatus::Exited(_, code)) => describe_exit(code, &self.program),
                Ok(WaitStatus::Signaled(_, signal, _)) => format!("killed by {signal}"),
                Ok(_) => return None,
                Err(error) => format!("gone ({error})"),
            }
        } else {
            "gone".to_owned()
        };
        let pause = self.backoff.after_death(process.since.elapsed());
        let until = Instant::now() + pause;
        self.state = State::Waiting { until };
        Some((how, until))
    }

    /// "worker w0".
    pub fn label(&self) -> String {
        format!("{} {}", self.kind, self.name)
    }
}

fn describe_exit(code: i32, program: &Path) -> String {
    match code {
        ipc::fd_store::EXIT_EXEC => format!("cannot run {}", program.display()),
        2 => "exited with status 2: its configuration is wrong".to_owned(),
        code => format!("exited with status {code}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A program that does nothing for a minute, whatever its arguments.
    fn sleeper(directory: &Path) -> Service {
        let (text, program) = (directory.join("text"), directory.join("vireo-worker"));
        std::fs::write(&text, "#!/bin/sh\nexec sleep 60\n").unwrap();
        // By another process: a descriptor for writing of this one's would be inherited by what other tests start at this
        // moment, and a file that is open for writing cannot be executed.
        let copied = std::process::Command::new("cp").arg(&text).arg(&program).status();
        assert!(copied.unwrap().success());
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Service::new(Kind::Worker, "w0", program, PathBuf::from("/dev/null"))
    }

    fn wait_for_death(service: &mut Service) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some((how, _)) = service.reap() {
                return how;
            }
            assert!(Instant::now() < deadline, "it lives on");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn only_a_service_that_fed_its_watchdog_is_killed_for_silence() {
        let directory = tempfile::tempdir().unwrap();
        let mut service = sleeper(directory.path());
        service.start(&[]).unwrap();
        let later = Instant::now() + 2 * WATCHDOG;
        assert!(!service.kill_if_hanging(later), "it never fed it");
        service.excuse_silence();
        assert_eq!(service.hangs_at(), None, "it is not held to it");
        service.hear(true, true);
        assert!(service.is_ready());
        assert!(!service.kill_if_hanging(Instant::now()), "just fed");
        let hangs = service.hangs_at();
        service.excuse_silence();
        assert!(service.hangs_at() > hangs, "it has all the time again");
        assert!(service.kill_if_hanging(later));
        assert!(!service.kill_if_hanging(later), "once is enough");
        assert_eq!(wait_for_death(&mut service), "killed by SIGKILL");
        assert!(matches!(service.state, State::Waiting { .. }));
    }

    #[test]
    fn a_program_that_cannot_be_run_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let mut service = sleeper(directory.path());
        let mode = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(directory.path().join("vireo-worker"), mode).unwrap();
        service.start(&[]).unwrap();
        assert!(wait_for_death(&mut service).starts_with("cannot run /"));
    }
}
