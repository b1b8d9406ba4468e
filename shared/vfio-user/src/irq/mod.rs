//! Interrupts: their types, what a SET_IRQS message asks, and a table that obeys it.

mod vectors;

use std::os::fd::OwnedFd;

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use vectors::{VectorChange, Vectors};

use crate::Errno;
use crate::message::IrqSet;

/// Interrupt types that every PCI device has (`VFIO_PCI_NUM_IRQS`).
pub const NUM_PCI_IRQS: usize = 5;

/// Index of an interrupt type; unknown ones are data.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct IrqIndex(pub u32);

impl IrqIndex {
    /// The interrupt pin.
    pub const INTX: Self = Self(0);
    /// Message signalled interrupts.
    pub const MSI: Self = Self(1);
    /// Extended message signalled interrupts.
    pub const MSIX: Self = Self(2);
    /// An unrecoverable error of the device.
    pub const ERR: Self = Self(3);
    /// The device asks to be released.
    pub const REQ: Self = Self(4);

    /// The index as a position in a table.
    #[must_use]
    pub fn position(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// Whether this type can be masked: device interrupts can, notices to the client cannot.
    #[must_use]
    pub fn maskable(self) -> bool {
        matches!(self, Self::INTX | Self::MSI | Self::MSIX)
    }
}

/// What an interrupt type can do (`VFIO_IRQ_INFO_*`).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IrqInfoFlags {
    /// It signals by eventfd.
    pub eventfd: bool,
    /// MASK and UNMASK are offered.
    pub maskable: bool,
    /// It masks itself when it fires.
    pub automasked: bool,
    /// Its vectors are set up as one set.
    pub noresize: bool,
    #[bits(28)]
    __: u32,
}

/// Data kind and action of SET_IRQS (`VFIO_IRQ_SET_*`).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IrqSetFlags {
    /// No data: the action is for every interrupt of the range.
    pub data_none: bool,
    /// A byte for each interrupt says whether the action is for it.
    pub data_bool: bool,
    /// Eventfds for the range, or their removal.
    pub data_eventfd: bool,
    /// Mask.
    pub mask: bool,
    /// Unmask.
    pub unmask: bool,
    /// Trigger.
    pub trigger: bool,
    /// Reserved; a message that sets one is refused.
    #[bits(26)]
    pub reserved: u32,
}

/// One interrupt type of a device, as its description gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Irq {
    /// Interrupts of the type; 0 for a type that is not there.
    pub count: u32,
    /// What it can do.
    pub flags: IrqInfoFlags,
}

/// What SET_IRQS does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IrqAction {
    /// Mask, or name the eventfd that tells of masking.
    Mask,
    /// Unmask, or name the eventfd that tells of unmasking.
    Unmask,
    /// Fire, or name the eventfd by which the device fires.
    Trigger,
}

/// A run of interrupts of one type: not empty, and within the type's count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VectorRange {
    start: u32,
    count: u32,
}

impl VectorRange {
    /// The run of `count` interrupts from `start`, if it lies within `limit` interrupts and is
    /// not empty.
    #[must_use]
    pub fn new(start: u32, count: u32, limit: u32) -> Option<Self> {
        let end = start.checked_add(count)?;
        (count > 0 && end <= limit).then_some(Self { start, count })
    }

    /// First interrupt.
    #[must_use]
    pub fn start(self) -> u32 {
        self.start
    }

    /// Number of interrupts, at least 1.
    #[must_use]
    pub fn count(self) -> u32 {
        self.count
    }

    /// The interrupts, in ascending order.
    #[must_use]
    pub fn vectors(self) -> std::ops::Range<u32> {
        self.start..self.start + self.count
    }
}

/// What a SET_IRQS message asks, checked against the description.
#[derive(Debug)]
pub enum IrqRequest {
    /// Disable the type: eventfds of all its interrupts go, pending ones are forgotten.
    Disable {
        /// The interrupt type.
        irq: IrqIndex,
    },
    /// The interrupts of the range get these eventfds, one each in order, instead of what they
    /// had.
    Assign {
        /// The interrupt type.
        irq: IrqIndex,
        /// What the eventfds tell of.
        action: IrqAction,
        /// The interrupts.
        range: VectorRange,
        /// As many as the range counts. Nothing has checked yet that they are eventfds.
        eventfds: Vec<OwnedFd>,
    },
    /// The interrupts of the range have no eventfd any more. For [`IrqAction::Trigger`] the type
    /// is enabled even if it was not: QEMU enables MSI-X by such a message, and gives the
    /// eventfds later.
    Deassign {
        /// The interrupt type.
        irq: IrqIndex,
        /// Which eventfds go.
        action: IrqAction,
        /// The interrupts.
        range: VectorRange,
    },
    /// The action is carried out on interrupts of the range.
    Perform {
        /// The interrupt type.
        irq: IrqIndex,
        /// The action.
        action: IrqAction,
        /// The range that the message names.
        range: VectorRange,
        /// The interrupts of the range that the action is for, ascending.
        vectors: Vec<u32>,
    },
}

impl IrqRequest {
    /// The interrupt type that is meant.
    #[must_use]
    pub fn irq(&self) -> IrqIndex {
        match self {
            Self::Disable { irq }
            | Self::Assign { irq, .. }
            | Self::Deassign { irq, .. }
            | Self::Perform { irq, .. } => *irq,
        }
    }

    /// Checks a SET_IRQS message against the device's interrupt types.
    ///
    /// # Errors
    /// [`Errno::EINVAL`] for a body that is too short or too long, not exactly one kind of data
    /// and one action, reserved flags, an unknown type, a range that is empty or leaves the type,
    /// masking of ERR or REQ, descriptors with a message that has other data, and descriptors
    /// that are neither none nor one for each interrupt.
    pub fn parse(body: &[u8], fds: Vec<OwnedFd>, irqs: &[Irq]) -> Result<Self, Errno> {
        let (set, data) = IrqSet::read_from_prefix(body).map_err(|_| Errno::EINVAL)?;
        let described = irqs.get(set.index.position()).ok_or(Errno::EINVAL)?;
        let (irq, flags) = (set.index, set.flags);
        if (set.argsz as usize) < size_of::<IrqSet>() || flags.reserved() != 0 {
            return Err(Errno::EINVAL);
        }
        let action = match (flags.mask(), flags.unmask(), flags.trigger()) {
            (true, false, false) => IrqAction::Mask,
            (false, true, false) => IrqAction::Unmask,
            (false, false, true) => IrqAction::Trigger,
            _ => return Err(Errno::EINVAL),
        };
        if action != IrqAction::Trigger && !irq.maskable() {
            return Err(Errno::EINVAL);
        }
        let range = VectorRange::new(set.start, set.count, described.count);
        match (flags.data_none(), flags.data_bool(), flags.data_eventfd()) {
            (true, false, false) if fds.is_empty() && data.is_empty() => {
                if set.count == 0 && set.start == 0 && action == IrqAction::Trigger {
                    return Ok(Self::Disable { irq });
                }
                let range = range.ok_or(Errno::EINVAL)?;
                Ok(Self::Perform { irq, action, range, vectors: range.vectors().collect() })
            }
            (false, true, false) if fds.is_empty() => {
                let range = range.ok_or(Errno::EINVAL)?;
                if data.len() != range.count() as usize {
                    return Err(Errno::EINVAL);
                }
                let chosen = range.vectors().zip(data).filter(|(_, wanted)| **wanted != 0);
                let vectors = chosen.map(|(vector, _)| vector).collect();
                Ok(Self::Perform { irq, action, range, vectors })
            }
            (false, false, true) => {
                let range = range.ok_or(Errno::EINVAL)?;
                if fds.is_empty() {
                    Ok(Self::Deassign { irq, action, range })
                } else if fds.len() == range.count() as usize {
                    Ok(Self::Assign { irq, action, range, eventfds: fds })
                } else {
                    Err(Errno::EINVAL)
                }
            }
            _ => Err(Errno::EINVAL),
        }
    }
}
