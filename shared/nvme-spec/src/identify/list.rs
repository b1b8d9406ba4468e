//! Lists of namespaces and of controllers. NVMe Base 2.0c 4.4.

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::ids::{ControllerId, Nsid};

/// Identifiers that a namespace list has room for. NVMe Base 2.0c 4.4.2.
pub const NAMESPACES_MAX: usize = 1024;

/// Identifiers that a controller list has room for. NVMe Base 2.0c 4.4.1.
pub const CONTROLLERS_MAX: usize = 2047;

/// Namespace List, 4096 bytes: ascending, then zeroes. NVMe Base 2.0c 4.4.2.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NamespaceList {
    /// The identifiers.
    pub nsids: [Nsid; NAMESPACES_MAX],
}

/// Controller List, 4096 bytes: a count, then ascending identifiers. NVMe Base 2.0c 4.4.1.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ControllerList {
    /// Number of identifiers; a peer may claim more than there is room for.
    pub count: u16,
    /// The identifiers.
    pub cntlids: [ControllerId; CONTROLLERS_MAX],
}

impl NamespaceList {
    /// The first 1024 of `nsids`, which come in ascending order.
    pub fn new(nsids: impl IntoIterator<Item = Nsid>) -> Self {
        let mut list = Self::new_zeroed();
        for (entry, nsid) in list.nsids.iter_mut().zip(nsids) {
            *entry = nsid;
        }
        list
    }

    /// The identifiers up to the first zero.
    pub fn iter(&self) -> impl Iterator<Item = Nsid> + '_ {
        self.nsids.iter().copied().take_while(|&nsid| nsid != Nsid::NONE)
    }
}

impl ControllerList {
    /// The first 2047 of `cntlids`, which come in ascending order.
    pub fn new(cntlids: impl IntoIterator<Item = ControllerId>) -> Self {
        let mut list = Self::new_zeroed();
        for (entry, cntlid) in list.cntlids.iter_mut().zip(cntlids) {
            *entry = cntlid;
            list.count += 1;
        }
        list
    }

    /// The identifiers that the count covers, as far as there is room for them.
    pub fn iter(&self) -> impl Iterator<Item = ControllerId> + '_ {
        self.cntlids.iter().copied().take(usize::from(self.count))
    }
}

const _: () = assert!(size_of::<NamespaceList>() == super::IDENTIFY_SIZE);
const _: () = assert!(size_of::<ControllerList>() == super::IDENTIFY_SIZE);
