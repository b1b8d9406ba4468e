//! Counters and events.

use crate::support::{BOUND, Host, Managed, until};
use crate::volumes::{create, delete, malloc};
use std::sync::atomic::Ordering;
use tonic::{Code, Streaming};
use vireo_api::v1::{
    Counters, Event, EventKind, GetStatsRequest, LatencyKind, ResetStatsRequest, Stats,
    WatchEventsRequest, WatchEventsResponse, WatchStatsRequest,
};
use vireo_proto::handoff;
use vireo_proto::handoff::{EndpointReport, LatencyCounts, NamespaceCounters, WorkerCounters};

fn report(instance: u8, workers: &[(&str, &[(u32, u64)])]) -> EndpointReport {
    let namespaces = |rows: &[(u32, u64)]| {
        rows.iter()
            .map(|(nsid, reads)| NamespaceCounters {
                nsid: *nsid,
                reads: *reads,
                read_bytes: reads * 4096,
                ..Default::default()
            })
            .collect()
    };
    let worker = |(name, rows): &(&str, &[(u32, u64)])| WorkerCounters {
        worker: (*name).into(),
        namespaces: namespaces(rows),
        latencies: vec![LatencyCounts {
            kind: handoff::LatencyKind::Read.into(),
            sum_ns: rows.iter().map(|(_, reads)| reads * 300).sum(),
            buckets: vec![handoff::LatencyBucket {
                upper_bound_ns: 320,
                count: rows.iter().map(|(_, reads)| reads).sum(),
            }],
        }],
    };
    EndpointReport {
        instance: vec![instance; 16],
        age_ns: 5_000_000_000,
        workers: workers.iter().map(worker).collect(),
        ..EndpointReport::default()
    }
}

fn reads(stats: &Stats) -> u64 {
    stats.total.map_or(u64::MAX, |total| total.reads)
}

fn sampled(stats: &Stats) -> u64 {
    stats.latencies.iter().map(|histogram| histogram.count).sum()
}

async fn get(managed: &Managed, names: &[&str]) -> Vec<Stats> {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    let request = GetStatsRequest { names, ..Default::default() };
    let answer = managed.stats().get_stats(request).await.unwrap().into_inner();
    assert_eq!(answer.failures, [] as [String; 0]);
    assert!(answer.time.is_some());
    answer.stats
}

#[tokio::test]
async fn counters_are_added_up_for_whatever_is_asked() {
    let host = Host::start();
    let managed = host.reached().await;
    let rows = report(1, &[("w0", &[(1, 10), (2, 5)]), ("w1", &[(1, 100)])]);
    host.frontend.reports.lock().unwrap().insert("vm0".into(), rows);
    let all = get(&managed, &[]).await;
    assert_eq!((all.len(), all[0].name.as_str(), reads(&all[0])), (1, "controllers/vm0", 115));
    assert_eq!(all[0].parts.len(), 3);
    let names = [
        "workers/w0",
        "subsystems/s0",
        "subsystems/s0/namespaces/1",
        "volumes/mem0",
        "controllers/vm0",
    ];
    let sums: Vec<u64> = get(&managed, &names).await.iter().map(reads).collect();
    assert_eq!(sums, [15, 115, 110, 110, 115]);
    let timed: Vec<u64> = get(&managed, &names).await.iter().map(sampled).collect();
    assert_eq!(timed, [15, 115, 0, 0, 115], "latencies are counted by controller");
    assert!(all[0].latency_parts.is_empty(), "nobody asked for them");
    let request = GetStatsRequest { queues: true, ..Default::default() };
    let detailed = managed.stats().get_stats(request).await.unwrap().into_inner().stats;
    let parts: Vec<(&str, &str, u64)> = detailed[0]
        .latency_parts
        .iter()
        .map(|part| (&*part.controller, &*part.worker, part.latencies[0].count))
        .collect();
    let of_vm0 = |worker, count| ("controllers/vm0", worker, count);
    assert_eq!(parts, [of_vm0("workers/w0", 15), of_vm0("workers/w1", 100)]);
    let histogram = &all[0].latencies[0];
    assert_eq!((histogram.kind(), histogram.buckets.len()), (LatencyKind::Read, 1));
    assert_eq!(histogram.sum.as_ref().unwrap().nanos, 115 * 300);
    assert_eq!(histogram.buckets[0].upper_bound.as_ref().unwrap().nanos, 320);
    for (name, code) in [
        ("controllers/vm9", Code::NotFound),
        ("workers/w9", Code::NotFound),
        ("things/x", Code::InvalidArgument),
    ] {
        let request = GetStatsRequest { names: vec![name.into()], ..Default::default() };
        assert_eq!(managed.stats().get_stats(request).await.unwrap_err().code(), code);
    }
    let names = vec!["controllers/vm0".into(); 101];
    let request = GetStatsRequest { names, ..Default::default() };
    assert_eq!(managed.stats().get_stats(request).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_pattern_is_all_of_a_kind_and_workers_tell_what_they_do_with_their_time() {
    let mut host = Host::start();
    let managed = host.reached().await;
    host.telemetry.times.busy.store(1_500, Ordering::Relaxed);
    host.telemetry.times.polls.store(3, Ordering::Relaxed);
    let stats = get(&managed, &["controllers/-", "workers/-"]).await;
    let names: Vec<&str> = stats.iter().map(|stats| stats.name.as_str()).collect();
    assert_eq!(names, ["controllers/vm0", "workers/w0"]);
    assert_eq!(stats[0].poll_times, None);
    let times = stats[1].poll_times.unwrap();
    assert_eq!((times.busy.unwrap().nanos, times.polls), (1_500, 3));
    let names = vec!["volumes/-".to_owned()];
    let request = GetStatsRequest { names, ..Default::default() };
    assert_eq!(managed.stats().get_stats(request).await.unwrap_err().code(), Code::NotFound);
    // A worker that is away is missing by name, and what is known of the others is told.
    host.kill("w0").await;
    let asked = || async {
        let names = vec!["workers/w0".to_owned()];
        let request = GetStatsRequest { names, ..Default::default() };
        managed.stats().get_stats(request).await.unwrap().into_inner()
    };
    let mut answer = asked().await;
    for _ in 0..200 {
        if !answer.failures.is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        answer = asked().await;
    }
    assert_eq!((answer.stats.len(), answer.stats[0].poll_times), (1, None));
    assert!(answer.failures[0].starts_with("workers/w0: "), "{:?}", answer.failures);
}

#[tokio::test]
async fn after_a_reset_is_counted_from_zero_until_the_controller_is_another_one() {
    let host = Host::start();
    let managed = host.reached().await;
    let set = |instance, count| {
        let rows = report(instance, &[("w0", &[(1, count)])]);
        host.frontend.reports.lock().unwrap().insert("vm0".into(), rows);
    };
    set(1, 10);
    let before = get(&managed, &[]).await;
    let only = ResetStatsRequest { validate_only: true, ..Default::default() };
    managed.stats().reset_stats(only).await.unwrap();
    assert_eq!(reads(&get(&managed, &[]).await[0]), 10);
    let reset = managed.stats().reset_stats(ResetStatsRequest::default()).await.unwrap();
    assert_eq!(reads(&reset.into_inner().stats[0]), 10);
    let after = get(&managed, &[]).await;
    assert_eq!(after[0].total, Some(Counters::default()));
    assert_eq!((sampled(&before[0]), sampled(&after[0])), (10, 0));
    let seconds = |stats: &[Stats]| stats[0].since.as_ref().unwrap().seconds;
    assert!(seconds(&after) > seconds(&before));
    set(1, 17);
    let later = get(&managed, &["subsystems/s0"]).await;
    assert_eq!((reads(&later[0]), sampled(&later[0])), (7, 7));
    set(2, 3);
    assert_eq!(reads(&get(&managed, &[]).await[0]), 3);
}

#[tokio::test]
async fn counters_of_a_frontend_that_is_away_are_missing_by_name() {
    let mut host = Host::start();
    let managed = host.reached().await;
    host.kill("f0").await;
    let mut progress = managed.manager.progress();
    progress.wait_for(|progress| !progress.failures.is_empty()).await.unwrap();
    let answer = managed.stats().get_stats(GetStatsRequest::default()).await.unwrap().into_inner();
    assert_eq!(answer.failures, ["controllers/vm0: frontend f0 is not there"]);
    assert_eq!((answer.stats.len(), answer.stats[0].since.as_ref()), (1, None));
    let status = managed.stats().reset_stats(ResetStatsRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
}

#[tokio::test]
async fn watched_counters_come_at_every_interval() {
    let host = Host::start();
    let managed = host.reached().await;
    let interval = |nanos| Some(prost_types::Duration { seconds: 0, nanos });
    let request = WatchStatsRequest { interval: interval(100_000_000), ..Default::default() };
    let mut stream = managed.stats().watch_stats(request).await.unwrap().into_inner();
    for count in [1, 2, 3] {
        let rows = report(1, &[("w0", &[(1, count)])]);
        host.frontend.reports.lock().unwrap().insert("vm0".into(), rows);
        let seen = async {
            while stream
                .message()
                .await
                .unwrap()
                .is_none_or(|answer| reads(&answer.stats[0]) != count)
            {}
        };
        tokio::time::timeout(BOUND, seen).await.expect("the new count comes");
    }
    let short = WatchStatsRequest { interval: interval(1), ..Default::default() };
    assert_eq!(managed.stats().watch_stats(short).await.unwrap_err().code(), Code::InvalidArgument);
}

async fn next(stream: &mut Streaming<WatchEventsResponse>) -> Event {
    let message = tokio::time::timeout(BOUND, stream.message()).await.expect("an event comes");
    message.unwrap().unwrap().event.unwrap()
}

#[tokio::test]
async fn those_who_watch_are_told_what_happens() {
    let mut host = Host::start();
    let managed = host.reached().await;
    let mut stream =
        managed.events().watch_events(WatchEventsRequest::default()).await.unwrap().into_inner();
    managed.volumes().create_volume(create("v1", malloc(1 << 20))).await.unwrap();
    let mut event = next(&mut stream).await;
    // That the new goal is reached may be told before or after.
    while event.kind() == EventKind::Ready {
        event = next(&mut stream).await;
    }
    assert_eq!((event.kind(), event.name.as_str()), (EventKind::Created, "volumes/v1"));
    let after_sequence = event.sequence;
    managed.volumes().delete_volume(delete("v1")).await.unwrap();
    // Another watcher who knows the first event, and cares for the volume alone.
    let request = WatchEventsRequest { after_sequence, names: vec!["volumes/v1".into()] };
    let mut later = managed.events().watch_events(request).await.unwrap().into_inner();
    let event = next(&mut later).await;
    assert_eq!((event.kind(), event.name.as_str()), (EventKind::Deleted, "volumes/v1"));
    host.kill("b0").await;
    let mut event = next(&mut stream).await;
    while event.kind() != EventKind::Failed {
        event = next(&mut stream).await;
    }
    assert_eq!(
        (event.name.as_str(), event.message.as_str()),
        ("target", "backend b0: is not there")
    );
    let backend = std::sync::Arc::clone(&host.backend);
    host.run(backend);
    while next(&mut stream).await.kind() != EventKind::Ready {}
}

#[tokio::test]
async fn clients_that_come_and_leave_are_events() {
    let host = Host::start();
    let set = |connected| {
        let report = EndpointReport { connected, ..EndpointReport::default() };
        host.frontend.reports.lock().unwrap().insert("vm0".into(), report);
    };
    set(false);
    let managed = host.reached().await;
    let request =
        WatchEventsRequest { names: vec!["controllers/vm0".into()], ..Default::default() };
    let mut stream = managed.events().watch_events(request).await.unwrap().into_inner();
    // The manager has to see it without a client first: the first of two answers is noted.
    let asked = || host.frontend.asked.load(Ordering::Relaxed);
    let before = asked();
    until("the manager looks twice", || asked() >= before + 2).await;
    set(true);
    assert_eq!(next(&mut stream).await.kind(), EventKind::Connected);
    set(false);
    assert_eq!(next(&mut stream).await.kind(), EventKind::Disconnected);
}

#[tokio::test]
async fn who_knows_what_is_not_kept_any_more_is_told_so_and_watchers_are_bounded() {
    let host = Host::start();
    let managed = host.reached().await;
    let old = WatchEventsRequest { after_sequence: 1, ..Default::default() };
    let mut stream = managed.events().watch_events(old.clone()).await.unwrap().into_inner();
    assert_eq!(next(&mut stream).await.kind(), EventKind::Lost);
    let many = WatchEventsRequest { names: vec!["x".into(); 101], ..old };
    assert_eq!(
        managed.events().watch_events(many).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    // Each on a connection of its own: one alone has a bound of its own.
    let mut watchers = Vec::new();
    let refused = loop {
        let channel = crate::support::connect(&host.path("api.sock")).await;
        let mut client = vireo_api::v1::event_service_client::EventServiceClient::new(channel);
        match client.watch_events(WatchEventsRequest::default()).await {
            Ok(stream) => watchers.push(stream),
            Err(status) => break status,
        }
        assert!(watchers.len() < 100);
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(watchers.len(), 63, "one watches already");
}
