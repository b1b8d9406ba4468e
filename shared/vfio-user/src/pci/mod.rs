//! What a PCI function shows of itself: configuration space with its capabilities, and the
//! MSI-X structures in a BAR.
//!
//! All values are little-endian, as PCI has them. Nothing here does I/O: a write returns what
//! follows from it, and the function's owner carries that out.

pub mod capability;
pub mod config;
pub mod msix;
