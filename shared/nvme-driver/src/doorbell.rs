//! Doorbells: a store into mapped memory, or a message where a target maps none. On the hot path.
#![allow(unsafe_code)]

use std::any::Any;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use ipc::guest_memory::{Access, HostSlice, Region, RegionPolicy};
use memmap2::{MmapOptions, MmapRaw};
use nvme_spec::QueueId;
use nvme_spec::register::{DoorbellKind, shadow_doorbell_offset};

use crate::memory::Registered;
use crate::transport::Transport;

/// One doorbell register.
pub struct Doorbell {
    target: Target,
}

enum Target {
    /// In mapped memory, which `_mapping` keeps mapped.
    Mapped { word: NonNull<AtomicU32>, _mapping: Arc<dyn Any + Send + Sync> },
    /// By a register write.
    Message { transport: Arc<dyn Transport>, offset: u64 },
}

// SAFETY: the word is an atomic in memory that stays mapped as long as the value lives.
unsafe impl Send for Doorbell {}

/// Where a controller's doorbells lie, and the descriptor to map them with.
#[derive(Debug)]
pub struct DoorbellMemory {
    /// A VFIO device, or a memory object.
    pub fd: OwnedFd,
    /// The part of it.
    pub area: DoorbellArea,
}

/// A part of BAR0 as a descriptor shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoorbellArea {
    /// Its first byte's offset in BAR0.
    pub first: u64,
    /// Its first byte's offset in the descriptor.
    pub at: u64,
    /// Bytes.
    pub len: u64,
    /// The descriptor is a device's; otherwise it is a memory object's.
    pub device: bool,
}

/// A part of a device's BAR0, mapped.
pub(crate) struct Window {
    map: MmapRaw,
    area: DoorbellArea,
}

/// Doorbells that were handed over, mapped.
pub(crate) enum Handed {
    Device(Arc<Window>),
    Memory(Arc<Region>, DoorbellArea),
}

/// What rings a queue: its doorbell, and the entries of the shadow buffers where the controller has them.
pub(crate) struct Bell {
    doorbell: Doorbell,
    shadow: Option<Shadow>,
    /// Last value told.
    told: u32,
}

struct Shadow {
    value: NonNull<AtomicU32>,
    event: NonNull<AtomicU32>,
    _memory: Registered,
}

// SAFETY: as Doorbell: atomics in memory that stays mapped.
unsafe impl Send for Bell {}

impl Doorbell {
    /// The doorbell that lies in `slice`, which `mapping` keeps mapped; `None` if the slice is too short or unaligned.
    ///
    /// # Safety
    /// The memory of `slice` stays mapped, readable and writable, as long as `mapping` lives.
    pub(crate) unsafe fn mapped(
        slice: HostSlice<'_>,
        mapping: Arc<dyn Any + Send + Sync>,
    ) -> Option<Self> {
        let word = NonNull::new(slice.as_ptr())?.cast::<AtomicU32>();
        let fits = slice.len() >= size_of::<u32>() && word.is_aligned();
        fits.then_some(Self { target: Target::Mapped { word, _mapping: mapping } })
    }

    /// The doorbell at `offset` of mapped memory; `None` if it does not lie within, is not aligned or cannot be written.
    #[must_use]
    pub fn in_region(region: &Arc<Region>, offset: u64) -> Option<Self> {
        let slice = region.slice(offset, size_of::<u32>(), Access::READ_WRITE)?;
        let keep: Arc<dyn Any + Send + Sync> = Arc::<Region>::clone(region);
        // SAFETY: the slice lies within the region and may be written (checked by `slice`); the region stays mapped as
        // long as `keep` lives.
        unsafe { Self::mapped(slice, keep) }
    }

    /// The doorbell at `offset` of BAR0, written by messages.
    pub(crate) fn message(transport: Arc<dyn Transport>, offset: u64) -> Self {
        Self { target: Target::Message { transport, offset } }
    }

    #[inline]
    pub(crate) fn store(&self, value: u32) {
        match &self.target {
            Target::Mapped { word, .. } => {
                // SAFETY: `word` is aligned and mapped (mapped), and `_mapping` keeps it so.
                // Release: pairs with the controller's read of the doorbell; entries written before are seen.
                unsafe { word.as_ref() }.store(value.to_le(), Ordering::Release);
            }
            Target::Message { transport, offset } => send(&**transport, *offset, value),
        }
    }
}

/// A message that does not leave is noticed by the next look at whether the target lives.
#[cold]
fn send(transport: &dyn Transport, offset: u64, value: u32) {
    if let Err(error) = transport.post_u32(offset, value) {
        tracing::debug!(%error, offset, "doorbell message failed");
    }
}

impl Window {
    /// Maps a part of a device.
    pub(crate) fn map(device: &impl AsRawFd, area: DoorbellArea) -> io::Result<Self> {
        let len = usize::try_from(area.len).map_err(io::Error::other)?;
        let map = MmapOptions::new().offset(area.at).len(len).map_raw(device)?;
        Ok(Self { map, area })
    }

    /// The part.
    pub(crate) fn area(&self) -> DoorbellArea {
        self.area
    }

    /// The doorbell at `offset` of BAR0, if it lies within.
    pub(crate) fn doorbell(self: &Arc<Self>, offset: u64) -> Option<Doorbell> {
        let within = usize::try_from(offset.checked_sub(self.area.first)?).ok()?;
        if within.checked_add(size_of::<u32>())? > self.map.len() {
            return None;
        }
        let keep: Arc<dyn Any + Send + Sync> = Arc::<Self>::clone(self);
        // SAFETY: within + 4 <= len of the mapping (above), which is readable and writable and lives as long as `keep`;
        // only atomics are referenced in it.
        unsafe {
            let at = NonNull::new(self.map.as_mut_ptr())?.add(within);
            Doorbell::mapped(HostSlice::new(at, size_of::<u32>(), true), keep)
        }
    }
}

impl Handed {
    /// Maps what another process handed over.
    ///
    /// # Errors
    /// If it cannot be mapped.
    pub(crate) fn map(memory: DoorbellMemory) -> io::Result<Self> {
        let DoorbellMemory { fd, area } = memory;
        if area.device {
            return Window::map(&fd, area).map(|window| Self::Device(Arc::new(window)));
        }
        let needed = area.at.checked_add(area.len).ok_or(io::ErrorKind::InvalidInput)?;
        let policy = RegionPolicy { any_file_system: true, ..RegionPolicy::default() };
        let region = Region::map(fd, needed, &policy).map_err(io::Error::other)?;
        Ok(Self::Memory(region, area))
    }

    /// The doorbell at `offset` of BAR0, if it lies within.
    pub(crate) fn doorbell(&self, offset: u64) -> Option<Doorbell> {
        match self {
            Self::Device(window) => window.doorbell(offset),
            Self::Memory(region, area) => {
                let within = offset.checked_sub(area.first)?;
                within.checked_add(4).filter(|&end| end <= area.len)?;
                Doorbell::in_region(region, area.at + within)
            }
        }
    }
}

impl Bell {
    pub(crate) fn new(doorbell: Doorbell) -> Self {
        Self { doorbell, shadow: None, told: 0 }
    }

    /// With the entries of `queue` in the shadow doorbell and event index buffers, each a page of `memory` (the first
    /// and the second) as Doorbell Buffer Config told the controller. NVMe Base 2.0c 5.8.
    pub(crate) fn with_shadow(
        mut self,
        memory: &Registered,
        dstrd: u8,
        queue: QueueId,
        kind: DoorbellKind,
    ) -> Self {
        let at = shadow_doorbell_offset(dstrd, queue, kind) as usize;
        let page = crate::memory::PAGE_SIZE;
        let entry = |page_index: usize| {
            let slice = memory.host().sub(page_index * page, page)?.sub(at, size_of::<u32>())?;
            let word = NonNull::new(slice.as_ptr())?.cast::<AtomicU32>();
            word.is_aligned().then_some(word)
        };
        if let (Some(value), Some(event)) = (entry(0), entry(1)) {
            self.shadow = Some(Shadow { value, event, _memory: memory.clone() });
        }
        self
    }

    /// Sets everything to 0, as it is when the queue is created.
    pub(crate) fn clear(&mut self, also_doorbell: bool) {
        self.told = 0;
        if let Some(shadow) = &self.shadow {
            // SAFETY: as in `ring`.
            unsafe {
                shadow.value.as_ref().store(0, Ordering::Release);
                shadow.event.as_ref().store(0, Ordering::Release);
            }
        }
        if also_doorbell {
            self.doorbell.store(0);
        }
    }

    /// Last value told.
    #[inline]
    pub(crate) fn told(&self) -> u32 {
        self.told
    }

    /// Tells the controller the queue's new tail or head.
    #[inline]
    pub(crate) fn ring(&mut self, value: u32) {
        let old = std::mem::replace(&mut self.told, value);
        if let Some(shadow) = &self.shadow {
            // SAFETY: both words are aligned, within the registered memory that `_memory` keeps mapped (with_shadow).
            let event = unsafe {
                // Release: pairs with the controller's load of the shadow doorbell.
                shadow.value.as_ref().store(value.to_le(), Ordering::Release);
                // The store before the load: the controller stores its event index and loads the doorbell likewise,
                // so that one of the two sees the other.
                fence(Ordering::SeqCst);
                u32::from_le(shadow.event.as_ref().load(Ordering::Acquire))
            };
            if !wanted(value, event, old) {
                return;
            }
        }
        self.doorbell.store(value);
    }
}

/// Whether the controller asked to hear of the step from `old` to `new`: its event index lies in `old..new`, modulo 2^16.
#[inline]
fn wanted(new: u32, event: u32, old: u32) -> bool {
    let (new, event, old) = (new as u16, event as u16, old as u16);
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

impl fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.target {
            Target::Mapped { .. } => "Doorbell(mapped)",
            Target::Message { .. } => "Doorbell(message)",
        })
    }
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bell(told {}, shadow: {})", self.told, self.shadow.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::wanted;

    #[test]
    fn the_controller_hears_exactly_of_steps_past_its_event_index() {
        assert!(wanted(1, 0, 0), "the first entry, by a controller that sleeps at 0");
        assert!(!wanted(1, 5, 0), "not yet there");
        assert!(wanted(7, 5, 3), "stepped over it");
        assert!(!wanted(7, 2, 3), "already past it");
        assert!(wanted(2, 0xFFFF, 0xFFFE), "over the wrap of the counter");
    }
}
