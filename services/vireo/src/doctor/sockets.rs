//! Who runs: sockets that are there, and whether somebody answers at them.

use super::finding::{Finding, plural};
use super::machine::Machine;
use crate::client;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use service::config::{Config, Kind};
use std::os::fd::AsRawFd;
use std::path::Path;
use vireo_proto::handoff::{HostStatus, ProcessStatus};

/// What is at a socket's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Nothing.
    Nothing,
    /// Somebody who listens.
    Listener,
    /// What a process left that died.
    Leftover,
    /// Something that this user may not connect to.
    Forbidden,
    /// Something else, or a path that cannot be one.
    Other(Errno),
}

/// Looks at them. `answer` asks the manager at its socket how all are; `None` if it does not answer in time.
pub fn check(
    machine: &Machine,
    config: &Config,
    answer: impl FnOnce(&Path) -> Option<HostStatus>,
) -> Vec<Finding> {
    let services: Vec<(Kind, &str, At)> = config
        .services()
        .into_iter()
        .map(|(kind, name)| (kind, name, look(machine, &config.socket(kind, name))))
        .collect();
    if services.iter().all(|(_, _, at)| *at == At::Nothing) {
        let found = format!("nobody, {} has no sockets", config.runtime_dir.display());
        let hint = "start it: vireo up --config F, or systemctl start vireo.target";
        return vec![Finding::ok("who runs", found).with_advice(hint)];
    }
    let listening = services.iter().any(|(_, _, at)| *at == At::Listener);
    let mut findings: Vec<Finding> = services
        .iter()
        .filter(|(_, _, at)| *at != At::Listener)
        .map(|(kind, name, at)| absent(machine, &format!("{kind} {name}"), *at, listening))
        .collect();
    let manager = services.iter().find(|(kind, _, _)| *kind == Kind::Manager);
    if let Some((kind, name, At::Listener)) = manager {
        match answer(&machine.path(config.socket(*kind, name))) {
            Some(status) => {
                let more = told(&status, &findings);
                findings.extend(more);
            }
            None => findings.push(Finding::problem(
                format!("manager {name}"),
                "listens, but does not answer",
                "see its log (journalctl -u vireo-manager), then restart it; guests go on meanwhile",
            )),
        }
        findings.extend(api(machine, config));
    }
    findings
}

fn absent(machine: &Machine, check: &str, at: At, others: bool) -> Finding {
    let log = "see its log (vireo up's output, or journalctl -u 'vireo-*')";
    match at {
        At::Leftover if others => {
            let found = "is dead: nobody listens at its socket, while others run";
            Finding::problem(check, found, format!("{log}; its keeper should start it again"))
        }
        At::Leftover => Finding::warning(
            check,
            "left its socket behind, and nobody listens",
            "start Vireo; the socket is replaced",
        ),
        At::Forbidden => Finding::warning(
            check,
            format!("{} may not connect to its socket", machine.who.name),
            "look again as root, or as the user that Vireo runs as",
        ),
        At::Other(error) => Finding::problem(
            check,
            format!("what is at its socket's path is none: {}", error.desc()),
            "move it away",
        ),
        At::Nothing | At::Listener => Finding::problem(check, "does not run, while others do", log),
    }
}

/// What the manager says of all processes, but for those of which there is a finding already.
fn told(status: &HostStatus, known: &[Finding]) -> Vec<Finding> {
    let remedy = "vireo status shows all; its log tells more";
    let name = |process: &ProcessStatus| format!("{} {}", process.kind, process.name);
    let is_known = |name: &str| known.iter().any(|finding| finding.check == name);
    let mut findings = Vec::new();
    // The manager is not ready because of the others; what it misses follows.
    let others = status.processes.iter().filter(|p| p.kind != Kind::Manager.as_str());
    for process in others.filter(|process| !process.ready && !is_known(&name(process))) {
        let message = process.message.as_str();
        let found = if message.is_empty() { "is not ready" } else { message };
        findings.push(Finding::problem(name(process), found, remedy));
    }
    for failure in &status.failures {
        let of_process = |process: &ProcessStatus| {
            !process.ready && failure.starts_with(&format!("{}: ", name(process)))
        };
        if !status.processes.iter().any(of_process) {
            findings.push(Finding::problem("not served", failure, remedy));
        }
    }
    if status.ready {
        let clients = status.processes.iter().flat_map(|process| &process.items);
        let clients = clients.filter(|item| item.kind == "endpoint" && item.state == "connected");
        let found = format!(
            "{}, all is served; {} connected",
            plural(status.processes.len(), "process"),
            plural(clients.count(), "client"),
        );
        findings.push(Finding::ok("who runs", found));
    }
    findings
}

/// The manager's gRPC socket, which another user may have to reach.
fn api(machine: &Machine, config: &Config) -> Option<Finding> {
    let path = &config.api.socket;
    let shown = path.display();
    match look_as(machine, path, SockType::Stream) {
        At::Listener => Some(Finding::ok("API", format!("{shown} answers"))),
        At::Forbidden => Some(Finding::warning(
            "API",
            format!("{} may not connect to {shown}", machine.who.name),
            "admin_users or observer_users in [api], or sudo",
        )),
        At::Nothing | At::Leftover | At::Other(_) => Some(Finding::problem(
            "API",
            format!("nobody listens at {shown}, though the manager runs"),
            "see the manager's log, then restart it",
        )),
    }
}

fn look(machine: &Machine, path: &Path) -> At {
    look_as(machine, path, SockType::SeqPacket)
}

/// Connects and leaves again, without waiting for anybody.
fn look_as(machine: &Machine, path: &Path, kind: SockType) -> At {
    let path = machine.path(path);
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let connected = || {
        let address = UnixAddr::new(&path)?;
        let fd = socket(AddressFamily::Unix, kind, flags, None)?;
        connect(fd.as_raw_fd(), &address)
    };
    match connected() {
        // A full queue of callers is a listener, too.
        Ok(()) | Err(Errno::EAGAIN) => At::Listener,
        Err(Errno::ENOENT | Errno::ENOTDIR) => At::Nothing,
        Err(Errno::ECONNREFUSED) => At::Leftover,
        Err(Errno::EACCES | Errno::EPERM) => At::Forbidden,
        Err(error) => At::Other(error),
    }
}

/// Asks a manager how all are.
pub fn ask(socket: &Path) -> Option<HostStatus> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(async {
        let asked = tokio::time::timeout(super::PATIENCE / 2, client::status(socket)).await;
        asked.ok()?.ok()
    })
}
