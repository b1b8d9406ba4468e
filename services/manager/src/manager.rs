//! The manager: what it starts with, and what it answers.

mod begin;
mod clients;
pub mod edit;

use crate::change::{Sizes, compare, sized_anew};
use crate::desired::Desired;
use crate::event::{self, Event, Events};
use crate::identity::Identities;
use crate::made::Made;
use crate::peer::Peer;
use crate::reconcile::{Goal, Progress, Reconciler};
use crate::status;
use crate::store::file_system::{Disk, FileSystem};
use crate::store::{State, Store, StoreError};
use service::config::{Config, Kind};
use service::control::{Answer, Handler, Incoming};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use vireo_proto::Failure;
use vireo_proto::handoff::{DescribeBdev, HostStatus, ProcessStatus, ReloadResult, reply, request};

/// How long a reload waits for the processes before it answers with what is still open: below the usual bound of a
/// call.
const RELOAD_WAIT: Duration = Duration::from_secs(8);
/// Most configurations whose bdevs may be leaving at a time: each has waited for a frontend that does not answer.
const MAX_LEAVING: usize = 16;

/// Why the manager could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Names could not be made.
    #[error("make UUIDs")]
    Random(#[source] std::io::Error),
    /// A process would have to serve more than it can be told.
    #[error("{0}")]
    TooLong(String),
}

impl StartError {
    /// True if another start without a change by a person ends the same way.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Store(StoreError::Newer { .. } | StoreError::Format { .. })
            | Self::TooLong(_) => true,
            // What held the lock or the disk may be gone by then.
            Self::Store(StoreError::Locked { .. } | StoreError::Io { .. }) | Self::Random(_) => {
                false
            }
        }
    }
}

/// The manager.
#[derive(Debug)]
pub struct Manager {
    name: String,
    file: PathBuf,
    /// One change at a time.
    reload: tokio::sync::Mutex<()>,
    store: Mutex<Store>,
    goals: watch::Sender<Arc<Goal>>,
    reconciler: Reconciler,
    /// Why the configuration file is not what is served; empty if it is.
    refused: Mutex<String>,
    events: Events,
}

/// Why something else is not wanted from now on.
#[derive(Debug)]
enum Refused {
    /// The state could not be written.
    Store(StoreError),
    /// Anything else.
    Failure(Failure),
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Store(error) => Self::internal(&error),
            Refused::Failure(failure) => failure,
        }
    }
}

impl Manager {
    /// Reads the state, decides what is to be served, stores it, and starts to bring it about. `config` is the content
    /// of `file`. In a runtime only.
    ///
    /// What the file changed while no manager ran is done if a reload could do it, or if no process serves anything
    /// yet. Otherwise guests run on what was served before: that is kept, and the status tells what cannot change.
    ///
    /// # Errors
    /// [`StartError`]; nothing was told to any process.
    pub async fn start(name: &str, file: PathBuf, config: Config) -> Result<Self, StartError> {
        Self::start_with(name, file, config, Box::new(Disk)).await
    }

    /// [`Manager::start`] that writes its state by way of `files`.
    ///
    /// # Errors
    /// As [`Manager::start`].
    pub async fn start_with(
        name: &str,
        file: PathBuf,
        config: Config,
        files: Box<dyn FileSystem>,
    ) -> Result<Self, StartError> {
        let mut store = Store::open_with(&config.state_dir, files)?;
        let (mut state, refused) = begin::decide(store.state().clone(), config.clone()).await;
        let config = state.config.clone().unwrap_or(config);
        state.identities.complete(&config).map_err(StartError::Random)?;
        let desired = Desired { config, identities: state.identities.clone() };
        if let Some(line) = desired.too_long() {
            return Err(StartError::TooLong(line));
        }
        let leaving = state.leaving.clone();
        if *store.state() != state {
            store.replace(state)?;
        }
        let goals =
            watch::Sender::new(Arc::new(Goal { generation: 1, desired, asked_in: None, leaving }));
        let reconciler = Reconciler::start(goals.subscribe(), &format!("manager-{name}"));
        Ok(Self {
            name: name.to_owned(),
            file,
            reload: tokio::sync::Mutex::default(),
            store: Mutex::new(store),
            goals,
            reconciler,
            refused: Mutex::new(refused),
            events: Events::default(),
        })
    }

    /// The configuration that is served.
    pub fn config(&self) -> Config {
        self.goals.borrow().desired.config.clone()
    }

    /// How far the host is, now and later.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.reconciler.progress()
    }

    /// One line on how the host is.
    pub fn line(&self) -> String {
        let progress = self.reconciler.progress().borrow().clone();
        let mut problems = progress.failures;
        problems.extend(self.refused());
        match problems.as_slice() {
            [] if progress.settled => "all is served as configured".to_owned(),
            [] => "starting".to_owned(),
            [only] => only.clone(),
            [first, rest @ ..] => format!("{first} (and {} more)", rest.len()),
        }
    }

    /// What happens.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// The processes.
    pub(crate) fn peers(&self) -> &[Peer] {
        self.reconciler.peers()
    }

    /// How all processes are.
    pub async fn host_status(&self) -> HostStatus {
        let mut status = status::collect(&self.reconciler, self.own_status()).await;
        status.failures.extend(self.refused());
        status
    }

    /// Forgets earlier configurations whose bdevs are gone, and tells those who watch what happens. Never ends; to be run
    /// beside the server.
    pub async fn run(&self) {
        tokio::join!(self.follow_progress(), self.follow_clients());
    }

    async fn follow_progress(&self) {
        let mut progress = self.reconciler.progress();
        let mut before = Progress::default();
        loop {
            let seen = progress.borrow_and_update().clone();
            self.tell_progress(&before, &seen);
            before = seen.clone();
            if seen.left && seen.settled {
                self.forget(seen.generation);
            }
            if progress.changed().await.is_err() {
                return;
            }
        }
    }

    fn forget(&self, generation: u64) {
        let mut store = self.store();
        let goal = Arc::clone(&self.goals.borrow());
        if goal.generation != generation || goal.leaving.is_empty() {
            return;
        }
        let state = State { leaving: Vec::new(), ..store.state().clone() };
        match store.replace(state) {
            Ok(()) => {
                let goal = Goal { leaving: Vec::new(), ..(*goal).clone() };
                self.goals.send_replace(Arc::new(goal));
            }
            // They stay in the file, where they do no harm.
            Err(error) => tracing::warn!(error = line(&error), "state not written"),
        }
    }

    fn tell_progress(&self, before: &Progress, now: &Progress) {
        let tell = |kind, message: &str| {
            let (name, message) = ("target".to_owned(), message.to_owned());
            self.events.tell(Event { kind, name, message });
        };
        // What waits for an answer has not failed yet.
        let new = now.failures.iter().filter(|line| !before.failures.contains(line));
        for line in new.filter(|line| !line.ends_with("has not answered yet")) {
            tell(event::Kind::Failed, line);
        }
        if now.reached() && !before.reached() {
            tell(event::Kind::Ready, "all is served as configured");
        }
    }

    /// Reads the configuration file anew and makes it, with what was made through the API, what is served; or only says
    /// what that would change.
    ///
    /// # Errors
    /// What is wrong with the file, or cannot change while Vireo runs; nothing has changed then.
    pub async fn reload(&self, validate_only: bool) -> Result<ReloadResult, Failure> {
        let _serial = self.reload.lock().await;
        let file = self.file.clone();
        let loaded = tokio::task::spawn_blocking(move || Config::load(&file)).await;
        let file = loaded
            .map_err(|error| Failure::internal(&error))?
            .map_err(|mistakes| Failure::invalid(mistakes.to_string()))?;
        let before = self.view();
        let old = &before.desired.config;
        if file.api != old.api {
            let line = "[api] cannot change while running: restart the manager";
            return Err(Failure::precondition(line));
        }
        let refused = |lines: Vec<String>| Failure::precondition(lines.join("\n"));
        let new = before.made.layer(&file, old).map_err(refused)?;
        let sizes = self.sizes(&new).await?;
        let changes = compare(&before.desired, &new, &sizes).map_err(refused)?;
        if validate_only {
            return Ok(ReloadResult { changes, failures: Vec::new() });
        }
        let generation = match changes.is_empty() {
            true => None,
            false => {
                Some(self.pursue(new.clone(), before.made, before.desired.identities.clone())?)
            }
        };
        // The file is what is served, from now on or still.
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let Some(generation) = generation else {
            let failures = self.reconciler.progress().borrow().failures.clone();
            return Ok(ReloadResult { changes, failures });
        };
        for change in &changes {
            tracing::info!(change, "configuration changed");
        }
        let mut progress = self.reconciler.progress();
        let done = progress.wait_for(|p| p.generation == generation && p.settled);
        // Whatever is still open then is among the failures.
        tokio::time::timeout(RELOAD_WAIT, done).await.ok();
        let failures = progress.borrow().failures.clone();
        self.tell_differences(old, &new, "by the configuration file");
        Ok(ReloadResult { changes, failures })
    }

    /// The sizes that only backends know.
    async fn sizes(&self, new: &Config) -> Result<Sizes, Failure> {
        let mut sizes = Sizes::new();
        let goal = Arc::clone(&self.goals.borrow());
        for (bdev, backend) in sized_anew(&goal.desired.config, new) {
            let unknown = |reason: &str| {
                Failure::unavailable(format!(
                    "size of bdev {bdev} cannot be compared with what it has now: backend \
                     {backend} {reason}"
                ))
            };
            let peers = self.reconciler.peers().iter();
            let mut peers = peers.filter(|peer| peer.kind == Kind::Backend);
            let session = peers.find(|peer| peer.name == backend).and_then(Peer::session);
            let session = session.ok_or_else(|| unknown("is not there"))?;
            let body = request::Body::DescribeBdev(DescribeBdev { bdev: bdev.to_owned() });
            match session.call(body, &[]).await.map(|answer| answer.body) {
                Ok(reply::Body::BdevInfo(info)) => {
                    sizes.insert(bdev.to_owned(), info.size_bytes);
                }
                Ok(_) => return Err(unknown("answers with something else")),
                Err(error) => return Err(unknown(&format!("answers: {}", error.line()))),
            }
        }
        Ok(sizes)
    }

    /// Makes `new` what is to be served, durably, with these names and those that it lacks; what cannot change was looked at
    /// before. Gives the goal's generation.
    fn pursue(&self, new: Config, made: Made, mut identities: Identities) -> Result<u64, Refused> {
        let mut store = self.store();
        let goal = Arc::clone(&self.goals.borrow());
        if let Some(line) = still_leaving(&goal, &new) {
            return Err(Refused::Failure(Failure::precondition(line)));
        }
        let random = |error| Refused::Failure(Failure::internal(&error));
        identities.complete(&new).map_err(random)?;
        let mut leaving = goal.leaving.clone();
        leaving.extend(leaves(&goal.desired.config, &new).then(|| goal.desired.config.clone()));
        if leaving.len() > MAX_LEAVING {
            return Err(Refused::Failure(Failure::precondition(
                "too many removals are not done yet: see the status for the frontend that holds \
                 them up, and restart it",
            )));
        }
        let desired = Desired { config: new.clone(), identities: identities.clone() };
        if let Some(line) = desired.too_long() {
            return Err(Refused::Failure(Failure::exhausted(line)));
        }
        let state = State { config: Some(new), leaving: leaving.clone(), identities, made };
        store.replace(state).map_err(Refused::Store)?;
        let generation = goal.generation + 1;
        let asked_in = telemetry::spans::current();
        self.goals.send_replace(Arc::new(Goal { generation, desired, asked_in, leaving }));
        Ok(generation)
    }

    fn own_status(&self) -> ProcessStatus {
        ProcessStatus {
            kind: Kind::Manager.to_string(),
            name: self.name.clone(),
            pid: std::process::id() as i32,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: self.reconciler.progress().borrow().reached() && self.refused().is_none(),
            message: self.line(),
            items: Vec::new(),
        }
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(&self) -> Option<String> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        (!refused.is_empty()).then(|| refused.clone())
    }
}

impl Handler for Manager {
    async fn handle(&self, request: Incoming) -> Result<Answer, Failure> {
        match request.body {
            request::Body::Reload(_) => {
                Ok(Answer::new(reply::Body::ReloadResult(self.reload(false).await?)))
            }
            request::Body::GetStatus(_) => {
                Ok(Answer::new(reply::Body::HostStatus(self.host_status().await)))
            }
            _ => Err(Failure::unsupported()),
        }
    }
}

/// True if `new` lacks a bdev of `old`.
fn leaves(old: &Config, new: &Config) -> bool {
    old.bdevs.iter().any(|bdev| new.bdev(&bdev.name).is_none())
}

/// Names a bdev that comes again as another one before it has gone.
fn still_leaving(goal: &Goal, new: &Config) -> Option<String> {
    let served = &goal.desired.config;
    let comes = new.bdevs.iter().filter(|bdev| served.bdev(&bdev.name).is_none());
    for bdev in comes {
        let leaving = goal.leaving.iter().rev().find_map(|config| config.bdev(&bdev.name));
        if leaving.is_some_and(|leaving| leaving != bdev) {
            return Some(format!(
                "bdev {} is still being removed: see the status for what holds it up, and reload \
                 again",
                bdev.name
            ));
        }
    }
    None
}

fn line(error: &(dyn std::error::Error + 'static)) -> String {
    Failure::internal(error).message().to_owned()
}
