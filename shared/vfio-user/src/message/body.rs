//! Bodies of messages, as they stand behind the header. Offsets within them are from the end of
//! the header. Structures shared with Linux's VFIO have the layout of `<linux/vfio.h>`.

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::irq::{IrqIndex, IrqInfoFlags, IrqSetFlags};
use crate::region::{RegionFlags, RegionIndex};
use crate::server::DeviceFlags;

/// Declares a body: C layout, conversions from and to bytes, and its size checked.
macro_rules! body {
    ($(#[$doc:meta])* $name:ident, $size:literal, { $($(#[$field_doc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
        )]
        #[repr(C)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $ty,)*
        }
        const _: () = assert!(size_of::<$name>() == $size);
    };
}

body! {
    /// Body of VERSION and its reply, in front of the JSON capabilities.
    VersionBody, 4, {
        /// Major version; 0 is the only one there is.
        major: u16,
        /// Minor version.
        minor: u16,
    }
}

/// Access that a DMA mapping allows the device (`flags` of DMA_MAP).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DmaAccess {
    /// The device may read the memory.
    pub read: bool,
    /// The device may write the memory.
    pub write: bool,
    /// Reserved; a message that sets one is refused.
    #[bits(30)]
    pub reserved: u32,
}

body! {
    /// Body of DMA_MAP (32 bytes); the reply has none.
    DmaMapBody, 32, {
        /// Bytes of this structure.
        argsz: u32,
        /// What the device may do.
        flags: DmaAccess,
        /// Where in the file descriptor the range begins, in bytes; 0 without a descriptor.
        offset: u64,
        /// First I/O virtual address of the range.
        address: u64,
        /// Bytes of the range.
        size: u64,
    }
}

/// Flags of DMA_UNMAP.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DmaUnmapFlags {
    /// Return the dirty page bitmap: not served.
    pub get_dirty_bitmap: bool,
    /// Unmap everything; address and size are 0.
    pub all: bool,
    /// Reserved.
    #[bits(30)]
    pub reserved: u32,
}

body! {
    /// Body of DMA_UNMAP and of its reply, which repeats it (24 bytes).
    DmaUnmapBody, 24, {
        /// Largest reply body that is expected, in bytes.
        argsz: u32,
        /// Exact range or all.
        flags: DmaUnmapFlags,
        /// First I/O virtual address, exactly as mapped.
        address: u64,
        /// Bytes, exactly as mapped.
        size: u64,
    }
}

body! {
    /// Body of DEVICE_GET_INFO and its reply.
    DeviceInfo, 16, {
        /// Largest reply body expected; of a reply, the bytes of the full one.
        argsz: u32,
        /// What the device is.
        flags: DeviceFlags,
        /// Number of regions.
        num_regions: u32,
        /// Number of interrupt types.
        num_irqs: u32,
    }
}

body! {
    /// Body of DEVICE_GET_REGION_INFO and the fixed part of its reply
    /// (`struct vfio_region_info`).
    RegionInfo, 32, {
        /// Largest reply body expected; of a reply, the bytes of the full one.
        argsz: u32,
        /// What may be done with the region.
        flags: RegionFlags,
        /// The region.
        index: RegionIndex,
        /// Offset of the first capability from the start of this structure, 0 for none.
        cap_offset: u32,
        /// Bytes of the region.
        size: u64,
        /// Offset of the region within its file descriptor.
        offset: u64,
    }
}

body! {
    /// Header of a capability in a region's reply (`struct vfio_info_cap_header`).
    CapabilityHeader, 8, {
        /// Which capability.
        id: u16,
        /// Its version.
        version: u16,
        /// Offset of the next one from the start of the region info, 0 for none.
        next: u32,
    }
}

body! {
    /// Sparse mmap capability without its areas
    /// (`struct vfio_region_info_cap_sparse_mmap`).
    SparseMmapCapability, 16, {
        /// [`crate::region::CAP_SPARSE_MMAP`], version 1.
        header: CapabilityHeader,
        /// Areas that follow.
        nr_areas: u32,
        /// Zero.
        reserved: u32,
    }
}

body! {
    /// A part of a region that can be mapped (`struct vfio_region_sparse_mmap_area`).
    SparseMmapArea, 16, {
        /// Offset within the region, in bytes; added to the region's own within the descriptor.
        offset: u64,
        /// Bytes.
        size: u64,
    }
}

body! {
    /// Body of DEVICE_GET_REGION_IO_FDS.
    RegionIoFds, 16, {
        /// Largest reply body expected.
        argsz: u32,
        /// Zero.
        flags: u32,
        /// The region.
        index: RegionIndex,
        /// Sub-regions in the reply.
        count: u32,
    }
}

body! {
    /// Body of DEVICE_GET_IRQ_INFO and its reply (`struct vfio_irq_info`).
    IrqInfo, 16, {
        /// Largest reply body expected; of a reply, the bytes of the full one.
        argsz: u32,
        /// What the interrupt type can do.
        flags: IrqInfoFlags,
        /// The interrupt type.
        index: IrqIndex,
        /// Its interrupts.
        count: u32,
    }
}

body! {
    /// Body of DEVICE_SET_IRQS in front of its data (`struct vfio_irq_set`).
    IrqSet, 20, {
        /// Bytes of this structure and its data.
        argsz: u32,
        /// Kind of data, and action.
        flags: IrqSetFlags,
        /// The interrupt type.
        index: IrqIndex,
        /// First interrupt.
        start: u32,
        /// Number of interrupts.
        count: u32,
    }
}

body! {
    /// Body of REGION_READ and REGION_WRITE and of their replies, in front of any data.
    RegionAccess, 16, {
        /// Offset within the region, in bytes.
        offset: u64,
        /// The region.
        region: RegionIndex,
        /// Bytes of data.
        count: u32,
    }
}

body! {
    /// Head of REGION_WRITE_MULTI, and the whole of its reply.
    WriteMultiHeader, 8, {
        /// Number of writes; of a reply, of those done.
        wr_cnt: u64,
    }
}

body! {
    /// One write of REGION_WRITE_MULTI.
    WriteMulti, 24, {
        /// Offset within the region, in bytes.
        offset: u64,
        /// The region.
        region: RegionIndex,
        /// Bytes of data, at most 8.
        count: u32,
        /// The data, its first `count` bytes.
        data: [u8; 8],
    }
}
