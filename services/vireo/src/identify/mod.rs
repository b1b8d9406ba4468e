//! `vireo identify`: an NVMe controller, its namespaces, features and logs in a person's words, or as JSON.
//!
//! [`snapshot`] asks the controller, over [`nvme_driver`]; what it answers becomes [`fact`]s: each is stated once, in words
//! and as named values. What a controller does not support is said not to be supported.
//!
//! It needs the controller for itself, and resets it, as every driver does that comes up.

mod ability;
mod controller;
pub mod fact;
mod feature;
mod health;
mod log;
mod namespace;
pub mod snapshot;
#[cfg(test)]
mod tests;
mod time;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use nvme_driver::{Address, Controller, Options};
use nvme_spec::Nsid;
use serde_json::{Value, json};

use crate::perf::units::parse_duration;
use crate::reach::{self, Failure, driver_options, explain, within};
use fact::Section;
use snapshot::Snapshot;

/// Version of the JSON: raised when a key changes its meaning or goes; keys may be added.
pub const SCHEMA: u32 = 1;
/// Longest time that a person may grant.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// `vireo identify`: describe a controller.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  vireo identify vfio-user:/run/vireo/vm0
  vireo identify pcie:0000:01:00.0 --namespace 1
  vireo identify vfio-user:/run/vireo/vm0 -o json | jq .smart

It takes the controller for itself and resets it: not for a drive that a guest is using.")]
pub struct IdentifyArguments {
    /// The controller: vfio-user:DIRECTORY-OR-SOCKET or pcie:DDDD:BB:DD.F.
    #[arg(value_name = "TARGET")]
    pub target: String,
    /// Only this namespace [default: all that are active].
    #[arg(short, long, value_name = "NSID", value_parser = clap::value_parser!(u32).range(1..=0xFFFF_FFFE))]
    pub namespace: Option<u32>,
    /// Give up after this long.
    #[arg(long, value_name = "TIME", default_value = reach::DEFAULT_TIMEOUT, value_parser = parse_duration)]
    pub timeout: Duration,
    /// How to show it.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// How it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For a person.
    Text,
    /// For a program.
    Json,
}

/// Runs `vireo identify`: the description on standard output, what goes wrong in one line on standard error. Exit status 2
/// for options that do not fit, 1 if the controller could not be described.
pub fn run(arguments: &IdentifyArguments) -> ExitCode {
    match perform(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("vireo identify: {failure}");
            ExitCode::from(failure.exit_status())
        }
    }
}

fn perform(arguments: &IdentifyArguments) -> Result<(), Failure> {
    let timeout = arguments.timeout;
    if timeout < Duration::from_millis(100) || timeout > TIMEOUT_MAX {
        return Err(Failure::usage("--timeout: has to be 100ms to 1h"));
    }
    let address = arguments.target.clone();
    address.parse::<Address>().map_err(|error| Failure::usage(error.to_string()))?;
    let only = arguments.namespace.map(Nsid);
    let ask = move || {
        let options = Options { queues: u16::MAX, ..driver_options(timeout) };
        let controller = Controller::connect_with(&address, &options)?;
        snapshot::take(&controller, only).map_err(|error| explain(&error))
    };
    let snapshot = within(&arguments.target, timeout, "--timeout", ask)?;
    let sections = describe(&snapshot);
    let text = match arguments.output {
        Output::Text => fact::text(&sections),
        Output::Json => format!("{:#}\n", to_json(&sections)),
    };
    crate::text::print(&text).map_err(|error| Failure::new(format!("write the result: {error}")))
}

/// Everything that is known of a controller.
#[must_use]
pub fn describe(snapshot: &Snapshot) -> Vec<Section> {
    let mut sections = vec![
        controller::identity(snapshot),
        controller::limits(snapshot),
        ability::abilities(snapshot),
        health::power(snapshot),
        health::smart(snapshot),
    ];
    let namespaces = snapshot.namespaces.iter();
    sections.extend(namespaces.map(|one| namespace::namespace(snapshot, one)));
    if snapshot.namespaces.is_empty() {
        sections.push(namespace::none());
    }
    sections.push(feature::features(snapshot));
    sections.push(log::logs(snapshot));
    sections
}

/// The sections as JSON.
#[must_use]
pub fn to_json(sections: &[Section]) -> Value {
    let mut root = fact::json(sections);
    root.insert("schema".to_owned(), json!(SCHEMA));
    Value::Object(root)
}
