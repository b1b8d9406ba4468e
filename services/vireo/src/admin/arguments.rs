//! What a person types.

pub use super::fault::FaultVerb;
pub use super::limits::{LimitArguments, LimitVerb, NamespacePauseVerb, PauseVerb};
pub use super::trace::TraceVerb;
use crate::perf::units::{parse_duration, parse_size};
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// Where all commands' help has what is the same for all.
const HEADING: &str = "The manager, and its answer";

/// Commands that the manager's API answers.
#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// The target as a whole: its processes, what is missing, a reload of its file.
    Target(Verb<TargetVerb>),
    /// Block devices.
    Volume(Verb<VolumeVerb>),
    /// NVM subsystems.
    Subsystem(Verb<SubsystemVerb>),
    /// Namespaces of subsystems.
    Namespace(Verb<NamespaceVerb>),
    /// Controllers: endpoints, and who is connected.
    Controller(Verb<ControllerVerb>),
    /// Workers: the processes that serve I/O queues.
    Worker(Verb<WorkerVerb>),
    /// Counters and latencies.
    Stats(Verb<StatsVerb>),
    /// Which commands workers trace, and captures of the next ones.
    Trace(Verb<TraceVerb>),
    /// Faults injected into volumes on purpose, where the configuration allows them.
    Fault(Verb<FaultVerb>),
    /// What happens, as it happens, one line each.
    Events {
        /// Only events of these resources (`controllers/vm0`).
        names: Vec<String>,
        /// First those after this sequence number that are kept; 0 for all of them.
        #[arg(long, value_name = "SEQUENCE", default_value_t = 0)]
        after: u64,
        /// End after so many events instead of at Ctrl-C.
        #[arg(long, value_name = "N")]
        count: Option<u64>,
        /// How to reach the manager.
        #[command(flatten)]
        access: Access,
    },
    /// Make what a document of `vireo export` names and is not there; grow volumes, and set limits, to what it says. Nothing
    /// is taken away.
    Apply {
        /// The document, YAML or JSON; `-` is standard input.
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// Say what would be done, and do nothing.
        #[arg(long)]
        dry_run: bool,
        /// How to reach the manager.
        #[command(flatten)]
        access: Access,
    },
    /// Print everything that was made through the API as a document for `vireo apply`, with the names by which guests and
    /// other clients know it.
    Export {
        /// Print what the configuration file names as well.
        #[arg(long)]
        all: bool,
        /// How to reach the manager.
        #[command(flatten)]
        access: Access,
    },
}

/// A verb, and how to reach the manager.
#[derive(Debug, Args)]
pub struct Verb<V: Subcommand> {
    /// What to do.
    #[command(subcommand)]
    pub verb: V,
    /// How to reach the manager.
    #[command(flatten)]
    pub access: Access,
}

/// How to reach the manager, and how to show its answers.
#[derive(Debug, Args)]
pub struct Access {
    /// The manager's API socket; /run/vireo/api.sock if nothing says otherwise.
    #[arg(long, global = true, value_name = "SOCKET", env = "VIREO_API", hide_env_values = true, help_heading = HEADING)]
    pub api: Option<PathBuf>,
    /// The runtime directory with the socket.
    #[arg(long, global = true, value_name = "DIRECTORY", conflicts_with = "api", help_heading = HEADING)]
    pub runtime_dir: Option<PathBuf>,
    /// The configuration file that names the socket.
    #[arg(long, global = true, value_name = "FILE", conflicts_with_all = ["api", "runtime_dir"], help_heading = HEADING)]
    pub config: Option<PathBuf>,
    /// How to show the answer.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table, help_heading = HEADING)]
    pub output: Format,
}

/// How answers are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For a person.
    Table,
    /// For programs; answers of the API as protobuf has them in JSON.
    Json,
    /// The same as YAML.
    Yaml,
}

/// What every change takes.
#[derive(Debug, Args)]
pub struct Change {
    /// Check everything, change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// An identifier of your choice: the same command with the same identifier again changes nothing more.
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    pub request_id: String,
}

/// What every deletion takes.
#[derive(Debug, Args)]
pub struct Deletion {
    /// Its name, as `list` shows it.
    pub name: String,
    /// If it is not there, that is a success.
    #[arg(long)]
    pub allow_missing: bool,
    /// Only if it has not changed: its etag, as `get -o json` shows it.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub etag: String,
    #[command(flatten)]
    pub change: Change,
}

/// Of `vireo target`.
#[derive(Debug, Subcommand)]
pub enum TargetVerb {
    /// Show how it is; exit status 1 if something is missing.
    Get,
    /// Take over changes of the configuration file.
    Reload {
        /// Check the file, change nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

/// Of `vireo volume`.
#[derive(Debug, Subcommand)]
pub enum VolumeVerb {
    /// Show all of them.
    List,
    /// Show one of them.
    Get {
        /// Its name.
        name: String,
    },
    /// Make one.
    Create(Box<NewVolume>),
    /// Make it larger while guests use it.
    Grow {
        /// Its name.
        name: String,
        /// Its new size: bytes, or `2GiB`.
        #[arg(value_parser = parse_size)]
        size: u64,
        /// Only if it has not changed: its etag, as `get -o json` shows it.
        #[arg(long, default_value = "", hide_default_value = true)]
        etag: String,
        #[command(flatten)]
        change: Change,
    },
    /// Delete one that no namespace is on.
    Delete(Deletion),
}

/// A volume to be made.
#[derive(Debug, Args)]
pub struct NewVolume {
    /// Its name.
    pub name: String,
    /// Where the data is.
    #[arg(long, value_enum)]
    pub driver: Driver,
    /// Its size: bytes, or `2GiB`. A file may keep the size it has; a drive has its own.
    #[arg(long, value_parser = parse_size, default_value = "0", hide_default_value = true)]
    pub size: u64,
    /// Bytes of a logical block: 512 (if not given) or 4096. A drive has its own.
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub block_size: u32,
    /// Who does the I/O. Lease if not given; files always have the ring.
    #[arg(long, value_enum)]
    pub channel: Option<Channel>,
    /// The backend process that serves it; the first if not given.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub backend: String,
    /// null: time until a request completes (`20us`).
    #[arg(long, value_parser = parse_duration)]
    pub latency: Option<Duration>,
    /// file: its absolute path.
    #[arg(long, required_if_eq("driver", "file"))]
    pub path: Option<PathBuf>,
    /// file: make it, or grow it to the size, if need be.
    #[arg(long)]
    pub create: bool,
    /// file: use the page cache.
    #[arg(long)]
    pub buffered: bool,
    /// file, nvme: refuse writes.
    #[arg(long)]
    pub read_only: bool,
    /// nvme: `pcie:0000:01:00.0` or `vfio-user:/run/other/vm0`.
    #[arg(long, required_if_eq("driver", "nvme"))]
    pub drive: Option<String>,
    /// nvme: the drive's namespace; 1 if not given.
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub nsid: u32,
    /// nvme: poll for completions.
    #[arg(long)]
    pub polled: bool,
    #[command(flatten)]
    pub change: Change,
}

/// Kinds of volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Driver {
    /// No data.
    Null,
    /// Memory of the host.
    Malloc,
    /// A regular file or a block device.
    File,
    /// A namespace of an NVMe drive.
    Nvme,
}

/// What workers get of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Channel {
    /// Workers themselves: faster.
    Lease,
    /// The backend process.
    Ring,
}

/// Of `vireo subsystem`.
#[derive(Debug, Subcommand)]
pub enum SubsystemVerb {
    /// Show all of them.
    List,
    /// Show one of them.
    Get {
        /// Its name.
        name: String,
    },
    /// Make one.
    Create {
        /// Its name.
        name: String,
        /// NVMe Qualified Name; one is made if not given.
        #[arg(long, default_value = "", hide_default_value = true)]
        nqn: String,
        /// Serial number, at most 20 characters.
        #[arg(long, default_value = "", hide_default_value = true)]
        serial: String,
        /// Model number, at most 40 characters.
        #[arg(long, default_value = "", hide_default_value = true)]
        model: String,
        /// The frontend process of its controllers; the first if not given.
        #[arg(long, default_value = "", hide_default_value = true)]
        frontend: String,
        #[command(flatten)]
        change: Change,
    },
    /// Delete one.
    Delete {
        #[command(flatten)]
        deletion: Deletion,
        /// Its namespaces and controllers too: connected guests lose their drive.
        #[arg(long)]
        force: bool,
    },
}

/// Of `vireo namespace`.
#[derive(Debug, Subcommand)]
pub enum NamespaceVerb {
    /// Show all of them, or those of one subsystem.
    List {
        /// The subsystem.
        #[arg(default_value = "-", hide_default_value = true)]
        subsystem: String,
    },
    /// Show one of them.
    Get {
        /// `SUBSYSTEM/NSID`.
        name: String,
    },
    /// Make one on a volume; guests see it at once.
    Create {
        /// The subsystem.
        subsystem: String,
        /// The volume with its data.
        #[arg(long)]
        volume: String,
        /// 1 to 256; the lowest that is free if not given.
        #[arg(long, default_value = "", hide_default_value = true)]
        nsid: String,
        #[command(flatten)]
        limits: LimitArguments,
        #[command(flatten)]
        change: Change,
    },
    /// Limit what all controllers together do on one (`SUBSYSTEM/NSID`) in a second, while guests use it.
    Limit(LimitVerb),
    /// Hold I/O of one (`SUBSYSTEM/NSID`) on all controllers, and wait until none is in flight; other namespaces go on.
    Pause(NamespacePauseVerb),
    /// Let one that is paused (`SUBSYSTEM/NSID`) go on.
    Resume {
        /// Its name.
        name: String,
        /// Check everything, change nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Delete one (`SUBSYSTEM/NSID`); guests see it go.
    Delete(Deletion),
}

/// Of `vireo controller`.
#[derive(Debug, Subcommand)]
pub enum ControllerVerb {
    /// Show all of them.
    List,
    /// Show one of them.
    Get {
        /// Its name.
        name: String,
    },
    /// Make one, and listen for its client.
    Create(Box<NewController>),
    /// Limit what one does in a second, while its guest runs.
    Limit(LimitVerb),
    /// Stop I/O of one, and wait until none is in flight; its guest waits.
    Pause(PauseVerb),
    /// Let one that is paused go on.
    Resume {
        /// Its name.
        name: String,
        /// Check everything, change nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Delete one.
    Delete {
        #[command(flatten)]
        deletion: Deletion,
        /// Even if a client is connected: it loses its drive.
        #[arg(long)]
        force: bool,
    },
}

/// A controller to be made.
#[derive(Debug, Args)]
pub struct NewController {
    /// Its name.
    pub name: String,
    /// Its subsystem.
    #[arg(long)]
    pub subsystem: String,
    /// Directory of its socket; the name in the runtime directory if not given.
    #[arg(long)]
    pub path: Option<PathBuf>,
    /// How the guest tells of new commands; mapped if not given.
    #[arg(long, value_enum)]
    pub doorbells: Option<Doorbells>,
    /// Whose it is: workers of this tenant alone serve it.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub tenant: String,
    /// A worker that may serve it, once for each; all of the tenant's if not given.
    #[arg(long = "worker", value_name = "WORKER")]
    pub workers: Vec<String>,
    /// I/O queue pairs, 1 to 127; 64 if not given.
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub queues: u32,
    /// MSI-X vectors, 1 to 128; one more than queues if not given.
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub vectors: u32,
    /// Largest transfer: a power of two from `8KiB` to `4MiB`; `1MiB` if not given.
    #[arg(long, value_parser = parse_size, default_value = "0", hide_default_value = true)]
    pub max_transfer: u64,
    #[command(flatten)]
    pub limits: LimitArguments,
    #[command(flatten)]
    pub change: Change,
}

/// How a guest tells of new entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Doorbells {
    /// By a page that a worker polls: lowest latency.
    Mapped,
    /// By memory of its own (Doorbell Buffer Config): a worker without work sleeps for good.
    Shadow,
}

/// Of `vireo worker`.
#[derive(Debug, Subcommand)]
pub enum WorkerVerb {
    /// Show all of them.
    List,
    /// Show one of them.
    Get {
        /// Its name.
        name: String,
    },
}

/// Of `vireo stats`.
#[derive(Debug, Subcommand)]
pub enum StatsVerb {
    /// Show counters and latencies so far.
    Get {
        /// Resources (`controllers/vm0`); every controller if not given.
        names: Vec<String>,
    },
    /// Show rates, again and again until Ctrl-C.
    Watch {
        /// Resources (`controllers/vm0`); every controller if not given.
        names: Vec<String>,
        /// Time between two lines.
        #[arg(long, value_parser = parse_duration, default_value = "1s")]
        interval: Duration,
        /// End after so many intervals.
        #[arg(long, value_name = "N")]
        count: Option<u64>,
    },
    /// Count from zero again.
    Reset {
        /// Resources (`controllers/vm0`); every controller if not given.
        names: Vec<String>,
        /// Check everything, change nothing.
        #[arg(long)]
        dry_run: bool,
    },
}
