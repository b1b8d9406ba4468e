//! Capabilities of configuration space: where they stand, what they say at reset, and which of
//! their bits software may write.
//!
//! A capability is a list of [`Field`]s relative to its start; [`super::config`] lays them out
//! and links them. PCI Local Bus 3.0 chapter 6, PCI Express Base 4.0 chapter 7, PCI Bus Power
//! Management 1.2 chapter 3.

/// Configuration space has capabilities of two kinds, each with its own list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Id {
    /// In the first 256 bytes; its id.
    Standard(u8),
    /// From offset 256; its id and version.
    Extended {
        /// Capability id.
        id: u16,
        /// Capability version.
        version: u8,
    },
}

/// A register of a capability: `size` bytes (1, 2 or 4) of `value` at `offset` from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Offset from the capability's start, in bytes.
    pub offset: u16,
    /// Bytes: 1, 2 or 4.
    pub size: u8,
    /// Value at reset.
    pub value: u32,
    /// Bits that software may write.
    pub writable: u32,
    /// Bits that a written one clears; there are none that the device sets here.
    pub clear_on_one: u32,
}

impl Field {
    const fn read_only(offset: u16, size: u8, value: u32) -> Self {
        Self { offset, size, value, writable: 0, clear_on_one: 0 }
    }

    const fn writable(offset: u16, size: u8, value: u32, writable: u32) -> Self {
        Self { offset, size, value, writable, clear_on_one: 0 }
    }
}

/// One capability.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// Which one.
    pub id: Id,
    /// Where it starts in configuration space, a multiple of 4.
    pub offset: u16,
    /// Bytes, header included.
    pub size: u16,
    /// Its registers.
    pub fields: Vec<Field>,
}

/// Where power management starts.
pub const PM_OFFSET: u16 = 0x40;
/// Where MSI-X starts.
pub const MSIX_OFFSET: u16 = 0x50;
/// Where PCI Express starts.
pub const EXPRESS_OFFSET: u16 = 0x60;
/// Where advanced error reporting starts.
pub const AER_OFFSET: u16 = 0x100;
/// Where the serial number starts.
pub const DSN_OFFSET: u16 = 0x150;

/// Power Management Control/Status (PMCSR), from the capability's start.
pub const PMCSR: u16 = 4;
/// PMCSR: power state.
pub const PMCSR_STATE: u16 = 0x3;
/// MSI-X Message Control, from the capability's start.
pub const MSIX_CONTROL: u16 = 2;
/// Message Control: function mask.
pub const MSIX_FUNCTION_MASK: u16 = 1 << 14;
/// Message Control: MSI-X enable.
pub const MSIX_ENABLE: u16 = 1 << 15;
/// Device Control, from the PCI Express capability's start.
pub const DEVICE_CONTROL: u16 = 8;
/// Device Control: Initiate Function Level Reset; reads 0.
pub const INITIATE_FLR: u16 = 1 << 15;

/// Bytes of a PCI Express capability of version 2.
const EXPRESS_SIZE: u16 = 0x3c;

const _: () = assert!(PM_OFFSET + 8 <= MSIX_OFFSET && MSIX_OFFSET + 12 <= EXPRESS_OFFSET);
const _: () = assert!(EXPRESS_OFFSET + EXPRESS_SIZE <= 0x100);
const _: () = assert!(AER_OFFSET + 0x48 <= DSN_OFFSET);

/// Power management: D0 and D3hot, no PME, no soft reset on the way back to D0.
#[must_use]
pub fn power_management() -> Capability {
    Capability {
        id: Id::Standard(0x01),
        offset: PM_OFFSET,
        size: 8,
        fields: vec![
            Field::read_only(2, 2, 0x0003),                    // PMC: version 3
            Field::writable(4, 2, 0x0008, PMCSR_STATE.into()), // No_Soft_Reset
        ],
    }
}

/// MSI-X with `vectors` vectors (1 to 2048), its table at the start of BAR `table_bar`, its
/// pending bits at the start of BAR `pba_bar`.
#[must_use]
pub fn msix(vectors: u16, table_bar: u8, pba_bar: u8) -> Capability {
    let last_z = u32::from(vectors.clamp(1, 2048) - 1);
    let control = u32::from(MSIX_ENABLE | MSIX_FUNCTION_MASK);
    Capability {
        id: Id::Standard(0x11),
        offset: MSIX_OFFSET,
        size: 12,
        fields: vec![
            Field::writable(MSIX_CONTROL, 2, last_z, control),
            Field::read_only(4, 4, u32::from(table_bar & 7)),
            Field::read_only(8, 4, u32::from(pba_bar & 7)),
        ],
    }
}

/// PCI Express, version 2, as an endpoint with function level reset and 256-byte payloads, on a
/// link of 8 GT/s and width 4 that has no say in anything.
#[must_use]
pub fn express_endpoint() -> Capability {
    const LINK: u32 = 3 | 4 << 4; // 8 GT/s, x4
    Capability {
        id: Id::Standard(0x10),
        offset: EXPRESS_OFFSET,
        size: EXPRESS_SIZE,
        fields: vec![
            Field::read_only(0x02, 2, 0x0002), // version 2, endpoint
            Field::read_only(0x04, 4, 1 | 1 << 15 | 1 << 28), // 256 B, role-based errors, FLR
            Field::writable(DEVICE_CONTROL, 2, 0x2810, 0x7fff), // INITIATE_FLR reads 0
            Field { clear_on_one: 0x000f, ..Field::read_only(0x0a, 2, 0) },
            Field::read_only(0x0c, 4, LINK),
            Field::writable(0x10, 2, 0, 0x01c3),
            Field::read_only(0x12, 2, LINK),
            Field::read_only(0x24, 4, 0x0000_001f), // completion time-outs, disable
            Field::writable(0x28, 2, 0, 0x001f),
            Field::read_only(0x2c, 4, 0x0000_000e), // 2.5, 5 and 8 GT/s
            Field::writable(0x30, 2, 3, 0x000f),
        ],
    }
}

/// Advanced error reporting: masks and severities that can be written, and never an error.
#[must_use]
pub fn advanced_error_reporting() -> Capability {
    const UNCORRECTABLE: u32 = 0x003f_f030;
    const CORRECTABLE: u32 = 0x0000_31c1;
    Capability {
        id: Id::Extended { id: 0x0001, version: 2 },
        offset: AER_OFFSET,
        size: 0x48,
        fields: vec![
            Field { clear_on_one: UNCORRECTABLE, ..Field::read_only(0x04, 4, 0) },
            Field::writable(0x08, 4, 0, UNCORRECTABLE),
            Field::writable(0x0c, 4, 0x0006_2030, UNCORRECTABLE),
            Field { clear_on_one: CORRECTABLE, ..Field::read_only(0x10, 4, 0) },
            Field::writable(0x14, 4, 0x0000_2000, CORRECTABLE),
            Field::read_only(0x18, 4, 0),
        ],
    }
}

/// Device serial number.
#[must_use]
pub fn serial_number(serial: u64) -> Capability {
    Capability {
        id: Id::Extended { id: 0x0003, version: 1 },
        offset: DSN_OFFSET,
        size: 12,
        fields: vec![
            Field::read_only(4, 4, serial as u32),
            Field::read_only(8, 4, (serial >> 32) as u32),
        ],
    }
}
