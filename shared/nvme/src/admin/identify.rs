//! Identify. NVMe Base 2.0c 5.17, NVM Command Set 1.0c 4.1.5.

mod controller;
mod namespace;

use crate::admin::{INVALID_FIELD, INVALID_NAMESPACE, Outcome, is_valid};
use crate::controller::{Context, Controller};
use nvme_spec::command::Command;
use nvme_spec::command::admin::{IdentifyDword10, IdentifyDword11};
use nvme_spec::identify::command_set::{CommandSets, NvmController, NvmNamespace};
use nvme_spec::identify::descriptor::NamespaceIdentifiers;
use nvme_spec::identify::list::NamespaceList;
use nvme_spec::identify::namespace::{IdentifyIndependentNamespace, IdentifyNamespace};
use nvme_spec::identify::{Cns, CommandSet, IDENTIFY_SIZE};
use nvme_spec::{ControllerId, Nsid, Status};
use zerocopy::IntoBytes;

impl Controller {
    pub(crate) fn identify(
        &mut self,
        command: &Command,
        cx: &mut Context<'_>,
    ) -> Result<Outcome, Status> {
        let cdw10 = IdentifyDword10::from_bits(command.cdw10);
        let csi = IdentifyDword11::from_bits(command.cdw11).csi();
        let nsid = command.nsid;
        match cdw10.cns() {
            Cns::NAMESPACE => {
                check_valid(nsid)?;
                let found = cx.subsystem.namespace(nsid).map(|space| self.namespace(space, cx));
                let page = found.unwrap_or_else(IdentifyNamespace::zeroed);
                self.answer_identify(command, page.as_bytes(), cx)
            }
            Cns::CONTROLLER => {
                let page = self.identify_controller(cx);
                self.answer_identify(command, page.as_bytes(), cx)
            }
            Cns::ACTIVE_NAMESPACES => self.identify_list(command, cx),
            Cns::NAMESPACE_DESCRIPTORS => {
                let namespace = cx.subsystem.namespace(nsid).ok_or(INVALID_NAMESPACE)?;
                let identity = namespace.identity;
                let list = NamespaceIdentifiers {
                    eui64: Some(identity.eui64),
                    nguid: Some(identity.nguid),
                    uuid: Some(identity.uuid),
                    csi: Some(CommandSet::NVM),
                };
                self.answer_identify(command, &list.to_list(), cx)
            }
            Cns::COMMAND_SET_NAMESPACE => {
                check_set(csi)?;
                check_valid(nsid)?;
                // No protection information: nothing to say beyond zeroes, of any namespace.
                self.answer_identify(command, NvmNamespace::zeroed().as_bytes(), cx)
            }
            Cns::COMMAND_SET_CONTROLLER => {
                check_set(csi)?;
                // No limits below those of the commands' own fields.
                self.answer_identify(command, NvmController::zeroed().as_bytes(), cx)
            }
            Cns::COMMAND_SET_ACTIVE_NAMESPACES => {
                check_set(csi)?;
                self.identify_list(command, cx)
            }
            Cns::INDEPENDENT_NAMESPACE => {
                check_valid(nsid)?;
                let found = cx.subsystem.namespace(nsid);
                let page = found.map_or_else(IdentifyIndependentNamespace::zeroed, |space| {
                    namespace::independent(space, cx.subsystem.config().shared)
                });
                self.answer_identify(command, page.as_bytes(), cx)
            }
            Cns::COMMAND_SETS => {
                let asked = cdw10.cntid();
                if asked != ControllerId::DYNAMIC && !cx.subsystem.has_controller(asked) {
                    return Err(INVALID_FIELD);
                }
                self.answer_identify(command, CommandSets::nvm_only().as_bytes(), cx)
            }
            _ => Err(INVALID_FIELD),
        }
    }

    /// The active namespaces above NSID, all of the one command set.
    fn identify_list(
        &mut self,
        command: &Command,
        cx: &mut Context<'_>,
    ) -> Result<Outcome, Status> {
        let after = command.nsid;
        if after >= Nsid::MAX {
            return Err(INVALID_NAMESPACE);
        }
        let active = cx.subsystem.namespaces().map(|(nsid, _)| nsid).filter(|&nsid| nsid > after);
        let list = NamespaceList::new(active);
        self.answer_identify(command, list.as_bytes(), cx)
    }

    fn answer_identify(
        &mut self,
        command: &Command,
        page: &[u8],
        cx: &mut Context<'_>,
    ) -> Result<Outcome, Status> {
        self.send(command, IDENTIFY_SIZE as u64, page, cx)?;
        Ok(Outcome::Done(0))
    }
}

/// A namespace could have the identifier; an inactive one is told by zeroes.
fn check_valid(nsid: Nsid) -> Result<(), Status> {
    if is_valid(nsid) { Ok(()) } else { Err(INVALID_NAMESPACE) }
}

/// The command set is the one there is.
fn check_set(csi: CommandSet) -> Result<(), Status> {
    if csi == CommandSet::NVM { Ok(()) } else { Err(INVALID_FIELD) }
}
