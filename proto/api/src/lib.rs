//! The public gRPC API: the Rust side of `proto/vireo/v1` and `proto/opi_api`, where every method and field is told.
//!
//! [`v1`] holds messages, clients (`v1::volume_service_client::VolumeServiceClient`) and servers, [`opi`] those of OPI's
//! storage services, which the same manager serves; [`connect`] is the way to a manager on this host. It is a crate of its
//! own so that gRPC stays out of the processes of the data path.

#![forbid(unsafe_code)]

use std::path::Path;
use tonic::transport::{Channel, Endpoint, Error};

/// Messages, clients and servers of `proto/vireo/v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("vireo.v1");
}

/// Messages, clients and servers of `proto/opi_api/storage/v1`: the storage API of the Open Programmable Infrastructure
/// project, as far as Vireo serves it.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod opi {
    tonic::include_proto!("opi_api.storage.v1");
}

/// The compiled .proto files with all that they import, an encoded `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Name of the manager's socket in the runtime directory.
pub const SOCKET: &str = "api.sock";

/// Longest request that a manager takes, in bytes.
pub const MAX_REQUEST: usize = 1 << 20;

/// Connects to the manager that listens on the Unix socket at `path`.
///
/// # Errors
/// Nobody listens there, or this user may not connect.
pub async fn connect(path: &Path) -> Result<Channel, Error> {
    Endpoint::from_shared(format!("unix://{}", path.display()))?.connect().await
}
