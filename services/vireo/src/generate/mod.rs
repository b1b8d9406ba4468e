//! `vireo generate`: what a package and systemd need made of the programs and of a configuration: man pages, shell
//! completions, and units. Hidden, because no person types it.

mod man;
mod units;

use anyhow::Context;
use clap::{Args, Command, Subcommand};
use clap_complete::Shell;
use service::config::Config;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// `vireo generate`: what to make, and where.
#[derive(Debug, Args)]
pub struct GenerateArguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Man pages of all of Vireo's programs.
    Man {
        /// Where to; sections lie side by side.
        directory: PathBuf,
    },
    /// Completions for bash, zsh and fish, each under the name that its shell looks for.
    Completions {
        /// Where to.
        directory: PathBuf,
    },
    /// What systemd has to know of a configuration: which services, which files they may open, which memory is near.
    Units {
        /// The host's configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Where to: the first directory that systemd.generator(7) names.
        directory: PathBuf,
    },
}

/// Makes what was asked for. `command` is the whole command line of `vireo`, for its man pages and completions.
///
/// # Errors
/// A file cannot be written. A configuration with mistakes is told line by line, and gives the exit status of a wrong
/// configuration.
pub fn run(arguments: &GenerateArguments, command: Command) -> anyhow::Result<ExitCode> {
    match &arguments.what {
        What::Man { directory } => {
            prepare(directory)?;
            man::write(command, directory)?;
        }
        What::Completions { directory } => {
            prepare(directory)?;
            completions(command, directory)?;
        }
        What::Units { config, directory } => {
            // Without a look at the machine: at boot, disks are not there yet.
            let config = match Config::read(config) {
                Ok(config) => config,
                Err(mistakes) => return Ok(service::start::refuse(&mistakes)),
            };
            let nodes = units::Nodes::of(Path::new("/sys/devices/system/node"));
            units::write(&config, &nodes, directory)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn completions(mut command: Command, directory: &Path) -> anyhow::Result<()> {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, "vireo", directory)
            .with_context(|| format!("write the completions for {shell}"))?;
    }
    Ok(())
}

fn prepare(directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))
}

fn prepare_unit_directory(directory: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(directory);
    made.with_context(|| format!("create {}", directory.display()))
}
