//! Counters.

use super::guard::Audited;
use super::time::timestamp;
use super::{Api, error, time};
use crate::counters::latency::{Histogram, Operation};
use crate::counters::{self, Reading, Scope, live};
use crate::object::Object;
use prost_types::Duration as PbDuration;
use service::config::Config;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};
use vireo_api::v1::stats_service_server::StatsService;
use vireo_api::v1::{
    Counters, GetStatsRequest, GetStatsResponse, LatencyBucket, LatencyHistogram, LatencyKind,
    LatencyPart, PollTimes, QueueStats, ResetStatsRequest, ResetStatsResponse, Stats, StatsPart,
    WatchStatsRequest, WatchStatsResponse,
};

/// Most resources in one request.
pub(super) const MAX_NAMES: usize = 100;
/// Bounds of a watcher's interval: each tick asks every frontend.
const INTERVALS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3600));
const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);
/// The pattern that stands for every controller.
const ALL_CONTROLLERS: &str = "controllers/-";
/// Answers that wait for a slow watcher; further ones are left out.
const WAITING: usize = 1;

#[tonic::async_trait]
impl StatsService for Api {
    type WatchStatsStream = ReceiverStream<Result<WatchStatsResponse, Status>>;

    async fn get_stats(
        &self,
        request: Request<GetStatsRequest>,
    ) -> Result<Response<GetStatsResponse>, Status> {
        let request = request.into_inner();
        let config = self.manager.config();
        let scopes = scopes(&request.names, &config)?;
        let told = self.told(&scopes, request.queues, &config).await;
        Ok(Response::new(GetStatsResponse {
            time: Some(timestamp(told.time)),
            stats: told.stats,
            failures: told.failures,
        }))
    }

    async fn watch_stats(
        &self,
        request: Request<WatchStatsRequest>,
    ) -> Result<Response<Self::WatchStatsStream>, Status> {
        let request = request.into_inner();
        let interval = interval(request.interval.as_ref())?;
        // Wrong names are an error now; later ones that are gone are left out.
        scopes(&request.names, &self.manager.config())?;
        let permit = super::event::watcher(self)?;
        let (give, answers) = mpsc::channel(WAITING);
        let api = self.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let mut ticks = tokio::time::interval(interval);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    () = give.closed() => return,
                }
                // Waits for a slow watcher, so that nothing is read in vain.
                let Ok(room) = give.reserve().await else { return };
                room.send(Ok(api.watched(&request).await));
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn reset_stats(
        &self,
        request: Request<ResetStatsRequest>,
    ) -> Result<Response<ResetStatsResponse>, Status> {
        let request = request.into_inner();
        let config = self.manager.config();
        let scopes = scopes(&request.names, &config)?;
        let peers = self.manager.peers();
        let before = match request.validate_only {
            true => self.bases.read(&config, peers).await,
            false => self.bases.reset(&config, peers, &scopes).await,
        };
        if let Some(line) = before.failures.first() {
            let text = format!("not all counters could be read and reset: {line}");
            return Err(error::refuse(Code::Unavailable, error::reason::UNAVAILABLE, text));
        }
        let stats = scopes.iter().map(|scope| stats(&before, scope, &config)).collect();
        let mut response = Response::new(ResetStatsResponse { stats });
        let names =
            if request.names.is_empty() { vec![ALL_CONTROLLERS.to_owned()] } else { request.names };
        response.extensions_mut().insert(Audited(names.join(" ")));
        Ok(response)
    }
}

impl Api {
    async fn watched(&self, request: &WatchStatsRequest) -> WatchStatsResponse {
        let config = self.manager.config();
        let scopes: Vec<Scope> = named(&request.names)
            .flat_map(|name| {
                Scope::all(name, &config)
                    .unwrap_or_else(|| Scope::parse(name).into_iter().collect())
            })
            .filter(|scope| scope.is_in(&config))
            .collect();
        let told = self.told(&scopes, request.queues, &config).await;
        WatchStatsResponse {
            time: Some(timestamp(told.time)),
            stats: told.stats,
            failures: told.failures,
        }
    }

    /// Asks all processes that know something of `scopes`.
    async fn told(&self, scopes: &[Scope], queues: bool, config: &Config) -> Told {
        let peers = self.manager.peers();
        let (mut reading, live) =
            tokio::join!(self.bases.read(config, peers), live::read(peers, scopes, queues));
        reading.failures.extend(live.failures.iter().cloned());
        let stats = |scope| Stats {
            poll_times: live.poll_times(scope).map(poll_times),
            queues: live.queues(scope).map(queue).collect(),
            latency_parts: match queues {
                true => latency_parts(&reading, scope, config),
                false => Vec::new(),
            },
            ..stats(&reading, scope, config)
        };
        let stats = scopes.iter().map(stats).collect();
        Told { time: reading.time, stats, failures: reading.failures }
    }
}

/// What was found out for one answer.
struct Told {
    time: SystemTime,
    stats: Vec<Stats>,
    failures: Vec<String>,
}

/// What is asked of, as named; every controller if nothing is.
fn named(names: &[String]) -> impl Iterator<Item = &str> {
    let all = names.is_empty().then_some(ALL_CONTROLLERS);
    all.into_iter().chain(names.iter().map(String::as_str))
}

/// What is asked of; all of it must be there.
fn scopes(names: &[String], config: &Config) -> Result<Vec<Scope>, Status> {
    if names.len() > MAX_NAMES {
        let text = format!("{} are too many; name at most {MAX_NAMES}", names.len());
        return Err(error::invalid("names", text));
    }
    let mut scopes = Vec::with_capacity(names.len());
    for name in named(names) {
        if let Some(all) = Scope::all(name, config) {
            scopes.extend(all);
            continue;
        }
        let scope = Scope::parse(name).ok_or_else(|| {
            let text = format!("\"{name}\" is not the name of a resource that has counters");
            error::invalid("names", text)
        })?;
        scopes.push(scope.is_in(config).then_some(scope).ok_or_else(|| error::missing(name))?);
    }
    Ok(scopes)
}

fn interval(given: Option<&PbDuration>) -> Result<Duration, Status> {
    let Some(given) = given else { return Ok(DEFAULT_INTERVAL) };
    let interval = time::parse(given).filter(|i| (INTERVALS.0..=INTERVALS.1).contains(i));
    interval.ok_or_else(|| error::invalid("interval", "is out of range; write 0.1 s to 3600 s"))
}

fn stats(reading: &Reading, scope: &Scope, config: &Config) -> Stats {
    let parts: Vec<&counters::Part> = reading.of(scope, config).collect();
    let total = parts.iter().fold(counters::Counters::default(), |sum, p| sum.plus(p.counters));
    let name = match scope {
        Scope::Object(object) => object.to_string(),
        Scope::Worker(name) => format!("workers/{name}"),
    };
    Stats {
        name,
        since: since(reading, scope, &parts).map(timestamp),
        total: Some(counters(total)),
        parts: parts.into_iter().map(part).collect(),
        latencies: latencies(reading, scope, config),
        ..Stats::default()
    }
}

fn poll_times(times: &live::PollTimes) -> PollTimes {
    let nanoseconds = |ns| Some(time::duration(Duration::from_nanos(ns)));
    PollTimes {
        busy: nanoseconds(times.busy_ns),
        spinning: nanoseconds(times.spinning_ns),
        sleeping: nanoseconds(times.sleeping_ns),
        polls: times.polls,
        naps: times.naps,
        sleeps: times.sleeps,
    }
}

fn queue(queue: &live::Queue) -> QueueStats {
    QueueStats {
        controller: Object::Controller(queue.controller.clone()).to_string(),
        worker: format!("workers/{}", queue.worker),
        queue_id: queue.id,
        commands: queue.commands,
        completions: queue.completions,
    }
}

fn latencies(reading: &Reading, scope: &Scope, config: &Config) -> Vec<LatencyHistogram> {
    let all = reading.latencies_of(scope, config);
    all.iter().filter_map(|(operation, histogram)| latency(*operation, histogram)).collect()
}

/// A message for each controller on each worker.
fn latency_parts(reading: &Reading, scope: &Scope, config: &Config) -> Vec<LatencyPart> {
    let mut parts: BTreeMap<(&str, &str), Vec<LatencyHistogram>> = BTreeMap::new();
    for (key, histogram) in reading.histograms_of(scope, config) {
        if let Some(message) = latency(key.operation, histogram) {
            parts.entry((&key.controller, &key.worker)).or_default().push(message);
        }
    }
    let part = |((controller, worker), latencies): ((&str, &str), _)| LatencyPart {
        controller: Object::Controller(controller.to_owned()).to_string(),
        worker: format!("workers/{worker}"),
        latencies,
    };
    parts.into_iter().map(part).collect()
}

/// A histogram as a message; `None` without a command.
fn latency(operation: Operation, histogram: &Histogram) -> Option<LatencyHistogram> {
    let kind = match operation {
        Operation::Read => LatencyKind::Read,
        Operation::Write => LatencyKind::Write,
        Operation::Other => LatencyKind::Other,
    };
    let nanoseconds = |ns| time::duration(Duration::from_nanos(ns));
    let bucket = |(bound, count): (&u64, &u64)| LatencyBucket {
        upper_bound: (*bound != u64::MAX).then(|| nanoseconds(*bound)),
        count: *count,
    };
    (histogram.count() > 0).then(|| LatencyHistogram {
        kind: kind.into(),
        count: histogram.count(),
        sum: Some(nanoseconds(histogram.sum_ns)),
        buckets: histogram.buckets.iter().map(bucket).collect(),
    })
}

/// Since when all of it is counted: the earliest of its parts; without parts, of the controller.
fn since(reading: &Reading, scope: &Scope, parts: &[&counters::Part]) -> Option<SystemTime> {
    let of_controller = match scope {
        Scope::Object(Object::Controller(name)) => reading.born.get(name).copied(),
        Scope::Object(_) | Scope::Worker(_) => None,
    };
    parts.iter().map(|part| part.since).min().or(of_controller)
}

fn part(part: &counters::Part) -> StatsPart {
    let (subsystem, nsid) = (part.subsystem.clone(), part.key.nsid);
    StatsPart {
        controller: Object::Controller(part.key.controller.clone()).to_string(),
        namespace: Object::Namespace { subsystem, nsid }.to_string(),
        worker: format!("workers/{}", part.key.worker),
        counters: Some(counters(part.counters)),
    }
}

fn counters(counters: counters::Counters) -> Counters {
    Counters {
        reads: counters.reads,
        writes: counters.writes,
        others: counters.others,
        read_bytes: counters.read_bytes,
        written_bytes: counters.written_bytes,
        errors: counters.errors,
        media_errors: counters.media_errors,
        throttled: counters.throttled,
        throttled_time: (counters.throttled > 0)
            .then(|| time::duration(Duration::from_nanos(counters.throttled_ns))),
    }
}
