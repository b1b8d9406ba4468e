//! What is read out of the shared segments themselves at the moment somebody asks: workers' poll times and the positions of
//! I/O queues. Nothing of it is kept, and resets do not concern it.

use super::Scope;
use crate::metrics;
use crate::object::Object;
use crate::peer::Peer;
use ipc::layout::queues::QueuesLayout;
use ipc::layout::telemetry::TelemetryLayout;
use service::config::Kind;
use service::control::Session;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::task::JoinSet;
use vireo_proto::handoff::QueuesSegment;

/// How long one process may take to show all of its segments.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What a worker's poll thread did with its time since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PollTimes {
    /// Nanoseconds with work.
    pub busy_ns: u64,
    /// Nanoseconds of looking for work in vain.
    pub spinning_ns: u64,
    /// Nanoseconds asleep.
    pub sleeping_ns: u64,
    /// Looks for work.
    pub polls: u64,
    /// Pauses that end by themselves.
    pub naps: u64,
    /// Pauses that somebody ends.
    pub sleeps: u64,
}

/// How far an I/O queue is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Queue {
    /// The endpoint's name.
    pub controller: String,
    /// The worker's name.
    pub worker: String,
    /// Queue identifier.
    pub id: u32,
    /// Commands fetched since the submission queue was created.
    pub commands: u64,
    /// Entries posted since the completion queue of the same identifier was created.
    pub completions: u64,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Live {
    workers: BTreeMap<String, PollTimes>,
    queues: Vec<Queue>,
    /// What could not be read, one line each.
    pub failures: Vec<String>,
}

impl Live {
    /// What the poll thread of a worker did; `None` for all that is no worker that answers.
    pub fn poll_times(&self, scope: &Scope) -> Option<&PollTimes> {
        match scope {
            Scope::Worker(name) => self.workers.get(name),
            Scope::Object(_) => None,
        }
    }

    /// The queues of a controller or a worker.
    pub fn queues<'a>(&'a self, scope: &'a Scope) -> impl Iterator<Item = &'a Queue> {
        self.queues.iter().filter(move |queue| match scope {
            Scope::Worker(name) => queue.worker == *name,
            Scope::Object(Object::Controller(name)) => queue.controller == *name,
            Scope::Object(_) => false,
        })
    }
}

/// What one process showed.
enum Shown {
    Times(String, PollTimes),
    Queues(Vec<Queue>),
    Nothing,
}

/// Asks the workers among `scopes`, and all frontends if `queues` are wanted; all of them at the same time.
pub(crate) async fn read(peers: &[Peer], scopes: &[Scope], queues: bool) -> Live {
    let mut asked: JoinSet<Result<Shown, String>> = JoinSet::new();
    let mut live = Live::default();
    for peer in peers {
        let is_asked = match peer.kind {
            Kind::Worker => scopes.contains(&Scope::Worker(peer.name.clone())),
            Kind::Frontend => queues,
            Kind::Backend | Kind::Manager => false,
        };
        if !is_asked {
            continue;
        }
        let (kind, name) = (peer.kind, peer.name.clone());
        let Some(session) = peer.session() else {
            // Counters of its controllers are missing as well, and the line is there already.
            if kind == Kind::Worker {
                live.failures.push(format!("workers/{name}: is not there"));
            }
            continue;
        };
        asked.spawn(async move {
            let shown = tokio::time::timeout(TIMEOUT, show(kind, name.clone(), &session)).await;
            shown
                .unwrap_or_else(|_| Err("does not answer".to_owned()))
                .map_err(|line| format!("{kind}s/{name}: {line}"))
        });
    }
    while let Some(answer) = asked.join_next().await {
        match answer {
            Ok(Ok(Shown::Times(name, times))) => {
                live.workers.insert(name, times);
            }
            Ok(Ok(Shown::Queues(queues))) => live.queues.extend(queues),
            Ok(Ok(Shown::Nothing)) => {}
            Ok(Err(line)) => live.failures.push(line),
            // A task that panicked; there is none.
            Err(error) => live.failures.push(error.to_string()),
        }
    }
    live.queues.sort();
    live.failures.sort();
    live
}

async fn show(kind: Kind, name: String, session: &Session) -> Result<Shown, String> {
    if kind == Kind::Worker {
        let segment = metrics::telemetry_segment(session).await.map_err(|error| error.line())?;
        let now = telemetry::io_trace::monotonic();
        return Ok(
            segment.map_or(Shown::Nothing, |segment| Shown::Times(name, times(&segment, now)))
        );
    }
    let segments = metrics::queues_segments(session).await.map_err(|error| error.line())?;
    Ok(Shown::Queues(segments.iter().flat_map(|(of, segment)| positions(of, segment)).collect()))
}

/// `now` is CLOCK_MONOTONIC.
fn times(segment: &TelemetryLayout, now: u64) -> PollTimes {
    let times = &segment.times;
    // Relaxed: each counter stands for itself.
    PollTimes {
        busy_ns: times.busy.load(Ordering::Relaxed),
        spinning_ns: times.spinning.load(Ordering::Relaxed),
        sleeping_ns: times.asleep(now),
        polls: times.polls.load(Ordering::Relaxed),
        naps: times.naps.load(Ordering::Relaxed),
        sleeps: times.sleeps.load(Ordering::Relaxed),
    }
}

/// The queues that commands were fetched from.
fn positions(of: &QueuesSegment, segment: &QueuesLayout) -> Vec<Queue> {
    let queues = segment.submission_queues.iter().zip(&segment.completion_queues).enumerate();
    let queues = queues.map(|(id, (submission, completion))| Queue {
        controller: of.endpoint.clone(),
        worker: of.worker.clone(),
        id: id as u32,
        // Relaxed, in this order: what is shown as completed may be a little newer than what is shown as fetched.
        commands: submission.fetched.load(Ordering::Relaxed),
        completions: completion.posted.load(Ordering::Relaxed),
    });
    queues.filter(|queue| queue.commands > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::segment::Segment;

    #[test]
    fn only_queues_that_were_used_are_shown() {
        let segment = Segment::<QueuesLayout>::create("queues", 7).unwrap();
        segment.submission_queues[2].fetched.store(9, Ordering::Relaxed);
        segment.completion_queues[2].posted.store(8, Ordering::Relaxed);
        segment.completion_queues[3].posted.store(1, Ordering::Relaxed);
        let of = QueuesSegment {
            endpoint: "vm0".into(),
            worker: "w0".into(),
            ..QueuesSegment::default()
        };
        let found = positions(&of, &segment);
        let (controller, worker) = ("vm0".to_owned(), "w0".to_owned());
        let queue = Queue { controller, worker, id: 2, commands: 9, completions: 8 };
        assert_eq!(found, [queue]);
        let live = Live { queues: found, ..Live::default() };
        let count = |name: &str| live.queues(&Scope::parse(name).unwrap()).count();
        assert_eq!((count("controllers/vm0"), count("workers/w0")), (1, 1));
        assert_eq!(
            (count("controllers/vm1"), count("workers/w1"), count("volumes/vm0")),
            (0, 0, 0)
        );
    }

    #[test]
    fn a_pause_in_hand_is_a_part_of_the_time_asleep() {
        let segment = Segment::<TelemetryLayout>::create("telemetry", 7).unwrap();
        segment.times.busy.store(5, Ordering::Relaxed);
        segment.times.fall_asleep(1_000);
        let found = times(&segment, 1_400);
        assert_eq!((found.busy_ns, found.sleeping_ns, found.polls), (5, 400, 0));
    }
}
