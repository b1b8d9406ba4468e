//! Counters, latencies and events.

use super::arguments::{Access, Format, StatsVerb};
use super::json;
use super::run::answer;
use super::session::{Session, refusal};
use super::show;
use crate::perf::units::show_size;
use crate::text::print;
use comfy_table::{ContentArrangement, Table, presets};
use std::collections::HashMap;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};
use vireo_api::v1::{
    Counters, EventKind, GetStatsRequest, LatencyHistogram, LatencyKind, ResetStatsRequest, Stats,
    WatchEventsRequest, WatchStatsRequest,
};

/// Percentiles of latency that are shown.
const PERCENTILES: [f64; 3] = [50.0, 99.0, 99.9];

/// Runs a command on counters.
pub(super) async fn run(verb: StatsVerb, access: &Access) -> anyhow::Result<ExitCode> {
    let mut session = Session::open(access).await?;
    match verb {
        StatsVerb::Get { names } => {
            let request = GetStatsRequest { names, queues: false };
            let result = answer(session.stats.get_stats(request).await)?;
            if access.output == Format::Table {
                print(&format!("{}\n", counters(&result.stats)))?;
            } else {
                show::structured(&json::of("GetStatsResponse", &result)?, access.output)?;
            }
            Ok(complain(&result.failures))
        }
        StatsVerb::Reset { names, dry_run } => {
            let request = ResetStatsRequest { names, validate_only: dry_run };
            let result = answer(session.stats.reset_stats(request).await)?;
            if access.output == Format::Table {
                print(&format!("before the reset\n{}\n", counters(&result.stats)))?;
            } else {
                show::structured(&json::of("ResetStatsResponse", &result)?, access.output)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        StatsVerb::Watch { names, interval, count } => {
            watch(&mut session, names, interval, count, access.output).await
        }
    }
}

/// Says which processes could not be asked.
fn complain(failures: &[String]) -> ExitCode {
    for failure in failures {
        eprintln!("not counted: {failure}");
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn counters(stats: &[Stats]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header([
        "resource",
        "reads",
        "writes",
        "others",
        "read",
        "written",
        "errors",
        "throttled",
        "latency p50, p99, p99.9",
    ]);
    for stats in stats {
        let total = stats.total.unwrap_or_default();
        table.add_row([
            stats.name.clone(),
            total.reads.to_string(),
            total.writes.to_string(),
            total.others.to_string(),
            show_size(total.read_bytes as f64),
            show_size(total.written_bytes as f64),
            total.errors.to_string(),
            throttled(&total),
            latencies(&stats.latencies),
        ]);
    }
    table
}

/// How many commands had to wait for a limit, and how long on average; nothing where none had to.
fn throttled(total: &Counters) -> String {
    if total.throttled == 0 {
        return String::new();
    }
    let time = total.throttled_time.and_then(|time| Duration::try_from(time).ok());
    let mean = time.unwrap_or_default().as_secs_f64() * 1e3 / total.throttled as f64;
    format!("{}, {mean:.1} ms each", total.throttled)
}

/// `read 12, 80, 300 us` for each kind that was sampled.
fn latencies(histograms: &[LatencyHistogram]) -> String {
    let shown = histograms.iter().filter(|histogram| histogram.count > 0).map(|histogram| {
        let kind =
            show::word(LatencyKind::try_from(histogram.kind).unwrap_or_default().as_str_name());
        let values = PERCENTILES.map(|percentile| match percentile_of(histogram, percentile) {
            Some(time) => format!("{:.1}", time.as_secs_f64() * 1e6),
            None => "more".to_owned(),
        });
        format!("{kind} {} us", values.join(", "))
    });
    shown.collect::<Vec<_>>().join("\n")
}

/// The bound under which that part of the samples is; `None` if it has none.
fn percentile_of(histogram: &LatencyHistogram, percentile: f64) -> Option<Duration> {
    let wanted = (histogram.count as f64 * percentile / 100.0).ceil() as u64;
    let mut seen = 0;
    let bucket = histogram.buckets.iter().find(|bucket| {
        seen += bucket.count;
        seen >= wanted
    })?;
    Duration::try_from(bucket.upper_bound?).ok()
}

async fn watch(
    session: &mut Session,
    names: Vec<String>,
    interval: Duration,
    count: Option<u64>,
    format: Format,
) -> anyhow::Result<ExitCode> {
    let interval_asked = Some(interval.try_into()?);
    let request = WatchStatsRequest { names, interval: interval_asked, queues: false };
    let mut stream = answer(session.stats.watch_stats(request).await)?;
    let mut before: HashMap<String, (Counters, Option<SystemTime>)> = HashMap::new();
    let mut shown = 0;
    if format == Format::Table {
        print(&format!(
            "{:<32} {:>12} {:>12} {:>12} {:>12} {:>12} {:>8}\n",
            "resource", "reads/s", "writes/s", "read/s", "written/s", "throttled/s", "errors"
        ))?;
    }
    while count.is_none_or(|count| shown < count) {
        let Some(message) = stream.message().await.map_err(|status| refusal(&status))? else {
            break;
        };
        if format != Format::Table {
            // One document a line, or one behind the other.
            match format {
                Format::Json => print(&format!("{}\n", json::of("WatchStatsResponse", &message)?))?,
                _ => {
                    print("---\n")?;
                    show::structured(&json::of("WatchStatsResponse", &message)?, format)?;
                }
            }
            shown += 1;
            continue;
        }
        let now = message.time.and_then(|time| SystemTime::try_from(time).ok());
        let mut lines = String::new();
        for stats in message.stats {
            let total = stats.total.unwrap_or_default();
            if let Some((old, then)) = before.insert(stats.name.clone(), (total, now)) {
                let passed = now.zip(then).and_then(|(now, then)| now.duration_since(then).ok());
                lines += &rates(&stats.name, &old, &total, passed.unwrap_or(interval));
            }
        }
        // The first answer is what there was before.
        if !lines.is_empty() {
            shown += 1;
            print(&lines)?;
        }
        complain(&message.failures);
    }
    Ok(ExitCode::SUCCESS)
}

fn rates(name: &str, old: &Counters, new: &Counters, passed: Duration) -> String {
    let per_second = |new: u64, old: u64| {
        // Counters that begin anew count from zero.
        let grown = new.checked_sub(old).unwrap_or(new);
        grown as f64 / passed.as_secs_f64().max(1e-9)
    };
    format!(
        "{name:<32} {:>12.0} {:>12.0} {:>12} {:>12} {:>12.0} {:>8}\n",
        per_second(new.reads, old.reads),
        per_second(new.writes, old.writes),
        show_size(per_second(new.read_bytes, old.read_bytes)),
        show_size(per_second(new.written_bytes, old.written_bytes)),
        per_second(new.throttled, old.throttled),
        new.errors,
    )
}

/// Prints events as they come.
pub(super) async fn events(
    names: Vec<String>,
    after: u64,
    count: Option<u64>,
    access: &Access,
) -> anyhow::Result<ExitCode> {
    let mut session = Session::open(access).await?;
    let request = WatchEventsRequest { after_sequence: after, names };
    let mut stream = answer(session.events.watch_events(request).await)?;
    let mut shown = 0;
    while count.is_none_or(|count| shown < count) {
        let Some(message) = stream.message().await.map_err(|status| refusal(&status))? else {
            break;
        };
        let Some(event) = message.event else { continue };
        shown += 1;
        match access.output {
            Format::Table => {
                let kind = EventKind::try_from(event.kind).unwrap_or_default();
                let time = event.time.map(|time| time.to_string()).unwrap_or_default();
                print(&format!(
                    "{:>6}  {time}  {:<12} {:<28} {}\n",
                    event.sequence,
                    show::word(kind.as_str_name()),
                    event.name,
                    event.message
                ))?;
            }
            Format::Json => print(&format!("{}\n", json::of("Event", &event)?))?,
            Format::Yaml => {
                print("---\n")?;
                show::structured(&json::of("Event", &event)?, Format::Yaml)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vireo_api::v1::LatencyBucket;

    #[test]
    fn percentiles_are_bounds_of_buckets() {
        let bucket = |micros: Option<u64>, count| LatencyBucket {
            upper_bound: micros.map(|us| Duration::from_micros(us).try_into().unwrap()),
            count,
        };
        let histogram = LatencyHistogram {
            kind: LatencyKind::Read.into(),
            count: 1000,
            buckets: vec![bucket(Some(10), 900), bucket(Some(20), 99), bucket(None, 1)],
            ..LatencyHistogram::default()
        };
        assert_eq!(percentile_of(&histogram, 50.0), Some(Duration::from_micros(10)));
        assert_eq!(percentile_of(&histogram, 99.0), Some(Duration::from_micros(20)));
        assert_eq!(percentile_of(&histogram, 99.95), None);
        assert_eq!(latencies(&[histogram]), "read 10.0, 20.0, 20.0 us");
    }

    #[test]
    fn rates_are_of_the_time_that_passed_and_survive_a_reset() {
        let old = Counters { reads: 100, read_bytes: 0, ..Counters::default() };
        let new = Counters { reads: 300, read_bytes: 4 << 20, ..Counters::default() };
        let line = rates("controllers/vm0", &old, &new, Duration::from_secs(2));
        assert!(line.contains(" 100 ") && line.contains("2 MiB"), "{line}");
        let line = rates("controllers/vm0", &new, &old, Duration::from_secs(1));
        assert!(line.contains(" 100 "), "{line}");
        let held = Counters { throttled: 70, ..Counters::default() };
        let line = rates("controllers/vm0", &Counters::default(), &held, Duration::from_secs(2));
        assert!(line.contains(" 35 "), "{line}");
    }

    #[test]
    fn what_had_to_wait_is_told_with_its_mean_wait() {
        assert_eq!(throttled(&Counters::default()), "");
        let throttled_time = Some(Duration::from_millis(300).try_into().unwrap());
        let held = Counters { throttled: 4, throttled_time, ..Counters::default() };
        assert_eq!(throttled(&held), "4, 75.0 ms each");
    }
}
