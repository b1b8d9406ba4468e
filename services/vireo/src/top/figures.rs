//! What is shown: rates between two readings, shares of time, latencies. As JSON in batch mode, as rows on a terminal.

use super::latency::Latency;
use super::trend::Trend;
use serde::Serialize;

/// All figures of one moment.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// Seconds since 1970 by the manager's clock.
    pub time: f64,
    /// Seconds that the rates are of; `None` as long as there is one reading only.
    pub seconds: Option<f64>,
    /// All that is wanted is served; `None` until it is known.
    pub ready: Option<bool>,
    /// What is missing or could not be read, one line each.
    pub failures: Vec<String>,
    /// Of all controllers together.
    pub total: Option<Rates>,
    /// By name.
    pub workers: Vec<Worker>,
    /// By name.
    pub controllers: Vec<Controller>,
    /// By controller, worker and identifier.
    pub queues: Vec<Queue>,
    /// By name.
    pub namespaces: Vec<Namespace>,
    /// How all I/Os together went.
    #[serde(skip)]
    pub trend: Trend,
}

/// A second's commands and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    /// Reads.
    pub reads: f64,
    /// Writes.
    pub writes: f64,
    /// All other I/O commands.
    pub others: f64,
    /// Bytes read.
    pub read_bytes: f64,
    /// Bytes written.
    pub written_bytes: f64,
    /// Commands that ended in an error.
    pub errors: f64,
    /// Commands that had to wait for a limit.
    pub throttled: f64,
    /// Seconds that those which went on had waited, in sum.
    pub throttled_seconds: f64,
}

impl Rates {
    /// All commands.
    #[must_use]
    pub fn all(&self) -> f64 {
        self.reads + self.writes + self.others
    }

    /// How long a command that had to wait for a limit did so on average, in nanoseconds; `None` if none had to.
    #[must_use]
    pub fn waited_ns(&self) -> Option<f64> {
        (self.throttled > 0.0).then(|| self.throttled_seconds * 1e9 / self.throttled)
    }

    /// The sum.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            reads: self.reads + other.reads,
            writes: self.writes + other.writes,
            others: self.others + other.others,
            read_bytes: self.read_bytes + other.read_bytes,
            written_bytes: self.written_bytes + other.written_bytes,
            errors: self.errors + other.errors,
            throttled: self.throttled + other.throttled,
            throttled_seconds: self.throttled_seconds + other.throttled_seconds,
        }
    }
}

/// What a worker is mostly doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Doing {
    /// Its process does not answer.
    Away,
    /// Not known yet.
    Unknown,
    /// It sleeps.
    Asleep,
    /// It looks for work in vain.
    Polling,
    /// It works.
    Busy,
}

impl Doing {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Away => "away",
            Self::Unknown => "-",
            Self::Asleep => "asleep",
            Self::Polling => "polling",
            Self::Busy => "busy",
        }
    }
}

/// A worker.
#[derive(Clone, Debug, Serialize)]
pub struct Worker {
    /// Its name.
    pub name: String,
    /// The core of its poll thread; `None`: not pinned.
    pub core: Option<u32>,
    /// What it is mostly doing.
    pub doing: Doing,
    /// Part of its time with work, of 100.
    pub busy_percent: Option<f64>,
    /// Part of its time looking for work in vain.
    pub polling_percent: Option<f64>,
    /// Part of its time asleep.
    pub asleep_percent: Option<f64>,
    /// Looks for work a second.
    pub polls: Option<f64>,
    /// What it completed.
    pub rates: Option<Rates>,
    /// How long that took, of sampled commands.
    pub latency: Option<Latency>,
    /// Commands that ended in an error so far.
    pub errors: u64,
    /// Controllers that it is attached to.
    pub controllers: usize,
    /// Whose controllers it serves.
    pub tenant: String,
    /// Its process; 0 if it does not answer.
    pub pid: i32,
    /// The share of work.
    #[serde(skip)]
    pub trend: Trend,
}

/// A controller.
#[derive(Clone, Debug, Serialize)]
pub struct Controller {
    /// Its name.
    pub name: String,
    /// Its subsystem.
    pub subsystem: String,
    /// `connected`, `waiting` for a client, `failed`, or `-` until it is known.
    pub state: &'static str,
    /// The client's process.
    pub client: Option<i32>,
    /// Queues that have had commands.
    pub queues_used: usize,
    /// Queues that it may have.
    pub queues: u32,
    /// What it completed.
    pub rates: Option<Rates>,
    /// How long that took, of sampled commands.
    pub latency: Option<Latency>,
    /// Commands in work at a time, on average: their rate times their mean latency.
    pub depth: Option<f64>,
    /// Commands that ended in an error so far.
    pub errors: u64,
    /// I/Os a second.
    #[serde(skip)]
    pub trend: Trend,
}

/// An I/O queue.
#[derive(Clone, Debug, Serialize)]
pub struct Queue {
    /// Its controller.
    pub controller: String,
    /// Who serves it.
    pub worker: String,
    /// Its identifier.
    pub id: u32,
    /// Commands fetched a second.
    pub commands: Option<f64>,
    /// Completions posted a second.
    pub completions: Option<f64>,
    /// Its part of its controller's commands, of 100.
    pub share_percent: Option<f64>,
    /// Commands fetched since it was created.
    pub commands_total: u64,
    /// How long sampled commands took of all queues of its controller on its worker together: nobody counts them queue by
    /// queue.
    pub shared_latency: Option<Latency>,
    /// Commands a second.
    #[serde(skip)]
    pub trend: Trend,
}

/// A namespace.
#[derive(Clone, Debug, Serialize)]
pub struct Namespace {
    /// `subsystem/nsid`.
    pub name: String,
    /// The volume with its data.
    pub volume: String,
    /// `served`, `failed`, or `-` until it is known.
    pub state: &'static str,
    /// What was completed on it by all controllers.
    pub rates: Option<Rates>,
    /// Commands that ended in an error so far.
    pub errors: u64,
    /// I/Os a second.
    #[serde(skip)]
    pub trend: Trend,
}
