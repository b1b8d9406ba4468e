//! systemd's side of it, if the package is installed.

use super::finding::{Finding, plural};
use super::machine::Machine;

/// Where the target's unit may be.
const TARGETS: [&str; 3] = [
    "/etc/systemd/system/vireo.target",
    "/usr/lib/systemd/system/vireo.target",
    "/lib/systemd/system/vireo.target",
];

/// Where units and their drop-ins are; later ones come before earlier ones.
const DIRECTORIES: [&str; 5] = [
    "/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/run/systemd/generator",
    "/run/systemd/system",
    "/etc/systemd/system",
];

/// True if the units are there.
pub fn are_installed(machine: &Machine) -> bool {
    TARGETS.iter().any(|path| machine.is_there(path))
}

/// What the unit of a process (`vireo-worker@w0.service`) says of a key, its drop-ins included, as systemd reads them;
/// `None` if it says nothing.
pub fn setting(machine: &Machine, unit: &str, key: &str) -> Option<String> {
    let template = match unit.split_once('@') {
        Some((name, _)) => format!("{name}@.service"),
        None => unit.to_owned(),
    };
    let mut found = None;
    for directory in DIRECTORIES {
        let drop_ins = [&template, unit].map(|unit| format!("{directory}/{unit}.d"));
        let drop_ins = drop_ins.iter().flat_map(|directory| {
            machine.list(directory).into_iter().map(move |name| format!("{directory}/{name}"))
        });
        for file in [format!("{directory}/{template}")].into_iter().chain(drop_ins) {
            let text = machine.text(&file).unwrap_or_default();
            let mut said =
                text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            found = said.next_back().map(|value| value.trim().to_owned()).or(found);
        }
    }
    found
}

/// Looks at them.
pub fn check(machine: &Machine) -> Vec<Finding> {
    if !are_installed(machine) {
        return vec![Finding::ok(
            "systemd",
            "units are not installed; vireo up is the keeper then",
        )];
    }
    if !machine.is_there("/run/systemd/system") {
        return vec![Finding::ok("systemd", "units are installed, but systemd does not run here")];
    }
    let arguments =
        ["list-units", "--all", "--plain", "--no-legend", "--no-pager", "--full", "vireo*"];
    let listed = machine
        .program("systemctl", &["/usr/bin/systemctl", "/bin/systemctl"])
        .and_then(|program| (machine.calls.run)(&program, &arguments));
    let Some(listed) = listed else {
        let remedy = "run systemctl status 'vireo*' by hand";
        return vec![Finding::warning("systemd", "systemctl does not answer", remedy)];
    };
    states(&listed)
}

/// Of lines like `vireo-worker@w0.service loaded active running Vireo worker w0`.
fn states(listed: &str) -> Vec<Finding> {
    let units = listed.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let unit = words.next()?;
        let (_, active, sub) = (words.next()?, words.next()?, words.next()?);
        Some((unit, active, sub))
    });
    let units: Vec<(&str, &str, &str)> = units.collect();
    let mut findings: Vec<Finding> = units
        .iter()
        .filter(|(_, active, sub)| *active == "failed" || *sub == "auto-restart")
        .map(|(unit, active, sub)| {
            let found = format!("{unit} is {active} ({sub})");
            let remedy = format!("journalctl -u {unit} -n 50; then systemctl restart {unit}");
            Finding::problem("systemd", found, remedy)
        })
        .collect();
    let running = units.iter().filter(|(_, active, sub)| *active == "active" && *sub == "running");
    let running = running.count();
    let target =
        units.iter().any(|(unit, active, _)| *unit == "vireo.target" && *active == "active");
    if !target {
        findings.push(Finding::warning(
            "systemd",
            "vireo.target is installed and not started",
            "systemctl enable --now vireo.target",
        ));
    } else if findings.is_empty() {
        findings.push(Finding::ok(
            "systemd",
            format!("vireo.target is active, {} running", plural(running, "unit")),
        ));
    }
    findings
}
