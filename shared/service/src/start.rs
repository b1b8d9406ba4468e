//! What every service does first: its arguments, its configuration, its limits.

use crate::config::{Config, Kind, Mistakes};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
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

/// A service that knows what it is, and runs once.
#[derive(Debug)]
pub struct Service {
    kind: Kind,
    name: String,
    config: Config,
}

impl Service {
    /// Begins to log, and reads the configuration as [`Arguments::load`] does.
    ///
    /// # Errors
    /// The exit status; what is wrong was printed.
    pub fn load(kind: Kind, arguments: Arguments) -> Result<Self, ExitCode> {
        telemetry::log::start();
        let config = arguments.load(kind)?;
        Ok(Self { kind, name: arguments.name, config })
    }

    /// Runs `main` to its end with the configuration and the service's name, and sends the spans that it finished.
    ///
    /// # Errors
    /// Its error, which was logged.
    pub fn run<E>(self, main: impl AsyncFnOnce(Config, &str) -> Result<(), E>) -> Result<(), E>
    where
        E: From<io::Error> + Display,
    {
        let Self { kind, name, config } = self;
        telemetry::spans::export::start(config.telemetry.otlp.as_deref(), kind.as_str(), &name);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let result = runtime
            .map_err(|error| io::Error::other(format!("start the runtime: {error}")).into())
            .and_then(|runtime| runtime.block_on(main(config, &name)));
        telemetry::spans::export::flush();
        result.inspect_err(|error| tracing::error!("{error:#}"))
    }
}

/// The exit status of a service that ended so.
#[must_use]
pub fn status<E>(ended: Result<(), E>) -> ExitCode {
    ended.map_or(ExitCode::from(EXIT_FAILURE), |()| ExitCode::SUCCESS)
}

impl Arguments {
    /// Reads the configuration and finds this service in it; on a mistake prints one line for each and gives the exit
    /// status [`EXIT_CONFIGURATION`].
    ///
    /// Under systemd (which names a RUNTIME_DIRECTORY) a configuration that was read well is kept there. A service that
    /// starts again while a person has the file half edited goes on with that; the mistakes are logged.
    pub fn load(&self, kind: Kind) -> Result<Config, ExitCode> {
        self.load_beside(kind, runtime_directory().as_deref())
    }

    fn load_beside(&self, kind: Kind, kept: Option<&Path>) -> Result<Config, ExitCode> {
        let kept = kept.map(|directory| directory.join(format!("{kind}-{}.toml", self.name)));
        let config = match Config::read(&self.config) {
            Ok(config) => config,
            Err(mistakes) => match kept.and_then(|path| recall(&path)) {
                Some(config) if self.is_in(&config, kind) => {
                    for mistake in mistakes.to_string().lines() {
                        warn!(mistake, "configuration is wrong, going on with the last good one");
                    }
                    return Ok(config);
                }
                _ => return Err(refuse(&mistakes)),
            },
        };
        if self.is_in(&config, kind) {
            let keep = |path| crate::state::write(path, config.to_toml().as_bytes());
            // Without it a later start needs the file to be right, that is all.
            if let Some(Err(error)) = kept.as_deref().map(keep) {
                warn!(%error, "configuration not kept for a later start");
            }
            return Ok(config);
        }
        let known: Vec<&str> = names(&config, kind).collect();
        eprintln!("--name: there is no {kind} \"{}\"; known: {}", self.name, known.join(", "));
        Err(ExitCode::from(EXIT_CONFIGURATION))
    }

    fn is_in(&self, config: &Config, kind: Kind) -> bool {
        names(config, kind).any(|name| name == self.name)
    }
}

fn names(config: &Config, kind: Kind) -> impl Iterator<Item = &str> {
    config.services().into_iter().filter(move |(other, _)| *other == kind).map(|(_, name)| name)
}

/// The first of the directories that systemd made for this unit.
fn runtime_directory() -> Option<PathBuf> {
    let directories = std::env::var_os("RUNTIME_DIRECTORY")?;
    std::env::split_paths(&directories).find(|path| path.is_absolute())
}

/// A configuration that was kept: it has been checked, and variables are in it already.
fn recall(path: &Path) -> Option<Config> {
    let text = std::fs::read_to_string(path).ok()?;
    Config::parse(&text, []).ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[[worker]]\nname = \"w0\"\nmax_nap = \"7us\"\n[[backend]]\nname = \"b0\"\n\
                        [[frontend]]\nname = \"f0\"\n";

    #[test]
    fn a_service_that_starts_again_goes_on_with_the_last_good_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("vireo.toml");
        let worker = |name: &str| Arguments { config: file.clone(), name: name.to_owned() };
        let kept = Some(directory.path());
        std::fs::write(&file, GOOD).unwrap();
        let good = worker("w0").load_beside(Kind::Worker, kept).unwrap();
        std::fs::write(&file, format!("{GOOD}[[worker]]\n")).unwrap();
        assert_eq!(worker("w0").load_beside(Kind::Worker, kept).unwrap(), good);
        assert!(worker("w0").load_beside(Kind::Worker, None).is_err(), "nowhere kept");
        assert!(worker("w1").load_beside(Kind::Worker, kept).is_err(), "it never started");
        assert!(worker("b0").load_beside(Kind::Backend, kept).is_err(), "neither did this one");
        // What is right is taken, and one that is no longer named does not start.
        std::fs::write(&file, GOOD.replace("w0", "w2")).unwrap();
        assert!(worker("w0").load_beside(Kind::Worker, kept).is_err());
        // What was kept may be anything after an accident.
        std::fs::write(&file, "nothing").unwrap();
        std::fs::write(directory.path().join("worker-w0.toml"), "neither").unwrap();
        assert!(worker("w0").load_beside(Kind::Worker, kept).is_err());
    }
}
