//! `vireo perf`: loads an NVMe controller over [`nvme_driver`] and measures it, in the manner of `spdk_nvme_perf` and fio.
//!
//! A run is a number of queue pairs ([`lane`]) on pinned threads ([`mod@run`]); what they counted becomes a table, JSON
//! ([`report`]) and pictures ([`chart`]). With `--verify` every block is stamped and checked ([`verify`]); with
//! `--against` two targets take turns ([`against`]); with `--self` the same load runs on a target within this process
//! ([`null_target`]), which shows what the generator itself costs.
//!
//! It does not prepare a target: blocks that were never written are read as they are.

pub mod address;
pub mod against;
pub mod chart;
pub mod checking;
pub mod clock;
pub mod lane;
pub mod null_target;
pub mod options;
pub mod pace;
pub mod progress;
pub mod report;
pub mod run;
pub mod tally;
pub mod target;
#[cfg(test)]
mod tests;
pub mod units;
pub mod verify;
mod watch;
pub mod zipf;

use std::path::Path;
use std::process::ExitCode;

use chart::{LatencySeries, TimeSeries};
use clock::Clock;
pub use options::PerfArguments;
use options::{Load, Output};
use progress::Progress;
use report::{LoadReport, RatioReport, Report, RunReport, SCHEMA, TargetReport};
use run::{Measured, measure};
use target::Target;

use crate::reach::{EXIT_FAILURE, Failure, close};

/// Pairs of runs when two targets are compared, if nothing else is said.
const ALTERNATIONS: u32 = 5;

/// Runs `vireo perf`: results on standard output, what goes wrong on standard error. Exit status 2 for options that do
/// not fit, 1 if the run failed, an I/O failed or damage was found.
pub fn run(arguments: &PerfArguments) -> ExitCode {
    let result =
        arguments.load().map_err(Failure::usage).and_then(|load| perform(arguments, &load));
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_FAILURE),
        Err(failure) => {
            eprintln!("vireo perf: {failure}");
            ExitCode::from(failure.exit_status())
        }
    }
}

/// What was run, in order.
struct Runs {
    reports: Vec<RunReport>,
    measured: Vec<Measured>,
}

/// Runs everything that was asked for and shows it; `false` if I/Os failed or damage was found.
fn perform(arguments: &PerfArguments, load: &Load) -> Result<bool, Failure> {
    let targets: Vec<Target> = [&arguments.target, &arguments.against]
        .into_iter()
        .flatten()
        .cloned()
        .map(Target::Address)
        .collect();
    look_ahead(arguments, load, &targets)?;
    let clock = Clock::new();
    let progress = Progress::new();
    let own = match arguments.own_cost {
        true => Some(run_once(&Target::Null, load, &clock, &progress)?),
        false => None,
    };
    let rounds = match arguments.against {
        Some(_) => arguments.alternations.unwrap_or(ALTERNATIONS),
        None => 1,
    };
    let mut runs = Runs { reports: Vec::new(), measured: Vec::new() };
    for round in 1..=rounds {
        for (name, target) in ["A", "B"].iter().zip(&targets) {
            progress.title(if rounds > 1 {
                format!("{round}/{rounds} {name}")
            } else {
                String::new()
            });
            let (report, measured) = run_once(target, load, &clock, &progress)?;
            runs.reports.push(report);
            runs.measured.push(measured);
        }
    }
    if let (true, Some((report, measured))) = (targets.is_empty(), &own) {
        runs.reports.push(report.clone());
        runs.measured.push(measured.clone());
    }
    let ratio = match arguments.against {
        Some(_) => {
            against::Comparison::of(&runs.reports).map(|comparison| RatioReport::new(&comparison))
        }
        None => None,
    };
    let report = Report {
        schema: SCHEMA,
        load: LoadReport::new(load),
        runs: runs.reports.clone(),
        ratio,
        own_cost: own.map(|(report, _)| report),
    };
    show(&report, arguments.output)?;
    draw(arguments, load, &runs, targets.len())?;
    Ok(runs.measured.iter().all(Measured::is_clean))
}

/// Finds now what would else be found wrong when a run is over, and its results lost: a picture's place that cannot be
/// written, a second target that is not there.
fn look_ahead(arguments: &PerfArguments, load: &Load, targets: &[Target]) -> Result<(), Failure> {
    for path in [&arguments.histogram, &arguments.timeline].into_iter().flatten() {
        writable(path).map_err(|error| unwritable(path, &error))?;
    }
    if let [_, _, ..] = targets {
        for target in targets {
            close(target::reach(target, load)?);
        }
    }
    Ok(())
}

/// Whether a file can be written, or made where it is not there.
fn writable(path: &Path) -> std::io::Result<()> {
    if path.exists() {
        return std::fs::OpenOptions::new().append(true).open(path).map(drop);
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    Ok(nix::unistd::access(directory, nix::unistd::AccessFlags::W_OK)?)
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    let path = path.display();
    Failure::new(format!("write {path}: {error}: say a file in a directory that can be written"))
}

fn run_once(
    target: &Target,
    load: &Load,
    clock: &Clock,
    progress: &Progress,
) -> Result<(RunReport, Measured), Failure> {
    let session = target::reach(target, load)?;
    let measured = measure(&session, load, clock, progress);
    let target = TargetReport::new(&session);
    close(session);
    let measured = measured?;
    Ok((RunReport::new(target, &measured, load), measured))
}

fn show(report: &Report, output: Output) -> Result<(), Failure> {
    if output == Output::Json {
        let text = serde_json::to_string_pretty(report);
        return print(&format!("{}\n", text.map_err(|error| Failure::new(error.to_string()))?));
    }
    match (&report.ratio, report.runs.as_slice()) {
        (None, [run]) => print(&report::table(run, &report.load))?,
        _ => print(&report::comparison_table(report))?,
    }
    match &report.own_cost {
        Some(own) => print(&report::own_cost_line(own, &report.load)),
        None => Ok(()),
    }
}

fn print(text: &str) -> Result<(), Failure> {
    crate::text::print(text).map_err(|error| Failure::new(format!("write the result: {error}")))
}

/// Writes the pictures that were asked for.
fn draw(
    arguments: &PerfArguments,
    load: &Load,
    runs: &Runs,
    targets: usize,
) -> Result<(), Failure> {
    let title = format!(
        "{} {}, depth {}, {} queue pair{}",
        load.pattern.name(),
        units::show_size(load.block_size as f64),
        load.depth,
        load.queues,
        if load.queues == 1 { "" } else { "s" }
    );
    // Of a comparison the last round.
    let last = runs.reports.len() - targets.max(1);
    let (reports, measured) = (&runs.reports[last..], &runs.measured[last..]);
    let name = |index: usize| match reports {
        [_] => String::new(),
        _ => format!("{}: {}", ["A", "B"][index.min(1)], reports[index].target.address),
    };
    if let Some(path) = &arguments.histogram {
        let mut series = Vec::new();
        for (index, measured) in measured.iter().enumerate() {
            for (kind, tally) in ["reads", "writes"].iter().zip(&measured.kinds) {
                let name = format!("{} {kind}", name(index));
                series.push(LatencySeries { name: name.trim_start().to_owned(), tally });
            }
        }
        write_picture(path, chart::histogram(&title, &series))?;
    }
    if let Some(path) = &arguments.timeline {
        let series: Vec<_> = reports
            .iter()
            .enumerate()
            .map(|(index, report)| {
                let name = name(index);
                let name = if name.is_empty() { report.target.address.clone() } else { name };
                TimeSeries { name, points: &report.timeline }
            })
            .collect();
        write_picture(path, chart::timeline(&title, &series))?;
    }
    Ok(())
}

fn write_picture(
    path: &Path,
    picture: Result<String, Box<dyn std::error::Error>>,
) -> Result<(), Failure> {
    let picture =
        picture.map_err(|error| Failure::new(format!("draw {}: {error}", path.display())))?;
    std::fs::write(path, picture).map_err(|error| unwritable(path, &error))
}
