//! Traced commands: from records of the trace ring to spans.
//!
//! A record holds the times of one command's stages; ids follow from its trace id, so that a worker and a backend that
//! never spoke of it make spans of one trace: the backend's is the child of the worker's stage `channel`. The spans of
//! a captured command belong to the trace of whoever captures it.

mod stages;

pub use stages::Waits;

use crate::capture::Captures;
use crate::limit::Limit as Pace;
use crate::spans::{Context, export, span_data};
use ipc::layout::limits::Limit;
use ipc::layout::telemetry::{TraceRecord, TraceSide, trace_reason};
use ipc::trace::TraceReader;
use nix::time::{ClockId, clock_gettime};
use opentelemetry::trace::{Link, SpanKind, Status};
use opentelemetry::{KeyValue, Value};
use opentelemetry_sdk::trace::SpanData;
use stages::{Stage, end, mix, stages, waited_for};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Commands that were not sampled and leave all the same because they failed or were slow: a guest decides how many
/// there are.
const UNSAMPLED_A_SECOND: u32 = 100;

/// How long a first record waits for others: being woken for each costs more, and the poll thread as well, than making
/// its spans.
const GATHER: Duration = Duration::from_millis(1);

/// Looks at the clocks from which the best is taken.
const LOOKS: usize = 5;

/// A trace id as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId(u128);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The trace of a controller's command whose record has this low half.
pub fn trace_id(controller: u128, trace: u64) -> TraceId {
    TraceId(controller << 64 | u128::from(trace))
}

/// The trace that a command's spans belong to, and the span above them.
#[derive(Clone, Copy)]
struct Place {
    trace: u128,
    /// 0: none.
    parent: u64,
}

impl Place {
    fn context(self, stage: Stage, record: &TraceRecord) -> Option<Context> {
        Context::new(self.trace, stage.span_id(record.trace))
    }
}

/// What is known of a controller beside its id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Controller {
    /// The endpoint's name.
    pub endpoint: String,
    /// The span in which it was attached.
    pub attached: Option<Context>,
}

/// The difference between the wall clock and the monotonic one at this moment.
#[derive(Clone, Copy, Debug)]
pub struct WallClock {
    wall: SystemTime,
    monotonic: u64,
}

impl WallClock {
    /// Looks at both clocks, a few times, and takes the look that was interrupted least.
    pub fn now() -> Self {
        let look = |_| {
            let (before, wall, after) = (monotonic(), SystemTime::now(), monotonic());
            (after.saturating_sub(before), Self { monotonic: before.midpoint(after), wall })
        };
        let best = (0..LOOKS).map(look).min_by_key(|(took, _)| *took);
        best.map_or_else(|| look(0).1, |(_, clock)| clock)
    }

    /// The wall clock at a time of the monotonic one.
    pub fn at(&self, monotonic: u64) -> SystemTime {
        let at = match monotonic.checked_sub(self.monotonic) {
            Some(later) => self.wall.checked_add(Duration::from_nanos(later)),
            None => self.wall.checked_sub(Duration::from_nanos(self.monotonic - monotonic)),
        };
        // A time that no clock can say is a corrupt record's.
        at.unwrap_or(self.wall)
    }
}

/// Nanoseconds of CLOCK_MONOTONIC, the same in every process of the machine.
pub fn monotonic() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        (time.tv_sec() as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec() as u64)
    })
}

/// The spans of a record: children of `parent`, or a trace of their own.
pub fn spans(
    record: &TraceRecord,
    clock: &WallClock,
    controller: &Controller,
    parent: Option<Context>,
) -> Vec<SpanData> {
    let place = match parent {
        Some(parent) => Place { trace: parent.trace_id(), parent: parent.span_id() },
        None => Place { trace: trace_id(record.controller, record.trace).0, parent: 0 },
    };
    match record.side {
        TraceSide::Worker => command(record, clock, controller, place),
        TraceSide::Backend => device(record, clock, place).into_iter().collect(),
    }
}

fn command(
    record: &TraceRecord,
    clock: &WallClock,
    controller: &Controller,
    place: Place,
) -> Vec<SpanData> {
    let Some(root) = root(record, clock, controller, place) else { return Vec::new() };
    let mut spans = vec![root];
    for timed in stages(record) {
        let Some(context) = place.context(timed.stage, record) else { continue };
        let parent = timed.within.span_id(record.trace);
        let kind = match timed.stage {
            Stage::Channel => SpanKind::Client,
            _ => SpanKind::Internal,
        };
        let (from, to) = (clock.at(timed.from), clock.at(timed.to));
        let mut span = span_data(context, parent, timed.name, kind, from, to);
        if let (Stage::Limit, Some(Limit { of_controller, rate })) = (timed.stage, record.limit) {
            let of = if of_controller { "controller" } else { "namespace" };
            span.attributes.push(KeyValue::new("vireo.limit.of", of));
            span.attributes.push(KeyValue::new("vireo.limit.rate", rate.name()));
        }
        spans.push(span);
    }
    spans
}

/// The span of the whole command.
fn root(
    record: &TraceRecord,
    clock: &WallClock,
    controller: &Controller,
    place: Place,
) -> Option<SpanData> {
    let context = place.context(Stage::Command, record)?;
    let operation = operation(record);
    let (start, end) = (clock.at(record.fetched), clock.at(end(record)));
    let name = format!("nvme {operation}");
    let mut root = span_data(context, place.parent, name, SpanKind::Server, start, end);
    root.parent_span_is_remote = place.parent != 0;
    let mut set = |name, value: Value| root.attributes.push(KeyValue::new(name, value));
    set("vireo.operation", operation.into());
    set("vireo.endpoint", controller.endpoint.clone().into());
    set("vireo.nsid", i64::from(record.nsid).into());
    set("vireo.queue", i64::from(record.sqid).into());
    set("vireo.cid", i64::from(record.cid).into());
    set("vireo.lba", integer(record.lba));
    set("vireo.bytes", integer(record.bytes));
    set("vireo.requests", i64::from(record.requests).into());
    set("vireo.reason", reasons(record).into());
    set("vireo.status", format!("{:#x}", record.status).into());
    let waited = waited_for(record);
    if !waited.is_empty() {
        set("vireo.waited_for", waited.into());
    }
    if record.reason & trace_reason::FAILED != 0 {
        // Status code type in bits 8 to 10, code in bits 0 to 7 (NVMe Base 2.0c 3.3.3.2.1, without phase).
        let (kind, code) = (record.status >> 8 & 7, record.status & 0xFF);
        root.status = Status::error(format!("status code type {kind:#x}, code {code:#x}"));
    }
    if let Some(attached) = controller.attached {
        let trace = attached.trace_id().into();
        let context = opentelemetry::trace::SpanContext::new(
            trace,
            attached.span_id().into(),
            opentelemetry::trace::TraceFlags::SAMPLED,
            true,
            opentelemetry::trace::TraceState::NONE,
        );
        root.links.links.push(Link::new(context, Vec::new(), 0));
    }
    Some(root)
}

/// A backend's part.
fn device(record: &TraceRecord, clock: &WallClock, place: Place) -> Option<SpanData> {
    // A command may have several requests, one after the other.
    let id = mix(Stage::Device.span_id(record.trace) ^ record.fetched);
    let context = Context::new(place.trace, id)?;
    let parent = Stage::Channel.span_id(record.trace);
    let (from, to) = (clock.at(record.fetched), clock.at(record.done.max(record.fetched)));
    let mut span = span_data(context, parent, "device", SpanKind::Server, from, to);
    span.parent_span_is_remote = true;
    span.attributes.push(KeyValue::new("vireo.offset", integer(record.lba)));
    span.attributes.push(KeyValue::new("vireo.bytes", integer(record.bytes)));
    if record.status != 0 {
        span.status = Status::error(format!("outcome {}", record.status));
    }
    Some(span)
}

fn integer(value: u64) -> Value {
    i64::try_from(value).unwrap_or(i64::MAX).into()
}

fn reasons(record: &TraceRecord) -> String {
    let captured = record.is_captured().then_some("captured");
    let names = [
        (trace_reason::SAMPLED, "sampled"),
        (trace_reason::SLOW, "slow"),
        (trace_reason::FAILED, "failed"),
    ];
    let told = names.into_iter().filter(|(bit, _)| record.reason & bit != 0).map(|(_, name)| name);
    captured.into_iter().chain(told).collect::<Vec<&str>>().join(",")
}

/// What a worker's record is of, in words.
pub fn operation(record: &TraceRecord) -> &'static str {
    if record.is_fused() { "compare and write" } else { opcode(record.opcode) }
}

/// The name of an opcode of the NVM command set (NVM Command Set 1.0c figure 18).
pub fn opcode(opcode: u8) -> &'static str {
    match opcode {
        0x00 => "flush",
        0x01 => "write",
        0x02 => "read",
        0x05 => "compare",
        0x08 => "write zeroes",
        0x09 => "dataset management",
        0x0C => "verify",
        0x19 => "copy",
        _ => "command",
    }
}

/// Sends what is in a trace ring to the collector, and to those who capture it, for ever. `controllers` tells of a
/// controller what is known.
pub async fn pump(
    mut reader: TraceReader,
    controllers: impl Fn(u128) -> Controller,
    captures: Arc<Captures>,
) {
    let Ok(event) = reader.event().map(Readable) else { return };
    let Ok(event) = register(event) else { return };
    let limit = Pace::per_second(UNSAMPLED_A_SECOND);
    loop {
        let clock = WallClock::now();
        while let Some(record) = reader.take() {
            let send = |parent| {
                let controller = controllers(record.controller);
                spans(&record, &clock, &controller, parent).into_iter().for_each(export::send);
            };
            let sampled =
                record.side == TraceSide::Backend || record.reason & trace_reason::SAMPLED != 0;
            if record.is_captured() {
                captures.offer(&record).into_iter().for_each(|parent| send(Some(parent)));
            } else if sampled || limit.pass().is_some() {
                send(None);
            }
        }
        if reader.park() {
            let Ok(mut guard) = event.readable().await else { return };
            event.get_ref().0.drain().ok();
            guard.clear_ready();
            tokio::time::sleep(GATHER).await;
        }
    }
}

/// An eventfd of ours.
struct Readable(ipc::event::EventFd);

impl AsRawFd for Readable {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl AsFd for Readable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[expect(
    deprecated,
    reason = "its successor is unsafe because a type could close its descriptor early; ours does not"
)]
fn register(event: Readable) -> std::io::Result<tokio::io::unix::AsyncFd<Readable>> {
    tokio::io::unix::AsyncFd::new(event)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::layout::limits::Rate;
    use opentelemetry::trace::SpanId;

    fn record(side: TraceSide) -> TraceRecord {
        TraceRecord {
            reason: trace_reason::SAMPLED | trace_reason::FAILED,
            opcode: 2,
            status: 0x281,
            sqid: 3,
            cid: 4,
            nsid: 1,
            lba: 8,
            bytes: 4096,
            requests: 1,
            fetched: 1_000,
            started: 1_100,
            translated: 1_200,
            submitted: 1_250,
            done: 2_000,
            posted: 2_100,
            ..TraceRecord::new(0xABCD, 0x77 << 64 | 0x1234, side)
        }
    }

    /// The spans of a worker's record, and what its command waited for.
    fn told(record: &TraceRecord) -> (Vec<SpanData>, Option<String>) {
        let spans = spans(record, &WallClock::now(), &Controller::default(), None);
        let mut attributes = spans[0].attributes.iter();
        let waited = attributes.find(|pair| pair.key.as_str() == "vireo.waited_for");
        let waited = waited.map(|pair| pair.value.to_string());
        (spans, waited)
    }

    fn names(spans: &[SpanData]) -> Vec<&str> {
        spans.iter().map(|span| &*span.name).collect()
    }

    #[test]
    fn a_command_is_a_trace_of_its_stages() {
        let clock =
            WallClock { wall: SystemTime::UNIX_EPOCH + Duration::from_secs(9), monotonic: 0 };
        let attached = Some(Context::new(5, 6).unwrap());
        let controller = Controller { endpoint: "vm0".into(), attached };
        let spans = spans(&record(TraceSide::Worker), &clock, &controller, None);
        let names: Vec<&str> = spans.iter().map(|span| &*span.name).collect();
        assert_eq!(names, ["nvme read", "fetch", "translate", "wait", "channel", "complete"]);
        let root = &spans[0];
        assert_eq!(root.span_context.trace_id().to_string(), "0000000000001234000000000000abcd");
        assert_eq!(root.parent_span_id, SpanId::INVALID);
        assert_eq!(root.status, Status::error("status code type 0x2, code 0x81"));
        assert_eq!(root.links[0].span_context.span_id(), SpanId::from(6_u64));
        let length = |span: &SpanData| span.end_time.duration_since(span.start_time).unwrap();
        assert_eq!(length(root), Duration::from_nanos(1_100));
        assert_eq!(length(&spans[3]), Duration::from_nanos(50));
        assert_eq!(length(&spans[4]), Duration::from_nanos(750));
        for span in &spans[1..] {
            assert_eq!(span.parent_span_id, root.span_context.span_id());
            assert_eq!(span.span_context.trace_id(), root.span_context.trace_id());
        }
    }

    #[test]
    fn a_backend_s_part_is_the_child_of_the_worker_s_stage() {
        let clock = WallClock::now();
        let controller = Controller::default();
        for parent in [None, Context::new(7, 8)] {
            let worker = spans(&record(TraceSide::Worker), &clock, &controller, parent);
            let backend = spans(&record(TraceSide::Backend), &clock, &controller, parent);
            assert_eq!(backend.len(), 1);
            assert_eq!(backend[0].parent_span_id, worker[4].span_context.span_id());
            assert_eq!(backend[0].span_context.trace_id(), worker[0].span_context.trace_id());
            let above = parent.map_or(SpanId::INVALID, |parent| parent.span_id().into());
            assert_eq!(worker[0].parent_span_id, above);
        }
    }

    #[test]
    fn waits_for_a_limit_a_channel_and_a_pause_are_stages_of_their_own() {
        let limited = TraceRecord { held: 1_050, ..record(TraceSide::Worker) };
        let (spans, waited) = told(&limited);
        let stages = ["nvme read", "fetch", "limit", "translate", "wait", "channel", "complete"];
        assert_eq!(names(&spans), stages);
        assert_eq!(waited.as_deref(), Some("limit,channel"));
        let length = |span: &SpanData| span.end_time.duration_since(span.start_time).unwrap();
        let lengths: Vec<Duration> = spans[1..4].iter().map(length).collect();
        assert_eq!(lengths, [50, 50, 100].map(Duration::from_nanos));

        // Each pause is a part of what it made longer.
        let both = [(1_060, 1_090, 2, "limit,channel,pause"), (1_210, 1_240, 4, "limit,pause")];
        for (paused, resumed, within, waits) in both {
            let (spans, waited) = told(&TraceRecord { paused, resumed, ..limited });
            let pause = spans.last().unwrap();
            assert_eq!((&*pause.name, length(pause)), ("pause", Duration::from_nanos(30)));
            assert_eq!(pause.parent_span_id, spans[within].span_context.span_id());
            assert_eq!(waited.as_deref(), Some(waits));
        }
        // One that comes before the limit is looked at is none of that.
        let (spans, _) = told(&TraceRecord { paused: 1_010, resumed: 1_040, ..limited });
        assert_eq!(length(&spans[1]), Duration::from_nanos(10));
        assert_eq!(spans.last().unwrap().parent_span_id, spans[0].span_context.span_id());

        let aborted =
            TraceRecord { started: 2_000, translated: 0, submitted: 0, requests: 0, ..limited };
        assert_eq!(names(&told(&aborted).0), ["nvme read", "fetch", "limit", "complete"]);
        let (_, waited) = told(&TraceRecord { submitted: 1_200, ..record(TraceSide::Worker) });
        assert_eq!(waited, None);
    }

    #[test]
    fn the_stage_of_a_limit_says_which_one() {
        let limited = TraceRecord { held: 1_050, ..record(TraceSide::Worker) };
        let said = |of_controller, rate| {
            let limit = Some(Limit { of_controller, rate });
            let (spans, _) = told(&TraceRecord { limit, ..limited });
            let said = spans.iter().flat_map(|span| {
                let attributes = span.attributes.iter();
                let ours = attributes.filter(|pair| pair.key.as_str().starts_with("vireo.limit"));
                ours.map(|pair| format!("{}: {}={}", span.name, pair.key, pair.value))
            });
            said.collect::<Vec<String>>()
        };
        assert_eq!(
            said(false, Rate::Iops),
            ["limit: vireo.limit.of=namespace", "limit: vireo.limit.rate=iops"]
        );
        assert_eq!(
            said(true, Rate::ReadBandwidth),
            ["limit: vireo.limit.of=controller", "limit: vireo.limit.rate=read_bandwidth"]
        );
        let (spans, _) = told(&limited);
        assert!(spans[2].attributes.is_empty(), "it ended before it came to be the first");
    }

    #[test]
    fn a_pair_has_its_own_name_and_each_request_of_a_command_its_own_span() {
        let mut pair = record(TraceSide::Worker);
        pair.reason |= trace_reason::FUSED;
        assert_eq!(told(&pair).0[0].name, "nvme compare and write");
        let parts: Vec<SpanData> = [1_300, 1_400]
            .map(|fetched| TraceRecord { fetched, ..record(TraceSide::Backend) })
            .iter()
            .flat_map(|part| told(part).0)
            .collect();
        assert_eq!(parts[0].parent_span_id, parts[1].parent_span_id);
        assert_ne!(parts[0].span_context.span_id(), parts[1].span_context.span_id());
    }

    #[test]
    fn a_corrupt_record_makes_no_panic() {
        let words = [u64::MAX; ipc::layout::telemetry::TRACE_WORDS];
        let clock = WallClock::now();
        for side in [TraceSide::Worker, TraceSide::Backend] {
            let corrupt = TraceRecord { side, ..TraceRecord::from_words(&words) };
            assert!(!spans(&corrupt, &clock, &Controller::default(), None).is_empty());
            let empty = TraceRecord { side, ..TraceRecord::from_words(&[0; 16]) };
            spans(&empty, &clock, &Controller::default(), None);
        }
    }

    #[test]
    fn times_of_both_clocks_agree() {
        let clock = WallClock::now();
        let before = SystemTime::now();
        let at = clock.at(monotonic());
        assert!(at >= before - Duration::from_millis(5), "{at:?} {before:?}");
        assert!(clock.at(clock.monotonic - 1_000) < clock.wall);
    }
}
