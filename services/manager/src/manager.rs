//! The manager: what it starts with, and what it answers.

use crate::change::{Sizes, compare, sized_anew};
use crate::desired::Desired;
use crate::peer::Peer;
use crate::reconcile::{Goal, Progress, Reconciler};
use crate::status;
use crate::store::{State, Store, StoreError};
use service::config::{Config, Kind};
use service::control::{Answer, Handler, Incoming, Session};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use vireo_proto::Failure;
use vireo_proto::handoff::{DescribeBdev, GetStatus, ProcessStatus, ReloadResult, reply, request};

/// How long a reload waits for the processes before it answers with what is still open: below the usual bound of a
/// call.
const RELOAD_WAIT: Duration = Duration::from_secs(8);
/// How long a process may take at the manager's start to tell whether it serves something.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
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
    /// One reload at a time.
    reload: tokio::sync::Mutex<()>,
    store: Mutex<Store>,
    goals: watch::Sender<Arc<Goal>>,
    reconciler: Reconciler,
    /// Why the configuration file is not what is served; empty if it is.
    refused: Mutex<String>,
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
        let mut store = Store::open(&config.state_dir)?;
        let (mut state, refused) = decide(store.state().clone(), config.clone()).await;
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
        let goals = watch::Sender::new(Arc::new(Goal { generation: 1, desired, leaving }));
        let reconciler = Reconciler::start(goals.subscribe(), &format!("manager-{name}"));
        Ok(Self {
            name: name.to_owned(),
            file,
            reload: tokio::sync::Mutex::default(),
            store: Mutex::new(store),
            goals,
            reconciler,
            refused: Mutex::new(refused),
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

    /// Forgets earlier configurations whose bdevs are gone. Never ends; to be run beside the server.
    pub async fn run(&self) {
        let mut progress = self.reconciler.progress();
        loop {
            let seen = progress.borrow_and_update().clone();
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

    async fn reload(&self) -> Result<ReloadResult, Failure> {
        let _serial = self.reload.lock().await;
        let file = self.file.clone();
        let loaded = tokio::task::spawn_blocking(move || Config::load(&file)).await;
        let new = loaded
            .map_err(|error| Failure::internal(&error))?
            .map_err(|mistakes| Failure::invalid(mistakes.to_string()))?;
        let sizes = self.sizes(&new).await?;
        let accepted = self.accept(new, &sizes)?;
        // The file is what is served, from now on or still.
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let Some((generation, changes)) = accepted else {
            let failures = self.reconciler.progress().borrow().failures.clone();
            return Ok(ReloadResult { changes: Vec::new(), failures });
        };
        for change in &changes {
            tracing::info!(change, "configuration changed");
        }
        let mut progress = self.reconciler.progress();
        let done = progress.wait_for(|p| p.generation == generation && p.settled);
        // Whatever is still open then is among the failures.
        tokio::time::timeout(RELOAD_WAIT, done).await.ok();
        let failures = progress.borrow().failures.clone();
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

    /// Makes `new` what is to be served, durably; `None` if it is already.
    fn accept(&self, new: Config, sizes: &Sizes) -> Result<Option<(u64, Vec<String>)>, Failure> {
        let mut store = self.store();
        let goal = Arc::clone(&self.goals.borrow());
        let changes = compare(&goal.desired, &new, sizes)
            .map_err(|refused| Failure::precondition(refused.join("\n")))?;
        if changes.is_empty() {
            return Ok(None);
        }
        if let Some(line) = still_leaving(&goal, &new) {
            return Err(Failure::precondition(line));
        }
        let mut identities = goal.desired.identities.clone();
        identities.complete(&new).map_err(|error| Failure::internal(&error))?;
        let mut leaving = goal.leaving.clone();
        leaving.extend(leaves(&goal.desired.config, &new).then(|| goal.desired.config.clone()));
        if leaving.len() > MAX_LEAVING {
            return Err(Failure::precondition(
                "too many removals are not done yet: see the status for the frontend that holds \
                 them up, and restart it",
            ));
        }
        let desired = Desired { config: new.clone(), identities: identities.clone() };
        if let Some(line) = desired.too_long() {
            return Err(Failure::exhausted(line));
        }
        let state = State { config: Some(new), leaving: leaving.clone(), identities };
        store.replace(state).map_err(|error| Failure::internal(&error))?;
        let generation = goal.generation + 1;
        self.goals.send_replace(Arc::new(Goal { generation, desired, leaving }));
        Ok(Some((generation, changes)))
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
                Ok(Answer::new(reply::Body::ReloadResult(self.reload().await?)))
            }
            request::Body::GetStatus(_) => {
                let mut status = status::collect(&self.reconciler, self.own_status()).await;
                status.failures.extend(self.refused());
                Ok(Answer::new(reply::Body::HostStatus(status)))
            }
            _ => Err(Failure::unsupported()),
        }
    }
}

/// What to begin with: the state to store, and why it is not the file's configuration if it is not.
async fn decide(stored: State, new: Config) -> (State, String) {
    let accepted = |leaving| State {
        config: Some(new.clone()),
        leaving,
        identities: stored.identities.clone(),
    };
    let Some(old) = &stored.config else { return (accepted(Vec::new()), String::new()) };
    if *old == new && stored.leaving.is_empty() {
        return (accepted(Vec::new()), String::new());
    }
    if !is_served(old).await {
        return (accepted(Vec::new()), String::new());
    }
    let before = Desired { config: old.clone(), identities: stored.identities.clone() };
    match compare(&before, &new, &Sizes::new()) {
        Ok(_) => {
            let mut leaving = stored.leaving.clone();
            leaving.extend(leaves(old, &new).then(|| old.clone()));
            (accepted(leaving), String::new())
        }
        Err(refused) => {
            for reason in &refused {
                tracing::error!(reason, "the configuration file is not what is served");
            }
            (
                stored.clone(),
                format!("the configuration file is not served: {}", refused.join("; ")),
            )
        }
    }
}

/// True if a process tells of anything that it serves.
async fn is_served(config: &Config) -> bool {
    let mut asked = tokio::task::JoinSet::new();
    for (kind, name) in config.services() {
        if !matches!(kind, Kind::Backend | Kind::Frontend) {
            continue;
        }
        let socket = config.socket(kind, name);
        asked.spawn(async move {
            let session = Session::connect(&socket, "manager").ok()?;
            let body = request::Body::GetStatus(GetStatus {});
            match session.call_within(PROBE_TIMEOUT, body, &[]).await {
                Ok(answer) => match answer.body {
                    reply::Body::ProcessStatus(status) => Some(!status.items.is_empty()),
                    _ => None,
                },
                // One that is there and silent may serve guests.
                Err(service::control::ControlError::TimedOut { .. }) => Some(true),
                Err(_) => None,
            }
        });
    }
    let mut served = false;
    while let Some(answer) = asked.join_next().await {
        served |= matches!(answer, Ok(Some(true)));
    }
    served
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
