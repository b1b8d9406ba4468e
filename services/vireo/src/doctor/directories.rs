//! Where sockets and state lie: that they can be reached, are the services' own, and nobody else's.

use super::access::{ALL, READ_WRITE};
use super::finding::{Finding, Level};
use super::machine::Machine;
use service::config::{Config, Endpoint};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Most files of the state that are looked at.
const MAX_FILES: usize = 10_000;

/// Looks at them.
pub fn check(machine: &Machine, config: &Config) -> Vec<Finding> {
    let mut findings = vec![
        directory(machine, "runtime_dir", &config.runtime_dir),
        directory(machine, "state_dir", &config.state_dir),
    ];
    findings.extend(files(machine, &config.state_dir));
    findings.extend(sockets(machine, &config.runtime_dir));
    // Those that are still to be made below the runtime directory are made as that was.
    let is_own = |path: &Path| machine.is_there(path) || !path.starts_with(&config.runtime_dir);
    let endpoints = config.endpoints.iter().filter(|endpoint| is_own(&endpoint.path));
    let look = |endpoint: &Endpoint| {
        directory(machine, &format!("endpoint {}", endpoint.name), &endpoint.path)
    };
    findings.extend(endpoints.map(look).filter(|finding| finding.level != Level::Ok));
    findings
}

/// Why `path` cannot be reached, and the remedy; `closed` is the directory on the way.
pub fn no_way(machine: &Machine, closed: &Path, path: &Path) -> (String, String) {
    let (who, shown) = (&machine.who.name, closed.display());
    let found = format!("{who} may not go through {shown} to {}", path.display());
    (found, format!("setfacl -m u:{who}:x {shown}, or chmod o+x {shown}"))
}

fn directory(machine: &Machine, key: &str, path: &Path) -> Finding {
    let (who, shown) = (&machine.who, path.display());
    if let Some(closed) = machine.closed(path) {
        let (found, remedy) = no_way(machine, &closed, path);
        return Finding::problem(key, found, remedy);
    }
    let Some(found) = machine.metadata(path) else {
        return to_be_made(machine, key, path);
    };
    if !found.is_dir() {
        let remedy = "move that away, or name another directory";
        return Finding::problem(key, format!("{shown} is no directory"), remedy);
    }
    if !machine.may(path, &found, ALL) {
        return Finding::problem(
            key,
            format!("{} may not write to {shown}", who.name),
            format!("chown {} {shown}", who.name),
        );
    }
    let mode = found.mode() & 0o7777;
    if mode & 0o002 != 0 {
        return Finding::warning(
            key,
            format!("everybody may write to {shown} (mode {mode:o}), and take sockets' places"),
            format!("chmod o-w {shown}"),
        );
    }
    Finding::ok(key, format!("{shown}, mode {mode:o}, {} may write", who.name))
}

/// It is made at the start, if that may be.
fn to_be_made(machine: &Machine, key: &str, path: &Path) -> Finding {
    let (who, shown) = (&machine.who, path.display());
    let above: Option<PathBuf> =
        path.ancestors().skip(1).find(|above| machine.is_there(above)).map(Path::to_owned);
    let found = above.as_ref().and_then(|above| machine.metadata(above));
    match (above, found) {
        (Some(above), Some(found)) if found.is_dir() && machine.may(&above, &found, ALL) => {
            Finding::ok(key, format!("{shown} is made at the start"))
        }
        (Some(above), _) => Finding::problem(
            key,
            format!(
                "{shown} is not there, and {} may not make it in {}",
                who.name,
                above.display()
            ),
            format!("install -d -o {} -m 750 {shown}", who.name),
        ),
        (None, _) => {
            Finding::problem(key, format!("{shown} is not there"), format!("mkdir {shown}"))
        }
    }
}

/// Files of another user, as a start as root leaves them behind: the manager could not read its own state.
fn files(machine: &Machine, directory: &Path) -> Option<Finding> {
    let who = &machine.who.name;
    let names = machine.list(directory);
    let strange = names.iter().take(MAX_FILES).find(|name| {
        let path = directory.join(name);
        let found = machine.metadata(&path).filter(|found| found.is_file());
        found.is_some_and(|found| !machine.may(&path, &found, READ_WRITE))
    })?;
    let found = format!("{who} may not read and write {}", directory.join(strange).display());
    let remedy = format!("chown -R {who} {} (was Vireo started as root?)", directory.display());
    Some(Finding::problem("state_dir", found, remedy))
}

/// Sockets of services are for Vireo alone, those of endpoints for VMMs, and the API knows its callers.
fn sockets(machine: &Machine, directory: &Path) -> Option<Finding> {
    let is_open = |name: &&String| {
        let found = machine.metadata(directory.join(name));
        found.is_some_and(|found| found.file_type().is_socket() && found.mode() & 0o002 != 0)
    };
    let services = ["backend-", "frontend-", "manager-", "worker-"];
    let names = machine.list(directory);
    let names = names.iter().filter(|name| services.iter().any(|kind| name.starts_with(kind)));
    let open: Vec<&String> = names.filter(is_open).collect();
    let first = directory.join(open.first()?);
    let found = format!("everybody may connect to {}", first.display());
    let remedy =
        format!("chmod o-w {}/*.sock, and start Vireo with a umask of 027", directory.display());
    Some(Finding::warning("sockets", found, remedy))
}
