//! A queue pair in another process: what has to be handed over, and the queue pair there.
//!
//! The lender keeps its [`BareQueue`], which it uses for nothing but making and deleting the queues. The other process
//! writes entries, lists and doorbells; it has no way to the registers.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ipc::event::EventFd;
use ipc::guest_memory::{Access, Region, RegionPolicy};
use nvme_spec::QueueId;
use nvme_spec::register::{DoorbellKind, doorbell_offset};

use super::{BareQueue, Home, no_event};
use crate::doorbell::{Bell, DoorbellArea, DoorbellMemory, Handed};
use crate::error::Error;
use crate::memory::{DmaBuffer, Registered};
use crate::ring::{CompletionRing, SubmissionRing};

/// Base two logarithms of memory pages that a controller may have (CC.MPS).
const PAGE_SHIFTS: std::ops::RangeInclusive<u32> = 12..=27;

/// The numbers of a lease. Offsets and lengths are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueTerms {
    /// Queue Identifier.
    pub qid: QueueId,
    /// Commands outstanding at a time.
    pub depth: u16,
    /// Entries of the completion queue; the submission queue has one more than `depth`.
    pub cq_size: u32,
    /// Where the completion queue lies in the memory, whose first bytes are the submission queue.
    pub cq_at: u64,
    /// Where the PRP lists lie, a memory page for each command identifier.
    pub lists_at: u64,
    /// Where the room begins that was asked for beside.
    pub room_at: u64,
    /// Base two logarithm of a memory page.
    pub page_shift: u32,
    /// The memory's first address, as the controller sees it.
    pub iova: u64,
    /// Doorbell Stride (CAP.DSTRD).
    pub dstrd: u8,
    /// Where the doorbells lie.
    pub doorbells: DoorbellArea,
}

/// A queue pair to be handed over.
#[derive(Debug)]
pub struct QueueLease {
    /// The numbers.
    pub terms: QueueTerms,
    /// Memory of the queues, their lists, and the room beside.
    pub memory: OwnedFd,
    /// The doorbells: a VFIO device, or a memory object.
    pub doorbells: OwnedFd,
    /// Shadow doorbells and event indexes, if the controller was told of some.
    pub shadow: Option<OwnedFd>,
    /// The event of its interrupts, if it has a vector to itself. Signalled while the lender says so
    /// ([`BareQueue::set_interrupting`]).
    pub event: Option<OwnedFd>,
}

impl BareQueue {
    /// What another process needs to use this queue pair in this one's place.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if its doorbells are messages, which only this process can send; [`Error::Argument`] if
    /// there are no descriptors left, or if it is a lent one itself.
    pub fn lease(&self) -> Result<QueueLease, Error> {
        let Home::Own { inner, .. } = &self.home else {
            return Err(Error::Argument { what: "a queue pair that was lent is not lent further" });
        };
        let doorbells = inner.transport.doorbell_memory().ok_or_else(|| Error::Unsupported {
            found: "doorbells that are messages".to_owned(),
            supported: "a lease of mapped ones",
        })?;
        let duplicate = |memory: &Registered| {
            let fd = memory.region().fd().try_clone_to_owned();
            fd.map_err(|_| Error::Argument { what: "no descriptor for a lease" })
        };
        let terms = QueueTerms {
            qid: self.qid,
            depth: self.depth,
            cq_size: self.cq.size(),
            cq_at: self.cq.iova().0 - self.memory.iova(),
            lists_at: self.lists_at as u64,
            room_at: self.room_at as u64,
            page_shift: self.page_shift,
            iova: self.memory.iova(),
            dstrd: inner.cap.dstrd(),
            doorbells: doorbells.area,
        };
        Ok(QueueLease {
            terms,
            memory: duplicate(&self.memory)?,
            doorbells: doorbells.fd,
            shadow: inner.shadow.as_ref().map(duplicate).transpose()?,
            event: match self.event.as_ref().filter(|_| self.own_vector) {
                Some(event) => Some(event.try_clone().map_err(no_event)?.into_fd()),
                None => None,
            },
        })
    }

    /// The queue pair of a lease. Nothing that the lease says is trusted further than that its memory reaches.
    ///
    /// # Errors
    /// [`Error::Memory`] or [`Error::Argument`] for a lease that contradicts itself or cannot be mapped.
    pub fn lent(lease: QueueLease) -> Result<Self, Error> {
        let QueueLease { terms, memory, doorbells, shadow, event } = lease;
        let wrong = |what| Error::Argument { what };
        let size = |bytes: u64| usize::try_from(bytes).map_err(|_| wrong("an offset past memory"));
        if !PAGE_SHIFTS.contains(&terms.page_shift) || terms.depth == 0 {
            return Err(wrong("a lease without pages or depth"));
        }
        let map = |fd| Region::map(fd, 1, &RegionPolicy::default());
        let region = map(memory).map_err(crate::memory::MemoryError::from)?;
        let lists = u64::from(terms.depth) << terms.page_shift;
        let room_at = terms.lists_at.checked_add(lists).filter(|&end| end <= terms.room_at);
        if room_at.is_none() || terms.room_at > region.len() || !within_addresses(&terms, &region) {
            return Err(wrong("a lease that ends past its memory"));
        }
        let memory = Registered::lent(region, terms.iova);
        let rings = (
            SubmissionRing::new(&memory, 0, u32::from(terms.depth) + 1),
            CompletionRing::new(&memory, size(terms.cq_at)?, terms.cq_size),
        );
        let (Some(sq), Some(cq)) = rings else {
            return Err(wrong("the queues do not fit their memory"));
        };
        let bells = Handed::map(DoorbellMemory { fd: doorbells, area: terms.doorbells });
        let bells = bells.map_err(|_| wrong("doorbells that cannot be mapped"))?;
        let shadow = match shadow {
            Some(fd) => Some(map(fd).map_err(crate::memory::MemoryError::from)?),
            None => None,
        };
        let shadow = shadow.map(|region| Registered::lent(region, 0));
        let event = event.map(EventFd::from_client).transpose();
        let event = event.map_err(|_| wrong("an event that is none"))?;
        let bell = |kind| {
            let offset = doorbell_offset(terms.dstrd, terms.qid, kind);
            let bell = Bell::new(bells.doorbell(offset)?);
            Some(match &shadow {
                Some(shadow) => bell.with_shadow(shadow, terms.dstrd, terms.qid, kind),
                None => bell,
            })
        };
        let bells = (bell(DoorbellKind::SubmissionTail), bell(DoorbellKind::CompletionHead));
        let (Some(sq_bell), Some(cq_bell)) = bells else {
            return Err(wrong("doorbells out of reach"));
        };
        Ok(Self {
            home: Home::Lent { stale: false },
            qid: terms.qid,
            depth: terms.depth,
            vector: None,
            event,
            own_vector: false,
            sq,
            cq,
            sq_bell,
            cq_bell,
            memory,
            lists_at: size(terms.lists_at)?,
            room_at: size(terms.room_at)?,
            page_shift: terms.page_shift,
            in_flight: 0,
            unacked: 0,
        })
    }

    /// `len` bytes of the room beside the queues, from `offset` on; `None` if they do not lie within.
    #[must_use]
    pub fn room(&self, offset: usize, len: usize) -> Option<DmaBuffer> {
        self.memory.buffer(self.room_at.checked_add(offset)?, len)
    }

    /// Its lender says that the controller was reset, or that the queues are deleted.
    pub fn set_stale(&mut self) {
        if let Home::Lent { stale } = &mut self.home {
            *stale = true;
        }
    }

    /// Its lender says that it has made the queues again.
    pub fn start_over(&mut self) {
        if let Home::Lent { stale } = &mut self.home {
            *stale = false;
            self.sq.clear();
            self.cq.clear();
            self.sq_bell.clear(false);
            self.cq_bell.clear(false);
            (self.in_flight, self.unacked) = (0, 0);
        }
    }
}

/// Whether the memory lies in an address space.
fn within_addresses(terms: &QueueTerms, region: &Arc<Region>) -> bool {
    region.access().contains(Access::READ_WRITE) && terms.iova.checked_add(region.len()).is_some()
}
