//! Commands as the caller made them.

use nvme_spec::{Command, CommandId};

use super::slot::{NONE, State};
use super::{QueuePair, Reason};
use crate::memory::DmaBuffer;
use crate::prp::{DataPointer, Lists, Pointer};
use crate::request::Shape;

impl QueuePair {
    /// Takes any I/O command as it is but for its identifier and, with a buffer, its data pointer. It is neither
    /// checked, split nor sent again; its completion's dword 0 comes back. Without a buffer the data pointer is empty.
    ///
    /// The caller answers for the length: a command that transfers more than `buffer` holds reaches what lies beside it in
    /// registered memory. That spoils data, no more: nobody holds references into such memory.
    ///
    /// # Errors
    /// The reason, and the buffer.
    pub fn submit_command(
        &mut self,
        command: Command,
        buffer: Option<DmaBuffer>,
        token: u64,
    ) -> Result<(), (Reason, Option<DmaBuffer>)> {
        self.renew_if_idle();
        if let Err(reason) = self.takes(buffer.as_ref()) {
            return Err((reason, buffer));
        }
        let index = self.free;
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return Err((Reason::Full, buffer));
        };
        let at = buffer.as_ref().map(|buffer| (buffer.iova().0, buffer.len()));
        self.free = slot.next;
        slot.buffer = buffer;
        slot.token = token;
        slot.epoch = self.epoch;
        slot.parent = NONE;
        slot.state = State::Raw;
        slot.shape = Shape::Argument;
        slot.opcode = command.nvm_opcode();
        slot.retries = 0;
        slot.aborted = false;
        // The data pointer and its kind are the driver's choice.
        let data = at.map_or(DataPointer::default(), |(iova, len)| {
            self.lists.point(index.into(), iova, len)
        });
        let cdw0 = command.cdw0.with_cid(CommandId(index)).with_psdt(data.psdt());
        let command = Command { cdw0, dptr: zerocopy::transmute!(data.words), mptr: 0, ..command };
        self.in_flight += 1;
        self.sq.push(command.into_words());
        Ok(())
    }

    fn takes(&self, buffer: Option<&DmaBuffer>) -> Result<(), Reason> {
        if self.cold.dead {
            return Err(Reason::Gone);
        }
        if self.free == NONE {
            return Err(Reason::Full);
        }
        let Some(buffer) = buffer else { return Ok(()) };
        if buffer.memory().domain() as usize != self.domain {
            return Err(Reason::ForeignBuffer);
        }
        if buffer.iova().0 & 3 != 0 {
            return Err(Reason::Alignment);
        }
        let reach = Lists::reach(self.cold.inner.page_shift());
        let bounded = self.lists.pointer() != Pointer::Sgl;
        if bounded && buffer.len() as u64 > reach || u32::try_from(buffer.len()).is_err() {
            return Err(Reason::TooLarge);
        }
        Ok(())
    }
}
