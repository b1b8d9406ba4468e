//! Submitting. On the hot path: a request that is one read or write goes straight through; the rest is set apart.

use nvme_spec::command::{CommandDword0, Fuse};
use nvme_spec::nvm::IoDword12;
use nvme_spec::{CommandId, Lba};

use super::slot::{NONE, Slot, State};
use super::{QueuePair, Reason, Rejected};
use crate::prp::{DataPointer, Lists};
use crate::request::{Request, Shape};

impl QueuePair {
    /// Takes a request. The controller hears of it by [`ring`](Self::ring) or the next [`poll`](Self::poll).
    ///
    /// # Errors
    /// [`Rejected`] gives it back, with the reason.
    #[inline]
    #[allow(
        clippy::result_large_err,
        reason = "the request comes back by value: nothing is allocated"
    )]
    pub fn submit(&mut self, request: Request) -> Result<(), Rejected> {
        let idle_and_stale = self.in_flight == 0 && self.is_stale();
        let index = self.free;
        match self.slots.get_mut(usize::from(index)) {
            Some(slot) if !idle_and_stale && plain(&request, self.domain).is_ok() => {
                self.free = slot.next;
                slot.epoch = self.epoch;
                let how = (State::Whole, Fuse::NORMAL);
                let entry = occupy(slot, index, request, how, &self.lists);
                self.in_flight += 1;
                self.sq.push(entry);
                Ok(())
            }
            Some(_) | None => self.submit_other(request),
        }
    }

    /// Sends a request that fits one command. There is a free slot.
    fn send_whole(&mut self, request: Request, state: State, fuse: Fuse) {
        let index = self.free;
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return };
        self.free = slot.next;
        slot.epoch = self.epoch;
        let entry = occupy(slot, index, request, (state, fuse), &self.lists);
        self.in_flight += 1;
        self.sq.push(entry);
    }

    /// Everything that is not one read or write: what is full, wrong, without data, or to be split.
    #[cold]
    #[allow(clippy::result_large_err, reason = "as in `submit`")]
    fn submit_other(&mut self, request: Request) -> Result<(), Rejected> {
        self.renew_if_idle();
        match self.check(&request) {
            Err(reason) => Err(Rejected { reason, request }),
            Ok(()) if request.is_one_command() => {
                if self.free == NONE {
                    return Err(Rejected { reason: Reason::Full, request });
                }
                self.send_whole(request, State::Whole, Fuse::NORMAL);
                Ok(())
            }
            Ok(()) => self.split(request),
        }
    }

    /// Whether a request can be taken at all, were there room.
    fn check(&self, request: &Request) -> Result<(), Reason> {
        if self.cold.dead {
            return Err(Reason::Gone);
        }
        if self.cold.failing.is_some() {
            return Err(Reason::Full);
        }
        if !request.allowed {
            return Err(Reason::WriteProtected);
        }
        match (&request.buffer, request.shape) {
            (Some(buffer), Shape::Data | Shape::Argument) => {
                if buffer.memory().domain() as usize != self.domain {
                    return Err(Reason::ForeignBuffer);
                }
                if buffer.iova().0 & 3 != 0 {
                    return Err(Reason::Alignment);
                }
                let len = match request.shape {
                    Shape::Argument => request.argument_len(),
                    _ => (request.blocks << request.limits.block_shift) as usize,
                };
                if len == 0
                    || len > buffer.len()
                    || request.shape == Shape::Data && len != buffer.len()
                {
                    return Err(Reason::Length);
                }
            }
            (None, Shape::Data) => return Err(Reason::Length),
            (_, Shape::Blocks) | (None, Shape::Argument) => {}
        }
        let ends = request.slba.0.checked_add(request.blocks).is_some();
        match request.shape {
            Shape::Argument => Ok(()),
            Shape::Data | Shape::Blocks if ends && request.blocks > 0 => Ok(()),
            Shape::Data | Shape::Blocks => Err(Reason::Range),
        }
    }

    /// Compare and Write, fused: `write` takes place only if `compare` finds no difference. Both are of the same
    /// blocks, fit one command each, and complete one by one; neither is sent again if it fails. NVMe Base 2.0c 6.2.
    ///
    /// # Errors
    /// [`Rejected`] and the other request, if not both could be taken.
    #[allow(clippy::result_large_err, reason = "as in `submit`")]
    pub fn submit_fused(
        &mut self,
        compare: Request,
        write: Request,
    ) -> Result<(), (Rejected, Request)> {
        self.renew_if_idle();
        for first in [true, false] {
            let request = if first { &compare } else { &write };
            if let Err(reason) = self.check(request).and_then(|()| plain(request, self.domain)) {
                return Err(match first {
                    true => (Rejected { reason, request: compare }, write),
                    false => (Rejected { reason, request: write }, compare),
                });
            }
        }
        if self.in_flight + 2 > self.cold.depth || self.free == NONE {
            return Err((Rejected { reason: Reason::Full, request: compare }, write));
        }
        self.send_whole(compare, State::Raw, Fuse::FIRST);
        self.send_whole(write, State::Raw, Fuse::SECOND);
        Ok(())
    }

    /// Takes a request that becomes several commands.
    #[allow(clippy::result_large_err, reason = "as in `submit`")]
    fn split(&mut self, request: Request) -> Result<(), Rejected> {
        let Some(index) = self.cold.free_parents.pop() else {
            return Err(Rejected { reason: Reason::Full, request });
        };
        let Some(parent) = self.cold.parents.get_mut(usize::from(index)) else {
            return Err(Rejected { reason: Reason::Full, request });
        };
        parent.buffer = request.buffer;
        parent.token = request.token;
        parent.slba = request.slba;
        parent.blocks = request.blocks;
        (parent.sent, parent.outstanding, parent.error) = (0, 0, None);
        parent.nsid = request.nsid;
        parent.flags = request.flags;
        parent.limits = request.limits;
        parent.opcode = request.opcode;
        parent.shape = request.shape;
        parent.used = true;
        self.cold.waiting.push_back(index);
        self.cold.counters.split += 1;
        self.feed();
        Ok(())
    }

    /// Sends pieces of split requests, in order, as long as there are free slots.
    pub(super) fn feed(&mut self) {
        while let Some(&index) = self.cold.waiting.front() {
            let Some(parent) = self.cold.parents.get(usize::from(index)) else { break };
            if parent.error.is_some() || parent.sent == parent.blocks {
                self.cold.waiting.pop_front();
                continue;
            }
            if self.free == NONE {
                break;
            }
            self.send_piece(index);
        }
        self.set_starved(!self.cold.waiting.is_empty());
    }

    /// Sends the next piece of a request. There is a free slot.
    fn send_piece(&mut self, parent_index: u16) {
        let index = self.free;
        let Some(parent) = self.cold.parents.get_mut(usize::from(parent_index)) else { return };
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return };
        let slba = Lba(parent.slba.0 + parent.sent);
        let piece = parent.limits.piece(slba, parent.blocks - parent.sent);
        parent.sent += u64::from(piece);
        parent.outstanding += 1;
        let nlb_z = IoDword12::new().with_nlb_z((piece - 1) as u16).into_bits();
        self.free = slot.next;
        slot.buffer = None;
        slot.token = parent.token;
        slot.slba = slba;
        slot.nsid = parent.nsid;
        slot.cdw12 = parent.flags | nlb_z;
        slot.epoch = self.epoch;
        slot.parent = parent_index;
        slot.opcode = parent.opcode;
        slot.state = State::Piece;
        slot.shape = parent.shape;
        slot.block_shift = parent.limits.block_shift as u8;
        slot.retries = 0;
        slot.aborted = false;
        self.in_flight += 1;
        self.send_slot(index);
    }

    /// Sends the command that a slot describes: a piece, or one that is sent again.
    pub(super) fn send_slot(&mut self, index: u16) {
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return };
        if slot.state == State::Delayed {
            slot.state = if slot.parent == NONE { State::Whole } else { State::Piece };
        }
        slot.epoch = self.epoch;
        let nlb_z = IoDword12::from_bits(slot.cdw12).nlb_z();
        let bytes = (usize::from(nlb_z) + 1) << slot.block_shift;
        let (iova, len) =
            match (slot.shape, &slot.buffer, self.cold.parents.get(usize::from(slot.parent))) {
                (Shape::Data, Some(buffer), _) => (buffer.iova().0, bytes),
                (Shape::Data, None, Some(parent)) => {
                    let from = (slot.slba.0 - parent.slba.0) << slot.block_shift;
                    (parent.buffer.as_ref().map_or(0, |buffer| buffer.iova().0 + from), bytes)
                }
                (Shape::Argument, Some(buffer), _) => {
                    let len = Request::argument_bytes(slot.opcode, slot.slba, slot.cdw12);
                    (buffer.iova().0, len)
                }
                (Shape::Data | Shape::Argument, None, _) | (Shape::Blocks, _, _) => (0, 0),
            };
        let data = match len {
            0 => DataPointer::default(),
            _ => self.lists.point(index.into(), iova, len),
        };
        let cdw0 = CommandDword0::new()
            .with_opcode(slot.opcode.0)
            .with_psdt(data.psdt())
            .with_cid(CommandId(index));
        self.sq.push(Request::entry(cdw0, slot.nsid, data.words, slot.slba, slot.cdw12));
    }
}

/// Whether a request is blocks with data that go as one command, in memory of this domain.
#[inline]
fn plain(request: &Request, domain: usize) -> Result<(), Reason> {
    let Some(buffer) = &request.buffer else { return Err(Reason::Length) };
    if request.shape != Shape::Data || !request.limits.fits(request.slba, request.blocks) {
        return Err(Reason::TooLarge);
    }
    if buffer.memory().domain() as usize != domain {
        return Err(Reason::ForeignBuffer);
    }
    let len = buffer.len() as u64;
    if request.blocks << request.limits.block_shift != len {
        return Err(Reason::Length);
    }
    if buffer.iova().0 & 3 != 0 {
        return Err(Reason::Alignment);
    }
    if request.slba.0.checked_add(request.blocks).is_none() {
        return Err(Reason::Range);
    }
    if request.allowed { Ok(()) } else { Err(Reason::WriteProtected) }
}

/// Fills a free slot with a request that fits one command; the command's entry. `how` is the slot's state and whether the
/// command is a half of a fused pair.
#[inline]
fn occupy(
    slot: &mut Slot,
    index: u16,
    request: Request,
    how: (State, Fuse),
    lists: &Lists,
) -> [u64; 8] {
    let argument_len = request.argument_len();
    let Request { buffer, token, slba, blocks, nsid, flags, limits, opcode, shape, allowed: _ } =
        request;
    // A request without blocks keeps its dword 12; the number of blocks, 0's based, fits 16 bits (Limits).
    let nlb_z = if shape == Shape::Argument { 0 } else { blocks as u32 - 1 };
    let cdw12 = flags | nlb_z;
    let at = match (&buffer, shape) {
        (Some(buffer), Shape::Data) => (buffer.iova().0, buffer.len()),
        (Some(buffer), Shape::Argument) => (buffer.iova().0, argument_len),
        (Some(_), Shape::Blocks) | (None, _) => (0, 0),
    };
    // A free slot holds no buffer: there is nothing to drop.
    std::mem::forget(std::mem::replace(&mut slot.buffer, buffer));
    let data = match at {
        (_, 0) => DataPointer::default(),
        (iova, len) => lists.point(index.into(), iova, len),
    };
    slot.token = token;
    slot.slba = slba;
    slot.nsid = nsid;
    slot.cdw12 = cdw12;
    slot.parent = NONE;
    slot.state = how.0;
    slot.shape = shape;
    slot.retries = 0;
    slot.aborted = false;
    slot.opcode = opcode;
    // At most 16 (Namespace).
    slot.block_shift = limits.block_shift as u8;
    let cdw0 = CommandDword0::new()
        .with_opcode(opcode.0)
        .with_fuse(how.1)
        .with_psdt(data.psdt())
        .with_cid(CommandId(index));
    Request::entry(cdw0, nsid, data.words, slba, cdw12)
}
