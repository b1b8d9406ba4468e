//! Scatter gather list descriptors. NVMe Base 2.0c 4.1.2.

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, transmute};

use crate::ids::Iova;
use crate::open_enum::open_enum;

open_enum! {
    /// SGL Descriptor Type, 4 bits. NVMe Base 2.0c 4.1.2.1.
    pub struct SglType(u8) {
        DATA_BLOCK = 0x0, "SGL Data Block descriptor";
        BIT_BUCKET = 0x1, "SGL Bit Bucket descriptor";
        SEGMENT = 0x2, "SGL Segment descriptor";
        LAST_SEGMENT = 0x3, "SGL Last Segment descriptor";
        KEYED_DATA_BLOCK = 0x4, "Keyed SGL Data Block descriptor";
        TRANSPORT_DATA_BLOCK = 0x5, "Transport SGL Data Block descriptor";
        VENDOR = 0xF, "Vendor specific";
    }
}

open_enum! {
    /// SGL Descriptor Sub Type, 4 bits: what the address means. NVMe Base 2.0c 4.1.2.1.
    pub struct SglSubtype(u8) {
        ADDRESS = 0x0, "Address";
        OFFSET = 0x1, "Offset";
        INVALIDATE_KEY = 0xF, "Keyed SGL with key to invalidate";
    }
}

/// SGL Identifier: last byte of a descriptor. NVMe Base 2.0c 4.1.2.1.
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SglIdentifier {
    /// SGL Descriptor Sub Type.
    #[inline]
    #[bits(4)]
    pub subtype: SglSubtype,
    /// SGL Descriptor Type.
    #[inline]
    #[bits(4)]
    pub kind: SglType,
}

/// SGL descriptor as the types that have an address and a length lay it out. NVMe Base 2.0c 4.1.2.1.
///
/// Of a bit bucket the address is reserved. Of a keyed descriptor `length` and `reserved` hold length and key; see
/// [`keyed`](Self::keyed).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct SglDescriptor {
    /// First byte of the data or of the next segment.
    pub address: Iova,
    /// Bytes of data, or of the next segment: then a multiple of 16.
    pub length: u32,
    /// Reserved in descriptors without a key.
    pub reserved: [u8; 3],
    /// Type and sub type.
    pub identifier: SglIdentifier,
}

impl SglDescriptor {
    /// A data block of `length` bytes at `address`.
    #[inline]
    pub const fn data_block(address: Iova, length: u32) -> Self {
        Self::of_kind(SglType::DATA_BLOCK, address, length)
    }

    /// `length` bytes that a read drops and a write has not.
    #[inline]
    pub const fn bit_bucket(length: u32) -> Self {
        Self::of_kind(SglType::BIT_BUCKET, Iova(0), length)
    }

    /// The next segment, of `length` bytes of descriptors at `address`; others follow it.
    #[inline]
    pub const fn segment(address: Iova, length: u32) -> Self {
        Self::of_kind(SglType::SEGMENT, address, length)
    }

    /// The next and last segment, of `length` bytes of descriptors at `address`.
    #[inline]
    pub const fn last_segment(address: Iova, length: u32) -> Self {
        Self::of_kind(SglType::LAST_SEGMENT, address, length)
    }

    /// From the two 64-bit words of the descriptor as it lies in memory.
    #[inline]
    pub const fn from_words(words: [u64; 2]) -> Self {
        transmute!(words)
    }

    /// SGL Descriptor Type.
    #[inline]
    pub const fn kind(&self) -> SglType {
        self.identifier.kind()
    }

    /// SGL Descriptor Sub Type.
    #[inline]
    pub const fn subtype(&self) -> SglSubtype {
        self.identifier.subtype()
    }

    /// The same 16 bytes as a Keyed SGL Data Block.
    #[inline]
    pub const fn keyed(self) -> KeyedSglDescriptor {
        transmute!(self)
    }

    const fn of_kind(kind: SglType, address: Iova, length: u32) -> Self {
        Self { address, length, reserved: [0; 3], identifier: SglIdentifier::new().with_kind(kind) }
    }
}

/// Keyed SGL Data Block descriptor. NVMe Base 2.0c 4.1.2.1.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct KeyedSglDescriptor {
    /// First byte of the data.
    pub address: Iova,
    /// Length, key and identifier.
    pub attributes: KeyedSglAttributes,
}

/// Upper half of a Keyed SGL Data Block descriptor. NVMe Base 2.0c 4.1.2.1.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct KeyedSglAttributes {
    /// Bytes of data.
    #[bits(24)]
    pub length: u32,
    /// Key of the memory region.
    #[bits(32)]
    pub key: u32,
    /// SGL Descriptor Sub Type.
    #[bits(4)]
    pub subtype: SglSubtype,
    /// SGL Descriptor Type.
    #[bits(4)]
    pub kind: SglType,
}

const _: () = assert!(size_of::<SglDescriptor>() == 16);
const _: () = assert!(size_of::<KeyedSglDescriptor>() == 16);
