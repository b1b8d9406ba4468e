//! The configuration of a host: one TOML file, environment variables over it, all of it checked before anything starts.
//!
//! [`Config::parse`] reads and checks what can be said of the text alone; [`Config::load`] also asks the machine: files,
//! cores. Both report every mistake at once.

mod api;
mod check;
mod drive;
mod environment;
mod host;
mod limits;
mod mistake;
mod parse;
mod print;
mod section;
mod telemetry;
#[cfg(test)]
mod tests;
mod units;
mod uuid;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::uuid::{parse_uuid, random_uuid};
pub use ::uuid::Uuid;
pub use api::{Api, Tls};
pub use limits::{KEYS as LIMIT_KEYS, Limits};
pub use mistake::{Mistake, Mistakes};
pub use telemetry::Telemetry;
pub use units::{format_duration, format_size};

/// The tenant of workers and endpoints that name none.
pub const DEFAULT_TENANT: &str = "default";
/// Serial number of subsystems that name none.
pub const DEFAULT_SERIAL: &str = "VIREO0001";
/// Model number of subsystems that name none.
pub const DEFAULT_MODEL: &str = "Vireo NVMe Controller";
/// I/O queue pairs of endpoints that say nothing.
pub const DEFAULT_QUEUES: u32 = 64;
/// MDTS in bytes of endpoints that say nothing.
pub const DEFAULT_MAX_TRANSFER: u32 = 1 << 20;
/// The manager's name: there is one on a host.
pub const MANAGER: &str = "m0";
/// Most bytes of the file: far above what the limits on its parts allow.
const MAX_FILE: u64 = 4 << 20;

/// A checked configuration. Every name that it refers to is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Handoff sockets; default directory of endpoints.
    pub runtime_dir: PathBuf,
    /// What must survive a restart.
    pub state_dir: PathBuf,
    /// Where the manager serves its gRPC API, and to whom.
    pub api: Api,
    /// Where metrics and traces go, and which commands are traced.
    pub telemetry: Telemetry,
    /// At least one.
    pub workers: Vec<Worker>,
    /// At least one.
    pub backends: Vec<Backend>,
    /// At least one.
    pub frontends: Vec<Frontend>,
    /// Block devices.
    pub bdevs: Vec<Bdev>,
    /// Subsystems with their namespaces.
    pub subsystems: Vec<Subsystem>,
    /// What clients connect to.
    pub endpoints: Vec<Endpoint>,
}

/// A worker process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Its name.
    pub name: String,
    /// The core that its polling thread is pinned to; not pinned if absent.
    pub core: Option<u32>,
    /// Whose endpoints it serves.
    pub tenant: String,
    /// Longest nap between two looks at mapped doorbells.
    pub max_nap: Duration,
}

/// A backend process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its name.
    pub name: String,
}

/// A frontend process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// Its name.
    pub name: String,
}

/// A block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bdev {
    /// Its name.
    pub name: String,
    /// The backend that serves it.
    pub backend: String,
    /// Bytes; absent for a file that is there already and keeps its size, and for a drive, which has its own.
    pub size: Option<u64>,
    /// Default block size in bytes: 512 or 4096; 0 for a drive's own.
    pub block_size: u32,
    /// What workers get of it.
    pub channel: Channel,
    /// Where the data is.
    pub driver: Driver,
}

/// What workers get of a bdev.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// The worker does the I/O itself.
    Lease,
    /// The backend does the I/O.
    Ring,
}

/// Where a bdev's data is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Nowhere.
    Null {
        /// Time until a request completes.
        latency: Duration,
    },
    /// In memory.
    Malloc,
    /// In a regular file or a block device.
    File {
        /// Its absolute path.
        path: PathBuf,
        /// It is made or grown if need be.
        create: bool,
        /// O_DIRECT.
        direct: bool,
        /// Writes are refused.
        read_only: bool,
    },
    /// On an NVMe drive: a physical one under VFIO, or another vfio-user target's.
    Nvme {
        /// `vfio-user:/path` or `pcie:0000:01:00.0`.
        target: String,
        /// The drive's namespace.
        nsid: u32,
        /// Writes are refused.
        read_only: bool,
        /// Completions are polled while requests are outstanding; otherwise the drive interrupts.
        polled: bool,
    },
}

impl Driver {
    /// Its name in the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Null { .. } => "null",
            Self::Malloc => "malloc",
            Self::File { .. } => "file",
            Self::Nvme { .. } => "nvme",
        }
    }

    /// True if writes are refused.
    pub fn is_read_only(&self) -> bool {
        matches!(self, Self::File { read_only: true, .. } | Self::Nvme { read_only: true, .. })
    }
}

/// An NVM subsystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subsystem {
    /// Its name.
    pub name: String,
    /// NVMe Qualified Name; the manager makes a lasting one if absent.
    pub nqn: Option<String>,
    /// Serial number (SN), at most 20 bytes.
    pub serial: String,
    /// Model number (MN), at most 40 bytes.
    pub model: String,
    /// The frontend in which all of its controllers live.
    pub frontend: String,
    /// By NSID.
    pub namespaces: Vec<Namespace>,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Namespace identifier, 1 to 256.
    pub nsid: u32,
    /// Its block device.
    pub bdev: String,
    /// What hosts know it by; one is made and kept where there is none.
    pub uuid: Option<Uuid>,
    /// What all controllers together may do on it.
    pub limits: Limits,
}

/// One PCI function with one controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its name.
    pub name: String,
    /// The subsystem that it belongs to.
    pub subsystem: String,
    /// Directory of the socket `cntrl`.
    pub path: PathBuf,
    /// How the guest rings.
    pub doorbells: Doorbells,
    /// Whose it is; its workers have the same tenant.
    pub tenant: String,
    /// Workers that may serve its queues, at least one.
    pub workers: Vec<String>,
    /// I/O queue pairs.
    pub queues: u32,
    /// MDTS in bytes, a power of two.
    pub max_transfer: u32,
    /// MSI-X vectors.
    pub vectors: u32,
    /// What its queues together may do.
    pub limits: Limits,
}

/// How the guest rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doorbells {
    /// The doorbell page is mapped into the guest.
    Mapped,
    /// Doorbell Buffer Config; the page is not mapped.
    Shadow,
}

/// The kinds of services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// vfio-user sockets, registers, admin queues.
    Frontend,
    /// I/O queues.
    Worker,
    /// Block devices.
    Backend,
    /// Desired state.
    Manager,
}

impl Kind {
    /// Its name, as in `worker-w0.sock` and `vireo-worker`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Frontend => "frontend",
            Self::Worker => "worker",
            Self::Backend => "backend",
            Self::Manager => "manager",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Config {
    /// Reads and checks the file and the environment, then the machine.
    ///
    /// # Errors
    /// Every mistake, one line each.
    pub fn load(path: &Path) -> Result<Self, Mistakes> {
        Self::load_with(path, &[])
    }

    /// [`Config::load`] with further overrides, which come after those of the environment.
    pub fn load_with(path: &Path, overrides: &[(String, String)]) -> Result<Self, Mistakes> {
        let config = Self::read_with(path, overrides)?;
        let mistakes = host::check(&config);
        if mistakes.is_empty() {
            Ok(config)
        } else {
            Err(Mistakes { source: path.display().to_string(), mistakes })
        }
    }

    /// What of the configuration this machine lacks: files, cores, users.
    pub fn check_machine(&self) -> Vec<Mistake> {
        host::check(self)
    }

    /// [`Config::load`] without a look at the machine: for a service that starts again while a file or a core that does
    /// not concern it is away.
    pub fn read(path: &Path) -> Result<Self, Mistakes> {
        Self::read_with(path, &[])
    }

    fn read_with(path: &Path, overrides: &[(String, String)]) -> Result<Self, Mistakes> {
        let source = path.display().to_string();
        let unreadable = |wrong: String| Mistakes {
            source: source.clone(),
            mistakes: vec![Mistake::new("", wrong, "name a readable configuration file")],
        };
        let length =
            std::fs::metadata(path).map_err(|e| unreadable(format!("cannot be read: {e}")));
        if length?.len() > MAX_FILE {
            return Err(unreadable(format!("is longer than {}", format_size(MAX_FILE))));
        }
        let text = std::fs::read_to_string(path)
            .map_err(|error| unreadable(format!("cannot be read: {error}")))?;
        let mut variables: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        variables.extend(overrides.iter().cloned());
        Self::parse(&text, variables).map_err(|mistakes| Mistakes { source, mistakes })
    }

    /// Reads and checks a configuration's text with environment variables over it.
    ///
    /// # Errors
    /// Every mistake, one line each.
    pub fn parse(
        text: &str,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Vec<Mistake>> {
        let notes = section::Notes::default();
        let mut table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error
                .span()
                .map_or(1, |span| text.get(..span.start).unwrap_or(text).matches('\n').count() + 1);
            vec![Mistake::new(
                format!("line {line}"),
                format!("is not TOML: {}", error.message()),
                "correct this line",
            )]
        })?;
        environment::overlay(&mut table, variables, &notes);
        let config = parse::config(&table, &notes);
        check::references(&config, &notes);
        let mistakes = notes.into_inner();
        if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
    }

    /// The handoff socket of a service.
    pub fn socket(&self, kind: Kind, name: &str) -> PathBuf {
        self.runtime_dir.join(format!("{kind}-{name}.sock"))
    }

    /// All services in the order of their start: backends, workers, frontends, the manager.
    pub fn services(&self) -> Vec<(Kind, &str)> {
        let backends = self.backends.iter().map(|backend| (Kind::Backend, backend.name.as_str()));
        let workers = self.workers.iter().map(|worker| (Kind::Worker, worker.name.as_str()));
        let frontends = self.frontends.iter().map(|f| (Kind::Frontend, f.name.as_str()));
        backends.chain(workers).chain(frontends).chain([(Kind::Manager, MANAGER)]).collect()
    }

    /// The worker of this name.
    pub fn worker(&self, name: &str) -> Option<&Worker> {
        self.workers.iter().find(|worker| worker.name == name)
    }

    /// The bdev of this name.
    pub fn bdev(&self, name: &str) -> Option<&Bdev> {
        self.bdevs.iter().find(|bdev| bdev.name == name)
    }

    /// The subsystem of this name.
    pub fn subsystem(&self, name: &str) -> Option<&Subsystem> {
        self.subsystems.iter().find(|subsystem| subsystem.name == name)
    }
}
