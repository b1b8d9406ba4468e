//! What workers count, as frontends read it out of the shared segments: collected when somebody asks, never on a timer of
//! its own. A reset is a base that is subtracted: what hosts read of a controller goes on.

pub mod latency;
pub mod live;

use crate::object::Object;
use crate::peer::Peer;
use latency::{Histogram, HistogramKey, Operation};
use service::config::{Config, Kind, Subsystem};
use service::control::Session;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::task::JoinSet;
use vireo_proto::handoff::{EndpointReport, NamespaceCounters, ReadEndpoint, reply, request};

/// How long a frontend may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Most answers that make up one endpoint's counters: above what the limits on workers and namespaces can come to.
const MAX_ANSWERS: usize = 64;

/// Completed commands and their data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Read, Compare and Verify commands.
    pub reads: u64,
    /// Write commands.
    pub writes: u64,
    /// All other I/O commands.
    pub others: u64,
    /// Bytes that hosts read.
    pub read_bytes: u64,
    /// Bytes that hosts wrote.
    pub written_bytes: u64,
    /// Commands that ended in an error.
    pub errors: u64,
    /// Of these, media and data integrity errors.
    pub media_errors: u64,
    /// Commands that had to wait for a limit.
    pub throttled: u64,
    /// Nanoseconds that those which went on had waited, in sum.
    pub throttled_ns: u64,
}

impl Counters {
    /// Both by `with`, field by field.
    fn combine(self, other: Self, with: fn(u64, u64) -> u64) -> Self {
        Self {
            reads: with(self.reads, other.reads),
            writes: with(self.writes, other.writes),
            others: with(self.others, other.others),
            read_bytes: with(self.read_bytes, other.read_bytes),
            written_bytes: with(self.written_bytes, other.written_bytes),
            errors: with(self.errors, other.errors),
            media_errors: with(self.media_errors, other.media_errors),
            throttled: with(self.throttled, other.throttled),
            throttled_ns: with(self.throttled_ns, other.throttled_ns),
        }
    }

    /// The sum.
    pub fn plus(self, other: Self) -> Self {
        self.combine(other, u64::wrapping_add)
    }
}

/// What one worker counted for one namespace through one controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which.
    pub key: PartKey,
    /// The controller's subsystem.
    pub subsystem: String,
    /// Since when.
    pub since: SystemTime,
    /// How much.
    pub counters: Counters,
}

/// Names a part.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PartKey {
    /// The endpoint's name.
    pub controller: String,
    /// Namespace identifier.
    pub nsid: u32,
    /// The worker's name.
    pub worker: String,
}

/// What counters are asked of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// A volume, subsystem, namespace or controller.
    Object(Object),
    /// A worker.
    Worker(String),
}

impl Scope {
    /// All of a kind, by its pattern: `controllers/-` or `workers/-`; `None` for any other name.
    pub fn all(pattern: &str, config: &Config) -> Option<Vec<Self>> {
        match pattern {
            "controllers/-" => {
                let names = config.endpoints.iter().map(|endpoint| endpoint.name.clone());
                Some(names.map(|name| Self::Object(Object::Controller(name))).collect())
            }
            "workers/-" => {
                let names = config.workers.iter().map(|worker| worker.name.clone());
                Some(names.map(Self::Worker).collect())
            }
            _ => None,
        }
    }

    /// From a resource name.
    pub fn parse(name: &str) -> Option<Self> {
        match name.strip_prefix("workers/") {
            Some(worker) if !worker.is_empty() && !worker.contains('/') => {
                Some(Self::Worker(worker.to_owned()))
            }
            Some(_) => None,
            None => name.parse().ok().map(Self::Object),
        }
    }

    /// True if `config` has it.
    pub fn is_in(&self, config: &Config) -> bool {
        match self {
            Self::Object(object) => object.is_in(config),
            Self::Worker(name) => config.worker(name).is_some(),
        }
    }

    /// True if the histogram is a part of it; none is of a namespace or a volume alone.
    fn times(&self, key: &HistogramKey, config: &Config) -> bool {
        match self {
            Self::Worker(name) => key.worker == *name,
            Self::Object(Object::Controller(name)) => key.controller == *name,
            Self::Object(Object::Subsystem(name)) => {
                config.endpoints.iter().any(|e| e.name == key.controller && e.subsystem == *name)
            }
            Self::Object(Object::Namespace { .. } | Object::Volume(_)) => false,
        }
    }

    fn has(&self, part: &Part, config: &Config) -> bool {
        match self {
            Self::Worker(name) => part.key.worker == *name,
            Self::Object(Object::Controller(name)) => part.key.controller == *name,
            Self::Object(Object::Subsystem(name)) => part.subsystem == *name,
            Self::Object(Object::Namespace { subsystem, nsid }) => {
                part.subsystem == *subsystem && part.key.nsid == *nsid
            }
            Self::Object(Object::Volume(name)) => {
                let subsystem = config.subsystem(&part.subsystem);
                let namespaces = subsystem.map(|s| s.namespaces.as_slice()).unwrap_or_default();
                namespaces.iter().any(|n| n.nsid == part.key.nsid && n.bdev == *name)
            }
        }
    }
}

/// All counters at one time.
#[derive(Clone, Debug)]
pub struct Reading {
    /// When they were read.
    pub time: SystemTime,
    /// Where anything was counted.
    pub parts: Vec<Part>,
    /// How long sampled commands took, where there are any.
    pub latencies: Vec<(HistogramKey, Histogram)>,
    /// When the controllers that answered were made.
    pub born: BTreeMap<String, SystemTime>,
    /// What could not be read, one line each.
    pub failures: Vec<String>,
}

impl Reading {
    /// The parts of `scope`.
    pub fn of<'a>(
        &'a self,
        scope: &'a Scope,
        config: &'a Config,
    ) -> impl Iterator<Item = &'a Part> {
        self.parts.iter().filter(|part| scope.has(part, config))
    }

    /// How long sampled commands of `scope` took, by kind.
    pub fn latencies_of(&self, scope: &Scope, config: &Config) -> BTreeMap<Operation, Histogram> {
        let mut sums: BTreeMap<Operation, Histogram> = BTreeMap::new();
        for (key, histogram) in self.histograms_of(scope, config) {
            sums.entry(key.operation).or_default().add(histogram);
        }
        sums
    }

    /// The histograms of `scope`, one for each controller, worker and operation, in this order.
    pub fn histograms_of<'a>(
        &'a self,
        scope: &'a Scope,
        config: &'a Config,
    ) -> impl Iterator<Item = &'a (HistogramKey, Histogram)> {
        self.latencies.iter().filter(|(key, _)| scope.times(key, config))
    }
}

/// Who is connected to a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Process identifier; 0 if it is of another PID namespace.
    pub pid: i32,
    /// User identifier.
    pub uid: u32,
}

/// Where resets are kept.
#[derive(Debug, Default)]
pub struct Bases {
    bases: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    counters: BTreeMap<PartKey, Base<Counters>>,
    latencies: BTreeMap<HistogramKey, Base<Histogram>>,
}

#[derive(Debug)]
struct Base<T> {
    /// Of which instance of the endpoint.
    instance: Vec<u8>,
    since: SystemTime,
    value: T,
}

impl Bases {
    /// The counters of every controller that `config` has, less what was reset.
    pub(crate) async fn read(&self, config: &Config, peers: &[Peer]) -> Reading {
        let (reports, failures) = collect(config, peers).await;
        self.subtract(config, &reports, failures)
    }

    fn subtract(
        &self,
        config: &Config,
        reports: &[(String, EndpointReport)],
        failures: Vec<String>,
    ) -> Reading {
        let time = SystemTime::now();
        let mut reading = Reading {
            time,
            parts: Vec::new(),
            latencies: Vec::new(),
            born: BTreeMap::new(),
            failures,
        };
        let mut bases = self.lock();
        // Nothing is kept of controllers that are gone for good.
        let known = |name: &str| config.endpoints.iter().any(|endpoint| endpoint.name == name);
        bases.counters.retain(|key, _| known(&key.controller));
        bases.latencies.retain(|key, _| known(&key.controller));
        for (name, report) in reports {
            let born = time.checked_sub(Duration::from_nanos(report.age_ns)).unwrap_or(time);
            reading.born.insert(name.clone(), born);
            let Some(endpoint) = config.endpoints.iter().find(|e| e.name == *name) else {
                continue;
            };
            for (key, mut counters) in rows(name, report) {
                let mut since = born;
                if let Some(base) = bases.counters.get(&key)
                    && base.instance == report.instance
                {
                    since = base.since;
                    counters = counters.combine(base.value, u64::saturating_sub);
                }
                let subsystem = endpoint.subsystem.clone();
                reading.parts.push(Part { key, subsystem, since, counters });
            }
            for (key, mut histogram) in histograms(name, report) {
                if let Some(base) = bases.latencies.get(&key)
                    && base.instance == report.instance
                {
                    histogram = histogram.since(&base.value);
                }
                reading.latencies.push((key, histogram));
            }
        }
        reading
    }

    /// Counts the parts of `scopes` from zero again, as frontends have them now. Gives the counters before.
    pub(crate) async fn reset(&self, config: &Config, peers: &[Peer], scopes: &[Scope]) -> Reading {
        let (reports, failures) = collect(config, peers).await;
        let before = self.subtract(config, &reports, failures);
        let (since, mut bases) = (before.time, self.lock());
        for (name, report) in &reports {
            let instance = || report.instance.clone();
            for (key, value) in rows(name, report) {
                let of_scopes = |part: &&Part| scopes.iter().any(|scope| scope.has(part, config));
                let part = before.parts.iter().find(|part| part.key == key);
                if part.is_some_and(|part| of_scopes(&part)) {
                    bases.counters.insert(key, Base { instance: instance(), since, value });
                }
            }
            for (key, value) in histograms(name, report) {
                if scopes.iter().any(|scope| scope.times(&key, config)) {
                    bases.latencies.insert(key, Base { instance: instance(), since, value });
                }
            }
        }
        before
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.bases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was counted of an endpoint.
fn rows(name: &str, report: &EndpointReport) -> Vec<(PartKey, Counters)> {
    let mut rows = Vec::new();
    for worker in &report.workers {
        for row in &worker.namespaces {
            let (controller, worker) = (name.to_owned(), worker.worker.clone());
            rows.push((PartKey { controller, nsid: row.nsid, worker }, from_row(row)));
        }
    }
    rows
}

/// How long an endpoint's sampled commands took.
fn histograms(name: &str, report: &EndpointReport) -> Vec<(HistogramKey, Histogram)> {
    let mut histograms = Vec::new();
    for worker in &report.workers {
        for counts in &worker.latencies {
            let Some(operation) = Operation::of(counts) else { continue };
            let (controller, worker) = (name.to_owned(), worker.worker.clone());
            let key = HistogramKey { controller, worker, operation };
            histograms.push((key, Histogram::of(counts)));
        }
    }
    histograms
}

/// The client of one controller; `None` if there is none, or its frontend does not answer.
pub(crate) async fn client(config: &Config, peers: &[Peer], controller: &str) -> Option<Client> {
    let session = session(config, peers, controller).ok()?;
    let report = read_piece(&session, controller, u32::MAX).await.ok()?;
    report.connected.then_some(Client { pid: report.client_pid, uid: report.client_uid })
}

/// Asks every frontend for its endpoints, all of them at the same time.
async fn collect(config: &Config, peers: &[Peer]) -> (Vec<(String, EndpointReport)>, Vec<String>) {
    let mut asked = JoinSet::new();
    let mut failures = Vec::new();
    for endpoint in &config.endpoints {
        let name = endpoint.name.clone();
        match session(config, peers, &name) {
            Ok(session) => {
                asked.spawn(async move {
                    let report = read_whole(&session, &name).await;
                    (name, report)
                });
            }
            Err(line) => failures.push(format!("controllers/{name}: {line}")),
        }
    }
    let mut reports = Vec::new();
    while let Some(answer) = asked.join_next().await {
        match answer {
            Ok((name, Ok(report))) => reports.push((name, report)),
            Ok((name, Err(line))) => failures.push(format!("controllers/{name}: {line}")),
            // A task that panicked; there is none.
            Err(error) => failures.push(error.to_string()),
        }
    }
    reports.sort_by(|a, b| a.0.cmp(&b.0));
    failures.sort();
    (reports, failures)
}

/// The frontend of a controller; why it cannot be asked, in one line.
pub(crate) fn session(
    config: &Config,
    peers: &[Peer],
    controller: &str,
) -> Result<Session, String> {
    let peer = frontend_of(config, peers, controller)?;
    peer.session().ok_or_else(|| format!("frontend {} is not there", peer.name))
}

/// The frontend of a controller.
///
/// # Errors
/// There is no such process.
pub(crate) fn frontend_of<'a>(
    config: &Config,
    peers: &'a [Peer],
    controller: &str,
) -> Result<&'a Peer, String> {
    let endpoint = config.endpoints.iter().find(|endpoint| endpoint.name == controller);
    frontend(peers, endpoint.and_then(|endpoint| config.subsystem(&endpoint.subsystem)))
}

/// The frontend of a subsystem.
///
/// # Errors
/// There is no such process.
pub(crate) fn frontend<'a>(
    peers: &'a [Peer],
    subsystem: Option<&Subsystem>,
) -> Result<&'a Peer, String> {
    let name = subsystem.map(|subsystem| subsystem.frontend.as_str()).unwrap_or_default();
    let mut peers = peers.iter().filter(|peer| peer.kind == Kind::Frontend);
    peers.find(|peer| peer.name == name).ok_or_else(|| format!("frontend {name} is not there"))
}

async fn read_whole(session: &Session, name: &str) -> Result<EndpointReport, String> {
    let mut whole = read_piece(session, name, 0).await?;
    for _ in 0..MAX_ANSWERS {
        if whole.next_worker == 0 {
            break;
        }
        let piece = read_piece(session, name, whole.next_worker).await?;
        if piece.instance != whole.instance {
            return Err("was made anew while it was read".to_owned());
        }
        whole.workers.extend(piece.workers);
        whole.next_worker = piece.next_worker;
    }
    Ok(whole)
}

/// A piece of an endpoint's report: of workers from `first` on.
pub(crate) async fn read_piece(
    session: &Session,
    name: &str,
    first: u32,
) -> Result<EndpointReport, String> {
    let read = ReadEndpoint { endpoint: name.to_owned(), first_worker: first };
    let body = request::Body::ReadEndpoint(read);
    match session.call_within(TIMEOUT, body, &[]).await.map(|answer| answer.body) {
        Ok(reply::Body::EndpointReport(report)) => Ok(report),
        Ok(_) => Err(session.unexpected("an endpoint's report").line()),
        Err(error) => Err(error.line()),
    }
}

fn from_row(row: &NamespaceCounters) -> Counters {
    Counters {
        reads: row.reads,
        writes: row.writes,
        others: row.others,
        read_bytes: row.read_bytes,
        written_bytes: row.written_bytes,
        errors: row.errors,
        media_errors: row.media_errors,
        throttled: row.throttled,
        throttled_ns: row.throttled_ns,
    }
}
