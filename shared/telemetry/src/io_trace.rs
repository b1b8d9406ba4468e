//! Traced commands: from records of the trace ring to spans.
//!
//! A record holds the times of one command's stages; ids follow from its trace id, so that a worker and a backend that
//! never spoke of it make spans of one trace: the backend's is the child of the worker's stage `channel`. The spans of
//! a captured command belong to the trace of whoever captures it.

use crate::capture::Captures;
use crate::limit::Limit;
use crate::spans::{Context, export, span_data};
use ipc::layout::telemetry::{TraceRecord, TraceSide, trace_reason};
use ipc::trace::TraceReader;
use nix::time::{ClockId, clock_gettime};
use opentelemetry::trace::{Link, SpanKind, Status};
use opentelemetry::{KeyValue, Value};
use opentelemetry_sdk::trace::SpanData;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Commands that were not sampled and leave all the same because they failed or were slow: a guest decides how many
/// there are.
const UNSAMPLED_A_SECOND: u32 = 100;

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

/// Where a command's spans hang; the low halves of the span ids.
#[derive(Clone, Copy)]
enum Stage {
    Command = 1,
    Fetch,
    Translate,
    Channel,
    Complete,
    Interrupt,
    Device,
    Wait,
}

/// The trace that a command's spans belong to, and the span above them.
#[derive(Clone, Copy)]
struct Place {
    trace: u128,
    /// 0: none.
    parent: u64,
}

impl Stage {
    fn span_id(self, trace: u64) -> u64 {
        // Mixes all bits; one to one for a stage, so that two traces never share an id.
        let mut id = trace.wrapping_add((self as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        id = (id ^ id >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        id = (id ^ id >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (id ^ id >> 31).max(1)
    }

    fn context(self, record: &TraceRecord, place: Place) -> Option<Context> {
        Context::new(place.trace, self.span_id(record.trace))
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
    let TraceRecord { fetched, started, translated, submitted, done, posted, signalled, .. } =
        *record;
    let Some(context) = Stage::Command.context(record, place) else { return Vec::new() };
    let last = [fetched, started, translated, submitted, done, posted, signalled];
    let end = last.into_iter().max().unwrap_or(fetched);
    let operation = opcode(record.opcode);
    let name = format!("nvme {operation}");
    let (start, end) = (clock.at(fetched), clock.at(end));
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
    set("vireo.reason", reasons(record).into());
    set("vireo.status", format!("{:#x}", record.status).into());
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
    let mut spans = vec![root];
    let stages = [
        (Stage::Fetch, "fetch", fetched, started),
        (Stage::Translate, "translate", started, translated),
        // Only a command whose channel had no room, or was not there yet.
        (Stage::Wait, "wait", if submitted > translated { translated } else { 0 }, submitted),
        (Stage::Channel, "channel", submitted, done),
        (Stage::Complete, "complete", done, posted),
        (Stage::Interrupt, "interrupt", posted, signalled),
    ];
    for (stage, name, from, to) in stages {
        let Some(context) = stage.context(record, place).filter(|_| from != 0 && to >= from) else {
            continue;
        };
        let parent = Stage::Command.span_id(record.trace);
        let kind =
            if matches!(stage, Stage::Channel) { SpanKind::Client } else { SpanKind::Internal };
        spans.push(span_data(context, parent, name, kind, clock.at(from), clock.at(to)));
    }
    spans
}

/// A backend's part.
fn device(record: &TraceRecord, clock: &WallClock, place: Place) -> Option<SpanData> {
    let context = Stage::Device.context(record, place)?;
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
    let limit = Limit::per_second(UNSAMPLED_A_SECOND);
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
    use opentelemetry::trace::SpanId;

    fn record(side: TraceSide) -> TraceRecord {
        TraceRecord {
            trace: 0xABCD,
            controller: 0x77 << 64 | 0x1234,
            side,
            reason: trace_reason::SAMPLED | trace_reason::FAILED,
            opcode: 2,
            status: 0x281,
            sqid: 3,
            cid: 4,
            nsid: 1,
            lba: 8,
            bytes: 4096,
            fetched: 1_000,
            started: 1_100,
            translated: 1_200,
            submitted: 1_250,
            done: 2_000,
            posted: 2_100,
            signalled: 0,
        }
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
