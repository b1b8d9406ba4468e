//! What a reload may change while guests run, and what it would change.

use crate::desired::Desired;
use crate::identity::Identities;
use service::config::{Bdev, Config, Endpoint, Frontend, Limits, Subsystem, Worker, format_size};
use std::collections::BTreeMap;

/// Sizes in bytes that bdevs have, by name.
pub type Sizes = BTreeMap<String, u64>;

/// Compares what is served with a checked configuration. Gives what would change, one line each in the order in which
/// it is done; nothing if nothing would. `sizes` tells of the bdevs that [`sized_anew`] names.
///
/// # Errors
/// What cannot change while Vireo runs, one line each.
pub fn compare(old: &Desired, new: &Config, sizes: &Sizes) -> Result<Vec<String>, Vec<String>> {
    let mut found = Found { sizes: sizes.clone(), ..Found::default() };
    found.processes(&old.config, new);
    found.bdevs(&old.config, new);
    found.subsystems(old, new);
    found.endpoints(&old.config, new);
    found.refused.append(&mut same_uuids(&old.identities, new));
    if !found.refused.is_empty() {
        return Err(found.refused);
    }
    found.removed.reverse();
    found.added.append(&mut found.removed);
    Ok(found.added)
}

/// Bdevs that had the size of their file and now have one of their own, with their backends: only these know whether
/// that grows them.
pub fn sized_anew<'a>(
    old: &'a Config,
    new: &'a Config,
) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
    let before = old.bdevs.iter().filter(|bdev| bdev.size.is_none());
    before
        .filter(|bdev| new.bdev(&bdev.name).is_some_and(|bdev| bdev.size.is_some()))
        .map(|bdev| (bdev.name.as_str(), bdev.backend.as_str()))
}

/// Namespaces that would have the same UUID, one line each: one that the file gives may have been made or given elsewhere.
pub fn same_uuids(identities: &Identities, new: &Config) -> Vec<String> {
    let (mut seen, mut wrong) = (BTreeMap::new(), Vec::new());
    for subsystem in &new.subsystems {
        for namespace in &subsystem.namespaces {
            let Some(uuid) = identities.uuid(subsystem, namespace) else { continue };
            let what = format!("namespace {} of {}", namespace.nsid, subsystem.name);
            if let Some(first) = seen.insert(uuid, what.clone()) {
                wrong.push(format!("{what} and {first} have the same uuid {uuid}: write another"));
            }
        }
    }
    wrong
}

#[derive(Default)]
struct Found {
    sizes: Sizes,
    /// In the order of dependence.
    added: Vec<String>,
    /// In the order of dependence; done from the last to the first.
    removed: Vec<String>,
    refused: Vec<String>,
}

impl Found {
    /// Notes that `what` cannot change if it does.
    fn fixed<T: PartialEq>(&mut self, what: &str, old: &T, new: &T, instead: &str) {
        if old != new {
            self.refused.push(format!("{what} cannot change while running: {instead}"));
        }
    }

    /// Notes that the limits of `what` change if they do.
    fn limits(&mut self, what: &str, old: &Limits, new: &Limits) {
        if old != new {
            self.added.push(format!("limits of {what} changed from {old} to {new}"));
        }
    }

    fn processes(&mut self, old: &Config, new: &Config) {
        const RESTART: &str = "restart vireo";
        self.fixed("runtime_dir", &old.runtime_dir, &new.runtime_dir, RESTART);
        self.fixed("state_dir", &old.state_dir, &new.state_dir, RESTART);
        self.fixed("telemetry", &old.telemetry, &new.telemetry, RESTART);
        let names = |config: &Config| -> [Vec<String>; 3] {
            [
                config.workers.iter().map(|worker| worker.name.clone()).collect(),
                config.backends.iter().map(|backend| backend.name.clone()).collect(),
                config.frontends.iter().map(|Frontend { name }| name.clone()).collect(),
            ]
        };
        let kinds = ["workers", "backends", "frontends"];
        for ((kind, mut old), mut new) in kinds.into_iter().zip(names(old)).zip(names(new)) {
            old.sort();
            new.sort();
            let text = format!("the list of {kind} ({})", difference(&old, &new));
            self.fixed(&text, &old, &new, RESTART);
        }
        for Worker { name, core, tenant, max_nap } in &old.workers {
            let Some(new) = new.worker(name) else { continue };
            let restart = format!("restart worker {name} with all of vireo");
            self.fixed(&format!("core of worker {name}"), core, &new.core, &restart);
            self.fixed(&format!("tenant of worker {name}"), tenant, &new.tenant, &restart);
            self.fixed(&format!("max_nap of worker {name}"), max_nap, &new.max_nap, &restart);
        }
    }

    fn bdevs(&mut self, old: &Config, new: &Config) {
        for bdev in &new.bdevs {
            match old.bdev(&bdev.name) {
                Some(old) => self.bdev(old, bdev),
                None => self.added.push(format!("bdev {} added", bdev.name)),
            }
        }
        for bdev in old.bdevs.iter().filter(|bdev| new.bdev(&bdev.name).is_none()) {
            self.removed.push(format!("bdev {} removed", bdev.name));
        }
    }

    fn bdev(&mut self, old: &Bdev, new: &Bdev) {
        let Bdev { name, backend, size, block_size, channel, driver } = new;
        let instead = "restart vireo, or remove it and reload, then add it again";
        let what = |key: &str| format!("{key} of bdev {name}");
        self.fixed(&what("backend"), &old.backend, backend, instead);
        self.fixed(&what("block_size"), &old.block_size, block_size, instead);
        self.fixed(&what("channel"), &old.channel, channel, instead);
        if old.driver.name() == driver.name() {
            let text = format!("{} settings", driver.name());
            self.fixed(&what(&text), &old.driver, driver, instead);
        } else {
            self.fixed(&what("driver"), &old.driver, driver, instead);
        }
        match (old.size.or_else(|| self.sizes.get(name).copied()), *size) {
            (Some(before), Some(after)) if after < before => self.refused.push(format!(
                "size of bdev {name} cannot shrink from {} to {} while running: write at least \
                 \"{}\"",
                format_size(before),
                format_size(after),
                format_size(before)
            )),
            (Some(before), Some(after)) if after > before => self.added.push(format!(
                "bdev {name} grown from {} to {}",
                format_size(before),
                format_size(after)
            )),
            (Some(_), Some(_)) => {}
            (_, after) => self.fixed(&what("size"), &old.size, &after, instead),
        }
    }

    fn subsystems(&mut self, old: &Desired, new: &Config) {
        for subsystem in &new.subsystems {
            if let Some(before) = old.config.subsystem(&subsystem.name) {
                self.subsystem(old, before, subsystem);
                continue;
            }
            self.added.push(format!("subsystem {} added", subsystem.name));
            for namespace in &subsystem.namespaces {
                self.added
                    .push(format!("namespace {} of {} added", namespace.nsid, subsystem.name));
            }
        }
        for subsystem in &old.config.subsystems {
            let name = &subsystem.name;
            let after = new.subsystem(name);
            if after.is_none() {
                self.removed.push(format!("subsystem {name} removed"));
            }
            for namespace in &subsystem.namespaces {
                let stays = |after: &Subsystem| {
                    after.namespaces.iter().any(|other| other.nsid == namespace.nsid)
                };
                if !after.is_some_and(stays) {
                    self.removed.push(format!("namespace {} of {name} removed", namespace.nsid));
                }
            }
        }
    }

    fn subsystem(&mut self, old: &Desired, before: &Subsystem, after: &Subsystem) {
        let Subsystem { name, nqn: _, serial, model, frontend, namespaces } = after;
        let instead = "restart vireo, or remove it and reload, then add it again";
        let what = |key: &str| format!("{key} of subsystem {name}");
        let nqns = (old.identities.nqn(before), old.identities.nqn(after));
        self.fixed(&what("nqn"), &nqns.0, &nqns.1, instead);
        self.fixed(&what("serial"), &before.serial, serial, instead);
        self.fixed(&what("model"), &before.model, model, instead);
        self.fixed(&what("frontend"), &before.frontend, frontend, instead);
        for namespace in namespaces {
            let nsid = namespace.nsid;
            match before.namespaces.iter().find(|other| other.nsid == nsid) {
                Some(other) => {
                    let what = format!("bdev of namespace {nsid} of {name}");
                    self.fixed(&what, &other.bdev, &namespace.bdev, instead);
                    let what = format!("uuid of namespace {nsid} of {name}");
                    if other.bdev == namespace.bdev {
                        let uuid = |subsystem, which| old.identities.uuid(subsystem, which);
                        self.fixed(&what, &uuid(before, other), &uuid(after, namespace), instead);
                    }
                    let what = format!("namespace {nsid} of {name}");
                    self.limits(&what, &other.limits, &namespace.limits);
                }
                None => self.added.push(format!("namespace {nsid} of {name} added")),
            }
        }
    }

    fn endpoints(&mut self, old: &Config, new: &Config) {
        let find = |config: &Config, name: &str| -> Option<Endpoint> {
            config.endpoints.iter().find(|endpoint| endpoint.name == name).cloned()
        };
        for endpoint in &new.endpoints {
            match find(old, &endpoint.name) {
                Some(before) => self.endpoint(&before, endpoint),
                None => self.added.push(format!("endpoint {} added", endpoint.name)),
            }
        }
        for endpoint in old.endpoints.iter().filter(|e| find(new, &e.name).is_none()) {
            self.removed.push(format!("endpoint {} removed", endpoint.name));
        }
    }

    fn endpoint(&mut self, before: &Endpoint, after: &Endpoint) {
        let Endpoint {
            name,
            subsystem,
            path,
            doorbells,
            tenant,
            workers,
            queues,
            max_transfer,
            vectors,
            limits,
        } = after;
        let instead = "restart vireo, or remove it and reload, then add it again";
        let what = |key: &str| format!("{key} of endpoint {name}");
        let sorted = |workers: &[String]| {
            let mut workers = workers.to_vec();
            workers.sort();
            workers
        };
        self.fixed(&what("subsystem"), &before.subsystem, subsystem, instead);
        self.fixed(&what("path"), &before.path, path, instead);
        self.fixed(&what("doorbells"), &before.doorbells, doorbells, instead);
        self.fixed(&what("tenant"), &before.tenant, tenant, instead);
        self.fixed(&what("workers"), &sorted(&before.workers), &sorted(workers), instead);
        self.fixed(&what("queues"), &before.queues, queues, instead);
        self.fixed(&what("max_transfer"), &before.max_transfer, max_transfer, instead);
        self.fixed(&what("vectors"), &before.vectors, vectors, instead);
        self.limits(&format!("endpoint {name}"), &before.limits, limits);
    }
}

/// `w1 added, w2 removed`.
fn difference(old: &[String], new: &[String]) -> String {
    let added = new.iter().filter(|name| !old.contains(name)).map(|name| format!("{name} added"));
    let removed =
        old.iter().filter(|name| !new.contains(name)).map(|name| format!("{name} removed"));
    added.chain(removed).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
