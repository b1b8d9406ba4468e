//! Regions of a device: their indexes, their flags, and how a region describes itself.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::message::{CapabilityHeader, RegionInfo, SparseMmapArea, SparseMmapCapability};

/// Capability id of a sparse mmap capability (`VFIO_REGION_INFO_CAP_SPARSE_MMAP`).
pub const CAP_SPARSE_MMAP: u16 = 1;

/// Regions that every PCI device has (`VFIO_PCI_NUM_REGIONS`).
pub const NUM_PCI_REGIONS: usize = 9;

/// Index of a region; of a PCI device, the ones that have a name here. Others are data.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct RegionIndex(pub u32);

impl RegionIndex {
    /// Base address register 0.
    pub const BAR0: Self = Self(0);
    /// Base address register 1.
    pub const BAR1: Self = Self(1);
    /// Base address register 2.
    pub const BAR2: Self = Self(2);
    /// Base address register 3.
    pub const BAR3: Self = Self(3);
    /// Base address register 4.
    pub const BAR4: Self = Self(4);
    /// Base address register 5.
    pub const BAR5: Self = Self(5);
    /// Expansion ROM.
    pub const ROM: Self = Self(6);
    /// Configuration space.
    pub const CONFIG: Self = Self(7);
    /// VGA ranges.
    pub const VGA: Self = Self(8);

    /// The index as a position in a table.
    #[must_use]
    pub fn position(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// What may be done with a region (`VFIO_REGION_INFO_FLAG_*`).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RegionFlags {
    /// It can be read.
    pub read: bool,
    /// It can be written.
    pub write: bool,
    /// It, or the areas of its sparse mmap capability, can be mapped.
    pub mmap: bool,
    /// Capabilities follow in the reply.
    pub caps: bool,
    #[bits(28)]
    __: u32,
}

/// What a client may map of a region.
#[derive(Debug, Clone)]
pub struct RegionMapping {
    /// The descriptor that is sent with the region's info.
    pub fd: Arc<OwnedFd>,
    /// Offset of the region's first byte within the descriptor.
    pub offset: u64,
    /// The areas that can be mapped, by their offset within the region. One suits every client.
    pub areas: Vec<SparseMmapArea>,
}

/// One region of a device, as its description gives it.
#[derive(Debug, Clone, Default)]
pub struct Region {
    /// Bytes; 0 for a region that is not there.
    pub size: u64,
    /// Whether it can be read.
    pub read: bool,
    /// Whether it can be written.
    pub write: bool,
    /// What can be mapped, if anything.
    pub mapping: Option<RegionMapping>,
}

impl Region {
    /// A region of `size` bytes that is read and written by messages.
    #[must_use]
    pub fn read_write(size: u64) -> Self {
        Self { size, read: true, write: true, mapping: None }
    }

    /// The same region, of which `mapping` can be mapped.
    #[must_use]
    pub fn with_mapping(self, mapping: RegionMapping) -> Self {
        Self { mapping: Some(mapping), ..self }
    }

    /// Whether `count` bytes at `offset` lie within the region.
    #[must_use]
    pub fn contains(&self, offset: u64, count: u64) -> bool {
        offset.checked_add(count).is_some_and(|end| end <= self.size)
    }

    /// Body of the reply to DEVICE_GET_REGION_INFO from a client that takes `argsz` bytes, and
    /// whether the region's descriptor goes with it.
    ///
    /// The capabilities are in the body, and the descriptor with it, only if all of it fits; if
    /// not, the body says by its `argsz` what would. A client that asks again would have to close
    /// the first descriptor, and not all do.
    #[must_use]
    pub fn info(&self, index: RegionIndex, argsz: u32) -> (Vec<u8>, Option<Arc<OwnedFd>>) {
        let mut info = RegionInfo {
            argsz: size_of::<RegionInfo>() as u32,
            flags: RegionFlags::new().with_read(self.read).with_write(self.write),
            index,
            size: self.size,
            ..RegionInfo::default()
        };
        let Some(mapping) = &self.mapping else {
            return (info.as_bytes().to_vec(), None);
        };
        info.flags.set_mmap(true);
        info.offset = mapping.offset;
        let capability = sparse_mmap(&mapping.areas);
        info.argsz += capability.len() as u32;
        if argsz < info.argsz {
            return (info.as_bytes().to_vec(), None);
        }
        info.flags.set_caps(true);
        info.cap_offset = size_of::<RegionInfo>() as u32;
        let mut body = info.as_bytes().to_vec();
        body.extend_from_slice(&capability);
        (body, Some(Arc::clone(&mapping.fd)))
    }
}

fn sparse_mmap(areas: &[SparseMmapArea]) -> Vec<u8> {
    let head = SparseMmapCapability {
        header: CapabilityHeader { id: CAP_SPARSE_MMAP, version: 1, next: 0 },
        nr_areas: areas.len() as u32,
        reserved: 0,
    };
    let mut bytes = head.as_bytes().to_vec();
    bytes.extend_from_slice(areas.as_bytes());
    bytes
}

/// Areas of the sparse mmap capability in a region's reply; empty where it has none.
/// `body` is the whole body, `info` its fixed part. Chains that leave the body, or turn back, end.
#[must_use]
pub fn parse_sparse_areas(info: &RegionInfo, body: &[u8]) -> Vec<SparseMmapArea> {
    if !info.flags.caps() {
        return Vec::new();
    }
    let mut at = info.cap_offset as usize;
    let mut least = size_of::<RegionInfo>();
    while at >= least {
        let Some(rest) = body.get(at..) else { break };
        let Ok((header, _)) = CapabilityHeader::read_from_prefix(rest) else { break };
        if header.id == CAP_SPARSE_MMAP
            && let Ok((head, areas)) = SparseMmapCapability::read_from_prefix(rest)
        {
            return areas
                .chunks_exact(size_of::<SparseMmapArea>())
                .take(head.nr_areas as usize)
                .filter_map(|bytes| SparseMmapArea::read_from_bytes(bytes).ok())
                .collect();
        }
        least = at + size_of::<CapabilityHeader>();
        at = header.next as usize;
    }
    Vec::new()
}
