//! NUMA nodes: a drive and the cores that drive it belong together.

use super::finding::Finding;
use super::machine::{self, Machine};
use service::config::{Bdev, Config, Driver, Endpoint};
use service::cpu::format_cores;
use std::collections::{BTreeMap, BTreeSet};

const NODES: &str = "/sys/devices/system/node";
const DEVICES: &str = "/sys/bus/pci/devices";

/// The cores of each node.
type Nodes = BTreeMap<u32, BTreeSet<u32>>;

/// Looks at them; says nothing where there is one node only, or no drive.
pub fn check(machine: &Machine, config: Option<&Config>) -> Vec<Finding> {
    let nodes = nodes(machine);
    let Some(config) = config.filter(|_| nodes.len() > 1) else { return Vec::new() };
    config.bdevs.iter().filter_map(|bdev| drive(machine, config, &nodes, bdev)).collect()
}

fn nodes(machine: &Machine) -> Nodes {
    let names = machine.list(NODES);
    let numbers = names.iter().filter_map(|name| name.strip_prefix("node")?.parse().ok());
    let cores = |node: u32| {
        let list = machine.text(format!("{NODES}/node{node}/cpulist"))?;
        Some((node, machine::cores(&list)))
    };
    // A node of memory alone has no cores.
    numbers.filter_map(cores).filter(|(_, cores)| !cores.is_empty()).collect()
}

/// Compares a drive's node with those of the workers that do I/O on it.
fn drive(machine: &Machine, config: &Config, nodes: &Nodes, bdev: &Bdev) -> Option<Finding> {
    let Driver::Nvme { target, .. } = &bdev.driver else { return None };
    let address = target.strip_prefix("pcie:")?;
    // A negative number says that the firmware does not tell.
    let node: u32 = machine.text(format!("{DEVICES}/{address}/numa_node"))?.parse().ok()?;
    let near = nodes.get(&node)?;
    let check = format!("bdev {}", bdev.name);
    let mut pinned = 0;
    for endpoint in config.endpoints.iter().filter(|endpoint| uses(config, endpoint, bdev)) {
        let cores = endpoint.workers.iter().filter_map(|name| {
            let core = config.worker(name)?.core?;
            Some((name.as_str(), core))
        });
        let cores: Vec<(&str, u32)> = cores.collect();
        pinned += cores.len();
        let far = cores.iter().filter(|(_, core)| !near.contains(core));
        let far: Vec<String> = far.map(|(name, core)| format!("{name} (core {core})")).collect();
        if !far.is_empty() {
            let found = format!(
                "{address} is on NUMA node {node}, and workers of endpoint {} on another: {}",
                endpoint.name,
                far.join(", ")
            );
            let remedy = format!(
                "give [[endpoint]] {} workers with a core of {}: each command crosses nodes else",
                endpoint.name,
                format_cores(near)
            );
            return Some(Finding::warning(check, found, remedy));
        }
    }
    let found = format!("{address} is on NUMA node {node}, as its workers' cores are");
    (pinned > 0).then(|| Finding::ok(check, found))
}

fn uses(config: &Config, endpoint: &Endpoint, bdev: &Bdev) -> bool {
    let subsystem = config.subsystem(&endpoint.subsystem);
    subsystem.is_some_and(|found| found.namespaces.iter().any(|n| n.bdev == bdev.name))
}
