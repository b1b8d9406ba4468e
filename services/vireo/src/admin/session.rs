//! The way to the manager, and its errors in a person's words.

use super::arguments::Access;
use anyhow::{Context, anyhow};
use service::config::Config;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::Status;
use tonic::transport::Channel;
use tonic_types::StatusExt;
use vireo_api::v1::controller_service_client::ControllerServiceClient;
use vireo_api::v1::event_service_client::EventServiceClient;
use vireo_api::v1::fault_service_client::FaultServiceClient;
use vireo_api::v1::namespace_service_client::NamespaceServiceClient;
use vireo_api::v1::stats_service_client::StatsServiceClient;
use vireo_api::v1::subsystem_service_client::SubsystemServiceClient;
use vireo_api::v1::target_service_client::TargetServiceClient;
use vireo_api::v1::trace_service_client::TraceServiceClient;
use vireo_api::v1::volume_service_client::VolumeServiceClient;
use vireo_api::v1::worker_service_client::WorkerServiceClient;

/// Where the manager listens if nothing is said.
const DEFAULT_DIRECTORY: &str = "/run/vireo";
/// Longest wait for the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Clients of all services on one connection.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) target: TargetServiceClient<Channel>,
    pub(crate) volumes: VolumeServiceClient<Channel>,
    pub(crate) subsystems: SubsystemServiceClient<Channel>,
    pub(crate) namespaces: NamespaceServiceClient<Channel>,
    pub(crate) controllers: ControllerServiceClient<Channel>,
    pub(crate) workers: WorkerServiceClient<Channel>,
    pub(crate) stats: StatsServiceClient<Channel>,
    pub(crate) events: EventServiceClient<Channel>,
    pub(crate) traces: TraceServiceClient<Channel>,
    pub(crate) faults: FaultServiceClient<Channel>,
}

impl Session {
    /// Connects.
    ///
    /// # Errors
    /// One line with the socket and the remedy.
    pub(crate) async fn open(access: &Access) -> anyhow::Result<Self> {
        let socket = access.socket()?;
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, vireo_api::connect(&socket)).await;
        let channel = match connected {
            Err(_) => return Err(anyhow!("{}: the manager does not answer", socket.display())),
            Ok(Err(_)) => return Err(unreachable(&socket)),
            Ok(Ok(channel)) => channel,
        };
        Ok(Self {
            target: TargetServiceClient::new(channel.clone()),
            volumes: VolumeServiceClient::new(channel.clone()),
            subsystems: SubsystemServiceClient::new(channel.clone()),
            namespaces: NamespaceServiceClient::new(channel.clone()),
            controllers: ControllerServiceClient::new(channel.clone()),
            workers: WorkerServiceClient::new(channel.clone()),
            stats: StatsServiceClient::new(channel.clone()),
            events: EventServiceClient::new(channel.clone()),
            traces: TraceServiceClient::new(channel.clone()),
            faults: FaultServiceClient::new(channel),
        })
    }
}

impl Access {
    /// The manager's socket.
    ///
    /// # Errors
    /// The configuration file has mistakes.
    pub(crate) fn socket(&self) -> anyhow::Result<PathBuf> {
        if let Some(socket) = &self.api {
            return Ok(socket.clone());
        }
        if let Some(file) = &self.config {
            let config = Config::read(file).map_err(|mistakes| anyhow!("{mistakes}"))?;
            return Ok(config.api.socket);
        }
        let directory = self.runtime_dir.as_deref().unwrap_or(Path::new(DEFAULT_DIRECTORY));
        std::path::absolute(directory.join(vireo_api::SOCKET)).context("--runtime-dir")
    }
}

/// Why nobody can be reached there, as the file system tells it.
fn unreachable(socket: &Path) -> anyhow::Error {
    let path = socket.display();
    if socket.metadata().is_ok_and(|found| !found.file_type().is_socket()) {
        return anyhow!("{path} is no socket: is it the manager's api.sock?");
    }
    match std::os::unix::net::UnixStream::connect(socket).map_err(|error| error.kind()) {
        Err(std::io::ErrorKind::NotFound) => anyhow!(
            "no manager at {path}: is Vireo running? `vireo up` or vireo.target starts it; `--api`, \
             `--runtime-dir` or `--config` say where it is"
        ),
        Err(std::io::ErrorKind::PermissionDenied) => {
            anyhow!(
                "no permission to connect to {path}: run as root, or have your user named in \
                 admin_users or observer_users of [api]"
            )
        }
        Err(std::io::ErrorKind::ConnectionRefused) => {
            anyhow!(
                "nobody listens at {path}: the manager ended; `vireo up`, or systemctl start \
                 vireo-manager, starts it"
            )
        }
        Ok(_) | Err(_) => anyhow!("{path} speaks no gRPC: is it the manager's api socket?"),
    }
}

/// What the manager refused, with the fields and objects that it names.
pub(super) fn refusal(status: &Status) -> anyhow::Error {
    let mut text = status.message().to_owned();
    let details = status.get_error_details();
    for violation in details.bad_request().map(|bad| &bad.field_violations).into_iter().flatten() {
        if !text.contains(&violation.description) {
            text.push_str(&format!("\n  {}: {}", violation.field, violation.description));
        }
    }
    for violation in
        details.precondition_failure().map(|failed| &failed.violations).into_iter().flatten()
    {
        if !text.contains(&violation.description) {
            text.push_str(&format!("\n  {}: {}", violation.subject, violation.description));
        }
    }
    if text.is_empty() {
        text = format!("{:?}", status.code());
    }
    anyhow!(text)
}

/// The name of a resource: a person may leave the collection out.
pub(super) fn full_name(collection: &str, name: &str) -> String {
    if name.contains('/') { name.to_owned() } else { format!("{collection}/{name}") }
}

/// The name of a namespace, `SUBSYSTEM/NSID` or in full.
pub(super) fn namespace_name(name: &str) -> String {
    match name.split_once('/') {
        Some((subsystem, nsid)) if subsystem != "subsystems" => {
            format!("subsystems/{subsystem}/namespaces/{nsid}")
        }
        Some(_) | None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collections_may_be_left_out() {
        assert_eq!(full_name("volumes", "data"), "volumes/data");
        assert_eq!(full_name("volumes", "volumes/data"), "volumes/data");
        assert_eq!(namespace_name("s0/3"), "subsystems/s0/namespaces/3");
        assert_eq!(namespace_name("subsystems/s0/namespaces/3"), "subsystems/s0/namespaces/3");
    }
}
