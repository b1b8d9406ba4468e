//! Identifiers and units: what would otherwise be two integers in a row that can be swapped unseen.

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! id {
    ($(#[$meta:meta])* $name:ident($int:ty), $format:literal) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
        )]
        #[repr(transparent)]
        pub struct $name(pub $int);

        impl $name {
            /// From the raw value of the field.
            #[inline]
            pub const fn from_bits(bits: $int) -> Self {
                Self(bits)
            }

            /// The raw value of the field.
            #[inline]
            pub const fn into_bits(self) -> $int {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "(", $format, ")"), self.0)
            }
        }

        impl From<$int> for $name {
            #[inline]
            fn from(value: $int) -> Self {
                Self(value)
            }
        }

        impl From<$name> for $int {
            #[inline]
            fn from(value: $name) -> Self {
                value.0
            }
        }
    };
}

id!(
    /// Queue Identifier (QID), of a submission or a completion queue. NVMe Base 2.0c 1.5.
    QueueId(u16), "{}"
);
id!(
    /// Command Identifier (CID), unique among the outstanding commands of a submission queue. NVMe Base 2.0c 3.3.3.1.
    CommandId(u16), "{}"
);
id!(
    /// Namespace Identifier (NSID). NVMe Base 2.0c 3.2.1.2.
    Nsid(u32), "{:#x}"
);
id!(
    /// Controller Identifier (CNTLID), unique in an NVM subsystem. NVMe Base 2.0c 5.17.2.1.
    ControllerId(u16), "{}"
);
id!(
    /// Interrupt vector of a completion queue (IV). NVMe Base 2.0c 5.4.
    InterruptVector(u16), "{}"
);
id!(
    /// Logical Block Address, in the namespace's logical blocks. NVM Command Set 1.0c 2.1.
    Lba(u64), "{:#x}"
);
id!(
    /// A number of logical blocks, 1's based. NVM Command Set 1.0c 2.1.
    BlockCount(u64), "{}"
);
id!(
    /// An address as the guest's controller sees it: guest-physical, or what the guest's IOMMU maps. In bytes.
    Iova(u64), "{:#x}"
);
id!(
    /// Number of entries of a queue, 1's based: 2 to 65,536 if valid. NVMe Base 2.0c 3.3.3.
    QueueSize(u32), "{}"
);
id!(
    /// IEEE Extended Unique Identifier of a namespace (EUI64), big-endian; zero: none. NVMe Base 2.0c 4.5.2.
    Eui64([u8; 8]), "{:02x?}"
);
id!(
    /// Namespace Globally Unique Identifier (NGUID), big-endian; zero: none. NVMe Base 2.0c 4.5.2.
    Nguid([u8; 16]), "{:02x?}"
);
id!(
    /// Namespace UUID, RFC 4122 byte order; zero: none. NVMe Base 2.0c 4.5.1.
    Uuid([u8; 16]), "{:02x?}"
);

impl QueueId {
    /// The admin queue.
    pub const ADMIN: Self = Self(0);

    /// Whether this names the admin queue.
    #[inline]
    pub const fn is_admin(self) -> bool {
        self.0 == Self::ADMIN.0
    }
}

impl Nsid {
    /// No namespace is meant.
    pub const NONE: Self = Self(0);
    /// All namespaces are meant.
    pub const BROADCAST: Self = Self(0xFFFF_FFFF);
    /// The greatest identifier that a namespace can have.
    pub const MAX: Self = Self(0xFFFF_FFFE);

    /// Whether a namespace can have this identifier: neither [`NONE`](Self::NONE) nor [`BROADCAST`](Self::BROADCAST).
    #[inline]
    pub const fn is_specific(self) -> bool {
        self.0 != Self::NONE.0 && self.0 != Self::BROADCAST.0
    }
}

impl ControllerId {
    /// Any controller: only in a Fabrics Connect.
    pub const DYNAMIC: Self = Self(0xFFFF);
}

impl Lba {
    /// The address `count` blocks further, or `None` past the last address there can be.
    #[inline]
    pub const fn checked_add(self, count: BlockCount) -> Option<Self> {
        match self.0.checked_add(count.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// Whether `count` blocks from here lie wholly within a namespace of `size` blocks.
    #[inline]
    pub const fn fits(self, count: BlockCount, size: BlockCount) -> bool {
        count.0 <= size.0 && self.0 <= size.0 - count.0
    }

    /// Offset in bytes from the start of the namespace, with blocks of `1 << shift` bytes.
    #[inline]
    pub const fn byte_offset(self, shift: u32) -> Option<u64> {
        shift_left(self.0, shift)
    }
}

impl BlockCount {
    /// From a 0's based field.
    #[inline]
    pub const fn from_z(count_z: u16) -> Self {
        Self(count_z as u64 + 1)
    }

    /// Length in bytes, with blocks of `1 << shift` bytes; `None` if it does not fit.
    #[inline]
    pub const fn bytes(self, shift: u32) -> Option<u64> {
        shift_left(self.0, shift)
    }
}

impl Iova {
    /// The address `length` bytes further, or `None` past the end of the address space.
    #[inline]
    pub const fn checked_add(self, length: u64) -> Option<Self> {
        match self.0.checked_add(length) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// Offset in bytes within its page of `1 << shift` bytes. `shift` is below 64.
    #[inline]
    pub const fn page_offset(self, shift: u32) -> u64 {
        self.0 & ((1_u64 << shift) - 1)
    }
}

impl QueueSize {
    /// From a 0's based field: every value of it is a size.
    #[inline]
    pub const fn from_z(size_z: u16) -> Self {
        Self(size_z as u32 + 1)
    }
}

/// Shifts left, or `None` if a bit is lost.
#[inline]
const fn shift_left(value: u64, shift: u32) -> Option<u64> {
    if shift >= u64::BITS || value.leading_zeros() < shift { None } else { Some(value << shift) }
}

const _: () = assert!(size_of::<QueueId>() == 2);
const _: () = assert!(size_of::<Nsid>() == 4);
const _: () = assert!(size_of::<Lba>() == 8);
