//! The effective configuration as text: defaults filled in, environment applied; reads back as the same.

use super::units::{format_duration, format_size};
use super::{Channel, Config, Doorbells, Driver, Endpoint, limits};
use std::path::Path;
use toml::{Table, Value};

impl Config {
    /// The whole configuration as TOML, nothing left to defaults.
    pub fn to_toml(&self) -> String {
        let mut root = Table::new();
        root.insert("runtime_dir".into(), path(&self.runtime_dir));
        root.insert("state_dir".into(), path(&self.state_dir));
        root.insert("api".into(), super::api::print(&self.api));
        root.insert("telemetry".into(), super::telemetry::print(&self.telemetry));
        root.insert(
            "worker".into(),
            list(&self.workers, |worker| {
                let mut fields = vec![("name", text(&worker.name))];
                fields.extend(worker.core.map(|core| ("core", Value::Integer(core.into()))));
                fields.push(("tenant", text(&worker.tenant)));
                fields.push(("max_nap", text(&format_duration(worker.max_nap))));
                fields
            }),
        );
        root.insert("backend".into(), list(&self.backends, |b| vec![("name", text(&b.name))]));
        root.insert("frontend".into(), list(&self.frontends, |f| vec![("name", text(&f.name))]));
        root.insert("bdev".into(), list(&self.bdevs, bdev));
        root.insert(
            "subsystem".into(),
            list(&self.subsystems, |subsystem| {
                let mut fields = vec![("name", text(&subsystem.name))];
                fields.extend(subsystem.nqn.as_ref().map(|nqn| ("nqn", text(nqn))));
                fields.push(("serial", text(&subsystem.serial)));
                fields.push(("model", text(&subsystem.model)));
                fields.push(("frontend", text(&subsystem.frontend)));
                let namespaces = list(&subsystem.namespaces, |namespace| {
                    let nsid = Value::Integer(namespace.nsid.into());
                    let mut fields = vec![("nsid", nsid), ("bdev", text(&namespace.bdev))];
                    fields.extend(namespace.uuid.map(|uuid| ("uuid", text(&uuid.to_string()))));
                    fields.extend(limits::print(&namespace.limits));
                    fields
                });
                fields.push(("namespace", namespaces));
                fields
            }),
        );
        root.insert("endpoint".into(), list(&self.endpoints, endpoint));
        root.to_string()
    }
}

fn bdev(bdev: &super::Bdev) -> Vec<(&'static str, Value)> {
    let mut fields = vec![("name", text(&bdev.name)), ("driver", text(bdev.driver.name()))];
    fields.extend(bdev.size.map(|size| ("size", text(&format_size(size)))));
    if bdev.block_size != 0 {
        fields.push(("block_size", Value::Integer(bdev.block_size.into())));
    }
    let channel = match bdev.channel {
        Channel::Lease => "lease",
        Channel::Ring => "ring",
    };
    fields.push(("channel", text(channel)));
    fields.push(("backend", text(&bdev.backend)));
    match &bdev.driver {
        Driver::Null { latency } => fields.push(("latency", text(&format_duration(*latency)))),
        Driver::Malloc => {}
        Driver::File { path: file, create, direct, read_only } => {
            fields.push(("path", path(file)));
            fields.push(("create", Value::Boolean(*create)));
            fields.push(("direct", Value::Boolean(*direct)));
            fields.push(("read_only", Value::Boolean(*read_only)));
        }
        Driver::Nvme { target, nsid, read_only, polled } => {
            fields.push(("target", text(target)));
            fields.push(("nsid", Value::Integer((*nsid).into())));
            fields.push(("read_only", Value::Boolean(*read_only)));
            fields.push(("polled", Value::Boolean(*polled)));
        }
    }
    fields
}

fn endpoint(endpoint: &Endpoint) -> Vec<(&'static str, Value)> {
    let doorbells = match endpoint.doorbells {
        Doorbells::Mapped => "mapped",
        Doorbells::Shadow => "shadow",
    };
    let workers = endpoint.workers.iter().map(|worker| text(worker)).collect();
    let mut fields = vec![
        ("name", text(&endpoint.name)),
        ("subsystem", text(&endpoint.subsystem)),
        ("path", path(&endpoint.path)),
        ("doorbells", text(doorbells)),
        ("tenant", text(&endpoint.tenant)),
        ("workers", Value::Array(workers)),
        ("queues", Value::Integer(endpoint.queues.into())),
        ("max_transfer", text(&format_size(endpoint.max_transfer.into()))),
        ("vectors", Value::Integer(endpoint.vectors.into())),
    ];
    fields.extend(limits::print(&endpoint.limits));
    fields
}

fn list<T>(items: &[T], fields: impl Fn(&T) -> Vec<(&'static str, Value)>) -> Value {
    let table = |item| {
        let fields = fields(item).into_iter().map(|(key, value)| (key.to_owned(), value));
        Value::Table(fields.collect())
    };
    Value::Array(items.iter().map(table).collect())
}

pub(super) fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

pub(super) fn path(path: &Path) -> Value {
    text(&path.to_string_lossy())
}
