//! The counters of one endpoint on one worker.

use ipc::layout::latency::{BUCKETS_PER_OCTAVE, LatencyHistogram, LatencyOf, OCTAVES, upper_bound};
use ipc::layout::queues::{FailureReason, NamespaceCounters, QueuesLayout};
use ipc::segment::Segment;
use std::sync::atomic::{AtomicU64, Ordering};
use telemetry::metrics::definition as metric;
use telemetry::metrics::{Exemplar, Histogram, Labels, Page, Value};
use vireo_proto::handoff::QueuesSegment;

/// The first octave that a page has a bound for: about a microsecond. What is below is in its bucket.
const FIRST_OCTAVE: usize = 2;

/// Reads a segment. `nsids` are shown even while they have counted nothing.
pub(super) fn read(
    page: &mut Page,
    of: &QueuesSegment,
    segment: &Segment<QueuesLayout>,
    nsids: &[u32],
) {
    let endpoint = |more: &[(&'static str, String)]| -> Labels {
        let mut labels = vec![
            ("endpoint", of.endpoint.clone()),
            ("subsystem", of.subsystem.clone()),
            ("worker", of.worker.clone()),
        ];
        labels.extend_from_slice(more);
        labels
    };
    for (index, counters) in segment.counters.iter().enumerate() {
        let nsid = index as u32 + 1;
        let throttled = &segment.throttled[index];
        if nsids.contains(&nsid) || !is_untouched(counters) || load(&throttled.commands) > 0 {
            let labels = endpoint(&[("nsid", nsid.to_string())]);
            namespace(page, &labels, counters);
            page.count(&metric::IO_THROTTLED, labels.clone(), load(&throttled.commands));
            page.time(&metric::IO_THROTTLED_SECONDS, labels, load(&throttled.waited_ns));
        }
    }
    for (qid, (sq, cq)) in
        segment.submission_queues.iter().zip(&segment.completion_queues).enumerate()
    {
        let labels = || endpoint(&[("queue", qid.to_string())]);
        let (fetched, posted) = (load(&sq.fetched), load(&cq.posted));
        if fetched > 0 {
            page.count(&metric::IO_QUEUE_COMMANDS, labels(), fetched);
        }
        if posted > 0 {
            page.count(&metric::IO_QUEUE_COMPLETIONS, labels(), posted);
        }
    }
    let acknowledged = &segment.acknowledged;
    page.count(&metric::INTERRUPTS, endpoint(&[]), load(&acknowledged.interrupts));
    let failure = acknowledged.failure.load(Ordering::Relaxed);
    for (reason, name) in [
        (FailureReason::MemoryFault, "memory_fault"),
        (FailureReason::StuckInterrupt, "stuck_interrupt"),
        (FailureReason::QueueUnmapped, "queue_unmapped"),
    ] {
        let labels = endpoint(&[("reason", name.to_owned())]);
        page.count(&metric::CONTROLLER_FAILED, labels, (failure == reason as u32).into());
    }
    for (kind, name) in
        [(LatencyOf::Read, "read"), (LatencyOf::Write, "write"), (LatencyOf::Other, "other")]
    {
        let histogram = histogram(&segment.latency[kind as usize], segment.id());
        let labels = endpoint(&[("op", name.to_owned())]);
        page.push(&metric::IO_DURATION, labels, Value::Histogram(histogram));
    }
}

fn namespace(page: &mut Page, labels: &Labels, counters: &NamespaceCounters) {
    let with = |label: &'static str, value: &str| {
        let mut labels = labels.clone();
        labels.push((label, value.to_owned()));
        labels
    };
    for (op, counter) in
        [("read", &counters.reads), ("write", &counters.writes), ("other", &counters.others)]
    {
        page.count(&metric::IO_OPERATIONS, with("op", op), load(counter));
    }
    for (op, counter) in [("read", &counters.read_bytes), ("write", &counters.written_bytes)] {
        page.count(&metric::IO_BYTES, with("op", op), load(counter));
    }
    // Loaded in this order, so that the difference is never below 0: an error is counted as one first.
    let media = load(&counters.media_errors);
    let others = load(&counters.errors).saturating_sub(media);
    page.count(&metric::IO_ERRORS, with("kind", "media"), media);
    page.count(&metric::IO_ERRORS, with("kind", "other"), others);
}

fn is_untouched(counters: &NamespaceCounters) -> bool {
    let NamespaceCounters {
        reads,
        writes,
        read_bytes: _,
        written_bytes: _,
        others,
        errors,
        media_errors: _,
    } = counters;
    [reads, writes, others, errors].into_iter().all(|counter| load(counter) == 0)
}

/// The distribution with one bucket an octave.
fn histogram(shared: &LatencyHistogram, controller: u128) -> Histogram {
    let (counts, sum) = shared.load();
    let exemplar = |octave: usize| {
        let (trace, nanoseconds, time) = shared.exemplar(octave)?;
        let trace_id = telemetry::io_trace::trace_id(controller, trace).to_string();
        Some(Exemplar { trace_id, nanoseconds, time })
    };
    let mut buckets = Vec::with_capacity(OCTAVES);
    let (mut count, mut next) = (0, 0);
    for octave in 0..OCTAVES {
        let last = octave * BUCKETS_PER_OCTAVE;
        count += counts.get(next..=last).unwrap_or_default().iter().sum::<u64>();
        next = last + 1;
        let Some(bound) = upper_bound(last).filter(|_| octave >= FIRST_OCTAVE) else { continue };
        let lowest = if octave == FIRST_OCTAVE { 0 } else { octave };
        buckets.push((bound, count, (lowest..=octave).rev().find_map(exemplar)));
    }
    count += counts.get(next..).unwrap_or_default().iter().sum::<u64>();
    Histogram { buckets, count, sum, beyond: exemplar(OCTAVES) }
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use telemetry::metrics::{Format, encode};

    fn segment() -> Segment<QueuesLayout> {
        Segment::create("queues", 0xAAAA_0000_0000_0000_BBBB).unwrap()
    }

    fn page(segment: &Segment<QueuesLayout>, nsids: &[u32]) -> String {
        let of = QueuesSegment {
            endpoint: "vm0".into(),
            subsystem: "s0".into(),
            worker: "w0".into(),
            connected: true,
        };
        let mut page = Page::default();
        read(&mut page, &of, segment, nsids);
        encode(&page, Format::OpenMetrics)
    }

    #[test]
    fn counters_of_a_segment_are_on_the_page() {
        let segment = segment();
        let row = &segment.counters[6];
        row.reads.store(5, Ordering::Relaxed);
        row.written_bytes.store(4096, Ordering::Relaxed);
        row.errors.store(3, Ordering::Relaxed);
        row.media_errors.store(1, Ordering::Relaxed);
        segment.throttled[6].commands.store(2, Ordering::Relaxed);
        segment.throttled[6].waited_ns.store(1_500_000_000, Ordering::Relaxed);
        segment.submission_queues[2].fetched.store(9, Ordering::Relaxed);
        let text = page(&segment, &[1]);
        let at = "endpoint=\"vm0\",subsystem=\"s0\",worker=\"w0\"";
        for line in [
            format!("vireo_io_operations_total{{{at},nsid=\"1\",op=\"read\"}} 0"),
            format!("vireo_io_operations_total{{{at},nsid=\"7\",op=\"read\"}} 5"),
            format!("vireo_io_bytes_total{{{at},nsid=\"7\",op=\"write\"}} 4096"),
            format!("vireo_io_errors_total{{{at},nsid=\"7\",kind=\"other\"}} 2"),
            format!("vireo_io_throttled_total{{{at},nsid=\"7\"}} 2"),
            format!("vireo_io_throttled_seconds_total{{{at},nsid=\"7\"}} 1.5"),
            format!("vireo_io_queue_commands_total{{{at},queue=\"2\"}} 9"),
            format!("vireo_controller_failed{{{at},reason=\"memory_fault\"}} 0"),
        ] {
            assert!(text.lines().any(|other| other == line), "{line} in\n{text}");
        }
        assert!(!text.contains("nsid=\"2\""), "{text}");
    }

    #[test]
    fn buckets_add_up_and_show_their_examples() {
        let segment = segment();
        let latency = &segment.latency[LatencyOf::Write as usize];
        for nanoseconds in [100, 900, 1024, 1025, 3_000_000_000, u64::MAX / 4] {
            latency.record(nanoseconds);
        }
        latency.show(900, 0xC0FFEE, 1_700_000_000_500_000_000);
        let text = page(&segment, &[]);
        let at = "endpoint=\"vm0\",subsystem=\"s0\",worker=\"w0\",op=\"write\"";
        let bucket = |le: &str, rest: &str| {
            let start = format!("vireo_io_duration_seconds_bucket{{{at},le=\"{le}\"}} ");
            let line = text.lines().find(|line| line.starts_with(&start));
            assert_eq!(line.and_then(|line| line.strip_prefix(&start)), Some(rest), "{text}");
        };
        bucket(
            "0.000001024",
            "3 # {trace_id=\"000000000000bbbb0000000000c0ffee\"} 0.0000009 1700000000.500",
        );
        bucket("0.000002048", "4");
        bucket("4.294967296", "5");
        bucket("+Inf", "6");
    }
}
