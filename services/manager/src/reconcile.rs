//! Brings the host from what it serves to what is wanted, and keeps it there.
//!
//! The order comes from what each process is told when: backends first hear of the wanted bdevs and of those that are
//! still leaving; then frontends of subsystems, namespaces and endpoints, without what is removed; only when every
//! frontend that used a leaving bdev has let go of it, its backend hears that it is wanted no more.

use crate::desired::Desired;
use crate::peer::{Outcome, Peer};
use service::config::{Bdev, Config, Kind};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use telemetry::spans::Context;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use vireo_proto::handoff::request;

/// How long frontends wait for backends before they are told, and how long an absent process is waited for before the
/// host counts as settled without it.
const GRACE: Duration = Duration::from_secs(3);

/// What the reconciler pursues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goal {
    /// Counts up with every other goal.
    pub generation: u64,
    /// What is to be served.
    pub desired: Desired,
    /// The request that asked for it.
    pub asked_in: Option<Context>,
    /// Earlier configurations; their bdevs that are wanted no more stay until their frontends have let go of them.
    pub leaving: Vec<Config>,
}

/// How far the reconciler is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Of which goal.
    pub generation: u64,
    /// Every process has answered, or is away.
    pub settled: bool,
    /// No bdev of an earlier configuration is left.
    pub left: bool,
    /// What is not as wanted, one line each.
    pub failures: Vec<String>,
}

impl Progress {
    /// The goal is reached.
    pub fn reached(&self) -> bool {
        self.settled && self.left && self.failures.is_empty()
    }
}

/// The reconciler's task; ends when this is dropped.
#[derive(Debug)]
pub struct Reconciler {
    peers: Arc<Vec<Peer>>,
    progress: watch::Receiver<Progress>,
    task: AbortHandle,
}

impl Reconciler {
    /// Starts to pursue `goals`. Its processes are those of the first; no later one has others.
    pub fn start(goals: watch::Receiver<Arc<Goal>>, sender: &str) -> Self {
        let stirred = Arc::new(Notify::new());
        let goal = goals.borrow().clone();
        let config = &goal.desired.config;
        let peers = config.services().into_iter().filter(|(kind, _)| *kind != Kind::Manager);
        let peers: Vec<Peer> = peers
            .map(|(kind, name)| {
                let socket = config.socket(kind, name);
                Peer::start(kind, name, &socket, sender, Arc::clone(&stirred))
            })
            .collect();
        let peers = Arc::new(peers);
        let (tell, progress) = watch::channel(Progress::default());
        let steps = Steps {
            peers: Arc::clone(&peers),
            goals,
            progress: tell,
            since: Instant::now(),
            generation: 0,
            told: BTreeMap::new(),
            confirmed: BTreeMap::new(),
            clean_backends: 0,
        };
        let task = tokio::spawn(steps.run(stirred)).abort_handle();
        Self { peers, progress, task }
    }

    /// How far it is, now and later.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    pub(crate) fn peers(&self) -> &[Peer] {
        &self.peers
    }
}

impl Drop for Reconciler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Steps {
    peers: Arc<Vec<Peer>>,
    goals: watch::Receiver<Arc<Goal>>,
    progress: watch::Sender<Progress>,
    /// When the present goal was first seen.
    since: Instant,
    generation: u64,
    /// Of which generation a frontend was told last.
    told: BTreeMap<String, u64>,
    /// Which generation a frontend has applied without a failure. A restart does not take that back: it then serves
    /// nothing older.
    confirmed: BTreeMap<String, u64>,
    /// Backends that served all they should at the last step.
    clean_backends: usize,
}

/// A bdev that is wanted no more, and the frontends that may still use it.
struct Held<'a> {
    bdev: &'a Bdev,
    frontends: Vec<&'a str>,
}

impl Steps {
    async fn run(mut self, stirred: Arc<Notify>) {
        loop {
            let goal = self.goals.borrow_and_update().clone();
            if goal.generation != self.generation {
                self.generation = goal.generation;
                self.since = Instant::now();
            }
            let progress = self.step(&goal);
            let grace = self.since + GRACE;
            let waits = !progress.settled && Instant::now() < grace;
            self.progress.send_if_modified(|old| {
                let changed = *old != progress;
                *old = progress;
                changed
            });
            tokio::select! {
                changed = self.goals.changed() => if changed.is_err() { return },
                () = stirred.notified() => {}
                () = tokio::time::sleep_until(grace), if waits => {}
            }
        }
    }

    /// Tells every process what it is to serve by now.
    fn step(&mut self, goal: &Goal) -> Progress {
        let graced = self.since.elapsed() >= GRACE;
        let mut held = self.held(goal);
        loop {
            self.tell(goal, &held, graced);
            let now = self.held(goal);
            // What is released now, backends must hear now; each round has fewer.
            let released = now.len() < held.len();
            held = now;
            if !released {
                break;
            }
        }
        self.retry_frontends();
        let settled = self.peers.iter().all(|peer| self.is_settled(peer, goal.generation, graced));
        let failures = self.failures(&held);
        Progress { generation: goal.generation, settled, left: held.is_empty(), failures }
    }

    fn tell(&mut self, goal: &Goal, held: &[Held<'_>], graced: bool) {
        for backend in self.of(Kind::Backend) {
            let bdevs = goal.desired.bdevs(&backend.name, held.iter().map(|held| held.bdev));
            backend.want(request::Body::ApplyBdevs(bdevs), goal.asked_in);
        }
        let answered = self.of(Kind::Backend).all(|backend| is_applied(&backend.outcome()));
        let peers = Arc::clone(&self.peers);
        for frontend in peers.iter().filter(|peer| peer.kind == Kind::Frontend) {
            let told = self.told.get(&frontend.name) == Some(&goal.generation);
            if !told && (answered || graced) {
                let targets = goal.desired.targets(&frontend.name);
                frontend.want(request::Body::ApplyTargets(targets), goal.asked_in);
                self.told.insert(frontend.name.clone(), goal.generation);
            }
            if let Some(told) = self.told.get(&frontend.name)
                && is_clean(&frontend.outcome())
            {
                self.confirmed.insert(frontend.name.clone(), *told);
            }
        }
    }

    fn of(&self, kind: Kind) -> impl Iterator<Item = &Peer> {
        self.peers.iter().filter(move |peer| peer.kind == kind)
    }

    fn held<'a>(&self, goal: &'a Goal) -> Vec<Held<'a>> {
        let mut held: Vec<Held<'a>> = Vec::new();
        // The latest configuration knows a bdev's size best.
        for config in goal.leaving.iter().rev() {
            for bdev in &config.bdevs {
                let wanted = goal.desired.config.bdev(&bdev.name).is_some();
                let seen = held.iter().any(|held| held.bdev.name == bdev.name);
                if wanted || seen {
                    continue;
                }
                let frontends = users(&goal.leaving, &bdev.name, |frontend| {
                    self.confirmed.get(frontend).is_none_or(|seen| *seen < goal.generation)
                });
                if !frontends.is_empty() {
                    held.push(Held { bdev, frontends });
                }
            }
        }
        held
    }

    /// A frontend's failure may come from a bdev that was not there; once it is, nobody needs to wait.
    fn retry_frontends(&mut self) {
        let clean = self.of(Kind::Backend).filter(|peer| is_clean(&peer.outcome())).count();
        if clean > self.clean_backends {
            for frontend in self.of(Kind::Frontend) {
                frontend.retry();
            }
        }
        self.clean_backends = clean;
    }

    fn is_settled(&self, peer: &Peer, generation: u64, graced: bool) -> bool {
        match (peer.kind, peer.outcome()) {
            (_, Outcome::Away) => graced,
            (Kind::Worker, _) => true,
            (Kind::Frontend, outcome) => {
                self.told.get(&peer.name) == Some(&generation) && is_applied(&outcome)
            }
            (_, outcome) => is_applied(&outcome),
        }
    }

    fn failures(&self, held: &[Held<'_>]) -> Vec<String> {
        let mut failures = Vec::new();
        for peer in self.peers.iter() {
            let process = format!("{} {}", peer.kind, peer.name);
            match (peer.kind, peer.outcome()) {
                (_, Outcome::Away) => failures.push(format!("{process}: is not there")),
                (Kind::Worker, Outcome::Present) => {}
                (_, Outcome::Present) => failures.push(format!("{process}: has not answered yet")),
                (_, Outcome::Applied { failures: found, .. }) => {
                    failures.extend(found.iter().map(|reason| format!("{process}: {reason}")));
                }
            }
        }
        failures.extend(held.iter().map(|held| {
            let frontends = held.frontends.join(", ");
            format!("bdev {}: stays until frontend {frontends} has let go of it", held.bdev.name)
        }));
        failures
    }
}

/// Frontends with a namespace on the bdev in any of the configurations.
fn users<'a>(configs: &'a [Config], bdev: &str, also: impl Fn(&str) -> bool) -> Vec<&'a str> {
    let mut frontends: Vec<&str> = configs
        .iter()
        .flat_map(|config| &config.subsystems)
        .filter(|subsystem| subsystem.namespaces.iter().any(|namespace| namespace.bdev == bdev))
        .map(|subsystem| subsystem.frontend.as_str())
        .filter(|frontend| also(frontend))
        .collect();
    frontends.sort_unstable();
    frontends.dedup();
    frontends
}

fn is_applied(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Applied { .. })
}

fn is_clean(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Applied { failures, .. } if failures.is_empty())
}
