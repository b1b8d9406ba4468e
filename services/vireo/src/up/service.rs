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
use std::time::Instant;

/// Most descriptors kept for one service (FileDescriptorStoreMax of the units).
const KEPT: usize = 4096;

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
            child: true,
        });
        Ok(())
    }

    /// Takes over a process that an earlier keeper started.
    pub fn adopt(&mut self, running: &Running) -> Result<(), FdStoreError> {
        let pid = Pid::from_raw(running.pid);
        let pidfd = watch(pid)?;
        let process = Process { pid, ready: true, pidfd, since: Instant::now(), child: false };
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
