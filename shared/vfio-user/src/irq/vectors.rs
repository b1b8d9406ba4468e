//! Interrupts of one type as SET_IRQS leaves them: eventfds, masks, and what is pending.
//!
//! An interrupt that fires while it is masked, or while it has no eventfd, is latched and fires
//! once when it can. Eventfds are kept, not written: the caller signals.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{IrqAction, IrqRequest, VectorRange};

#[derive(Debug, Default, Clone)]
struct Vector {
    eventfd: Option<Arc<OwnedFd>>,
    masked: bool,
    pending: bool,
}

/// The interrupts of one type.
#[derive(Debug, Default)]
pub struct Vectors {
    vectors: Vec<Vector>,
    enabled: bool,
}

/// What a request changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct VectorChange {
    /// Interrupts whose eventfd, mask or pending state changed; `None` if none did.
    pub changed: Option<VectorRange>,
    /// Interrupts to signal now, ascending: latched ones that were set free, and triggered ones.
    pub signal: Vec<u32>,
}

impl Vectors {
    /// `count` interrupts, disabled and without eventfds.
    #[must_use]
    pub fn new(count: u32) -> Self {
        Self { vectors: vec![Vector::default(); count as usize], enabled: false }
    }

    /// Whether the client enabled the type.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// The interrupt's eventfd, if it has one.
    #[must_use]
    pub fn eventfd(&self, vector: u32) -> Option<&Arc<OwnedFd>> {
        self.vectors.get(vector as usize)?.eventfd.as_ref()
    }

    /// Whether the interrupt is masked by SET_IRQS.
    #[must_use]
    pub fn masked(&self, vector: u32) -> bool {
        self.vectors.get(vector as usize).is_some_and(|vector| vector.masked)
    }

    /// Whether the interrupt is latched.
    #[must_use]
    pub fn pending(&self, vector: u32) -> bool {
        self.vectors.get(vector as usize).is_some_and(|vector| vector.pending)
    }

    /// The device was reset: nothing of before is pending. Eventfds and masks are the client's, and stay.
    pub fn forget_pending(&mut self) {
        self.vectors.iter_mut().for_each(|vector| vector.pending = false);
    }

    /// The device fires `vector`: the eventfd to signal, or `None` if the interrupt is latched
    /// (or does not exist).
    pub fn fire(&mut self, vector: u32) -> Option<Arc<OwnedFd>> {
        let vector = self.vectors.get_mut(vector as usize)?;
        match (&vector.eventfd, vector.masked) {
            (Some(eventfd), false) => Some(Arc::clone(eventfd)),
            _ => {
                vector.pending = true;
                None
            }
        }
    }

    /// Carries a request out. Requests are for this table's interrupt type; a range past the
    /// table is cut to it. A repeated request leaves the same state behind. Eventfds that tell
    /// of masking and unmasking are dropped: a client masks by message and knows.
    pub fn apply(&mut self, request: IrqRequest) -> VectorChange {
        match request {
            IrqRequest::Disable { .. } => {
                self.enabled = false;
                self.vectors.fill(Vector::default());
                let count = self.vectors.len() as u32;
                VectorChange { changed: VectorRange::new(0, count, count), signal: Vec::new() }
            }
            IrqRequest::Assign { action: IrqAction::Trigger, range, eventfds, .. } => {
                self.enabled = true;
                for (vector, eventfd) in range.vectors().zip(eventfds) {
                    if let Some(vector) = self.vectors.get_mut(vector as usize) {
                        vector.eventfd = Some(Arc::new(eventfd));
                    }
                }
                self.changed(range, range.vectors().collect())
            }
            IrqRequest::Deassign { action: IrqAction::Trigger, range, .. } => {
                self.enabled = true;
                for vector in range.vectors() {
                    if let Some(vector) = self.vectors.get_mut(vector as usize) {
                        vector.eventfd = None;
                    }
                }
                VectorChange { changed: Some(range), signal: Vec::new() }
            }
            IrqRequest::Assign { .. } | IrqRequest::Deassign { .. } => VectorChange::default(),
            IrqRequest::Perform { action, range, vectors, .. } => {
                for &vector in &vectors {
                    if let Some(vector) = self.vectors.get_mut(vector as usize) {
                        match action {
                            IrqAction::Mask => vector.masked = true,
                            IrqAction::Unmask => vector.masked = false,
                            IrqAction::Trigger => vector.pending = true,
                        }
                    }
                }
                self.changed(range, vectors)
            }
        }
    }

    /// The change of `range`, of which latched interrupts of `candidates` are set free.
    fn changed(&mut self, range: VectorRange, candidates: Vec<u32>) -> VectorChange {
        let mut signal = candidates;
        signal.retain(|&vector| {
            self.vectors.get_mut(vector as usize).is_some_and(|vector| {
                let free = vector.pending && !vector.masked && vector.eventfd.is_some();
                vector.pending &= !free;
                free
            })
        });
        VectorChange { changed: Some(range), signal }
    }
}
