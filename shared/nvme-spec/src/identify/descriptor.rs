//! Namespace Identification Descriptor list (CNS 03h). NVMe Base 2.0c 5.17.2.3.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{CommandSet, IDENTIFY_SIZE};
use crate::ids::{Eui64, Nguid, Uuid};
use crate::open_enum::open_enum;

open_enum! {
    /// Namespace Identifier Type (NIDT). NVMe Base 2.0c figure 277.
    pub struct IdentifierType(u8) {
        EUI64 = 0x1, "IEEE Extended Unique Identifier";
        NGUID = 0x2, "Namespace Globally Unique Identifier";
        UUID = 0x3, "Namespace UUID";
        CSI = 0x4, "Command Set Identifier";
    }
}

/// Head of a descriptor, 4 bytes; the identifier follows. NVMe Base 2.0c figure 277.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DescriptorHeader {
    /// Namespace Identifier Type (NIDT).
    pub nidt: IdentifierType,
    /// Namespace Identifier Length (NIDL), in bytes; 0 ends the list.
    pub nidl: u8,
    /// Reserved.
    pub reserved2: [u8; 2],
}

/// Identifiers of a namespace, of which at most one of each kind is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamespaceIdentifiers {
    /// IEEE Extended Unique Identifier.
    pub eui64: Option<Eui64>,
    /// Namespace Globally Unique Identifier.
    pub nguid: Option<Nguid>,
    /// Namespace UUID.
    pub uuid: Option<Uuid>,
    /// Command Set Identifier: required of a controller that supports CC.CSS 110b.
    pub csi: Option<CommandSet>,
}

impl NamespaceIdentifiers {
    /// The list of 4096 bytes. An identifier of zeroes means none and is left out.
    pub fn to_list(&self) -> [u8; IDENTIFY_SIZE] {
        let mut list = [0; IDENTIFY_SIZE];
        let mut at = 0;
        if let Some(eui64) = self.eui64.filter(|id| *id != Eui64::default()) {
            at = append(&mut list, at, IdentifierType::EUI64, &eui64.0);
        }
        if let Some(nguid) = self.nguid.filter(|id| *id != Nguid::default()) {
            at = append(&mut list, at, IdentifierType::NGUID, &nguid.0);
        }
        if let Some(uuid) = self.uuid.filter(|id| *id != Uuid::default()) {
            at = append(&mut list, at, IdentifierType::UUID, &uuid.0);
        }
        if let Some(csi) = self.csi {
            append(&mut list, at, IdentifierType::CSI, &[csi.0]);
        }
        list
    }

    /// Reads a list. Descriptors of other types, or of a length that their type does not have, are passed over; one
    /// that reaches past the end ends the list.
    pub fn from_list(list: &[u8]) -> Self {
        let mut identifiers = Self::default();
        let mut rest = list;
        while let Ok((header, tail)) = DescriptorHeader::read_from_prefix(rest) {
            if header.nidl == 0 {
                break;
            }
            let Some((nid, tail)) = tail.split_at_checked(usize::from(header.nidl)) else { break };
            match header.nidt {
                IdentifierType::EUI64 => identifiers.eui64 = nid.try_into().ok().map(Eui64),
                IdentifierType::NGUID => identifiers.nguid = nid.try_into().ok().map(Nguid),
                IdentifierType::UUID => identifiers.uuid = nid.try_into().ok().map(Uuid),
                IdentifierType::CSI => {
                    identifiers.csi = nid.try_into().ok().map(|[csi]: [u8; 1]| CommandSet(csi))
                }
                _ => {}
            }
            rest = tail;
        }
        identifiers
    }
}

/// Writes a descriptor at `at` and returns where the next one goes. All four together take 57 bytes.
fn append(list: &mut [u8; IDENTIFY_SIZE], at: usize, nidt: IdentifierType, nid: &[u8]) -> usize {
    let start = at + size_of::<DescriptorHeader>();
    let end = start + nid.len();
    let header = DescriptorHeader { nidt, nidl: nid.len() as u8, reserved2: [0; 2] };
    list[at..start].copy_from_slice(header.as_bytes());
    list[start..end].copy_from_slice(nid);
    end
}

const _: () = assert!(size_of::<DescriptorHeader>() == 4);
