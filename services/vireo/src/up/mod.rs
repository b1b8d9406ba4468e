//! The keeper: starts a host's services, keeps their descriptors, starts again what dies, stops everything in the end.
//! It speaks systemd's protocol with the services and does nothing else.
//!
//! If it dies itself, the services live on. Its successor adopts them: the file `up.running` names each with its start
//! time, and a pidfd proves a death as well as reaping does. The descriptors that the dead keeper held are gone with it;
//! an adopted service's successor starts without them, until the service has stored them anew.

mod backoff;
mod directory;
mod service;

use ::service::async_fd::register;
use ::service::config::{Config, Kind};
use ::service::shutdown::Shutdown;
use directory::{Directory, Running};
use ipc::fd_store::{FdStoreError, NotifySocket, Outcome, Received};
use ipc::handoff::Connection;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use service::{Service, State, WATCHDOG};
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

/// A keeper that wakes so much later than it meant to does not take the silence of others for a hang.
const LATE: Duration = Duration::from_secs(1);
/// How long the services of one kind may take to become ready. A file of a terabyte that is made takes seconds.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the services of one kind may take to stop before they are killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Starting order; the reverse is the stopping order.
const ORDER: [Kind; 4] = [Kind::Backend, Kind::Worker, Kind::Frontend, Kind::Manager];
/// Deaths that wait to be noticed; more than there are services.
const DEATHS: usize = 1024;

/// Why nothing was started, or everything was stopped.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// A directory or a file in it cannot be made.
    #[error("cannot use {}; name another with --runtime-dir or state_dir, or give this user access", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another keeper is there.
    #[error("another vireo up (process {pid}) keeps {}; stop it, or name another directory with --runtime-dir", directory.display())]
    Kept {
        /// The runtime directory.
        directory: PathBuf,
        /// The other keeper.
        pid: String,
    },
    /// A service's program is missing.
    #[error("{} is not there; build or install all of Vireo's programs into one directory", path.display())]
    NoProgram {
        /// Its path.
        path: PathBuf,
    },
    /// A service runs that no keeper has started.
    #[error("{service} runs already (process {pid}); stop it first")]
    Foreign {
        /// Which.
        service: String,
        /// Its process.
        pid: i32,
    },
    /// A service ended before it was ready.
    #[error("{service} did not start: {how}")]
    Died {
        /// Which.
        service: String,
        /// How it ended.
        how: String,
    },
    /// A service did not become ready.
    #[error("{service} is not ready after {} s: {status}", START_TIMEOUT.as_secs())]
    NotReady {
        /// Which.
        service: String,
        /// What it said last.
        status: String,
    },
    /// The protocol's sockets failed.
    #[error("keep descriptors")]
    Store(#[from] FdStoreError),
    /// The runtime failed.
    #[error("wait for events")]
    Runtime(#[from] io::Error),
}

/// What to keep.
#[derive(Debug)]
pub struct Options {
    /// The person's file, for the manager to read again.
    pub file: PathBuf,
    /// Its checked content.
    pub config: Config,
    /// Where the services' programs are.
    pub programs: PathBuf,
}

/// Starts everything and keeps it until `shutdown`. Returns after everything has stopped.
///
/// # Errors
/// Something could not be started; everything that was is stopped again.
pub async fn run(options: Options, shutdown: Shutdown) -> Result<(), UpError> {
    let mut keeper = Keeper::new(&options)?;
    let result = tokio::select! {
        result = keeper.keep() => result,
        () = shutdown.requested() => Ok(()),
    };
    keeper.stop().await;
    result
}

struct Keeper {
    directory: Directory,
    runtime_dir: PathBuf,
    endpoints: Vec<String>,
    notify: AsyncFd<NotifySocket>,
    services: Vec<Service>,
    deaths: (mpsc::Sender<Pid>, mpsc::Receiver<Pid>),
    /// Set once everything was ready: from then on deaths are answered by a start.
    started: bool,
    /// The manager's socket, if it was adopted: it may serve an older content of the file.
    stale: Option<PathBuf>,
}

impl Keeper {
    fn new(options: &Options) -> Result<Self, UpError> {
        let config = &options.config;
        let programs = programs(config, &options.programs)?;
        let directory = Directory::take(config)?;
        let effective = directory.write_effective(config)?;
        let services =
            config.services().into_iter().zip(programs).map(|((kind, name), program)| {
                let file = if kind == Kind::Manager { &options.file } else { &effective };
                Service::new(kind, name, program, file.clone())
            });
        let endpoints = config
            .endpoints
            .iter()
            .map(|endpoint| format!("{} {}", endpoint.name, endpoint.path.join("cntrl").display()));
        let mut keeper = Self {
            notify: register(NotifySocket::bind(&directory.notify_socket())?)?,
            directory,
            runtime_dir: config.runtime_dir.clone(),
            endpoints: endpoints.collect(),
            services: services.collect(),
            deaths: mpsc::channel(DEATHS),
            started: false,
            stale: None,
        };
        keeper.adopt(config)?;
        Ok(keeper)
    }

    /// Adopts what an earlier keeper left; whatever else answers on a service's socket is somebody's whom we must not
    /// disturb.
    fn adopt(&mut self, config: &Config) -> Result<(), UpError> {
        for running in self.directory.left_running() {
            let found = self
                .services
                .iter_mut()
                .find(|service| service.kind == running.kind && service.name == running.name);
            let label = format!("{} {}", running.kind, running.name);
            if let Some(service) = found {
                if service.adopt(&running).is_ok() {
                    say(&format!("{label}: adopted (process {})", running.pid));
                    if running.kind == Kind::Manager {
                        self.stale = Some(config.socket(running.kind, &running.name));
                    }
                }
            } else if let Ok(pidfd) = ipc::fd_store::watch(Pid::from_raw(running.pid)) {
                say(&format!("{label}: no longer configured, stopping process {}", running.pid));
                ipc::fd_store::signal(pidfd.as_fd(), Signal::SIGTERM).ok();
            }
        }
        for service in &self.services {
            let connection = Connection::connect(config.socket(service.kind, &service.name));
            let Ok(peer) = connection.and_then(|connection| connection.peer()) else { continue };
            if service.process().is_none_or(|process| process.pid.as_raw() != peer.pid) {
                return Err(UpError::Foreign { service: service.label(), pid: peer.pid });
            }
        }
        for index in 0..self.services.len() {
            self.watch(index);
        }
        Ok(())
    }

    async fn keep(&mut self) -> Result<(), UpError> {
        for kind in ORDER {
            for index in self.of_kind(kind) {
                if self.services[index].process().is_none() {
                    self.start(index)?;
                }
            }
            self.wait_ready(kind).await?;
        }
        self.started = true;
        if let Some(socket) = self.stale.take() {
            tokio::spawn(reload(socket));
        }
        let count = self.endpoints.len();
        let plural = if count == 1 { "" } else { "s" };
        say(&format!("ready: {count} endpoint{plural}: {}", self.endpoints.join(", ")));
        loop {
            self.step(None).await?;
        }
    }

    async fn wait_ready(&mut self, kind: Kind) -> Result<(), UpError> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let late = self.of_kind(kind).into_iter().find(|&i| !self.services[i].is_ready());
            let Some(late) = late else { return Ok(()) };
            if Instant::now() >= deadline {
                let service = &self.services[late];
                let status = match service.status.as_str() {
                    "" => "it said nothing".to_owned(),
                    status => status.to_owned(),
                };
                return Err(UpError::NotReady { service: service.label(), status });
            }
            self.step(Some(deadline)).await?;
        }
    }

    /// Waits for one event and deals with it; not longer than to the deadline.
    async fn step(&mut self, deadline: Option<Instant>) -> Result<(), UpError> {
        let starts = self.services.iter().filter_map(|service| match service.state {
            State::Waiting { until } => Some(until),
            State::Running(_) | State::Stopped => None,
        });
        let hangs = self.services.iter().filter_map(Service::hangs_at);
        // Far enough away to never matter.
        let far = Instant::now() + Duration::from_secs(3600);
        let next = starts.chain(hangs).chain(deadline).min().unwrap_or(far);
        tokio::select! {
            ready = self.notify.readable() => {
                ready?.clear_ready();
                self.notified()?;
            }
            Some(pid) = self.deaths.1.recv() => self.died(pid)?,
            () = tokio::time::sleep_until(next.into()) => {
                // What is in the socket already counts.
                self.notified()?;
                match next.elapsed() < LATE {
                    true => self.kill_hanging(),
                    // So were the services: the machine stood still, or was moved.
                    false => self.services.iter_mut().for_each(Service::excuse_silence),
                }
                self.restart()?;
            }
        }
        Ok(())
    }

    fn notified(&mut self) -> Result<(), UpError> {
        // Nothing is waited for in between, so that what a service said before its death is known at its death.
        while let Some(received) = self.notify.get_ref().receive()? {
            let found = self.services.iter_mut().find(|service| {
                service.process().is_some_and(|process| process.pid.as_raw() == received.pid)
            });
            // NotifyAccess=main: only services themselves are heard.
            if let Some(service) = found {
                hear(service, received);
            }
        }
        Ok(())
    }

    fn died(&mut self, pid: Pid) -> Result<(), UpError> {
        self.notified()?;
        let found = self
            .services
            .iter()
            .position(|service| service.process().is_some_and(|process| process.pid == pid));
        let Some(index) = found else { return Ok(()) };
        let service = &mut self.services[index];
        let Some((how, until)) = service.reap() else { return Ok(()) };
        let label = service.label();
        if !self.started {
            self.services[index].state = State::Stopped;
            return Err(UpError::Died { service: label, how });
        }
        let pause = until.saturating_duration_since(Instant::now());
        if pause.is_zero() {
            say(&format!("{label}: {how}; starting again"));
        } else {
            say(&format!("{label}: {how}; starting again in {} ms", pause.as_millis()));
        }
        self.restart()
    }

    fn kill_hanging(&mut self) {
        let now = Instant::now();
        for service in &mut self.services {
            if service.kill_if_hanging(now) {
                say(&format!("{}: silent for {} s, killed", service.label(), WATCHDOG.as_secs()));
            }
        }
    }

    fn restart(&mut self) -> Result<(), UpError> {
        let now = Instant::now();
        for index in 0..self.services.len() {
            let due =
                matches!(self.services[index].state, State::Waiting { until } if until <= now);
            if due && let Err(error) = self.start(index) {
                // No memory or processes: it may pass.
                say(&format!("{}: {error}; trying again", self.services[index].label()));
                let until = now + Duration::from_secs(1);
                self.services[index].state = State::Waiting { until };
            }
        }
        Ok(())
    }

    fn start(&mut self, index: usize) -> Result<(), UpError> {
        let notify = self.notify.get_ref().path().as_os_str().to_owned();
        // The keeper tells what happens; services tell what goes wrong, unless asked for more.
        let log = std::env::var_os("VIREO_LOG").unwrap_or_else(|| OsString::from("warn"));
        let watchdog = OsString::from(WATCHDOG.as_micros().to_string());
        let variables: [(&str, &OsStr); 4] = [
            ("WATCHDOG_USEC", &watchdog),
            ("NOTIFY_SOCKET", &notify),
            ("VIREO__RUNTIME_DIR", self.runtime_dir.as_os_str()),
            ("VIREO_LOG", &log),
        ];
        let service = &mut self.services[index];
        service.start(&variables)?;
        if let Some(process) = service.process() {
            let kept = match service.kept() {
                0 => String::new(),
                count => format!(", {count} descriptors given back"),
            };
            say(&format!("{}: started (process {}{kept})", service.label(), process.pid));
        }
        self.watch(index);
        self.write_running();
        Ok(())
    }

    /// Has the death of a service's process told.
    fn watch(&mut self, index: usize) {
        let service = &self.services[index];
        if let (Some(process), Some(pidfd)) = (service.process(), service.pidfd()) {
            tokio::spawn(tell_death(pidfd, process.pid, self.deaths.0.clone()));
        }
    }

    fn write_running(&self) {
        let running: Vec<Running> = self
            .services
            .iter()
            .filter_map(|s| Running::now(s.kind, &s.name, s.process()?.pid))
            .collect();
        self.directory.write_running(&running);
    }

    fn of_kind(&self, kind: Kind) -> Vec<usize> {
        let services = self.services.iter().enumerate();
        services.filter(|(_, service)| service.kind == kind).map(|(index, _)| index).collect()
    }

    /// Stops everything, each kind before what it needs.
    async fn stop(&mut self) {
        for kind in ORDER.into_iter().rev() {
            let indexes = self.of_kind(kind);
            for &index in &indexes {
                self.services[index].signal(Signal::SIGTERM);
            }
            if !self.wait_dead(&indexes, STOP_TIMEOUT).await {
                for &index in &indexes {
                    if self.services[index].process().is_some() {
                        say(&format!("{}: does not stop, killed", self.services[index].label()));
                        self.services[index].signal(Signal::SIGKILL);
                    }
                }
                // A process that even SIGKILL does not end hangs in the kernel.
                self.wait_dead(&indexes, STOP_TIMEOUT).await;
            }
            for &index in &indexes {
                self.services[index].state = State::Stopped;
                self.services[index].forget();
            }
        }
        self.directory.clear();
        say("stopped");
    }

    async fn wait_dead(&mut self, indexes: &[usize], timeout: Duration) -> bool {
        let deadline = tokio::time::Instant::now() + timeout;
        while indexes.iter().any(|&index| self.services[index].process().is_some()) {
            // What they still say is taken, so that none waits for room.
            let told = tokio::select! {
                pid = self.deaths.1.recv() => pid,
                ready = self.notify.readable() => {
                    if let Ok(mut ready) = ready {
                        ready.clear_ready();
                    }
                    self.notified().ok();
                    continue;
                }
                () = tokio::time::sleep_until(deadline) => return false,
            };
            let dead = self
                .services
                .iter_mut()
                .find(|service| service.process().is_some_and(|process| Some(process.pid) == told));
            if let Some(service) = dead
                && let Some((how, _)) = service.reap()
            {
                say(&format!("{}: {how}", service.label()));
                service.state = State::Stopped;
            }
        }
        true
    }
}

fn hear(service: &mut Service, received: Received) {
    let label = service.label();
    let notification = &received.notification;
    let status = notification.status.clone();
    let ready = notification.ready;
    let (stopping, lives) = (notification.stopping, notification.watchdog);
    if let Outcome::Full(dropped) = service.keep(received) {
        say(&format!("{label}: its store is full, {dropped} descriptors dropped"));
    }
    let news = status.filter(|status| *status != service.status);
    if let Some(status) = &news {
        service.status.clone_from(status);
    }
    let first = ready && !service.is_ready();
    service.hear(ready, lives);
    match (first, news) {
        (true, _) if service.status.is_empty() => say(&format!("{label}: ready")),
        (true, _) => say(&format!("{label}: ready: {}", service.status)),
        (false, Some(status)) => say(&format!("{label}: {status}")),
        (false, None) if stopping => say(&format!("{label}: stopping")),
        (false, None) => {}
    }
}

/// Has an adopted manager take over what the file says now.
async fn reload(socket: PathBuf) {
    match crate::client::reload(&socket).await {
        Ok(result) => result.changes.iter().for_each(|change| say(change)),
        Err(error) => say(&format!("manager: the file is not taken over: {}", error.line())),
    }
}

async fn tell_death(pidfd: OwnedFd, pid: Pid, tell: mpsc::Sender<Pid>) {
    if let Ok(pidfd) = register(pidfd) {
        // A pidfd is readable once, when the process is dead.
        let _ = pidfd.readable().await;
    }
    tell.send(pid).await.ok();
}

/// The program of each service.
fn programs(config: &Config, directory: &Path) -> Result<Vec<PathBuf>, UpError> {
    let services = config.services().into_iter();
    services
        .map(|(kind, _)| {
            let path = directory.join(format!("vireo-{kind}"));
            if path.is_file() { Ok(path) } else { Err(UpError::NoProgram { path }) }
        })
        .collect()
}

/// One line for a person, who may have closed the terminal: that is no reason to stop keeping.
fn say(line: &str) {
    writeln!(io::stderr(), "{}", line.replace('\n', " ")).ok();
}
