//! Results as a table for a person and as JSON for a program.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use nvme_spec::identify::controller::IdentifyController;
use serde::Serialize;

use super::against::{Comparison, Ratio};
use super::checking::Checked;
use super::options::{Completions, Load, Verify};
use super::run::Measured;
use super::tally::Tally;
use super::target::Session;
use super::units::{show_count, show_nanos, show_size};
use crate::text::text_of;

/// Version of the JSON: raised when a key changes its meaning or goes; keys may be added.
pub const SCHEMA: u32 = 1;
/// Quantiles of the latency, and what they are called.
const QUANTILES: [(f64, &str); 5] =
    [(0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p99.9"), (0.9999, "p99.99")];

/// What was loaded.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TargetReport {
    /// Its address.
    pub address: String,
    /// Model Number.
    pub model: String,
    /// Serial Number.
    pub serial: String,
    /// Firmware Revision.
    pub firmware: String,
    /// Namespace Identifier.
    pub namespace: u32,
    /// Bytes of the namespace.
    pub bytes: u64,
    /// Bytes of a logical block.
    pub lba_size: u32,
}

/// How it was loaded.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoadReport {
    /// Name of the pattern.
    pub pattern: &'static str,
    /// Reads in a hundred.
    pub read_percent: u8,
    /// Bytes of an I/O.
    pub block_size: u64,
    /// Outstanding on each queue pair.
    pub depth: u16,
    /// Queue pairs.
    pub queues: u16,
    /// Cores of the threads; null: one thread that is not pinned.
    pub cores: Option<Vec<usize>>,
    /// Seconds of warm-up.
    pub warm_up_seconds: f64,
    /// Exponent of Zipf's law; null: evenly or in sequence.
    pub zipf: Option<f64>,
    /// Start of the range in bytes.
    pub offset: u64,
    /// Length of the range in bytes; null: to the end.
    pub size: Option<u64>,
    /// How data is checked.
    pub verify: Option<&'static str>,
    /// How completions are noticed.
    pub completions: &'static str,
    /// Most I/Os a second.
    pub rate: Option<f64>,
    /// Seed of the random numbers.
    pub seed: u64,
}

/// Completions of one kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KindReport {
    /// Completions.
    pub ios: u64,
    /// Completions a second.
    pub iops: f64,
    /// Bytes a second.
    pub bytes_per_second: f64,
    /// Latencies.
    pub latency_ns: LatencyReport,
}

/// Latencies in nanoseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LatencyReport {
    /// Mean, exact.
    pub mean: f64,
    /// Shortest.
    pub min: u64,
    /// Quantiles, to three digits.
    pub p50: u64,
    /// 90 %.
    pub p90: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p99_9: u64,
    /// 99.99 %.
    pub p99_99: u64,
    /// Longest.
    pub max: u64,
}

/// What checking came to, in I/Os.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerifyReport {
    /// As they have to be.
    pub good: u64,
    /// Not known how they have to be.
    pub unknown: u64,
    /// Lost writes.
    pub lost: u64,
    /// Torn writes.
    pub torn: u64,
    /// Misplaced writes.
    pub misplaced: u64,
    /// Data that was never written.
    pub corrupt: u64,
    /// Where the first damage is.
    pub notes: Vec<String>,
}

/// One point of the time line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PointReport {
    /// Seconds since the warm-up.
    pub seconds: f64,
    /// Completions a second.
    pub iops: f64,
    /// Mean latency.
    pub mean_ns: f64,
    /// Longest latency.
    pub max_ns: u64,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunReport {
    /// What was loaded.
    pub target: TargetReport,
    /// Seconds measured.
    pub seconds: f64,
    /// Time of a thread for each I/O: at a high depth the cost of one.
    pub ns_per_io: f64,
    /// I/Os that failed.
    pub errors: u64,
    /// What the first of them said.
    pub error_notes: Vec<String>,
    /// Reads and writes together.
    pub all: KindReport,
    /// Reads, if there were any.
    pub read: Option<KindReport>,
    /// Writes, if there were any.
    pub write: Option<KindReport>,
    /// What checking came to, if it was asked for.
    pub verify: Option<VerifyReport>,
    /// The time line.
    pub timeline: Vec<PointReport>,
}

/// All that a call of `vireo perf -o json` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// How the targets were loaded.
    pub load: LoadReport,
    /// The runs: one, or A B A B.
    pub runs: Vec<RunReport>,
    /// A compared with B.
    pub ratio: Option<RatioReport>,
    /// The same load on the null target in this process.
    pub own_cost: Option<RunReport>,
}

/// Ratios of A to B over the alternations.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RatioReport {
    /// Pairs of runs.
    pub alternations: usize,
    /// Of completions a second.
    pub iops: SpreadReport,
    /// Of mean latencies.
    pub latency_mean: SpreadReport,
    /// Of 99 % quantiles.
    pub latency_p99: SpreadReport,
}

/// Ratios from pair to pair.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SpreadReport {
    /// The one in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl TargetReport {
    /// Of a session.
    #[must_use]
    pub fn new(session: &Session) -> Self {
        let identify: &IdentifyController = &session.controller.identify();
        Self {
            address: session.controller.address().to_owned(),
            model: text_of(&identify.mn),
            serial: text_of(&identify.sn),
            firmware: text_of(&identify.fr),
            namespace: session.namespace.nsid().0,
            bytes: session.namespace.bytes(),
            lba_size: session.namespace.block_size(),
        }
    }
}

impl LoadReport {
    /// Of a load.
    #[must_use]
    pub fn new(load: &Load) -> Self {
        Self {
            pattern: load.pattern.name(),
            read_percent: load.read_percent,
            block_size: load.block_size,
            depth: load.depth,
            queues: load.queues,
            cores: load.cores.clone(),
            warm_up_seconds: load.warm_up.as_secs_f64(),
            zipf: load.zipf,
            offset: load.offset,
            size: load.size,
            verify: load.verify.map(|verify| match verify {
                Verify::Pattern => "pattern",
                Verify::Crc32c => "crc32c",
            }),
            completions: match load.completions {
                Completions::Polled => "polled",
                Completions::Interrupt => "interrupt",
            },
            rate: load.rate,
            seed: load.seed,
        }
    }
}

impl KindReport {
    fn new(tally: &Tally, iops: f64, block_size: u64) -> Self {
        let quantile = |q| tally.latencies.value_at_quantile(q).min(tally.latencies.max());
        Self {
            ios: tally.ios,
            iops,
            bytes_per_second: iops * block_size as f64,
            latency_ns: LatencyReport {
                mean: tally.mean(),
                min: if tally.ios == 0 { 0 } else { tally.latencies.min() },
                p50: quantile(QUANTILES[0].0),
                p90: quantile(QUANTILES[1].0),
                p99: quantile(QUANTILES[2].0),
                p99_9: quantile(QUANTILES[3].0),
                p99_99: quantile(QUANTILES[4].0),
                max: tally.latencies.max(),
            },
        }
    }
}

impl RunReport {
    /// Of a run.
    #[must_use]
    pub fn new(target: TargetReport, measured: &Measured, load: &Load) -> Self {
        let all = measured.all();
        let kind = |kind: usize| {
            let tally = &measured.kinds[kind];
            (tally.ios > 0).then(|| KindReport::new(tally, measured.rates[kind], load.block_size))
        };
        let points = measured.timeline.iter().enumerate().map(|(index, interval)| PointReport {
            seconds: index as f64 * measured.interval,
            iops: interval.ios as f64 / measured.interval,
            mean_ns: interval.mean(),
            max_ns: interval.max_nanos,
        });
        Self {
            target,
            seconds: measured.seconds,
            ns_per_io: match measured.iops() {
                0.0 => 0.0,
                iops => 1e9 * measured.threads as f64 / iops,
            },
            errors: measured.errors,
            error_notes: measured.error_notes.clone(),
            all: KindReport::new(&all, measured.iops(), load.block_size),
            read: kind(0),
            write: kind(1),
            verify: measured.checked.map(|checked| verify_report(checked, &measured.damage_notes)),
            timeline: points.collect(),
        }
    }
}

fn verify_report(checked: Checked, notes: &[String]) -> VerifyReport {
    let Checked { good, unknown, lost, torn, misplaced, corrupt } = checked;
    VerifyReport { good, unknown, lost, torn, misplaced, corrupt, notes: notes.to_vec() }
}

impl RatioReport {
    /// Of a comparison.
    #[must_use]
    pub fn new(comparison: &Comparison) -> Self {
        let spread =
            |ratio: Ratio| SpreadReport { median: ratio.median, min: ratio.min, max: ratio.max };
        Self {
            alternations: comparison.alternations,
            iops: spread(comparison.iops),
            latency_mean: spread(comparison.latency_mean),
            latency_p99: spread(comparison.latency_p99),
        }
    }
}

/// One run as a table.
#[must_use]
pub fn table(run: &RunReport, load: &LoadReport) -> String {
    let mut columns = vec![("all", &run.all)];
    match (&run.read, &run.write) {
        (Some(read), Some(write)) => columns.extend([("reads", read), ("writes", write)]),
        (Some(read), None) => columns = vec![("reads", read)],
        (None, Some(write)) => columns = vec![("writes", write)],
        (None, None) => {}
    }
    let mut table = new_table();
    let heads = columns.iter().map(|(name, _)| (*name).to_owned());
    table.set_header(std::iter::once(String::new()).chain(heads));
    let mut row = |name: &str, cell: &dyn Fn(&KindReport) -> String| {
        let cells = columns.iter().map(|(_, kind)| cell(kind));
        table.add_row(std::iter::once(name.to_owned()).chain(cells));
    };
    row("I/Os", &|kind| kind.ios.to_string());
    row("IOPS", &|kind| show_count(kind.iops));
    row("bandwidth", &|kind| format!("{}/s", show_size(kind.bytes_per_second.round())));
    row("latency mean", &|kind| show_nanos(kind.latency_ns.mean));
    row("min", &|kind| show_nanos(kind.latency_ns.min as f64));
    for (index, (_, name)) in QUANTILES.iter().enumerate() {
        row(name, &|kind| show_nanos(quantiles(&kind.latency_ns)[index] as f64));
    }
    row("max", &|kind| show_nanos(kind.latency_ns.max as f64));
    align(&mut table);
    format!("{}\n{table}\n{}", head(run, load), tail(run, load))
}

/// A comparison as a table.
#[must_use]
pub fn comparison_table(report: &Report) -> String {
    let mut text = String::new();
    let mut table = new_table();
    table.set_header(["", "A IOPS", "B IOPS", "A mean", "B mean", "A p99", "B p99", "IOPS A/B"]);
    for (index, pair) in report.runs.chunks_exact(2).enumerate() {
        let [a, b] = pair else { continue };
        if index == 0 {
            text.push_str(&format!("A: {}\nB: {}\n", head(a, &report.load), head(b, &report.load)));
        }
        table.add_row([
            (index + 1).to_string(),
            show_count(a.all.iops),
            show_count(b.all.iops),
            show_nanos(a.all.latency_ns.mean),
            show_nanos(b.all.latency_ns.mean),
            show_nanos(a.all.latency_ns.p99 as f64),
            show_nanos(b.all.latency_ns.p99 as f64),
            match b.all.iops {
                0.0 => "-".to_owned(),
                iops => format!("{:.3}", a.all.iops / iops),
            },
        ]);
    }
    align(&mut table);
    text.push_str(&format!("{table}\n"));
    if let Some(ratio) = &report.ratio {
        let mut table = new_table();
        table.set_header(["A / B", "median", "min", "max"]);
        for (name, spread) in [
            ("IOPS", &ratio.iops),
            ("mean latency", &ratio.latency_mean),
            ("p99 latency", &ratio.latency_p99),
        ] {
            let cells = [spread.median, spread.min, spread.max].map(|value| format!("{value:.3}"));
            table.add_row(std::iter::once(name.to_owned()).chain(cells));
        }
        align(&mut table);
        text.push_str(&format!("{table}\n"));
    }
    for run in &report.runs {
        text.push_str(&troubles(run));
    }
    text
}

/// What vireo perf and its driver cost by themselves, in a line.
#[must_use]
pub fn own_cost_line(run: &RunReport, load: &LoadReport) -> String {
    format!(
        "own cost: {:.1} ns an I/O at depth {} (mean latency {}): driver, generator, clock and statistics, with a null \
         target in this process\n",
        run.ns_per_io,
        load.depth,
        show_nanos(run.all.latency_ns.mean)
    )
}

fn quantiles(latency: &LatencyReport) -> [u64; QUANTILES.len()] {
    [latency.p50, latency.p90, latency.p99, latency.p99_9, latency.p99_99]
}

fn new_table() -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    table
}

/// Numbers to the right.
fn align(table: &mut Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

fn head(run: &RunReport, load: &LoadReport) -> String {
    let target = &run.target;
    let cores = match &load.cores {
        Some(cores) => {
            let cores: Vec<_> = cores.iter().map(ToString::to_string).collect();
            format!("core {}", cores.join(","))
        }
        None => "not pinned".to_owned(),
    };
    format!(
        "{} ({} {}), namespace {}\n{} {}, depth {}, {} queue pair{}, {cores}, {}, {:.1} s",
        target.address,
        target.model,
        target.serial,
        target.namespace,
        load.pattern,
        show_size(load.block_size as f64),
        load.depth,
        load.queues,
        if load.queues == 1 { "" } else { "s" },
        load.completions,
        run.seconds,
    )
}

fn tail(run: &RunReport, load: &LoadReport) -> String {
    let mut text = String::new();
    // Of a thread that waits for its turn it says nothing.
    if (load.depth > 1 || load.queues > 1) && load.rate.is_none() {
        text.push_str(&format!("{:.1} ns of a thread an I/O\n", run.ns_per_io));
    }
    if let Some(verify) = &run.verify {
        let damaged = verify.lost + verify.torn + verify.misplaced + verify.corrupt;
        text.push_str(&format!("checked: {} good, {damaged} damaged", verify.good));
        if verify.unknown > 0 {
            text.push_str(&format!(", {} of which nothing is known", verify.unknown));
        }
        text.push('\n');
    }
    text + &troubles(run)
}

fn troubles(run: &RunReport) -> String {
    let mut text = String::new();
    if let Some(verify) = &run.verify {
        for (count, what) in [
            (verify.lost, "lost"),
            (verify.torn, "torn"),
            (verify.misplaced, "misplaced"),
            (verify.corrupt, "corrupt"),
        ] {
            if count > 0 {
                text.push_str(&format!("DAMAGE: {count} {what}\n"));
            }
        }
        for note in &verify.notes {
            text.push_str(&format!("  {note}\n"));
        }
    }
    if run.errors > 0 {
        text.push_str(&format!("{} I/Os failed:\n", run.errors));
        for note in &run.error_notes {
            text.push_str(&format!("  {note}\n"));
        }
    }
    text
}
