//! What every service does first: its arguments, its configuration, its limits.

use crate::config::{Config, Kind, Mistakes};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::path::PathBuf;
use std::process::ExitCode;
use tracing::warn;

/// Exit status of a process that could not start or failed.
pub const EXIT_FAILURE: u8 = 1;
/// Exit status of a process whose configuration or arguments are wrong; starting it again is of no use.
pub const EXIT_CONFIGURATION: u8 = 2;

/// Arguments of every service.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// The host's configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Which of the configured services this process is.
    #[arg(long)]
    pub name: String,
}

impl Arguments {
    /// Reads the configuration and finds this service in it; on a mistake prints one line for each and gives the exit
    /// status [`EXIT_CONFIGURATION`].
    pub fn load(&self, kind: Kind) -> Result<Config, ExitCode> {
        let config = Config::read(&self.config).map_err(|mistakes| refuse(&mistakes))?;
        let names: Vec<&str> = config
            .services()
            .into_iter()
            .filter(|(other, _)| *other == kind)
            .map(|(_, name)| name)
            .collect();
        if names.contains(&self.name.as_str()) {
            return Ok(config);
        }
        eprintln!("--name: there is no {kind} \"{}\"; known: {}", self.name, names.join(", "));
        Err(ExitCode::from(EXIT_CONFIGURATION))
    }
}

/// Prints the mistakes, one line each, and gives the exit status for them.
pub fn refuse(mistakes: &Mistakes) -> ExitCode {
    eprintln!("{mistakes}");
    ExitCode::from(EXIT_CONFIGURATION)
}

/// Limits of a process that holds guests' memory: no core file and no debugger of another user's (both would show it),
/// and as many descriptors as it may have.
pub fn set_limits() {
    let core = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    let dumpable = nix::sys::prctl::set_dumpable(false);
    let files = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    for (what, result) in [("core", core), ("dumpable", dumpable), ("files", files)] {
        if let Err(error) = result {
            warn!(what, %error, "limit not set");
        }
    }
}
