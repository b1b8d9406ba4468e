//! Asking the manager.

use service::config::{Config, Kind, MANAGER};
use service::control::{Answer, ControlError, Session};
use std::path::{Path, PathBuf};
use std::time::Duration;
use vireo_proto::handoff::{GetStatus, HostStatus, Reload, ReloadResult, reply, request};

/// How long a reload may take: it makes files and waits for guests' commands to end.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the manager may take to ask everybody how they are.
const STATUS_TIMEOUT: Duration = Duration::from_secs(15);

/// The manager's socket in a runtime directory.
pub fn manager_socket(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join(format!("{}-{MANAGER}.sock", Kind::Manager))
}

/// The manager's socket of a configuration.
pub fn socket_of(config: &Config) -> PathBuf {
    config.socket(Kind::Manager, MANAGER)
}

/// Has the manager read its configuration file again.
pub async fn reload(socket: &Path) -> Result<ReloadResult, ControlError> {
    let session = Session::connect(socket, "vireo-reload")?;
    let answer = session.call_within(RELOAD_TIMEOUT, request::Body::Reload(Reload {}), &[]).await?;
    match answer {
        Answer { body: reply::Body::ReloadResult(result), .. } => Ok(result),
        _ => Err(session.unexpected("the result of a reload")),
    }
}

/// How all processes of the host are.
pub async fn status(socket: &Path) -> Result<HostStatus, ControlError> {
    let session = Session::connect(socket, "vireo-status")?;
    let body = request::Body::GetStatus(GetStatus {});
    match session.call_within(STATUS_TIMEOUT, body, &[]).await? {
        Answer { body: reply::Body::HostStatus(status), .. } => Ok(status),
        _ => Err(session.unexpected("the status of the host")),
    }
}
