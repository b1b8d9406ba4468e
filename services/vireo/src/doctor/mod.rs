//! `vireo doctor`: looks at a machine, and at a configuration on it, and says what stands in the way and what to do about
//! it.
//!
//! Each module looks at one side of it and gives `finding`s; `machine` is what they look at. It changes nothing, talks
//! to nobody's guest, and ends in bounded time: what takes too long is a finding, too.

mod access;
mod cores;
mod directories;
mod drives;
mod finding;
mod kernel;
mod limits;
mod machine;
mod nodes;
mod sockets;
mod space;
#[cfg(test)]
mod tests;
mod units;
mod vmm;

use crate::admin::Format;
use crate::text::print;
use access::Who;
use clap::Args;
use finding::{Finding, Report};
use machine::Machine;
use service::config::{Config, Mistakes};
use service::start::EXIT_FAILURE;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The configuration of a machine on which the package is installed.
const INSTALLED: &str = "/etc/vireo/vireo.toml";
/// As whom the package's units run.
const USER: &str = "vireo";

/// `vireo doctor`: what to look at, and how to tell.
#[derive(Debug, Args)]
pub struct DoctorArguments {
    /// The host's configuration file; /etc/vireo/vireo.toml if that is there.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How to tell.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// One side of the machine.
type Probe = Box<dyn FnOnce() -> Vec<Finding> + Send>;

/// Looks, and tells. The status is 1 if there is a problem.
#[must_use]
pub fn run(arguments: &DoctorArguments) -> ExitCode {
    let mut machine = Machine::this();
    if units::are_installed(&machine)
        && let Some(user) = Who::named(USER)
    {
        machine.who = user;
    }
    let (config, mut findings) = configuration(&machine, arguments.config.as_deref());
    findings.extend(within(PATIENCE, probes(machine, config)));
    let report = Report::of(findings);
    let told = report.text(arguments.output).and_then(|text| Ok(print(&text)?));
    match told {
        Ok(()) if report.problems == 0 => ExitCode::SUCCESS,
        Ok(()) => ExitCode::from(EXIT_FAILURE),
        Err(error) => {
            eprintln!("vireo: {error:#}");
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

/// The configuration, if there is one that can be used, and what there is to say of it.
fn configuration(machine: &Machine, named: Option<&Path>) -> (Option<Config>, Vec<Finding>) {
    let file = match named {
        Some(file) => file.to_owned(),
        None if machine.is_there(INSTALLED) => machine.path(INSTALLED),
        None => {
            let found = "none is named: only the machine itself is looked at";
            let hint = "--config F for cores, drives, directories and who runs";
            return (None, vec![Finding::ok("configuration", found).with_advice(hint)]);
        }
    };
    let config = match Config::read(&file) {
        Ok(config) => config,
        Err(mistakes) => return (None, wrong(&mistakes)),
    };
    // Cores and drives are looked at more closely below.
    let of_machine = config
        .check_machine()
        .into_iter()
        .filter(|mistake| !mistake.key.ends_with(".core") && !mistake.key.ends_with(".target"));
    let mistakes: Vec<_> = of_machine.collect();
    let findings = if mistakes.is_empty() {
        vec![Finding::ok("configuration", format!("{} is right", file.display()))]
    } else {
        wrong(&Mistakes { source: file.display().to_string(), mistakes })
    };
    (Some(config), findings)
}

fn wrong(mistakes: &Mistakes) -> Vec<Finding> {
    let finding = |mistake: &service::config::Mistake| {
        let found = match mistake.key.as_str() {
            "" => format!("{}: {}", mistakes.source, mistake.wrong),
            key => format!("{}: {key}: {}", mistakes.source, mistake.wrong),
        };
        Finding::problem("configuration", found, mistake.right.clone())
    };
    mistakes.mistakes.iter().map(finding).collect()
}

/// All sides, each with its name.
fn probes(machine: Machine, config: Option<Config>) -> Vec<(&'static str, Probe)> {
    let both = Arc::new((machine, config));
    let probe = |look: fn(&Machine, Option<&Config>) -> Vec<Finding>| -> Probe {
        let both = Arc::clone(&both);
        Box::new(move || look(&both.0, both.1.as_ref()))
    };
    vec![
        ("kernel", probe(|machine, _| kernel::check(machine))),
        ("limits", probe(limits::check)),
        ("cores", probe(cores::check)),
        ("drives", probe(drives::check)),
        ("NUMA nodes", probe(nodes::check)),
        ("room", probe(space::check)),
        (
            "directories",
            probe(|machine, config| {
                config.map(|config| directories::check(machine, config)).unwrap_or_default()
            }),
        ),
        ("systemd", probe(|machine, _| units::check(machine))),
        (
            "who runs",
            probe(|machine, config| {
                let look = |config| sockets::check(machine, config, sockets::ask);
                config.map(look).unwrap_or_default()
            }),
        ),
        ("QEMU", probe(|machine, _| vmm::check(machine))),
    ]
}

/// Runs all probes side by side. One that takes too long is left behind: it ends with the process.
fn within(bound: Duration, probes: Vec<(&'static str, Probe)>) -> Vec<Finding> {
    let end = Instant::now() + bound;
    let mut findings: Vec<Option<Vec<Finding>>> = probes.iter().map(|_| None).collect();
    let (tell, told) = channel();
    let mut names = Vec::with_capacity(probes.len());
    for (index, (name, probe)) in probes.into_iter().enumerate() {
        names.push(name);
        let tell = tell.clone();
        let look = move || {
            // Nobody listens any more if it took too long.
            tell.send((index, probe())).ok();
        };
        if let Err(error) = std::thread::Builder::new().name(name.to_owned()).spawn(look) {
            let remedy = "raise the limit on processes (ulimit -u), or end some";
            let found = format!("cannot be looked at: {error}");
            findings[index] = Some(vec![Finding::problem(name, found, remedy)]);
        }
    }
    drop(tell);
    while findings.iter().any(Option::is_none) {
        match told.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok((index, found)) => findings[index] = Some(found),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    let late = |name: &str| {
        let found = format!("could not be looked at within {} s", bound.as_secs());
        vec![Finding::warning(name, found, "a file system or a program hangs: see dmesg")]
    };
    let all = findings.into_iter().zip(names);
    all.flat_map(|(found, name)| found.unwrap_or_else(|| late(name))).collect()
}
