//! Admin commands. NVMe Base 2.0c 5.
//!
//! A command is a copy in our own memory; nothing of it is read from the guest again. Its data goes by PRPs alone
//! ([`transfer`]), never more than its own length says and never more than there is.

mod abort;
mod doorbell_buffer;
pub(crate) mod event;
pub(crate) mod feature;
mod format;
mod identify;
mod log_page;
mod queue;
pub(crate) mod queue_pair;
mod transfer;

use crate::controller::{Context, Controller};
use nvme_spec::command::{AdminOpcode, Command, Fuse, Psdt};
use nvme_spec::register::CommandSetSelected;
use nvme_spec::{Nsid, Status};

/// What became of a command that did not fail at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is complete, with this dword 0.
    Done(u32),
    /// Its completion comes later.
    Pending,
}

/// Invalid Field in Command, not to be tried again.
pub(crate) const INVALID_FIELD: Status = Status::INVALID_FIELD.with_dnr();
/// Invalid Namespace or Format, not to be tried again.
pub(crate) const INVALID_NAMESPACE: Status = Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr();
/// Invalid Command Opcode, not to be tried again.
const INVALID_OPCODE: Status = Status::INVALID_OPCODE.with_dnr();

impl Controller {
    /// Runs a command.
    ///
    /// # Errors
    /// The status to complete it with.
    pub(crate) fn execute(
        &mut self,
        command: &Command,
        cx: &mut Context<'_>,
    ) -> Result<Outcome, Status> {
        if !self.offers(command.admin_opcode()) {
            return Err(INVALID_OPCODE);
        }
        // Fused admin commands do not exist, and over PCIe admin commands use PRPs (3.3.3.1).
        if command.fuse() != Fuse::NORMAL || command.psdt() != Psdt::PRP {
            return Err(INVALID_FIELD);
        }
        match command.admin_opcode() {
            AdminOpcode::DELETE_IO_SQ => self.delete_sq(command, cx),
            AdminOpcode::CREATE_IO_SQ => self.create_sq(command, cx),
            AdminOpcode::GET_LOG_PAGE => self.get_log_page(command, cx),
            AdminOpcode::DELETE_IO_CQ => self.delete_cq(command, cx),
            AdminOpcode::CREATE_IO_CQ => self.create_cq(command, cx),
            AdminOpcode::IDENTIFY => self.identify(command, cx),
            AdminOpcode::ABORT => self.abort(command, cx),
            AdminOpcode::SET_FEATURES => self.set_features(command, cx),
            AdminOpcode::GET_FEATURES => self.get_features(command, cx),
            AdminOpcode::ASYNC_EVENT_REQUEST => self.request_event(command.cid()),
            AdminOpcode::DOORBELL_BUFFER_CONFIG => self.configure_doorbell_buffers(command, cx),
            AdminOpcode::FORMAT_NVM => self.format(command, cx),
            _ => Err(INVALID_OPCODE),
        }
    }

    /// Whether the controller has this command: what Identify Controller and log page 05h say.
    pub(crate) fn offers(&self, opcode: AdminOpcode) -> bool {
        match opcode {
            AdminOpcode::DELETE_IO_SQ
            | AdminOpcode::GET_LOG_PAGE
            | AdminOpcode::DELETE_IO_CQ
            | AdminOpcode::IDENTIFY
            | AdminOpcode::ABORT
            | AdminOpcode::SET_FEATURES
            | AdminOpcode::GET_FEATURES
            | AdminOpcode::ASYNC_EVENT_REQUEST => true,
            // With the admin command set alone there is nothing that an I/O queue could be good for.
            AdminOpcode::CREATE_IO_SQ | AdminOpcode::CREATE_IO_CQ | AdminOpcode::FORMAT_NVM => {
                self.registers.cc.css() != CommandSetSelected::ADMIN_ONLY
            }
            AdminOpcode::DOORBELL_BUFFER_CONFIG => !self.config.doorbells_mapped,
            _ => false,
        }
    }
}

/// Whether a namespace could have the identifier: 1 to NN. NVMe Base 2.0c 3.2.1.2.
pub(crate) fn is_valid(nsid: Nsid) -> bool {
    crate::namespace::index_of(nsid).is_some()
}
