//! What only shows when all parts are known: names that refer to each other, paths and devices used twice.

use super::mistake::{Mistake, suggestion};
use super::section::Notes;
use super::units::format_size;
use super::{Config, Driver, Kind, Uuid};
use ipc::handoff::MAX_PATH;
use std::collections::HashMap;
use std::path::Path;

/// The socket in an endpoint's directory.
const ENDPOINT_SOCKET: &str = "cntrl";

pub(super) fn references(config: &Config, notes: &Notes) {
    duplicates(config, notes);
    bdevs(config, notes);
    subsystems(config, notes);
    endpoints(config, notes);
    socket_path("api.socket", &config.api.socket, "shorten it", notes);
    for (kind, name) in config.services() {
        let socket = config.socket(kind, name);
        let key = match kind {
            Kind::Manager => "runtime_dir".to_owned(),
            kind => format!("{kind} \"{name}\""),
        };
        socket_path(&key, &socket, "shorten runtime_dir or the name", notes);
    }
}

fn duplicates(config: &Config, notes: &Notes) {
    fn check<'a>(key: &str, names: impl Iterator<Item = &'a str>, notes: &Notes) {
        let mut seen = HashMap::new();
        for (index, name) in names.enumerate().filter(|(_, name)| !name.is_empty()) {
            if let Some(first) = seen.insert(name, index) {
                seen.insert(name, first);
                note(
                    notes,
                    format!("{key}[{index}].name"),
                    format!("\"{name}\" is the name of {key}[{first}] already"),
                    "give it another name",
                );
            }
        }
    }
    check("worker", config.workers.iter().map(|item| item.name.as_str()), notes);
    check("backend", config.backends.iter().map(|item| item.name.as_str()), notes);
    check("frontend", config.frontends.iter().map(|item| item.name.as_str()), notes);
    check("bdev", config.bdevs.iter().map(|item| item.name.as_str()), notes);
    check("subsystem", config.subsystems.iter().map(|item| item.name.as_str()), notes);
    check("endpoint", config.endpoints.iter().map(|item| item.name.as_str()), notes);
}

fn bdevs(config: &Config, notes: &Notes) {
    let mut paths: HashMap<&Path, usize> = HashMap::new();
    for (index, bdev) in config.bdevs.iter().enumerate() {
        let key = |key: &str| format!("bdev[{index}].{key}");
        let backends = config.backends.iter().map(|backend| backend.name.as_str());
        reference(key("backend"), "backend", &bdev.backend, backends, notes);
        // 0 is a drive's own, which any size may be a multiple of.
        let block = u64::from(bdev.block_size).max(1);
        if let Some((of, wrong, right)) = super::drive::conflict(&config.bdevs[..index], bdev) {
            note(notes, key(of), wrong, right);
        }
        if let Some(size) = bdev.size.filter(|size| !size.is_multiple_of(block)) {
            let right = match size / block * block {
                0 => format!("write \"{}\"", format_size(block)),
                down => format!("write {down} or {}", down.saturating_add(block)),
            };
            let wrong = format!("{size} is not a multiple of the block size {block}");
            note(notes, key("size"), wrong, right);
        }
        if let Driver::File { path, read_only, .. } = &bdev.driver
            && !path.as_os_str().is_empty()
            && let Some(first) = paths.insert(path, index)
            && !(*read_only && config.bdevs[first].driver.is_read_only())
        {
            let wrong = format!("{} belongs to bdev[{first}] already", path.display());
            note(notes, key("path"), wrong, "give each its own file, or make both read_only");
        }
    }
}

fn subsystems(config: &Config, notes: &Notes) {
    let mut users: HashMap<&str, String> = HashMap::new();
    let mut nqns: HashMap<&str, usize> = HashMap::new();
    let mut uuids: HashMap<Uuid, String> = HashMap::new();
    for (index, subsystem) in config.subsystems.iter().enumerate() {
        let frontends = config.frontends.iter().map(|frontend| frontend.name.as_str());
        let key = format!("subsystem[{index}].frontend");
        reference(key, "frontend", &subsystem.frontend, frontends, notes);
        if let Some(nqn) = &subsystem.nqn
            && let Some(first) = nqns.insert(nqn, index)
        {
            let wrong = format!("\"{nqn}\" is the NQN of subsystem[{first}] already");
            note(notes, format!("subsystem[{index}].nqn"), wrong, "give it another NQN");
        }
        for (number, namespace) in subsystem.namespaces.iter().enumerate() {
            let key = |key: &str| format!("subsystem[{index}].namespace[{number}].{key}");
            let name = format!("namespace {} of {}", namespace.nsid, subsystem.name);
            if let Some(uuid) = namespace.uuid
                && let Some(first) = uuids.insert(uuid, name.clone())
            {
                let wrong = format!("{uuid} is that of {first} already");
                note(notes, key("uuid"), wrong, "write another one, or nothing");
            }
            let key = key("bdev");
            if namespace.bdev.is_empty() {
                continue;
            }
            let names = config.bdevs.iter().map(|bdev| bdev.name.as_str());
            reference(key.clone(), "bdev", &namespace.bdev, names, notes);
            let shared = config.bdev(&namespace.bdev).is_some_and(|b| b.driver.is_read_only());
            if let Some(first) = users.insert(&namespace.bdev, name)
                && !shared
            {
                let wrong = format!("\"{}\" is {first} already", namespace.bdev);
                let right = "give each namespace its own bdev; hosts share one through two \
                             endpoints of its subsystem";
                note(notes, key, wrong, right);
            }
        }
    }
}

fn endpoints(config: &Config, notes: &Notes) {
    let mut paths: HashMap<&Path, usize> = HashMap::new();
    for (index, endpoint) in config.endpoints.iter().enumerate() {
        let key = |key: &str| format!("endpoint[{index}].{key}");
        if !endpoint.subsystem.is_empty() {
            let subsystems = config.subsystems.iter().map(|subsystem| subsystem.name.as_str());
            reference(key("subsystem"), "subsystem", &endpoint.subsystem, subsystems, notes);
        }
        for (number, name) in endpoint.workers.iter().enumerate() {
            let at = format!("endpoint[{index}].workers[{number}]");
            match config.worker(name) {
                None => {
                    let workers = config.workers.iter().map(|worker| worker.name.as_str());
                    reference(at, "worker", name, workers, notes);
                }
                Some(worker) if worker.tenant != endpoint.tenant => {
                    let wrong = format!(
                        "worker \"{name}\" is of tenant \"{}\", the endpoint of \"{}\"",
                        worker.tenant, endpoint.tenant
                    );
                    note(notes, at, wrong, "name workers of the endpoint's tenant");
                }
                Some(_) if endpoint.workers[..number].contains(name) => {
                    note(notes, at, format!("\"{name}\" is named twice"), "name it once");
                }
                Some(_) => {}
            }
        }
        if let Some(first) = paths.insert(&endpoint.path, index) {
            let wrong = format!("{} belongs to endpoint[{first}] already", endpoint.path.display());
            note(notes, key("path"), wrong, "give each endpoint its own directory");
        }
        let socket = endpoint.path.join(ENDPOINT_SOCKET);
        socket_path(&key("path"), &socket, "shorten it", notes);
    }
}

fn reference<'a>(
    key: String,
    what: &str,
    name: &str,
    known: impl Iterator<Item = &'a str> + Clone,
    notes: &Notes,
) {
    // An empty name was noted as missing, where it should have stood.
    if !name.is_empty() && !known.clone().any(|known| known == name) {
        note(notes, key, format!("there is no {what} \"{name}\""), suggestion(name, known));
    }
}

fn socket_path(key: &str, socket: &Path, right: &str, notes: &Notes) {
    let length = socket.as_os_str().len();
    if length > MAX_PATH {
        let wrong =
            format!("socket {} has {length} bytes, {MAX_PATH} are possible", socket.display());
        note(notes, key.to_owned(), wrong, right);
    }
}

fn note(notes: &Notes, key: String, wrong: impl Into<String>, right: impl Into<String>) {
    notes.borrow_mut().push(Mistake::new(key, wrong, right));
}
