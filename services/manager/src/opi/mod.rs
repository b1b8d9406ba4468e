//! The storage services of the Open Programmable Infrastructure project (OPI), package `opi_api.storage.v1`, beside
//! `vireo.v1` on the same server: the same objects, rules, roles and audit log by other names.
//!
//! | OPI | Vireo |
//! |---|---|
//! | `nullVolumes/x`, `mallocVolumes/x`, `aioVolumes/x`, or `volumes/x` for each of them | the bdev `x` with the driver `null`, `malloc` or `file` |
//! | `nvmeSubsystems/x` | the subsystem `x` |
//! | `nvmeSubsystems/x/nvmeControllers/y` | the endpoint `y` of the subsystem `x` |
//! | `nvmeSubsystems/x/nvmeNamespaces/y` | the namespace of `x` that was made with the identifier `y`; else, the one with the NSID `y` |
//!
//! **Transport.** The one transport type is PCIe. A function's place in its machine is the VMM's to say, so `pcie_id` names
//! what is given to the VMM: port, physical and virtual function are the directory `pcie-<port>.<physical>.<virtual>` of
//! the endpoint, in the runtime directory (`endpoint::Place`). Two controllers with one `pcie_id` are refused, since an
//! endpoint is one function. Without a `pcie_id` the directory has the controller's name, as in `vireo.v1`.
//!
//! **What a request asks for and is not so.** What would mean something else to a guest is refused by its field: fabrics,
//! host names and keys, metadata, guarantees of rate. What Vireo decides by itself (UUIDs, controller
//! identifiers, entry sizes, how many namespaces are possible) is not taken; the answer holds what is.
//!
//! **Repeating a call.** This API has no request identifiers. Instead, making what is there already with the same content
//! is answered with what is there; with other content it is ALREADY_EXISTS.
//!
//! Messages are put together from those of `vireo.v1`, so that both APIs tell the same.

mod aio;
mod controller;
mod endpoint;
mod error;
mod frontend;
mod limits;
mod malloc;
mod mask;
pub(crate) mod name;
mod namespace;
mod null;
mod stats;
mod subsystem;
mod volume;

use crate::grpc::audited as changed;
use crate::manager::edit::Call;

/// A change that is made, not tried out, and has no identifier: this API knows neither.
fn plain() -> Call {
    Call::default()
}
