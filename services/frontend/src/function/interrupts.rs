//! MSI-X vectors: their eventfds as the client sets them, and what was fired before it did.

use super::{Function, Pending};
use crate::signal::{Stuck, signal};
use ipc::event::EventFd;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use vfio_user::Errno;
use vfio_user::irq::{IrqAction, IrqIndex, IrqRequest, VectorRange, Vectors};
use vfio_user::pci::msix::Msix;
use vfio_user::server::Act;

/// The vectors, and the client's REQ eventfd.
pub(super) struct Interrupts {
    vectors: Vectors,
    request: Vectors,
    count: u32,
}

impl Interrupts {
    pub(super) fn new(count: u32) -> Self {
        Self { vectors: Vectors::new(count), request: Vectors::new(1), count }
    }

    /// Forgets a client's eventfds, masks and what is latched.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.count);
    }

    /// A reset: nothing of before fires any more.
    pub(super) fn forget_pending(&mut self) {
        self.vectors.forget_pending();
        self.request.forget_pending();
    }

    /// Fires a vector: signals its eventfd, or latches it and shows it as pending.
    ///
    /// # Errors
    /// [`Stuck`]: the client is to be dropped.
    pub(super) fn fire(&mut self, vector: u32, msix: &mut Msix) -> Result<(), Stuck> {
        match self.vectors.fire(vector) {
            Some(eventfd) => signal(eventfd.as_fd()),
            None => {
                msix.set_pending(vector as u16, true);
                Ok(())
            }
        }
    }

    fn table(&mut self, irq: IrqIndex) -> Option<&mut Vectors> {
        match irq {
            IrqIndex::MSIX => Some(&mut self.vectors),
            IrqIndex::REQ => Some(&mut self.request),
            _ => None,
        }
    }

    /// The eventfds that workers may signal: none while a vector is masked.
    fn eventfds(&self) -> Vec<Option<Arc<OwnedFd>>> {
        (0..self.count)
            .map(|vector| self.vectors.eventfd(vector).filter(|_| !self.vectors.masked(vector)))
            .map(|eventfd| eventfd.cloned())
            .collect()
    }
}

impl Function {
    /// States which eventfds workers may signal: none without the right to do DMA, which an MSI-X message is.
    pub(super) fn want_vectors(&mut self) {
        self.wanted.vectors = match self.controller.is_bus_master() {
            true => self.interrupts.eventfds(),
            false => Vec::new(),
        };
        self.wanted.number += 1;
    }

    /// Carries SET_IRQS out: here for the admin queue's vector, by [`super::Wanted`] for the workers.
    pub(super) fn set_interrupts(&mut self, request: IrqRequest) -> Result<Act, Errno> {
        let request = self.checked(request)?;
        let irq = request.irq();
        let table = self.interrupts.table(irq).ok_or(Errno::EINVAL)?;
        let change = table.apply(request);
        if irq != IrqIndex::MSIX {
            return Ok(Act::Completed);
        }
        for vector in change.changed.iter().flat_map(|range: &VectorRange| range.vectors()) {
            self.msix.set_pending(vector as u16, self.interrupts.vectors.pending(vector));
        }
        for &vector in &change.signal {
            if let Some(eventfd) = self.interrupts.vectors.eventfd(vector) {
                self.stuck |= signal(eventfd.as_fd()).is_err();
            }
        }
        if change.changed.is_none() {
            return Ok(Act::Completed);
        }
        self.want_vectors();
        // A worker that knows the eventfd of before would signal that, where nobody listens any more.
        self.wait(Pending::Handed(self.wanted.number))
    }

    /// The request, if every descriptor that it brings for an interrupt is an eventfd.
    fn checked(&self, request: IrqRequest) -> Result<IrqRequest, Errno> {
        let IrqRequest::Assign { irq, action: IrqAction::Trigger, range, eventfds } = request
        else {
            return Ok(request);
        };
        let eventfds = eventfds
            .into_iter()
            .map(|fd| EventFd::from_client(fd).map(EventFd::into_fd))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| {
                self.complain("interrupt", &error);
                Errno::EINVAL
            })?;
        Ok(IrqRequest::Assign { irq, action: IrqAction::Trigger, range, eventfds })
    }
}
