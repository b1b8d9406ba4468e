//! The data of admin commands, by PRPs. The one place that copies a data structure to or from a guest: from the
//! memory that was really mapped, as much as the command names and there is.

use crate::admin::INVALID_FIELD;
use crate::controller::{Context, Controller};
use crate::prp::{self, PageShift, Prps};
use ipc::guest_memory::Access;
use nvme_spec::Status;
use nvme_spec::command::Command;

impl Controller {
    /// Copies `data` to the guest: at most the `length` bytes that the command names.
    ///
    /// # Errors
    /// Invalid Field in Command for a length above MDTS; what [`prp::walk`] says of the entries.
    pub(crate) fn send(
        &mut self,
        command: &Command,
        length: u64,
        data: &[u8],
        cx: &mut Context<'_>,
    ) -> Result<(), Status> {
        self.walk(command, length, Access::WRITE, cx)?;
        let mut rest = data;
        for (iova, bytes) in self.ranges.guest_ranges() {
            let (now, later) = rest.split_at(rest.len().min(bytes as usize));
            cx.memory.write(iova, now).map_err(|_| Status::DATA_TRANSFER_ERROR.with_dnr())?;
            rest = later;
        }
        Ok(())
    }

    /// Copies the command's data structure from the guest, all of it.
    ///
    /// # Errors
    /// What [`prp::walk`] says of the entries.
    pub(crate) fn receive(
        &mut self,
        command: &Command,
        data: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Result<(), Status> {
        self.walk(command, data.len() as u64, Access::READ, cx)?;
        let mut rest = data;
        for (iova, bytes) in self.ranges.guest_ranges() {
            let (now, later) = rest.split_at_mut(rest.len().min(bytes as usize));
            cx.memory.read(iova, now).map_err(|_| Status::DATA_TRANSFER_ERROR.with_dnr())?;
            rest = later;
        }
        Ok(())
    }

    fn walk(
        &mut self,
        command: &Command,
        length: u64,
        access: Access,
        cx: &mut Context<'_>,
    ) -> Result<(), Status> {
        let length = u32::try_from(length).ok().filter(|&bytes| bytes <= self.config.max_transfer);
        let length = length.ok_or(INVALID_FIELD)?;
        let prps = Prps { first: command.prp1(), second: command.prp2() };
        let page = PageShift::clamped(self.registers.cc.page_shift());
        self.ranges.clear();
        prp::walk(cx.memory, prps, length, page, access, &mut self.ranges)
    }
}
