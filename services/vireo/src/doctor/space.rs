//! Room on disks: for the state, and for what files of volumes may grow to; and the room for guests' memory in /dev/shm.

use super::access::{ALL, READ_WRITE};
use super::finding::Finding;
use super::machine::{Machine, Space};
use crate::perf::units::show_size;
use service::config::{Bdev, Config, Driver};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Without so much no file of the state can be replaced.
const LEAST: u64 = 1 << 20;
/// From here on somebody should look at it.
const LITTLE: u64 = 64 << 20;
/// Below this no guest's memory fits.
const GUEST: u64 = 256 << 20;
/// Bytes of a unit of `st_blocks`.
const UNIT: u64 = 512;
const SHM: &str = "/dev/shm";

/// Looks at it.
pub fn check(machine: &Machine, config: Option<&Config>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(config) = config {
        findings.extend(state(machine, &config.state_dir));
        findings.extend(config.bdevs.iter().filter_map(|bdev| file(machine, bdev)));
        findings.extend(growth(machine, config));
    }
    findings.push(shm(machine));
    findings
}

fn state(machine: &Machine, directory: &Path) -> Option<Finding> {
    let check = "room for state";
    let found = machine.space(directory)?;
    let shown = directory.display();
    let free = show_size(found.free as f64);
    let cost = "nothing can be made or changed, and formats and write protection are refused";
    Some(if found.read_only {
        let wrong = format!("{shown} is on a file system that is mounted read-only: {cost}");
        Finding::problem(
            check,
            wrong,
            "mount it read-write, or set state_dir to another file system",
        )
    } else if found.no_files {
        let wrong = format!("no further file fits where {shown} is (df -i): {cost}");
        Finding::problem(
            check,
            wrong,
            "delete files there, or set state_dir to another file system",
        )
    } else if found.free < LEAST {
        let wrong = format!("{free} are free where {shown} is: {cost}");
        Finding::problem(check, wrong, "free some, or set state_dir to another file system")
    } else if found.free < LITTLE {
        let wrong = format!("only {free} are free where {shown} is");
        Finding::warning(check, wrong, format!("free some before it is full: then {cost}"))
    } else {
        Finding::ok(check, format!("{free} are free where {shown} is"))
    })
}

/// Whether the backend may use the file of a bdev. That it is there is the configuration's check.
fn file(machine: &Machine, bdev: &Bdev) -> Option<Finding> {
    let Driver::File { path, create, read_only, .. } = &bdev.driver else { return None };
    let (check, who, shown) = (format!("bdev {}", bdev.name), &machine.who.name, path.display());
    if let Some(closed) = machine.closed(path) {
        let (found, remedy) = super::directories::no_way(machine, &closed, path);
        return Some(Finding::problem(check, found, remedy));
    }
    let Some(found) = machine.metadata(path) else {
        let above = path.parent().filter(|_| *create)?;
        let may = machine.metadata(above).is_some_and(|found| machine.may(above, &found, ALL));
        return (!may).then(|| {
            let wrong = format!("{shown} is not there, and {who} may not make it");
            Finding::problem(check, wrong, format!("touch {shown} && chown {who} {shown}"))
        });
    };
    let bits = if *read_only { 4 } else { READ_WRITE };
    if !machine.may(path, &found, bits) {
        let what = if *read_only { "read" } else { "read and write" };
        let remedy = format!("chown {who} {shown}, or setfacl -m u:{who}:rw {shown}");
        return Some(Finding::problem(check, format!("{who} may not {what} {shown}"), remedy));
    }
    let is_locked = found.is_file() && !read_only && machine.space(path)?.read_only;
    is_locked.then(|| {
        let wrong = format!("{shown} is on a file system that is mounted read-only");
        Finding::problem(check, wrong, "mount it read-write, or set read_only = true")
    })
}

/// What files are still to become larger by, together, on each file system.
fn growth(machine: &Machine, config: &Config) -> Vec<Finding> {
    /// Files of one file system.
    struct Files {
        names: Vec<String>,
        first: PathBuf,
        missing: u64,
        space: Space,
    }
    let mut disks: BTreeMap<u64, Files> = BTreeMap::new();
    for bdev in &config.bdevs {
        let Driver::File { path, read_only: false, .. } = &bdev.driver else { continue };
        let there = path.ancestors().find_map(|path| machine.metadata(path));
        // Files of some file systems have another number of their own; directories never.
        let above = path.ancestors().skip(1).find_map(|path| machine.metadata(path));
        let Some(((there, above), space)) = there.zip(above).zip(machine.space(path)) else {
            continue;
        };
        // A block device has all of its blocks, and a directory is not yet the file.
        let (length, allocated) = match (there.is_file(), there.is_dir()) {
            (true, _) => (there.len(), there.blocks().saturating_mul(UNIT)),
            (false, true) => (0, 0),
            (false, false) => continue,
        };
        let size = bdev.size.unwrap_or(length);
        let files = disks.entry(above.dev()).or_insert_with(|| Files {
            names: Vec::new(),
            first: path.clone(),
            missing: 0,
            space,
        });
        files.names.push(bdev.name.clone());
        files.missing = files.missing.saturating_add(size.saturating_sub(allocated));
    }
    let finding = |files: Files| {
        let (missing, free) = (files.missing as f64, files.space.free as f64);
        let names = files.names.join(", ");
        let shown = files.first.parent().unwrap_or(&files.first).display().to_string();
        let sizes = format!("{} of {names} are not written yet", show_size(missing));
        if files.missing > files.space.free {
            let wrong = format!("{sizes}, and only {} are free at {shown}", show_size(free));
            let remedy = "free some, or move files: guests' writes fail with Capacity Exceeded when \
                          it is full (fallocate -l SIZE FILE reserves what must not fail)";
            return Finding::warning("room for files", wrong, remedy);
        }
        Finding::ok("room for files", format!("{sizes}, {} are free at {shown}", show_size(free)))
    };
    disks.into_values().map(finding).collect()
}

/// Vireo needs none of it; some ways to start a guest do.
fn shm(machine: &Machine) -> Finding {
    let found = machine.is_there(SHM).then(|| machine.space(SHM)).flatten();
    let need = "Vireo and guests with memory-backend-memfd need none of it";
    match found {
        None => Finding::ok(SHM, format!("is not there; {need}")),
        Some(found) if found.size < GUEST => {
            let size = show_size(found.size as f64);
            Finding::ok(SHM, format!("has {size}; {need}")).with_advice(
                "a guest whose memory is a file there (memory-backend-file) needs more: \
                 mount -o remount,size=50% /dev/shm, or --shm-size of the container",
            )
        }
        Some(found) => {
            let (free, size) = (show_size(found.free as f64), show_size(found.size as f64));
            Finding::ok(
                SHM,
                format!("{free} of {size} are free for guests' memory; noexec is no harm"),
            )
        }
    }
}
