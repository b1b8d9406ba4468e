//! From tables to types, with defaults. A value with a mistake is noted and replaced by its default, so that what
//! depends on it is checked as well.

use super::api;
use super::drive;
use super::limits;
use super::section::{Notes, Section};
use super::telemetry;
use super::{
    Backend, Bdev, Channel, Config, DEFAULT_MAX_TRANSFER, DEFAULT_MODEL, DEFAULT_QUEUES,
    DEFAULT_SERIAL, DEFAULT_TENANT, Doorbells, Driver, Endpoint, Frontend, Namespace, Subsystem,
    Uuid, Worker, parse_uuid,
};
use std::path::PathBuf;
use std::time::Duration;

/// Longest name of a process: what the namespace rows of the controller segment hold of a backend's.
const MAX_NAME: usize = 32;
/// Longest name of a bdev, subsystem or endpoint: as long as resource identifiers are elsewhere (RFC 1034 3.1, AIP-122),
/// and within the 64 bytes that segments hold of a bdev's.
const MAX_OBJECT_NAME: usize = 63;
/// Most I/O queue pairs of a controller.
const MAX_QUEUES: u64 = ipc::layout::MAX_QUEUES as u64 - 1;
/// Most MSI-X vectors of a controller.
const MAX_VECTORS: u64 = ipc::layout::MAX_VECTORS as u64;
/// Most namespaces of a subsystem.
const MAX_NSID: u64 = ipc::layout::MAX_NAMESPACES as u64;
/// Smallest and largest MDTS: MDTS cannot say one page; a channel's list holds 4 MiB of scattered pages.
const TRANSFER: (u64, u64) = (8 << 10, 4 << 20);
const _: () = assert!(TRANSFER.1 as usize / 4096 < ipc::layout::channel::MAX_REQUEST_RANGES);
/// Longest nap that is allowed: a guest waits that long for its first command after a pause.
const MAX_NAP: Duration = Duration::from_millis(100);
/// Longest latency that a null bdev may feign: below the shortest time-out of a usual guest's driver.
const MAX_LATENCY: Duration = Duration::from_secs(10);
/// Longest serial and model number (NVMe Base 2.0c figure 275, SN and MN).
const SERIAL: usize = 20;
const MODEL: usize = 40;
/// Longest NQN (NVMe Base 2.0c 4.5).
const NQN: usize = 223;

pub(super) fn config(table: &toml::Table, notes: &Notes) -> Config {
    let root = Section::root(table, notes);
    let runtime_dir = root.path("runtime_dir").unwrap_or_else(|| PathBuf::from("/run/vireo"));
    let state_dir = root.path("state_dir").unwrap_or_else(|| PathBuf::from("/var/lib/vireo"));
    let api = api::parse(root.section("api"), &runtime_dir);
    let telemetry = telemetry::parse(root.section("telemetry"), &runtime_dir);
    let workers: Vec<Worker> = root.sections("worker").into_iter().map(worker).collect();
    let backends: Vec<Backend> = root
        .sections("backend")
        .into_iter()
        .map(|section| Backend { name: only_name(section, "b0") })
        .collect();
    let frontends: Vec<Frontend> = root
        .sections("frontend")
        .into_iter()
        .map(|section| Frontend { name: only_name(section, "f0") })
        .collect();
    for (key, count, example) in [
        ("worker", workers.len(), "w0"),
        ("backend", backends.len(), "b0"),
        ("frontend", frontends.len(), "f0"),
    ] {
        if count == 0 {
            root.wrong(
                key,
                "none is configured",
                format!("add [[{key}]] with name = \"{example}\""),
            );
        }
    }
    let backend = backends.first().map_or("", |backend| &backend.name);
    let frontend = frontends.first().map_or("", |frontend| &frontend.name);
    let bdevs = root.sections("bdev").into_iter().map(|s| bdev(s, backend)).collect();
    let subsystems =
        root.sections("subsystem").into_iter().map(|s| subsystem(s, frontend)).collect();
    let endpoints = root
        .sections("endpoint")
        .into_iter()
        .map(|section| endpoint(section, &runtime_dir, &workers))
        .collect();
    root.finish(&[]);
    Config {
        runtime_dir,
        state_dir,
        api,
        telemetry,
        workers,
        backends,
        frontends,
        bdevs,
        subsystems,
        endpoints,
    }
}

fn worker(section: Section<'_>) -> Worker {
    let worker = Worker {
        name: name(&section, "w0"),
        core: section.integer("core", 0..=4095).map(|core| core as u32),
        tenant: tenant(&section),
        max_nap: section
            .duration("max_nap", Duration::from_micros(1)..=MAX_NAP)
            .unwrap_or(Duration::from_micros(500)),
    };
    section.finish(&[]);
    worker
}

fn bdev(section: Section<'_>, first_backend: &str) -> Bdev {
    #[derive(Clone, Copy, PartialEq)]
    enum Choice {
        Null,
        Malloc,
        File,
        Nvme,
    }
    let words = [
        ("null", Choice::Null),
        ("malloc", Choice::Malloc),
        ("file", Choice::File),
        ("nvme", Choice::Nvme),
    ];
    let name = object_name(&section, "mem0");
    let known = section.choice("driver", &words);
    if !section.has("driver") {
        let right = "add driver = \"null\", \"malloc\", \"file\" or \"nvme\"";
        section.wrong("driver", "is missing", right);
    }
    let size = section.size("size");
    let block_size = match section.size("block_size") {
        None if known == Some(Choice::Nvme) => 0,
        None | Some(512) => 512,
        Some(4096) => 4096,
        Some(other) => {
            section.wrong("block_size", format!("{other} is not offered"), "write 512 or 4096");
            512
        }
    };
    let channels = [("lease", Channel::Lease), ("ring", Channel::Ring)];
    let wanted = section.choice("channel", &channels);
    let backend = section.text("backend").unwrap_or_else(|| first_backend.to_owned());
    let driver = match known.unwrap_or(Choice::Null) {
        Choice::Null => Driver::Null {
            latency: section
                .duration("latency", Duration::ZERO..=MAX_LATENCY)
                .unwrap_or(Duration::ZERO),
        },
        Choice::Malloc => Driver::Malloc,
        Choice::File => file(&section),
        Choice::Nvme => drive::parse(&section),
    };
    let is_drive = matches!(driver, Driver::Nvme { .. });
    let is_file = matches!(driver, Driver::File { .. });
    if is_file && wanted == Some(Channel::Lease) {
        section.wrong("channel", "a file has no lease", "write channel = \"ring\" or remove it");
    }
    if is_drive && section.has("size") {
        section.wrong("size", "a drive has its own size", "remove it");
    }
    if known.is_some() && !is_file && !is_drive && !section.has("size") {
        section.wrong("size", "is missing", "add size = \"256MiB\"");
    }
    let default = if is_file { Channel::Ring } else { Channel::Lease };
    let of_file = "driver = \"file\"";
    let elsewhere = [
        ("latency", "driver = \"null\""),
        ("path", of_file),
        ("create", of_file),
        ("direct", of_file),
        ("read_only", "driver = \"file\" or \"nvme\""),
        ("target", drive::CASE),
        ("nsid", drive::CASE),
        ("polled", drive::CASE),
    ];
    // With an unknown driver, any driver's keys may be meant.
    if known.is_none() {
        let _ = (file_keys(&section), section.text("latency"), drive::keys(&section));
    }
    section.finish(&elsewhere);
    Bdev { name, backend, size, block_size, channel: wanted.unwrap_or(default), driver }
}

fn file(section: &Section<'_>) -> Driver {
    if !section.has("path") {
        section.wrong("path", "is missing", "add path = \"/...\" of a file or a block device");
    }
    let path = section.path("path").unwrap_or_default();
    let create = section.boolean("create").unwrap_or(false);
    let direct = section.boolean("direct").unwrap_or(true);
    let read_only = section.boolean("read_only").unwrap_or(false);
    if create && read_only {
        section.wrong("create", "a read-only file is not made", "remove create or read_only");
    }
    if create && !section.has("size") {
        section.wrong("size", "is missing where create = true", "add size = \"256MiB\"");
    }
    Driver::File { path, create, direct, read_only }
}

fn file_keys(section: &Section<'_>) -> impl Sized {
    let booleans = ["create", "direct", "read_only"].map(|key| section.boolean(key));
    (section.path("path"), booleans)
}

fn subsystem(section: Section<'_>, first_frontend: &str) -> Subsystem {
    let name = object_name(&section, "s0");
    let serial = ascii(&section, "serial", SERIAL).unwrap_or_else(|| DEFAULT_SERIAL.to_owned());
    let model = ascii(&section, "model", MODEL).unwrap_or_else(|| DEFAULT_MODEL.to_owned());
    let nqn = section.text("nqn");
    if let Some(nqn) = &nqn
        && (!nqn.starts_with("nqn.") || nqn.len() > NQN)
    {
        let right = format!("write nqn.<yyyy-mm>.<domain>:<name>, at most {NQN} bytes");
        section.wrong("nqn", format!("\"{nqn}\" is not an NQN"), right);
    }
    let frontend = section.text("frontend").unwrap_or_else(|| first_frontend.to_owned());
    let mut namespaces: Vec<Namespace> = Vec::new();
    for inner in section.sections("namespace") {
        if !inner.has("nsid") {
            inner.wrong("nsid", "is missing", format!("add nsid = {}", namespaces.len() + 1));
        }
        let nsid = inner.integer("nsid", 1..=MAX_NSID);
        let bdev = inner.required("bdev", "mem0");
        let uuid = uuid(&inner);
        let limits = limits::parse(&inner);
        if let Some(nsid) = nsid.map(|nsid| nsid as u32) {
            if namespaces.iter().any(|namespace| namespace.nsid == nsid) {
                inner.wrong("nsid", format!("{nsid} is there already"), "write another number");
            } else {
                let bdev = bdev.unwrap_or_default();
                namespaces.push(Namespace { nsid, bdev, uuid, limits });
            }
        }
        inner.finish(&[]);
    }
    section.finish(&[]);
    Subsystem { name, nqn, serial, model, frontend, namespaces }
}

/// A namespace's UUID, if it has one of its own.
fn uuid(section: &Section<'_>) -> Option<Uuid> {
    let text = section.text("uuid")?;
    let uuid = parse_uuid(&text);
    if uuid.is_none() {
        let right = "write 32 digits and small letters a to f as in \
                     123e4567-e89b-42d3-a456-426614174000, or nothing for one that is made";
        section.wrong("uuid", format!("\"{text}\" is not a UUID"), right);
    }
    uuid
}

fn endpoint(section: Section<'_>, runtime_dir: &std::path::Path, workers: &[Worker]) -> Endpoint {
    let name = object_name(&section, "vm0");
    let subsystem = section.required("subsystem", "s0").unwrap_or_default();
    let path = section.path("path").unwrap_or_else(|| runtime_dir.join(&name));
    let words = [("mapped", Doorbells::Mapped), ("shadow", Doorbells::Shadow)];
    let doorbells = section.choice("doorbells", &words).unwrap_or(Doorbells::Mapped);
    let tenant = tenant(&section);
    let all = || workers.iter().filter(|w| w.tenant == tenant).map(|w| w.name.clone()).collect();
    let named = section.texts("workers");
    let chosen: Vec<String> = named.clone().unwrap_or_else(all);
    if chosen.is_empty() {
        match named {
            Some(_) => section.wrong("workers", "is empty", "name at least one worker"),
            None if workers.is_empty() => {}
            None => section.wrong(
                "tenant",
                format!("no worker serves tenant \"{tenant}\""),
                format!("add a [[worker]] with tenant = \"{tenant}\""),
            ),
        }
    }
    let queues = section.integer("queues", 1..=MAX_QUEUES).unwrap_or(DEFAULT_QUEUES.into());
    let max_transfer = section
        .power_of_two("max_transfer", TRANSFER.0..=TRANSFER.1)
        .unwrap_or(DEFAULT_MAX_TRANSFER.into());
    let vectors = section.integer("vectors", 1..=MAX_VECTORS).unwrap_or(queues + 1);
    let limits = limits::parse(&section);
    section.finish(&[]);
    Endpoint {
        name,
        subsystem,
        path,
        doorbells,
        tenant,
        workers: chosen,
        queues: queues as u32,
        max_transfer: max_transfer as u32,
        vectors: vectors as u32,
        limits,
    }
}

fn only_name(section: Section<'_>, example: &str) -> String {
    let name = name(&section, example);
    section.finish(&[]);
    name
}

/// A process's name: part of socket paths, of environment variables and of shared memory.
fn name(section: &Section<'_>, example: &str) -> String {
    name_within(section, example, MAX_NAME)
}

/// The name of something that a process serves.
fn object_name(section: &Section<'_>, example: &str) -> String {
    name_within(section, example, MAX_OBJECT_NAME)
}

fn name_within(section: &Section<'_>, example: &str, longest: usize) -> String {
    let Some(name) = section.required("name", example) else { return String::new() };
    check_word(section, "name", &name, longest);
    name
}

fn tenant(section: &Section<'_>) -> String {
    let tenant = section.text("tenant").unwrap_or_else(|| DEFAULT_TENANT.to_owned());
    check_word(section, "tenant", &tenant, MAX_NAME);
    tenant
}

fn check_word(section: &Section<'_>, key: &str, word: &str, longest: usize) {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let starts_well = word.starts_with(|c: char| c.is_ascii_alphanumeric());
    if word.len() > longest || !starts_well || !word.chars().all(allowed) {
        let right = format!(
            "write 1 to {longest} letters, digits, '-', '_' or '.', a letter or digit first"
        );
        section.wrong(key, format!("\"{word}\" is not a name"), right);
    }
}

fn ascii(section: &Section<'_>, key: &'static str, length: usize) -> Option<String> {
    let text = section.text(key)?;
    // NVMe Base 2.0c 1.5: ASCII strings are 20h to 7Eh.
    let fits =
        (1..=length).contains(&text.len()) && text.bytes().all(|b| (0x20..=0x7E).contains(&b));
    if !fits {
        let right = format!("write 1 to {length} printable ASCII characters");
        section.wrong(key, format!("\"{text}\" does not fit"), right);
    }
    Some(text)
}
