//! Traces of running processes, as a collector gets them.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use nvme_spec::{Lba, Nsid};
use vireo_api::v1::namespace_service_client::NamespaceServiceClient;
use vireo_api::v1::volume_service_client::VolumeServiceClient;
use vireo_api::v1::{
    CreateNamespaceRequest, CreateVolumeRequest, Namespace, NullVolume, Volume, volume,
};
use vireo_tests::host::Host;
use vireo_tests::target::{Target, configuration};
use vireo_tests::wait::until;

use super::api::{with_api, within};
use super::collector::{Collector, Received};
use super::page::{PLAIN, scrape};

const NSID: Nsid = Nsid(1);

/// A file behind a ring, so that a command passes through three processes; `keys` are of `[telemetry]`.
pub fn through_a_ring(keys: &str, more: &str) -> String {
    configuration(&format!(
        "[[bdev]]\nname = \"file0\"\ndriver = \"file\"\npath = \"@DIR@/disk\"\ncreate = true\n\
         size = \"16MiB\"\ndirect = false\n\
         [[subsystem]]\nname = \"s0\"\n[[subsystem.namespace]]\nnsid = 1\nbdev = \"file0\"\n\
         [[endpoint]]\nname = \"vm0\"\nsubsystem = \"s0\"\n{more}[telemetry]\n{keys}"
    ))
}

pub fn of<'a>(trace: &'a [Received], process: &str, name: &str) -> Option<&'a Received> {
    trace.iter().find(|one| one.process == process && one.span.name == name)
}

#[track_caller]
fn assert_within(inner: &Received, outer: &Received) {
    let (from, to) = (inner.span.start_time_unix_nano, inner.span.end_time_unix_nano);
    assert!(from <= to, "{inner:?}");
    let outside = (outer.span.start_time_unix_nano, outer.span.end_time_unix_nano);
    assert!(outside.0 <= from && to <= outside.1, "{inner:?} within {outer:?}");
}

#[track_caller]
pub fn assert_child(child: &Received, parent: &Received) {
    assert_eq!(child.span.parent_span_id, parent.span.span_id, "{child:?} of {parent:?}");
    assert_eq!(child.span.trace_id, parent.span.trace_id);
    assert_within(child, parent);
}

#[test]
fn a_command_is_one_trace_through_worker_and_backend() {
    let collector = Collector::start();
    let endpoint = collector.endpoint();
    let keys = format!("otlp = \"{endpoint}\"\nsample = 1\nslow = \"off\"\n");
    let target = Target::start(&through_a_ring(&keys, ""));
    let mut host = Host::connect(target.socket("vm0"));
    // Spans are dropped rather than waited for, so there is another command until one has come whole.
    let stages = ["nvme write", "fetch", "translate", "channel", "complete"];
    let again = || host.write(NSID, Lba(64), &[5; 8192], 512).expect("write");
    let trace = collector.await_trace_of("the write's trace", again, |trace| {
        stages.into_iter().all(|stage| of(trace, "worker-w0", stage).is_some())
            && of(trace, "backend-b0", "device").is_some()
    });
    let root = of(&trace, "worker-w0", "nvme write").expect("the command");
    assert!(root.span.parent_span_id.is_empty(), "{root:?}");
    for (name, value) in [
        ("vireo.endpoint", "vm0"),
        ("vireo.nsid", "1"),
        ("vireo.lba", "64"),
        ("vireo.bytes", "8192"),
        ("vireo.status", "0x0"),
        ("vireo.reason", "sampled"),
    ] {
        assert_eq!(root.attribute(name).as_deref(), Some(value), "{name} of {root:?}");
    }
    assert_eq!(root.resource.get("service.name").map(String::as_str), Some("vireo"));
    for stage in &stages[1..] {
        let stage = of(&trace, "worker-w0", stage).unwrap_or_else(|| panic!("{stage}: {trace:?}"));
        assert_child(stage, root);
    }
    let channel = of(&trace, "worker-w0", "channel").expect("the channel's stage");
    let device = of(&trace, "backend-b0", "device").expect("the backend's part");
    // Two processes look at the clocks: their difference is off by as much as a look takes.
    assert_eq!(device.span.parent_span_id, channel.span.span_id, "{device:?} of {channel:?}");
    let slack = 5_000_000;
    assert!(device.span.start_time_unix_nano + slack >= channel.span.start_time_unix_nano);
    assert!(device.span.end_time_unix_nano <= channel.span.end_time_unix_nano + slack);
    assert_eq!(device.attribute("vireo.bytes").as_deref(), Some("8192"));
    let link = &root.span.links.first().expect("a link to where the controller was attached");
    let attached = collector
        .await_trace("the attach", |trace| of(trace, "worker-w0", "AttachController").is_some());
    let attached = of(&attached, "worker-w0", "AttachController").expect("the attach");
    assert_eq!(link.trace_id, attached.span.trace_id);
    assert_eq!(link.span_id, attached.span.span_id);
}

#[test]
fn failed_and_slow_commands_are_traced_though_nobody_samples() {
    let collector = Collector::start();
    let keys = format!("otlp = \"{}\"\nsample = 0\nslow = \"1us\"\n", collector.endpoint());
    let target = Target::start(&through_a_ring(&keys, ""));
    let mut host = Host::connect(target.socket("vm0"));
    let again = || assert!(host.read(NSID, Lba(1 << 40), 8, 512).is_err(), "past the end");
    let trace = collector.await_trace_of("the failed read", again, |trace| {
        of(trace, "worker-w0", "nvme read").is_some()
    });
    let root = of(&trace, "worker-w0", "nvme read").expect("the command");
    assert_eq!(root.attribute("vireo.reason").as_deref(), Some("failed"));
    assert_eq!(root.span.status.as_ref().map(|status| status.code), Some(2), "an error");
    // Each takes some microseconds, and the clock of what is not sampled ticks in such steps.
    until("a slow write", || {
        host.write(NSID, Lba(0), &[1; 4096], 512).expect("write");
        collector.spans().iter().any(|one| {
            one.span.name == "nvme write"
                && one.attribute("vireo.reason").as_deref() == Some("slow")
        })
    });
}

#[test]
fn a_reload_is_one_trace_through_all_processes() {
    let collector = Collector::start();
    let keys = format!("otlp = \"{}\"\nsample = 0\n", collector.endpoint());
    let target = Target::start(&through_a_ring(&keys, ""));
    let _host = Host::connect(target.socket("vm0"));
    let more = "[[bdev]]\nname = \"null0\"\ndriver = \"null\"\nsize = \"1GiB\"\n\
                [[subsystem]]\nname = \"s1\"\n[[subsystem.namespace]]\nnsid = 1\nbdev = \"null0\"\n\
                [[endpoint]]\nname = \"vm1\"\nsubsystem = \"s1\"\n";
    target.reload_ok(&through_a_ring(&keys, more));
    let trace = collector.await_trace("the reload's trace", |trace| {
        of(trace, "manager-m0", "Reload").is_some()
            && of(trace, "backend-b0", "ApplyBdevs").is_some()
            && of(trace, "frontend-f0", "ApplyTargets").is_some()
            && of(trace, "backend-b0", "DescribeBdev").is_some()
    });
    let reload = of(&trace, "manager-m0", "Reload").expect("the reload");
    for (process, name) in [("backend-b0", "ApplyBdevs"), ("frontend-f0", "ApplyTargets")] {
        let asked = of(&trace, "manager-m0", name).expect("the manager's call");
        assert_child(asked, reload);
        assert_child(of(&trace, process, name).expect("its handling"), asked);
    }
    let apply = of(&trace, "frontend-f0", "ApplyTargets").expect("the frontend's part");
    let asked = of(&trace, "frontend-f0", "DescribeBdev").expect("the frontend's question");
    assert_child(asked, apply);
    assert_child(of(&trace, "backend-b0", "DescribeBdev").expect("its answer"), asked);
}

#[test]
fn a_call_is_one_trace_through_four_processes_and_the_child_of_its_caller_s_span() {
    let collector = Collector::start();
    let keys = format!("otlp = \"{}\"\nsample = 0\n", collector.endpoint());
    let target = Target::start(&through_a_ring(&keys, ""));
    let _host = Host::connect(target.socket("vm0"));
    let caller = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    with_api(&target, |channel| async move {
        let volume = Volume {
            driver: Some(volume::Driver::Null(NullVolume::default())),
            size_bytes: 1 << 20,
            ..Volume::default()
        };
        let request = CreateVolumeRequest {
            volume_id: "late".to_owned(),
            volume: Some(volume),
            ..CreateVolumeRequest::default()
        };
        let mut volumes = VolumeServiceClient::new(channel.clone());
        volumes.create_volume(request).await.expect("a volume");
        let request = CreateNamespaceRequest {
            parent: "subsystems/s0".to_owned(),
            namespace: Some(Namespace {
                volume: "volumes/late".to_owned(),
                ..Namespace::default()
            }),
            ..CreateNamespaceRequest::default()
        };
        let mut namespaces = NamespaceServiceClient::new(channel);
        namespaces.create_namespace(within(request, caller)).await.expect("a namespace");
    });
    let trace = collector.await_trace("the call's trace", |trace| {
        of(trace, "manager-m0", "vireo.v1.NamespaceService/CreateNamespace").is_some()
            && of(trace, "manager-m0", "ApplyTargets").is_some()
            && of(trace, "frontend-f0", "ApplyTargets").is_some()
            && of(trace, "worker-w0", "OpenChannel").is_some()
            && of(trace, "backend-b0", "OpenChannel").is_some()
    });
    let call = of(&trace, "manager-m0", "vireo.v1.NamespaceService/CreateNamespace");
    let call = call.expect("the call");
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(hex(&call.span.trace_id), &caller[3..35]);
    assert_eq!(hex(&call.span.parent_span_id), &caller[36..52]);
    let asked = of(&trace, "manager-m0", "ApplyTargets").expect("the manager's question");
    assert_child(asked, call);
    let applied = of(&trace, "frontend-f0", "ApplyTargets").expect("the frontend's part");
    assert_child(applied, asked);
    let opened = of(&trace, "worker-w0", "OpenChannel").expect("the worker's part");
    assert_eq!(opened.span.parent_span_id, applied.span.span_id, "it may end after that");
    let granted = of(&trace, "backend-b0", "OpenChannel").expect("the backend's part");
    assert_child(granted, opened);
}

/// I/O goes on, and what could not leave is counted.
#[track_caller]
fn io_goes_on(endpoint: &str) {
    let keys = format!("otlp = \"{endpoint}\"\nsample = 1\n");
    let target = Target::start(&through_a_ring(&keys, ""));
    let mut host = Host::connect(target.socket("vm0"));
    let (mut slow, mut block) = (Vec::new(), 0);
    let dropped = || scrape(&target, PLAIN).sum("vireo_spans_dropped_total", &[("kind", "worker")]);
    until("spans are dropped", || {
        for _ in 0..200 {
            let start = Instant::now();
            host.write(NSID, Lba(block % 4096 * 8), &[9; 4096], 512).expect("write");
            slow.extend(Some(start.elapsed()).filter(|took| *took > Duration::from_secs(4)));
            block += 1;
        }
        dropped() > 0.0
    });
    // Far below what the exporter waits for its collector; a machine may stall once or twice.
    assert!(slow.len() <= 2, "of {block} writes these took long: {slow:?}");
    assert!(target.stop().success());
}

#[test]
fn a_dead_collector_costs_nothing_but_spans() {
    let gone = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    io_goes_on(&format!("http://{}", gone.expect("a port that nobody listens on")));
}

#[test]
fn a_collector_that_never_answers_costs_nothing_but_spans() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("its address");
    io_goes_on(&format!("http://{address}"));
    drop(silent);
}
