//! Drives behind Vireo: the IOMMU, and the functions and targets that the configuration names.

use super::access::READ_WRITE;
use super::finding::{Finding, plural};
use super::machine::Machine;
use service::config::{Bdev, Config, Driver};

const DEVICES: &str = "/sys/bus/pci/devices";
const GROUPS: &str = "/sys/kernel/iommu_groups";

/// Looks at them.
pub fn check(machine: &Machine, config: Option<&Config>) -> Vec<Finding> {
    let bdevs = config.map(|config| config.bdevs.as_slice()).unwrap_or_default();
    let drives = bdevs.iter().filter_map(|bdev| match &bdev.driver {
        Driver::Nvme { target, .. } => target.split_once(':').map(|target| (bdev, target)),
        _ => None,
    });
    let drives: Vec<(&Bdev, (&str, &str))> = drives.collect();
    let wanted = drives.iter().any(|(_, (kind, _))| *kind == "pcie");
    let mut findings = vec![iommu(machine, wanted)];
    for (bdev, (kind, place)) in drives {
        let check = format!("bdev {}", bdev.name);
        findings.push(match kind {
            "pcie" => function(machine, check, place),
            _ => target(machine, check, place),
        });
    }
    findings
}

fn iommu(machine: &Machine, wanted: bool) -> Finding {
    let groups = machine.list(GROUPS).len();
    match (groups, wanted) {
        (0, true) => Finding::problem(
            "IOMMU",
            "there is none, and drives under VFIO need one",
            "switch VT-d or AMD-Vi on in the firmware; boot with intel_iommu=on or amd_iommu=on",
        ),
        (0, false) => Finding::ok("IOMMU", "there is none; only drives under VFIO need one"),
        (groups, _) => Finding::ok("IOMMU", format!("is on, {}", plural(groups, "group"))),
    }
}

/// A PCI function has to be there, bound to vfio-pci, alone in its group, and its group's file has to be ours.
fn function(machine: &Machine, check: String, address: &str) -> Finding {
    let device = format!("{DEVICES}/{address}");
    if !machine.is_there(&device) {
        let found = format!("there is no PCI function {address}");
        return Finding::problem(check, found, "lspci -D lists those there are");
    }
    let driver = machine.link(format!("{device}/driver"));
    if driver.as_deref() != Some("vfio-pci") {
        let has = driver.unwrap_or_else(|| "none".to_owned());
        return Finding::problem(
            check,
            format!("{address} has the driver {has}, not vfio-pci"),
            format!("driverctl set-override {address} vfio-pci (the host loses this drive)"),
        );
    }
    let Some(group) = machine.link(format!("{device}/iommu_group")) else {
        let found = format!("{address} is in no IOMMU group");
        return Finding::problem(check, found, "switch the IOMMU on");
    };
    let strangers: Vec<String> = machine
        .list(format!("{GROUPS}/{group}/devices"))
        .into_iter()
        .filter(|other| other != address && !is_harmless(machine, other))
        .collect();
    if let Some(first) = strangers.first() {
        return Finding::problem(
            check,
            format!("{first} is in group {group} as well, and is not bound to vfio-pci"),
            format!("driverctl set-override {first} vfio-pci, or put the drive into another slot"),
        );
    }
    for file in ["/dev/vfio/vfio".to_owned(), format!("/dev/vfio/{group}")] {
        let Some(found) = machine.metadata(&file) else {
            let found = format!("{file} is not there");
            return Finding::problem(check, found, "modprobe vfio-pci");
        };
        if !machine.may(&file, &found, READ_WRITE) {
            let name = &machine.who.name;
            return Finding::problem(
                check,
                format!("{name} may not open {file}"),
                format!("chown {name} {file}; a udev rule keeps it so"),
            );
        }
    }
    Finding::ok(check, format!("{address} is bound to vfio-pci, group {group}"))
}

/// Bridges may keep their drivers; functions without one are no danger.
fn is_harmless(machine: &Machine, address: &str) -> bool {
    let device = format!("{DEVICES}/{address}");
    let is_bridge =
        machine.text(format!("{device}/class")).is_some_and(|class| class.starts_with("0x0604"));
    let driver = machine.link(format!("{device}/driver"));
    is_bridge || matches!(driver.as_deref(), None | Some("vfio-pci" | "pci-stub"))
}

/// Another vfio-user target's socket.
fn target(machine: &Machine, check: String, place: &str) -> Finding {
    let socket = format!("{place}/cntrl");
    let found = machine.metadata(&socket).map(|found| (socket.as_str(), found));
    let found = found.or_else(|| {
        let own = machine.metadata(place)?;
        (!own.is_dir()).then_some((place, own))
    });
    match found {
        None => Finding::warning(
            check,
            format!("no socket at {place} yet"),
            "start its target; Vireo connects when it is there",
        ),
        Some((socket, found)) if !machine.may(socket, &found, READ_WRITE) => {
            let name = &machine.who.name;
            let wrong = format!("{name} may not connect to {socket}");
            Finding::problem(check, wrong, format!("let {name} read and write it (chmod, chgrp)"))
        }
        Some((socket, _)) => Finding::ok(check, format!("a socket is at {socket}")),
    }
}
