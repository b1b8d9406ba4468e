//! One reading of the manager's counters, and what there is to be read: messages of the API as plain figures, with names
//! that a terminal can be given.

use super::latency::Histogram;
use std::time::Duration;
use vireo_api::v1;

/// Most characters of a name that are kept.
const NAME: usize = 64;
/// Most characters of a line for a person that are kept.
const LINE: usize = 300;

/// Counters at one time.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Seconds since 1970 by the manager's clock.
    pub time: f64,
    /// Every controller.
    pub controllers: Vec<ControllerCounts>,
    /// Every worker.
    pub workers: Vec<WorkerCounts>,
    /// What could not be read, one line each.
    pub failures: Vec<String>,
}

/// Completed commands and their data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// All other I/O commands.
    pub others: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Commands that ended in an error.
    pub errors: u64,
    /// Commands that had to wait for a limit.
    pub throttled: u64,
    /// Nanoseconds that those which went on had waited, in sum.
    pub throttled_ns: u64,
}

/// A controller's counters.
#[derive(Clone, Debug, Default)]
pub struct ControllerCounts {
    /// Its name.
    pub name: String,
    /// Everything.
    pub counts: Counts,
    /// The same by namespace and worker.
    pub parts: Vec<Part>,
    /// How long sampled commands took.
    pub latencies: Histogram,
    /// The same by the worker that served them.
    pub on_workers: Vec<(String, Histogram)>,
    /// Its queues that were used.
    pub queues: Vec<QueueCounts>,
}

/// What one worker counted for one namespace of a controller.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// `subsystem/nsid`.
    pub namespace: String,
    /// How much.
    pub counts: Counts,
}

/// How far a queue is.
#[derive(Clone, Debug, Default)]
pub struct QueueCounts {
    /// Who serves it.
    pub worker: String,
    /// Queue identifier.
    pub id: u32,
    /// Commands fetched.
    pub commands: u64,
    /// Entries posted.
    pub completions: u64,
}

/// A worker's counters.
#[derive(Clone, Debug, Default)]
pub struct WorkerCounts {
    /// Its name.
    pub name: String,
    /// What it did.
    pub counts: Counts,
    /// How long sampled commands took.
    pub latencies: Histogram,
    /// What it does with its time, if it answers.
    pub times: Option<Times>,
}

/// What a poll thread does with its time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Nanoseconds with work.
    pub busy_ns: u64,
    /// Nanoseconds of looking for work in vain.
    pub spinning_ns: u64,
    /// Nanoseconds asleep.
    pub sleeping_ns: u64,
    /// Looks for work.
    pub polls: u64,
}

/// What there is, whatever it does.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// All that is wanted is served.
    pub ready: bool,
    /// What is missing, one line each.
    pub missing: Vec<String>,
    /// Every worker.
    pub workers: Vec<WorkerPlace>,
    /// Every controller.
    pub controllers: Vec<ControllerPlace>,
    /// Every namespace.
    pub namespaces: Vec<NamespacePlace>,
}

/// A worker.
#[derive(Clone, Debug, Default)]
pub struct WorkerPlace {
    /// Its name.
    pub name: String,
    /// The core of its poll thread.
    pub core: Option<u32>,
    /// Whose controllers it serves.
    pub tenant: String,
    /// It answers.
    pub running: bool,
    /// Its process.
    pub pid: i32,
    /// The controllers that it is attached to.
    pub controllers: usize,
}

/// A controller.
#[derive(Clone, Debug, Default)]
pub struct ControllerPlace {
    /// Its name.
    pub name: String,
    /// Its subsystem.
    pub subsystem: String,
    /// It is served.
    pub served: bool,
    /// The client's process, if there is a client; 0 for one of another PID namespace.
    pub client: Option<i32>,
    /// I/O queue pairs that it may have.
    pub queues: u32,
}

/// A namespace.
#[derive(Clone, Debug, Default)]
pub struct NamespacePlace {
    /// `subsystem/nsid`.
    pub name: String,
    /// The volume with its data.
    pub volume: String,
    /// It is served.
    pub served: bool,
}

/// A name without its collection, printable and of one column a character: whatever a server sends, it is no command to
/// a terminal.
pub fn name(full: &str) -> String {
    let own = full.rsplit('/').next().unwrap_or(full);
    own.chars().take(NAME).map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect()
}

/// One line for a person, without what a terminal would act on: control characters and those that turn the direction of
/// writing.
pub fn line(text: &str) -> String {
    let is_act = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    text.chars().take(LINE).map(|c| if is_act(c) { '?' } else { c }).collect()
}

/// `subsystems/s0/namespaces/1` as `s0/1`.
fn namespace(full: &str) -> String {
    match full.split('/').collect::<Vec<_>>().as_slice() {
        ["subsystems", subsystem, "namespaces", nsid] => {
            format!("{}/{}", name(subsystem), name(nsid))
        }
        _ => name(full),
    }
}

impl Sample {
    /// From an answer of the manager.
    pub fn of(answer: v1::WatchStatsResponse) -> Self {
        let time =
            answer.time.map_or(0.0, |time| time.seconds as f64 + f64::from(time.nanos) / 1e9);
        let mut sample = Self {
            time,
            failures: answer.failures.iter().map(|failure| line(failure)).collect(),
            ..Self::default()
        };
        for stats in answer.stats {
            if stats.name.starts_with("workers/") {
                sample.workers.push(WorkerCounts::of(&stats));
            } else if stats.name.starts_with("controllers/") {
                sample.controllers.push(ControllerCounts::of(&stats));
            }
        }
        sample
    }
}

impl Counts {
    fn of(counters: Option<&v1::Counters>) -> Self {
        let Some(counters) = counters else { return Self::default() };
        Self {
            reads: counters.reads,
            writes: counters.writes,
            others: counters.others,
            read_bytes: counters.read_bytes,
            written_bytes: counters.written_bytes,
            errors: counters.errors,
            throttled: counters.throttled,
            throttled_ns: counters.throttled_time.as_ref().map_or(0, nanoseconds),
        }
    }

    /// The sum.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            reads: self.reads.saturating_add(other.reads),
            writes: self.writes.saturating_add(other.writes),
            others: self.others.saturating_add(other.others),
            read_bytes: self.read_bytes.saturating_add(other.read_bytes),
            written_bytes: self.written_bytes.saturating_add(other.written_bytes),
            errors: self.errors.saturating_add(other.errors),
            throttled: self.throttled.saturating_add(other.throttled),
            throttled_ns: self.throttled_ns.saturating_add(other.throttled_ns),
        }
    }
}

impl ControllerCounts {
    fn of(stats: &v1::Stats) -> Self {
        let part = |part: &v1::StatsPart| Part {
            namespace: namespace(&part.namespace),
            counts: Counts::of(part.counters.as_ref()),
        };
        let queue = |queue: &v1::QueueStats| QueueCounts {
            worker: name(&queue.worker),
            id: queue.queue_id,
            commands: queue.commands,
            completions: queue.completions,
        };
        let on_worker = |part: &v1::LatencyPart| (name(&part.worker), histogram(&part.latencies));
        Self {
            name: name(&stats.name),
            counts: Counts::of(stats.total.as_ref()),
            parts: stats.parts.iter().map(part).collect(),
            latencies: histogram(&stats.latencies),
            on_workers: stats.latency_parts.iter().map(on_worker).collect(),
            queues: stats.queues.iter().map(queue).collect(),
        }
    }
}

impl WorkerCounts {
    fn of(stats: &v1::Stats) -> Self {
        let times = |times: &v1::PollTimes| Times {
            busy_ns: times.busy.as_ref().map_or(0, nanoseconds),
            spinning_ns: times.spinning.as_ref().map_or(0, nanoseconds),
            sleeping_ns: times.sleeping.as_ref().map_or(0, nanoseconds),
            polls: times.polls,
        };
        Self {
            name: name(&stats.name),
            counts: Counts::of(stats.total.as_ref()),
            latencies: histogram(&stats.latencies),
            times: stats.poll_times.as_ref().map(times),
        }
    }
}

impl WorkerPlace {
    /// From the API's message.
    pub fn of(worker: &v1::Worker) -> Self {
        Self {
            name: name(&worker.name),
            core: worker.core,
            tenant: name(&worker.tenant),
            running: worker.running,
            pid: worker.pid,
            controllers: worker.controllers.len(),
        }
    }
}

impl ControllerPlace {
    /// From the API's message.
    pub fn of(controller: &v1::Controller) -> Self {
        Self {
            name: name(&controller.name),
            subsystem: name(&controller.subsystem),
            served: controller.state() == v1::State::Ready,
            client: controller.client.as_ref().map(|client| client.pid),
            queues: controller.queues,
        }
    }
}

impl NamespacePlace {
    /// From the API's message.
    pub fn of(place: &v1::Namespace) -> Self {
        Self {
            name: namespace(&place.name),
            volume: name(&place.volume),
            served: place.state() == v1::State::Ready,
        }
    }
}

/// Commands of all kinds together.
fn histogram(messages: &[v1::LatencyHistogram]) -> Histogram {
    let mut sum = Histogram::default();
    for message in messages {
        let time = message.sum.as_ref().map_or(0, nanoseconds);
        sum.sum_ns = sum.sum_ns.saturating_add(time);
        for bucket in &message.buckets {
            sum.add(bucket.upper_bound.as_ref().map_or(u64::MAX, nanoseconds), bucket.count);
        }
    }
    sum
}

/// Nothing that is negative.
fn nanoseconds(duration: &prost_types::Duration) -> u64 {
    let duration = Duration::try_from(*duration).unwrap_or_default();
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_outside_is_a_command_to_a_terminal() {
        assert_eq!(name("controllers/a\u{1b}[2J\u{9b}31mb"), "a?[2J?31mb");
        assert_eq!(name("workers/日本"), "??");
        assert_eq!(line("a\r\nb\u{202e}c\u{7}é"), "a??b?c?é");
        assert_eq!(name(&"x".repeat(1000)).len(), NAME);
    }

    #[test]
    fn answers_become_figures_whatever_is_in_them() {
        let duration = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
        let histogram = v1::LatencyHistogram {
            sum: duration(-1, 0),
            buckets: vec![
                v1::LatencyBucket { upper_bound: duration(0, 320), count: 2 },
                v1::LatencyBucket { upper_bound: None, count: 1 },
            ],
            ..v1::LatencyHistogram::default()
        };
        let part = v1::StatsPart {
            namespace: "subsystems/s0/namespaces/1".into(),
            ..v1::StatsPart::default()
        };
        let stats = v1::Stats {
            name: "controllers/vm0".into(),
            latencies: vec![histogram.clone(), histogram.clone()],
            latency_parts: vec![v1::LatencyPart {
                worker: "workers/w0".into(),
                latencies: vec![histogram],
                ..v1::LatencyPart::default()
            }],
            total: Some(v1::Counters {
                throttled: 3,
                throttled_time: duration(1, 5),
                ..v1::Counters::default()
            }),
            parts: vec![part],
            ..v1::Stats::default()
        };
        let other = v1::Stats { name: "things/x".into(), ..v1::Stats::default() };
        let answer = v1::WatchStatsResponse { stats: vec![stats, other], ..Default::default() };
        let sample = Sample::of(answer);
        assert_eq!((sample.controllers.len(), sample.workers.len()), (1, 0));
        let controller = &sample.controllers[0];
        assert_eq!((controller.name.as_str(), controller.latencies.sum_ns), ("vm0", 0));
        assert_eq!(controller.latencies.buckets, [(320, 4), (u64::MAX, 2)].into());
        assert_eq!(controller.parts[0].namespace, "s0/1");
        let (worker, on_worker) = &controller.on_workers[0];
        assert_eq!((worker.as_str(), on_worker.count()), ("w0", 3));
        let counts = controller.counts;
        assert_eq!((counts.throttled, counts.throttled_ns), (3, 1_000_000_005));
    }
}
