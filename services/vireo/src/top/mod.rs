//! `vireo top`: what workers, controllers, queues and namespaces do at the moment, in the manner of `top` and `spdk_top`.
//!
//! `source` asks the manager in a thread of its own; `sample` is what it told, `history` makes `figures` of it; the
//! `model` is what a person chose to see of them, as rows (`table`) of what a view shows (`column`), which `render` draws
//! and `terminal` brings to the screen. `batch` prints them once.
//!
//! It changes nothing: a target does not notice it but for a reading of its counters.

mod batch;
mod column;
#[cfg(test)]
mod example;
mod figures;
mod history;
mod latency;
mod model;
mod number;
mod render;
mod sample;
mod source;
mod table;
mod terminal;
mod trend;

use crate::admin::{Access, Format};
use crate::perf::units::parse_duration;
use clap::{Args, ValueEnum};
use model::{INTERVAL_RANGE, Model};
use service::start::EXIT_FAILURE;
use source::Source;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use table::View;

/// `vireo top`: what to show, and how to reach the manager.
#[derive(Debug, Args)]
pub struct TopArguments {
    /// Time between two readings, 0.1 s to 60 s.
    #[arg(short, long, value_parser = parse_interval, default_value = "1s")]
    interval: Duration,
    /// What to look at first.
    #[arg(long, value_enum, default_value_t = FirstView::Controllers)]
    view: FirstView,
    /// Print one reading and end, as `top -b -n 1` does.
    #[arg(long)]
    once: bool,
    /// How to print it; means --once.
    #[arg(short, long, value_enum)]
    output: Option<Format>,
    /// The manager's API socket; /run/vireo/api.sock if nothing says otherwise.
    #[arg(long, value_name = "SOCKET", env = "VIREO_API", hide_env_values = true)]
    api: Option<PathBuf>,
    /// The runtime directory with the socket.
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "api")]
    runtime_dir: Option<PathBuf>,
    /// The configuration file that names the socket.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["api", "runtime_dir"])]
    config: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FirstView {
    Workers,
    Controllers,
    Queues,
    Namespaces,
}

/// Runs it. Errors are told in one line.
#[must_use]
pub fn run(arguments: TopArguments) -> ExitCode {
    match show(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vireo: {error:#}");
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

fn show(arguments: TopArguments) -> anyhow::Result<()> {
    let once = arguments.once || arguments.output.is_some();
    if !once && !std::io::stdout().is_terminal() {
        anyhow::bail!("standard output is no terminal: say --once for one reading, or -o json");
    }
    let access = Access {
        api: arguments.api,
        runtime_dir: arguments.runtime_dir,
        config: arguments.config,
        output: Format::Table,
    };
    let socket = access.socket()?;
    let mut source = Source::start(access, arguments.interval)?;
    if once {
        return batch::run(&mut source, arguments.output.unwrap_or(Format::Table));
    }
    let view = match arguments.view {
        FirstView::Workers => View::Workers,
        FirstView::Controllers => View::Controllers,
        FirstView::Queues => View::Queues,
        FirstView::Namespaces => View::Namespaces,
    };
    let title = sample::line(&socket.display().to_string());
    terminal::run(&mut Model::new(title, view, arguments.interval), &mut source)
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text)?;
    if (INTERVAL_RANGE.0..=INTERVAL_RANGE.1).contains(&interval) {
        Ok(interval)
    } else {
        Err(format!("{text:?} is out of range: write 100ms to 60s"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_have_a_range() {
        assert_eq!(parse_interval("0.5"), Ok(Duration::from_millis(500)));
        for text in ["0", "50ms", "2m", "x"] {
            assert!(parse_interval(text).is_err(), "{text}");
        }
    }
}
