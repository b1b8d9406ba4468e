//! `vireo`: what a person types.

#![forbid(unsafe_code)]

use anyhow::{Context, anyhow};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use service::config::Config;
use service::control::ControlError;
use service::shutdown::Shutdown;
use service::start::{EXIT_CONFIGURATION, EXIT_FAILURE, refuse, set_limits};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use vireo::admin::{self, AdminCommand};
use vireo::doctor::{self, DoctorArguments};
use vireo::generate::{self, GenerateArguments};
use vireo::identify::{self, IdentifyArguments};
use vireo::perf::{self, PerfArguments};
use vireo::top::{self, TopArguments};
use vireo::{client, status, up};

/// Virtual NVMe controllers for virtual machines over vfio-user.
#[derive(Parser)]
#[command(version)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start all services of a configuration and keep them running until Ctrl-C.
    Up {
        /// The host's configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Sockets and endpoints here instead of the configuration's runtime_dir.
        #[arg(long, value_name = "DIRECTORY")]
        runtime_dir: Option<PathBuf>,
    },
    /// Look at a configuration; say what is wrong with it. Starts and changes nothing.
    Check {
        /// The host's configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Print the effective configuration, defaults and environment included.
        #[arg(long)]
        print: bool,
    },
    /// Have the running services take over changes of the configuration file.
    Reload {
        #[command(flatten)]
        host: Host,
    },
    /// Show how the running services are; exit status 1 if something is missing.
    Status {
        #[command(flatten)]
        host: Host,
        /// How to show it.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Put load on an NVMe controller and show what it does with it.
    Perf(Box<PerfArguments>),
    /// Describe an NVMe controller, its namespaces, features and logs.
    Identify(Box<IdentifyArguments>),
    /// Look at this machine; say what stands in the way, and the remedy.
    Doctor(DoctorArguments),
    /// Show what workers, controllers and queues do at the moment.
    Top(TopArguments),
    #[command(flatten)]
    Admin(AdminCommand),
    /// Make man pages, completions and units.
    #[command(hide = true)]
    Generate(GenerateArguments),
}

/// Which host's services.
#[derive(Args)]
struct Host {
    /// The runtime directory that the services run in.
    #[arg(long, value_name = "DIRECTORY")]
    runtime_dir: Option<PathBuf>,
    /// The configuration file that names it.
    #[arg(long, value_name = "FILE", conflicts_with = "runtime_dir")]
    config: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Table,
    Json,
}

fn main() -> ExitCode {
    let command = match CommandLine::parse().command {
        // These bring threads of their own, and talk to no service.
        Command::Perf(arguments) => return perf::run(&arguments),
        Command::Identify(arguments) => return identify::run(&arguments),
        Command::Doctor(arguments) => return doctor::run(&arguments),
        Command::Top(arguments) => return top::run(arguments),
        command => command,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result =
        runtime.context("start the runtime").and_then(|runtime| runtime.block_on(run(command)));
    result.unwrap_or_else(|error| {
        eprintln!("vireo: {error:#}");
        ExitCode::from(EXIT_FAILURE)
    })
}

async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up { config, runtime_dir } => run_up(&config, runtime_dir.as_deref()).await,
        Command::Check { config, print } => {
            let config = match Config::load(&config) {
                Ok(config) => config,
                Err(mistakes) => return Ok(refuse(&mistakes)),
            };
            if print {
                print!("{}", config.to_toml());
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Admin(command) => admin::run(command).await,
        Command::Perf(arguments) => Ok(perf::run(&arguments)),
        Command::Identify(arguments) => Ok(identify::run(&arguments)),
        Command::Doctor(arguments) => Ok(doctor::run(&arguments)),
        Command::Top(arguments) => Ok(top::run(arguments)),
        Command::Generate(arguments) => generate::run(&arguments, CommandLine::command()),
        Command::Reload { host } => reload(&host).await,
        Command::Status { host, output } => {
            let status = match host.socket() {
                Ok(socket) => client::status(&socket).await.map_err(absent)?,
                Err(code) => return Ok(code),
            };
            match output {
                Output::Table => print!("{}", status::table(&status)),
                Output::Json => println!("{:#}", status::json(&status)),
            }
            Ok(if status.ready { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILURE) })
        }
    }
}

async fn run_up(file: &Path, runtime_dir: Option<&Path>) -> anyhow::Result<ExitCode> {
    let mut overrides = Vec::new();
    if let Some(directory) = runtime_dir {
        let directory = std::path::absolute(directory).context("--runtime-dir")?;
        let directory = directory.to_str().context("--runtime-dir is not UTF-8")?.to_owned();
        overrides.push(("VIREO__RUNTIME_DIR".to_owned(), directory));
    }
    let config = match Config::load_with(file, &overrides) {
        Ok(config) => config,
        Err(mistakes) => return Ok(refuse(&mistakes)),
    };
    let own = std::env::current_exe().context("find this program")?;
    let programs = own.parent().context("find this program's directory")?.to_owned();
    let file = std::path::absolute(file).context("--config")?;
    // Room for all that services have it keep; they inherit that no core is written.
    set_limits();
    let shutdown = Shutdown::listen().context("listen for signals")?;
    up::run(up::Options { file, config, programs }, shutdown).await?;
    Ok(ExitCode::SUCCESS)
}

async fn reload(host: &Host) -> anyhow::Result<ExitCode> {
    let result = match host.socket() {
        Ok(socket) => client::reload(&socket).await,
        Err(code) => return Ok(code),
    };
    let result = match result {
        Ok(result) => result,
        // The manager's own lines: each names its key. Nothing was changed.
        Err(ControlError::Refused(failure)) => {
            eprintln!("{failure}");
            return Ok(ExitCode::from(EXIT_CONFIGURATION));
        }
        Err(error) => return Err(absent(error)),
    };
    for change in &result.changes {
        println!("{change}");
    }
    if result.changes.is_empty() {
        println!("nothing to change");
    }
    for failure in &result.failures {
        eprintln!("failed so far: {failure}");
    }
    let failed = !result.failures.is_empty();
    Ok(if failed { ExitCode::from(EXIT_FAILURE) } else { ExitCode::SUCCESS })
}

/// Why the manager was not reached, and what helps.
fn absent(error: ControlError) -> anyhow::Error {
    let error = anyhow::Error::new(error);
    anyhow!(
        "{error:#}: is Vireo running? `vireo up` or vireo.target starts it; `--runtime-dir` or \
         `--config` say where it is"
    )
}

impl Host {
    fn socket(&self) -> Result<PathBuf, ExitCode> {
        match (&self.config, &self.runtime_dir) {
            (Some(file), _) => {
                Config::read(file).map(|config| client::socket_of(&config)).map_err(|m| refuse(&m))
            }
            (None, Some(directory)) => Ok(client::manager_socket(directory)),
            (None, None) => Ok(client::manager_socket(Path::new("/run/vireo"))),
        }
    }
}
