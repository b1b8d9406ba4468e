//! `/metrics`: every process is asked where its counters stand, and they are read there, at the moment of the scrape.
//!
//! Nothing is kept between two scrapes but connections and when each process was last seen to start. A process that
//! does not answer is left out and shown as down.

pub mod push;
mod queues;

use crate::manager::Manager;
use ipc::layout::queues::QueuesLayout;
use ipc::layout::telemetry::TelemetryLayout;
use ipc::segment::{Segment, SegmentError};
use service::config::{Config, Kind};
use service::control::{Client, ControlError, Session};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use telemetry::metrics::definition as metric;
use telemetry::metrics::{Labels, Page};
use tokio::task::JoinSet;
use vireo_proto::handoff::{ProcessTelemetry, QueuesSegment, ReadTelemetry, reply, request};

/// How long one process may take to answer: below what Prometheus waits for the page.
const PATIENCE: Duration = Duration::from_secs(2);
/// Most answers of one process: its segments come in pieces of what one message can carry.
const PIECES: usize = 64;

/// The way to all processes' counters.
pub struct Metrics {
    manager: Arc<Manager>,
    processes: Vec<Process>,
    seen: Mutex<HashMap<(Kind, String), Seen>>,
}

struct Process {
    kind: Kind,
    name: String,
    client: Client,
}

/// A process's present start, and how many others it had before.
#[derive(Clone, Copy)]
struct Seen {
    start: u64,
    restarts: u64,
}

/// What one process told.
struct Told {
    process: ProcessTelemetry,
    segment: Option<Segment<TelemetryLayout>>,
    queues: Vec<(QueuesSegment, Segment<QueuesLayout>)>,
}

impl Metrics {
    /// Starts to connect to every process. In a runtime only.
    pub fn new(manager: Arc<Manager>) -> Self {
        let config = manager.config();
        let services = config.services().into_iter().filter(|(kind, _)| *kind != Kind::Manager);
        let processes = services
            .map(|(kind, name)| Process {
                kind,
                name: name.to_owned(),
                client: Client::new(config.socket(kind, name), "metrics"),
            })
            .collect();
        Self { manager, processes, seen: Mutex::default() }
    }

    /// All metrics as they are now.
    pub async fn page(&self) -> Page {
        let start = Instant::now();
        let mut asked = JoinSet::new();
        for (index, process) in self.processes.iter().enumerate() {
            let session = process.client.current();
            asked.spawn(async move {
                let told = match session {
                    Some(session) => tokio::time::timeout(PATIENCE, ask(&session)).await.ok(),
                    None => None,
                };
                (index, told.and_then(Result::ok))
            });
        }
        let mut told: Vec<Option<Told>> = self.processes.iter().map(|_| None).collect();
        while let Some(answer) = asked.join_next().await {
            if let Ok((index, Some(answer))) = answer
                && let Some(place) = told.get_mut(index)
            {
                *place = Some(answer);
            }
        }
        let config = self.manager.config();
        let mut page = Page::default();
        let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        page.count(&metric::BUILD, version, 1);
        page.count(&metric::READY, Vec::new(), self.manager.progress().borrow().reached().into());
        for (process, told) in self.processes.iter().zip(&told) {
            self.process(&mut page, process, told.as_ref());
            if let Some(told) = told {
                serving(&mut page, &config, process, told);
            }
        }
        page.time(&metric::SCRAPE_SECONDS, Vec::new(), start.elapsed().as_nanos() as u64);
        page
    }

    fn process(&self, page: &mut Page, process: &Process, told: Option<&Told>) {
        let labels = || -> Labels {
            vec![("kind", process.kind.to_string()), ("name", process.name.clone())]
        };
        page.count(&metric::PROCESS_UP, labels(), told.is_some().into());
        let restarts = self.restarts(process, told.map(|told| told.process.start_time_unix_ns));
        page.count(&metric::PROCESS_RESTARTS, labels(), restarts);
        let Some(Told { process: told, .. }) = told else { return };
        page.time(&metric::PROCESS_START, labels(), told.start_time_unix_ns);
        page.count(&metric::PROCESS_RESIDENT, labels(), told.resident_bytes);
        page.time(&metric::PROCESS_CPU, labels(), told.cpu_ns);
        page.count(&metric::SPANS_EXPORTED, labels(), told.spans_exported);
        for (reason, value) in
            [("queue", told.spans_dropped_queue), ("export", told.spans_dropped_export)]
        {
            let mut labels = labels();
            labels.push(("reason", reason.to_owned()));
            page.count(&metric::SPANS_DROPPED, labels, value);
        }
    }

    fn restarts(&self, process: &Process, start: Option<u64>) -> u64 {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (process.kind, process.name.clone());
        match (seen.get_mut(&key), start) {
            (Some(seen), Some(start)) if seen.start != start => {
                *seen = Seen { start, restarts: seen.restarts + 1 };
                seen.restarts
            }
            (Some(seen), _) => seen.restarts,
            (None, Some(start)) => {
                seen.insert(key, Seen { start, restarts: 0 });
                0
            }
            (None, None) => 0,
        }
    }
}

/// What a process serves: a worker its poll thread, a frontend its endpoints.
fn serving(page: &mut Page, config: &Config, process: &Process, told: &Told) {
    if let Some(segment) = &told.segment {
        let worker: Labels = vec![(process.kind.as_str(), process.name.clone())];
        let dropped = segment.policy.dropped.load(Ordering::Relaxed);
        page.count(&metric::TRACE_RECORDS_DROPPED, worker.clone(), dropped);
        if process.kind == Kind::Worker {
            poll_times(page, config, &process.name, &worker, segment);
        }
    }
    let mut endpoint = None;
    for (of, segment) in &told.queues {
        if endpoint != Some(&of.endpoint) {
            endpoint = Some(&of.endpoint);
            let labels: Labels =
                vec![("endpoint", of.endpoint.clone()), ("subsystem", of.subsystem.clone())];
            page.count(&metric::CLIENT_CONNECTED, labels, of.connected.into());
        }
        let nsids = config.subsystem(&of.subsystem).map_or(&[][..], |found| &found.namespaces);
        let nsids: Vec<u32> = nsids.iter().map(|namespace| namespace.nsid).collect();
        queues::read(page, of, segment, &nsids);
    }
}

fn poll_times(
    page: &mut Page,
    config: &Config,
    name: &str,
    worker: &Labels,
    segment: &TelemetryLayout,
) {
    let core = config.worker(name).and_then(|worker| worker.core);
    let core = core.map_or_else(String::new, |core| core.to_string());
    let times = &segment.times;
    let with = |label: &'static str, value: &str| {
        let mut labels = worker.clone();
        labels.push((label, value.to_owned()));
        labels
    };
    let busy = times.busy.load(Ordering::Relaxed);
    let spinning = times.spinning.load(Ordering::Relaxed);
    let asleep = times.asleep(telemetry::io_trace::monotonic());
    for (mode, value) in [("busy", busy), ("spin", spinning), ("sleep", asleep)] {
        let mut labels = with("core", &core);
        labels.push(("mode", mode.to_owned()));
        page.time(&metric::WORKER_SECONDS, labels, value);
    }
    let polls = times.polls.load(Ordering::Relaxed);
    page.count(&metric::WORKER_POLLS, worker.clone(), polls);
    for (kind, counter) in [("nap", &times.naps), ("sleep", &times.sleeps)] {
        let value = counter.load(Ordering::Relaxed);
        page.count(&metric::WORKER_PAUSES, with("kind", kind), value);
    }
}

/// Asks a process for its telemetry segment; `None` if it has none.
pub(crate) async fn telemetry_segment(
    session: &Session,
) -> Result<Option<Segment<TelemetryLayout>>, ControlError> {
    Ok(piece(session, 0).await?.segment)
}

/// Asks a frontend for its queues segments.
pub(crate) async fn queues_segments(
    session: &Session,
) -> Result<Vec<(QueuesSegment, Segment<QueuesLayout>)>, ControlError> {
    Ok(ask(session).await?.queues)
}

/// Asks a process for its segments, and maps them.
async fn ask(session: &Session) -> Result<Told, ControlError> {
    let mut told = piece(session, 0).await?;
    for _ in 1..PIECES {
        let have = told.queues.len();
        if have >= told.process.queues_total as usize {
            break;
        }
        let more = piece(session, have as u32).await?;
        if more.queues.is_empty() {
            break;
        }
        told.queues.extend(more.queues);
    }
    Ok(told)
}

async fn piece(session: &Session, skip: u32) -> Result<Told, ControlError> {
    let body = request::Body::ReadTelemetry(ReadTelemetry { skip });
    let answer = session.call_within(PATIENCE, body, &[]).await?;
    let reply::Body::ProcessTelemetry(process) = answer.body else {
        return Err(session.unexpected("its telemetry"));
    };
    let unexpected = || session.unexpected("segments of this version");
    let mut fds = answer.fds.into_iter();
    let mut mapped = || -> Result<(_, _), SegmentError> {
        let segment = match process.has_segment {
            true => fds.next().map(Segment::open_read_only).transpose()?,
            false => None,
        };
        let queues = process.queues.iter().cloned().zip(&mut fds);
        let queues = queues.map(|(of, fd)| Ok((of, Segment::open_read_only(fd)?)));
        Ok((segment, queues.collect::<Result<Vec<_>, SegmentError>>()?))
    };
    let (segment, queues) = mapped().map_err(|_| unexpected())?;
    Ok(Told { process, segment, queues })
}
