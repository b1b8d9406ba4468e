//! From an address to a transport, with a clear word for each way that fails.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use vfio_user::client::ClientError;
use vfio_user::socket::SocketError;

use super::Controller;
use crate::address::{Address, PciAddress};
use crate::error::{ConnectError, chain};
use crate::options::Options;
use crate::transport::vfio::{Keeper, Vfio};
use crate::transport::vfio_user::VfioUser;
use crate::transport::{Transport, TransportError};

pub(super) fn reach(
    address: &Address,
    options: &Options,
    keeper: Option<&Arc<dyn Keeper>>,
) -> Result<Arc<dyn Transport>, ConnectError> {
    match address {
        Address::VfioUser(path) => {
            let socket = Address::socket(path);
            match VfioUser::connect(&socket, options.connect_timeout, options.admin_timeout) {
                Ok(transport) => Ok(Arc::new(transport)),
                Err(error) => Err(explain(error, address, &socket, options)),
            }
        }
        Address::Pcie(pci) => match Vfio::open(*pci, keeper)? {
            Ok(transport) => Ok(Arc::new(transport)),
            Err(TransportError::Unfit { found, needed }) => {
                Err(ConnectError::Unfit { address: address.to_string(), found, needed })
            }
            Err(source) => Err(ConnectError::Transport { address: address.to_string(), source }),
        },
    }
}

/// The controller that a predecessor of this process had, brought up anew on the descriptors that were kept of it. `None` if
/// there is nothing, or nothing of use, which is said; nothing of it is kept then.
pub(super) fn take_over(
    pci: PciAddress,
    address: &str,
    options: &Options,
    keeper: &Arc<dyn Keeper>,
) -> Option<Controller> {
    let reason = match Vfio::inherit(pci, keeper)? {
        Ok(transport) => match Controller::over(Arc::new(transport), address, options) {
            Ok(controller) => {
                tracing::info!(drive = address, "drive taken over from a predecessor");
                return Some(controller);
            }
            Err(error) => error.to_string(),
        },
        Err(error) => chain(&error),
    };
    tracing::warn!(
        drive = address,
        reason,
        "what was kept of the drive is of no use: it is opened anew, when workers have let go of it; if it stays in use, end the process that drives it"
    );
    None
}

/// What a failed vfio-user handshake means.
fn explain(
    error: TransportError,
    address: &Address,
    socket: &Path,
    options: &Options,
) -> ConnectError {
    let path = socket.to_path_buf();
    let address = address.to_string();
    let client = match error {
        TransportError::VfioUser(client) => client,
        TransportError::Unfit { found, needed } => {
            return ConnectError::Unfit { address, found, needed };
        }
        source => return ConnectError::Transport { address, source },
    };
    match client {
        ClientError::Connect { source, .. } => match source.kind() {
            ErrorKind::NotFound => ConnectError::NoSocket { path },
            ErrorKind::ConnectionRefused => ConnectError::NotListening { path },
            ErrorKind::PermissionDenied => ConnectError::Permission { path },
            ErrorKind::TimedOut => {
                ConnectError::NotAnswering { path, waited: options.connect_timeout }
            }
            _ => {
                let call = "connect";
                ConnectError::Transport { address, source: TransportError::System { call, source } }
            }
        },
        ClientError::Exchange { source: SocketError::TimedOut { .. }, .. } => {
            ConnectError::NotAnswering { path, waited: options.connect_timeout }
        }
        ClientError::Exchange { source: SocketError::Closed | SocketError::Io { .. }, .. } => {
            ConnectError::Closed { path }
        }
        error @ (ClientError::Exchange { .. } | ClientError::BadReply { .. }) => {
            ConnectError::NotVfioUser { path, what: chain(&error) }
        }
        error => ConnectError::Transport { address, source: TransportError::VfioUser(error) },
    }
}
