//! Which commands are traced.

use crate::support::{Host, told};
use ipc::layout::telemetry::Policy;
use prost_types::{Duration, FieldMask};
use std::sync::atomic::Ordering;
use tonic::Code;
use vireo_api::v1::{GetTracePolicyRequest, TracePolicy, UpdateTracePolicyRequest};

fn of(name: &str, sample_interval: u32, slow: Option<(i64, i32)>) -> TracePolicy {
    let slow_threshold = slow.map(|(seconds, nanos)| Duration { seconds, nanos });
    TracePolicy { name: name.into(), sample_interval, slow_threshold, dropped_records: 0 }
}

fn update(policy: TracePolicy, paths: &[&str]) -> UpdateTracePolicyRequest {
    let paths = paths.iter().map(|path| (*path).to_owned()).collect();
    UpdateTracePolicyRequest {
        trace_policy: Some(policy),
        update_mask: Some(FieldMask { paths }),
        validate_only: false,
    }
}

const NAME: &str = "workers/w0/tracePolicy";

#[tokio::test]
async fn a_workers_policy_is_read_and_changed_where_the_worker_has_it() {
    let mut host = Host::start();
    let managed = host.reached().await;
    let mut traces = managed.traces();
    let word = &host.telemetry.policy.word;
    word.store(Policy { sample: 1000, slow_us: 10_000 }.to_word(), Ordering::Relaxed);
    host.telemetry.policy.dropped.store(3, Ordering::Relaxed);
    let get = GetTracePolicyRequest { name: NAME.into() };
    let shown = traces.get_trace_policy(get.clone()).await.unwrap().into_inner();
    assert_eq!(shown, TracePolicy { dropped_records: 3, ..of(NAME, 1000, Some((0, 10_000_000))) });
    let now = || Policy::from_word(word.load(Ordering::Relaxed));

    let only = update(of(NAME, 1, None), &["sample_interval"]);
    let would = UpdateTracePolicyRequest { validate_only: true, ..only.clone() };
    let answer = traces.update_trace_policy(would).await.unwrap().into_inner();
    assert_eq!((answer.sample_interval, now().sample), (1, 1000));
    traces.update_trace_policy(only).await.unwrap();
    assert_eq!(now(), Policy { sample: 1, slow_us: 10_000 });
    traces.update_trace_policy(update(of(NAME, 7, Some((2, 5000))), &["*"])).await.unwrap();
    assert_eq!(now(), Policy { sample: 7, slow_us: 2_000_005 });
    traces.update_trace_policy(update(of(NAME, 0, None), &[])).await.unwrap();
    assert_eq!(now(), Policy::default());

    for (request, code) in [
        (update(of(NAME, 1, Some((-1, 0))), &[]), Code::InvalidArgument),
        (update(of(NAME, 1, Some((0, 1))), &[]), Code::InvalidArgument),
        (update(of(NAME, 1, Some((3601, 0))), &[]), Code::InvalidArgument),
        (update(of(NAME, 1, None), &["dropped_records"]), Code::InvalidArgument),
        (update(of("workers/w0", 1, None), &[]), Code::InvalidArgument),
        (update(of("workers/w9/tracePolicy", 1, None), &[]), Code::NotFound),
        (UpdateTracePolicyRequest::default(), Code::InvalidArgument),
    ] {
        let status = traces.update_trace_policy(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
    }
    assert_eq!(now(), Policy::default());
    host.kill("w0").await;
    let mut progress = managed.manager.progress();
    progress.wait_for(|progress| !progress.failures.is_empty()).await.unwrap();
    let status = traces.get_trace_policy(get).await.unwrap_err();
    assert_eq!(told(&status), (Code::Unavailable, "PROCESS_UNAVAILABLE".into()));
}
