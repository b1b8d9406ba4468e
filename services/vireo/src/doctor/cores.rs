//! Where workers' poll threads run.

use super::finding::{Finding, plural};
use super::machine::{self, Machine};
use service::config::{Config, Worker};
use service::cpu::format_cores;
use std::collections::BTreeSet;

const CPUS: &str = "/sys/devices/system/cpu";

/// Looks at it.
pub fn check(machine: &Machine, config: Option<&Config>) -> Vec<Finding> {
    let Some(online) = machine.cores(format!("{CPUS}/online")) else {
        let found = "the kernel does not tell which are online";
        return vec![Finding::warning("cores", found, "mount /sys")];
    };
    let allowed = machine.field("/proc/self/status", "Cpus_allowed_list");
    let allowed = allowed.map_or_else(|| online.clone(), |list| machine::cores(&list));
    let Some(config) = config else {
        let found = format!("{} online, {} for this process", online.len(), format_cores(&allowed));
        return vec![Finding::ok("cores", found)];
    };
    let mut findings: Vec<Finding> =
        config.workers.iter().filter_map(|worker| core(worker, &online, &allowed)).collect();
    findings.extend(shared(machine, config));
    let loose = config.workers.iter().filter(|worker| worker.core.is_none()).count();
    if config.workers.len() > allowed.len() {
        findings.push(Finding::warning(
            "cores",
            format!(
                "{} for {} ({})",
                plural(config.workers.len(), "worker"),
                plural(allowed.len(), "core"),
                format_cores(&allowed)
            ),
            "have as many workers as cores at most: under load each takes one",
        ));
    } else if findings.is_empty() {
        let found = match loose {
            0 => "each worker has its own".to_owned(),
            loose => format!("{} online, {} not pinned", online.len(), plural(loose, "worker")),
        };
        findings.push(Finding::ok("cores", found));
    }
    findings.extend(isolation(machine, config, &online));
    findings
}

fn core(worker: &Worker, online: &BTreeSet<u32>, allowed: &BTreeSet<u32>) -> Option<Finding> {
    let core = worker.core?;
    let check = format!("worker {}", worker.name);
    if !online.contains(&core) {
        return Some(Finding::problem(
            check,
            format!("core {core} is not online; {} are", format_cores(online)),
            format!("set core of [[worker]] {} to one of these", worker.name),
        ));
    }
    (!allowed.contains(&core)).then(|| {
        Finding::problem(
            check,
            format!("core {core} is not for this process; {} are", format_cores(allowed)),
            "widen the cpuset (AllowedCPUs=, --cpuset-cpus, taskset), or choose one of these",
        )
    })
}

/// Two poll threads on one core, or on two threads of one core.
fn shared(machine: &Machine, config: &Config) -> Vec<Finding> {
    let pinned: Vec<(&str, u32)> =
        config.workers.iter().filter_map(|w| Some((w.name.as_str(), w.core?))).collect();
    let mut findings = Vec::new();
    for (index, (name, core)) in pinned.iter().enumerate() {
        let siblings = machine.cores(format!("{CPUS}/cpu{core}/topology/thread_siblings_list"));
        let siblings = siblings.unwrap_or_default();
        for (other, other_core) in &pinned[..index] {
            let check = format!("workers {other}, {name}");
            if core == other_core {
                findings.push(Finding::warning(
                    check,
                    format!("both poll on core {core}, and wait for each other"),
                    "give each its own core",
                ));
            } else if siblings.contains(other_core) {
                findings.push(Finding::warning(
                    check,
                    format!("cores {other_core} and {core} are threads of one core"),
                    "give each a core of its own: lscpu -e shows which are together",
                ));
            }
        }
    }
    findings
}

/// Nothing that has to be, but what latency asks for.
fn isolation(machine: &Machine, config: &Config, online: &BTreeSet<u32>) -> Option<Finding> {
    let isolated = machine.cores(format!("{CPUS}/isolated")).unwrap_or_default();
    let cores = config.workers.iter().filter_map(|worker| worker.core);
    let pinned: BTreeSet<u32> = cores.filter(|core| online.contains(core)).collect();
    if pinned.is_empty() {
        return None;
    }
    let open: BTreeSet<u32> = pinned.difference(&isolated).copied().collect();
    let check = "isolation";
    if open.is_empty() {
        return Some(Finding::ok(check, "no other program is put on the workers' cores"));
    }
    let cores = format_cores(&open);
    let hint = format!("boot with isolcpus={} for steadier latency", cores.replace(' ', ""));
    let found = format!("other programs may run on {cores}, too");
    Some(Finding::ok(check, found).with_advice(hint))
}
