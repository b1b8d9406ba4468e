//! What systemd has to know of a configuration, as a generator's output (systemd.generator(7)): which instances of the
//! services there are, and for each what its unit cannot say in general. The units deny all files and devices but the
//! usual directories; here those are opened, and only those, that the configuration names.

use super::prepare_unit_directory;
use anyhow::{Context, bail};
use service::config::{Bdev, Config, Driver, Kind, MANAGER};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Where the package's units are.
const UNITS: &str = "/usr/lib/systemd/system";
/// What is started with the target.
const WANTS: &str = "vireo.target.wants";
/// The directories that the units know.
const RUNTIME_DIR: &str = "/run/vireo";
const STATE_DIR: &str = "/var/lib/vireo";

/// The NUMA nodes of the machine: which cores each has, as the kernel writes it (`0-3,8`).
#[derive(Debug, Default)]
pub(super) struct Nodes {
    nodes: BTreeMap<u32, String>,
}

impl Nodes {
    /// Reads `/sys/devices/system/node`; a machine without it has one node.
    pub(super) fn of(directory: &Path) -> Self {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let nodes = entries.filter_map(|entry| {
            let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
            let cores = fs::read_to_string(entry.path().join("cpulist")).ok()?;
            Some((number, cores.trim().to_owned()))
        });
        Self { nodes: nodes.collect() }
    }

    /// The node of a core and all cores of that node; `None` where there is nothing to choose.
    fn near(&self, core: u32) -> Option<(u32, &str)> {
        let mut nodes = self.nodes.iter();
        let found = nodes.find(|(_, cores)| contains(cores, core));
        found.filter(|_| self.nodes.len() > 1).map(|(node, cores)| (*node, cores.as_str()))
    }
}

/// True if the kernel's list of cores has this one.
fn contains(cores: &str, core: u32) -> bool {
    cores.split(',').any(|run| {
        let (first, last) = run.split_once('-').unwrap_or((run, run));
        match (first.parse::<u32>(), last.parse::<u32>()) {
            (Ok(first), Ok(last)) => (first..=last).contains(&core),
            _ => false,
        }
    })
}

/// Writes links and drop-ins.
///
/// # Errors
/// A file cannot be written, or a path has characters that no unit file can hold.
pub(super) fn write(config: &Config, nodes: &Nodes, directory: &Path) -> anyhow::Result<()> {
    let wants = directory.join(WANTS);
    prepare_unit_directory(&wants)?;
    for (kind, name) in config.services() {
        let unit = unit(kind, name);
        if kind != Kind::Manager {
            let template = format!("{UNITS}/vireo-{kind}@.service");
            let link = wants.join(&unit);
            symlink(&template, &link).with_context(|| format!("link {}", link.display()))?;
        }
        let settings = settings(config, nodes, kind, name)?;
        if !settings.is_empty() {
            let drop_ins = directory.join(format!("{unit}.d"));
            prepare_unit_directory(&drop_ins)?;
            let path = drop_ins.join("50-configuration.conf");
            fs::write(&path, format!("[Service]\n{settings}"))
                .with_context(|| format!("write {}", path.display()))?;
        }
    }
    Ok(())
}

fn unit(kind: Kind, name: &str) -> String {
    if kind == Kind::Manager && name == MANAGER {
        return "vireo-manager.service".to_owned();
    }
    // Names consist of letters, digits, '-', '_' and '.', which an instance may have as they are.
    format!("vireo-{kind}@{name}.service")
}

/// What a unit gets beside what it says itself.
#[derive(Debug, Default)]
struct Settings {
    writable: BTreeSet<PathBuf>,
    devices: BTreeSet<PathBuf>,
    vfio: bool,
    lines: String,
}

/// The settings of one service, as lines of a unit; none for one that needs nothing.
fn settings(config: &Config, nodes: &Nodes, kind: Kind, name: &str) -> anyhow::Result<String> {
    let mut settings = Settings::default();
    for (path, usual) in [(&config.runtime_dir, RUNTIME_DIR), (&config.state_dir, STATE_DIR)] {
        if !path.starts_with(usual) {
            settings.writable.insert(path.clone());
        }
    }
    match kind {
        Kind::Worker => {
            let core = config.worker(name).and_then(|worker| worker.core);
            if let Some((node, cores)) = core.and_then(|core| nodes.near(core)) {
                // The poll thread pins itself to its core; its other threads stay on the node.
                settings.lines +=
                    &format!("CPUAffinity={cores}\nNUMAPolicy=preferred\nNUMAMask={node}\n");
            }
        }
        Kind::Frontend => {
            let ours = config.subsystems.iter().filter(|subsystem| subsystem.frontend == name);
            let ours: BTreeSet<&str> = ours.map(|subsystem| subsystem.name.as_str()).collect();
            let endpoints = config.endpoints.iter();
            let endpoints = endpoints.filter(|endpoint| ours.contains(endpoint.subsystem.as_str()));
            let elsewhere = endpoints.filter(|endpoint| !endpoint.path.starts_with(RUNTIME_DIR));
            let parents = elsewhere.filter_map(|e| e.path.parent().map(Path::to_owned));
            settings.writable.extend(parents);
        }
        Kind::Backend => {
            let ours = config.bdevs.iter().filter(|bdev| bdev.backend == name);
            ours.for_each(|bdev| settings.open(bdev));
        }
        // It looks at files before it has a backend open them.
        Kind::Manager => config.bdevs.iter().for_each(|bdev| settings.open(bdev)),
    }
    if kind != Kind::Manager
        && let Some(collector) = &config.telemetry.otlp
    {
        settings.lines += &format!(
            "PrivateNetwork=no\nRestrictAddressFamilies=AF_INET AF_INET6\nIPAddressAllow={}\n",
            addresses(collector)
        );
    }
    settings.into_lines()
}

impl Settings {
    /// Opens what a block device needs.
    fn open(&mut self, bdev: &Bdev) {
        match &bdev.driver {
            Driver::File { path, .. } if path.starts_with("/dev") => {
                self.devices.insert(path.clone());
            }
            Driver::File { path, read_only, .. } => {
                if !*read_only && !path.starts_with(STATE_DIR) {
                    self.writable.extend(path.parent().map(Path::to_owned));
                }
            }
            Driver::Nvme { target, .. } => self.vfio |= target.starts_with("pcie:"),
            Driver::Null { .. } | Driver::Malloc => {}
        }
    }

    fn into_lines(self) -> anyhow::Result<String> {
        let mut lines = self.lines;
        for path in &self.writable {
            // One that is not there is told by the service, which says what to do.
            lines += &format!("ReadWritePaths={}\n", quoted("-", path)?);
        }
        if self.vfio || !self.devices.is_empty() {
            lines += "PrivateDevices=no\n";
        }
        if !self.devices.is_empty() {
            // Debian gives block devices to this group; the list below says which of them can be opened.
            lines += "SupplementaryGroups=disk\n";
        }
        for path in &self.devices {
            lines += &format!("DeviceAllow={} rw\n", quoted("", path)?);
        }
        if self.vfio {
            // Which group belongs to the drive is known only when it is bound; memory that a drive reaches is locked.
            lines += "DeviceAllow=/dev/vfio/vfio rw\nDeviceAllow=char-vfio rw\n\
                      LimitMEMLOCK=infinity\n";
        }
        Ok(lines)
    }
}

/// Which addresses a collector, `http://HOST:PORT`, may have. A name is looked up by the service: any.
fn addresses(collector: &str) -> &str {
    let host = collector.strip_prefix("http://").unwrap_or(collector);
    let host = host.split('/').next().unwrap_or_default();
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host {
        "localhost" => "localhost",
        address if address.parse::<IpAddr>().is_ok() => address,
        _ => "any",
    }
}

/// A path as systemd.syntax(7) and systemd.unit(5) (specifiers) want it, behind a prefix.
fn quoted(prefix: &str, path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
    if text.contains(char::is_control) {
        bail!("{text:?} has control characters, which a unit file cannot hold");
    }
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%");
    Ok(format!("\"{prefix}{escaped}\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
[[worker]]
name = "w0"
core = 5
[[worker]]
name = "w-1.x"
[[backend]]
name = "b0"
[[backend]]
name = "b1"
[[frontend]]
name = "f0"
[[bdev]]
name = "image"
driver = "file"
path = "/srv/disk images/100%.img"
[[bdev]]
name = "own"
driver = "file"
path = "/var/lib/vireo/own.img"
[[bdev]]
name = "drive"
driver = "file"
path = "/dev/disk/by-id/x"
backend = "b1"
[[subsystem]]
name = "s0"
[[endpoint]]
name = "vm0"
subsystem = "s0"
[[endpoint]]
name = "vm1"
subsystem = "s0"
path = "/srv/vms/vm1"
"#;

    fn nodes(directory: &Path, lists: &[&str]) -> Nodes {
        for (number, list) in lists.iter().enumerate() {
            let node = directory.join(format!("node{number}"));
            fs::create_dir_all(&node).unwrap();
            fs::write(node.join("cpulist"), format!("{list}\n")).unwrap();
        }
        Nodes::of(directory)
    }

    fn drop_in(directory: &Path, unit: &str) -> String {
        let path = directory.join(format!("{unit}.service.d/50-configuration.conf"));
        fs::read_to_string(path).unwrap_or_default()
    }

    #[test]
    fn each_configured_service_is_wanted_and_gets_what_the_configuration_names() {
        let (sys, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let config = Config::parse(TEXT, []).unwrap();
        write(&config, &nodes(sys.path(), &["0-3", "4,5-7"]), out.path()).unwrap();
        let wants = fs::read_dir(out.path().join(WANTS)).unwrap();
        let mut wants: Vec<String> =
            wants.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        wants.sort();
        let expected = ["backend@b0", "backend@b1", "frontend@f0", "worker@w-1.x", "worker@w0"];
        assert_eq!(wants, expected.map(|name| format!("vireo-{name}.service")));
        let link = fs::read_link(out.path().join(WANTS).join("vireo-worker@w0.service")).unwrap();
        assert_eq!(link, Path::new("/usr/lib/systemd/system/vireo-worker@.service"));

        assert_eq!(
            drop_in(out.path(), "vireo-worker@w0"),
            "[Service]\nCPUAffinity=4,5-7\nNUMAPolicy=preferred\nNUMAMask=1\n"
        );
        assert_eq!(drop_in(out.path(), "vireo-worker@w-1.x"), "", "not pinned: nothing to say");
        let image = "ReadWritePaths=\"-/srv/disk images\"\n";
        let drive = "PrivateDevices=no\nSupplementaryGroups=disk\n\
                     DeviceAllow=\"/dev/disk/by-id/x\" rw\n";
        assert_eq!(drop_in(out.path(), "vireo-backend@b0"), format!("[Service]\n{image}"));
        assert_eq!(drop_in(out.path(), "vireo-backend@b1"), format!("[Service]\n{drive}"));
        assert_eq!(drop_in(out.path(), "vireo-manager"), format!("[Service]\n{image}{drive}"));
        assert_eq!(
            drop_in(out.path(), "vireo-frontend@f0"),
            "[Service]\nReadWritePaths=\"-/srv/vms\"\n"
        );
    }

    #[test]
    fn drives_and_collectors_are_reached() {
        let out = tempfile::tempdir().unwrap();
        let text = format!(
            "{TEXT}[[bdev]]\nname = \"nvme\"\ndriver = \"nvme\"\ntarget = \"pcie:0000:01:00.0\"\n\
             [telemetry]\notlp = \"http://[::1]:4317\"\n"
        );
        let config = Config::parse(&text, []).unwrap();
        write(&config, &Nodes::default(), out.path()).unwrap();
        let network =
            "PrivateNetwork=no\nRestrictAddressFamilies=AF_INET AF_INET6\nIPAddressAllow=::1\n";
        assert_eq!(drop_in(out.path(), "vireo-worker@w0"), format!("[Service]\n{network}"));
        let backend = drop_in(out.path(), "vireo-backend@b0");
        assert!(backend.contains("DeviceAllow=char-vfio rw\n"), "{backend}");
        assert!(backend.contains("PrivateDevices=no\n"), "{backend}");
        let manager = drop_in(out.path(), "vireo-manager");
        assert!(!manager.contains("PrivateNetwork"), "it has the network anyway: {manager}");
        assert_eq!(addresses("http://10.0.0.7:4317"), "10.0.0.7");
        assert_eq!(addresses("http://localhost:4317"), "localhost");
        assert_eq!(addresses("http://collector.example:4317/x"), "any");
    }

    #[test]
    fn one_node_is_no_choice() {
        let sys = tempfile::tempdir().unwrap();
        assert_eq!(nodes(sys.path(), &["0-7"]).near(5), None);
        assert_eq!(Nodes::of(Path::new("/nonexistent")).near(0), None);
        let sys = tempfile::tempdir().unwrap();
        let two = nodes(sys.path(), &["0,2", "1,3"]);
        assert_eq!((two.near(2), two.near(3)), (Some((0, "0,2")), Some((1, "1,3"))));
        assert_eq!(two.near(9), None);
    }

    #[test]
    fn a_path_cannot_add_directives() {
        assert_eq!(quoted("-", Path::new("/a b/%n\"\\")).unwrap(), "\"-/a b/%%n\\\"\\\\\"");
        assert!(quoted("-", Path::new("/a\nUser=root")).is_err());
    }
}
