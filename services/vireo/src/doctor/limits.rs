//! What this process and its cgroup may use: descriptors, locked memory, processor time, memory.

use super::finding::{Finding, plural};
use super::machine::Machine;
use super::units;
use crate::perf::units::show_size;
use service::config::{Config, Driver, Endpoint, Kind};

/// Descriptors of a process before it has a controller.
const BASE_FILES: u64 = 256;
/// Descriptors of a controller beside its interrupts: memory, segments, sockets.
const CONTROLLER_FILES: u64 = 64;
/// Descriptors of a bdev in its backend, and again of each worker's channel to it.
const CHANNEL_FILES: u64 = 8;
/// Bit of CAP_IPC_LOCK, which lifts the limit on locked memory.
const IPC_LOCK: u32 = 14;

/// Looks at it.
pub fn check(machine: &Machine, config: Option<&Config>) -> Vec<Finding> {
    let mut findings = vec![files(machine, config)];
    findings.extend(locked_memory(machine, config));
    findings.push(processor_time(machine, config));
    findings.extend(memory(machine, config));
    findings
}

/// A hard limit by its line in /proc/self/limits; `None` if there is none, or it is not told.
fn hard_limit(machine: &Machine, line: &str) -> Option<u64> {
    let values = machine.field("/proc/self/limits", line)?;
    values.split_whitespace().nth(1)?.parse().ok()
}

/// A process, and the descriptors that it may need.
struct Needs {
    process: String,
    unit: String,
    files: u64,
}

/// What each process needs, the most first.
fn needs(config: &Config) -> Vec<Needs> {
    let controllers = |serves: &dyn Fn(&Endpoint) -> bool| -> u64 {
        let endpoints = config.endpoints.iter().filter(|endpoint| serves(endpoint));
        endpoints.map(|endpoint| u64::from(endpoint.vectors) + CONTROLLER_FILES).sum()
    };
    let workers = config.workers.len() as u64;
    let needs = config.services().into_iter().map(|(kind, name)| {
        let more = match kind {
            Kind::Frontend => controllers(&|endpoint| {
                config.subsystem(&endpoint.subsystem).is_some_and(|found| found.frontend == name)
            }),
            Kind::Worker => controllers(&|endpoint| endpoint.workers.iter().any(|w| w == name)),
            Kind::Backend => {
                let bdevs = config.bdevs.iter().filter(|bdev| bdev.backend == name).count() as u64;
                bdevs * (1 + workers) * CHANNEL_FILES
            }
            Kind::Manager => 0,
        };
        let unit = match kind {
            Kind::Manager => "vireo-manager.service".to_owned(),
            _ => format!("vireo-{kind}@{name}.service"),
        };
        Needs { process: format!("{kind} {name}"), unit, files: BASE_FILES + more }
    });
    let mut needs: Vec<Needs> = needs.collect();
    needs.sort_by_key(|needs| std::cmp::Reverse(needs.files));
    needs
}

/// The limit of a process: its unit's, if the units are installed, else that of who would start it here; `None` if there
/// is none.
fn limit(machine: &Machine, unit: &str, key: &str, line: &str) -> Option<u64> {
    let of_unit =
        units::are_installed(machine).then(|| units::setting(machine, unit, key)).flatten();
    match of_unit {
        // `SOFT:HARD` or one for both; a word is infinity.
        Some(value) => value.rsplit(':').next()?.parse().ok(),
        None => hard_limit(machine, line),
    }
}

fn files(machine: &Machine, config: Option<&Config>) -> Finding {
    let check = "open files";
    let needs = config.map(needs).unwrap_or_default();
    let Some(most) = needs.first() else {
        let found = match hard_limit(machine, "Max open files") {
            Some(limit) => format!("{limit} are allowed"),
            None => "without a limit".to_owned(),
        };
        return Finding::ok(check, found);
    };
    let limit = |needs: &Needs| limit(machine, &needs.unit, "LimitNOFILE", "Max open files");
    let is_short = |needs: &&Needs| limit(needs).is_some_and(|limit| limit < needs.files);
    if let Some(short) = needs.iter().find(is_short) {
        let allowed = limit(short).unwrap_or(0);
        return Finding::problem(
            check,
            format!("{allowed} are allowed, and {} needs about {}", short.process, short.files),
            format!(
                "ulimit -Hn {}, or LimitNOFILE= by systemctl edit {}",
                short.files.next_power_of_two() * 2,
                short.unit
            ),
        );
    }
    let found = match limit(most) {
        Some(limit) => {
            format!("{limit} are allowed, {} needs about {}", most.process, most.files)
        }
        None => "without a limit".to_owned(),
    };
    Finding::ok(check, found)
}

/// Only drives under VFIO pin guests' memory.
fn locked_memory(machine: &Machine, config: Option<&Config>) -> Option<Finding> {
    let check = "locked memory";
    let is_pinning = |driver: &Driver| matches!(driver, Driver::Nvme { target, .. } if target.starts_with("pcie:"));
    let bdev = config?.bdevs.iter().find(|bdev| is_pinning(&bdev.driver))?;
    let capabilities = machine.field("/proc/self/status", "CapEff").unwrap_or_default();
    let capabilities = u64::from_str_radix(&capabilities, 16).unwrap_or(0);
    let unit = format!("vireo-backend@{}.service", bdev.backend);
    Some(match limit(machine, &unit, "LimitMEMLOCK", "Max locked memory") {
        Some(limit) if capabilities >> IPC_LOCK & 1 == 0 => Finding::problem(
            check,
            format!(
                "{} are allowed, and the drive of bdev {} has guests' memory locked",
                show_size(limit as f64),
                bdev.name
            ),
            format!("ulimit -l unlimited, or LimitMEMLOCK=infinity by systemctl edit {unit}"),
        ),
        Some(_) => Finding::ok(check, "without a limit for this user"),
        None => Finding::ok(check, "without a limit"),
    })
}

/// The directories of a controller of this process, from its own cgroup up, in both versions' layouts.
fn cgroups(machine: &Machine, controller: &str) -> Vec<String> {
    let own = machine.text("/proc/self/cgroup").unwrap_or_default();
    let mut directories = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(number), Some(names), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let mounts: &[&str] = match (number, names) {
            ("0", "") => &["/sys/fs/cgroup", "/sys/fs/cgroup/unified"],
            _ if names.split(',').any(|name| name == controller) => match controller {
                "cpu" => &["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"],
                _ => &["/sys/fs/cgroup/memory"],
            },
            _ => continue,
        };
        for mount in mounts {
            let mut path = path.trim_end_matches('/');
            loop {
                directories.push(format!("{mount}{path}"));
                match path.rfind('/') {
                    Some(end) => path = &path[..end],
                    None => break,
                }
            }
        }
    }
    directories
}

/// Cores' worth of time that the cgroup may use, the least of all above it; `None` without a limit.
fn quota(machine: &Machine) -> Option<f64> {
    let limit = |directory: &String| {
        let text = machine.text(format!("{directory}/cpu.max"));
        let (quota, period): (f64, f64) = match text {
            Some(text) => {
                let mut words = text.split_whitespace();
                (words.next()?.parse().ok()?, words.next()?.parse().ok()?)
            }
            None => {
                let part = |name: &str| machine.text(format!("{directory}/cpu.cfs_{name}_us"));
                (part("quota")?.parse().ok()?, part("period")?.parse().ok()?)
            }
        };
        (quota > 0.0 && period > 0.0).then(|| quota / period)
    };
    let limits = cgroups(machine, "cpu");
    limits.iter().filter_map(limit).reduce(f64::min)
}

fn processor_time(machine: &Machine, config: Option<&Config>) -> Finding {
    let workers = config.map_or(1, |config| config.workers.len());
    match quota(machine) {
        None => Finding::ok("processor time", "no quota of a cgroup"),
        Some(cores) if cores < workers as f64 => Finding::warning(
            "processor time",
            format!(
                "the cgroup may use {cores:.2} cores; {} may use one each",
                plural(workers, "worker")
            ),
            "raise the quota: cpu.max, CPUQuota= of the unit, --cpus of the container",
        ),
        Some(cores) => Finding::ok("processor time", format!("{cores:.2} cores of a cgroup")),
    }
}

/// Memory devices have to fit.
fn memory(machine: &Machine, config: Option<&Config>) -> Option<Finding> {
    let is_memory = |driver: &Driver| matches!(driver, Driver::Malloc);
    let devices = config?.bdevs.iter().filter(|bdev| is_memory(&bdev.driver));
    let wanted = devices.filter_map(|bdev| bdev.size).fold(0, u64::saturating_add);
    if wanted == 0 {
        return None;
    }
    let kib = |key: &str| -> Option<u64> {
        let value = machine.field("/proc/meminfo", key)?;
        Some(value.split_whitespace().next()?.parse::<u64>().ok()?.saturating_mul(1024))
    };
    let group = cgroups(machine, "memory").into_iter().filter_map(|directory| {
        let new = machine.number(format!("{directory}/memory.max"));
        new.or_else(|| machine.number(format!("{directory}/memory.limit_in_bytes")))
    });
    let group = group.min();
    let total = kib("MemTotal")?.min(group.unwrap_or(u64::MAX));
    let devices = format!("memory devices of {}", show_size(wanted as f64));
    let remedy = "make them smaller, or files";
    Some(if wanted > total {
        Finding::problem(
            "memory",
            format!("{devices}, of {} there are", show_size(total as f64)),
            remedy,
        )
    } else if kib("MemAvailable").is_some_and(|available| wanted > available) {
        let found = format!("{devices} are more than is free now, unless Vireo has them already");
        Finding::warning("memory", found, remedy)
    } else {
        Finding::ok("memory", format!("{devices} fit"))
    })
}
