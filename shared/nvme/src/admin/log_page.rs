//! Get Log Page. NVMe Base 2.0c 5.16.
//!
//! A page is made whole, then the part that was asked for is copied; what lies past its end stays as it was in the
//! guest's memory.

mod effects;
mod smart;

use crate::admin::{INVALID_FIELD, Outcome};
use crate::controller::{Context, Controller};
use ipc::layout::MAX_NAMESPACES;
use nvme_spec::command::Command;
use nvme_spec::command::admin::GetLogPage;
use nvme_spec::identify::CommandSet;
use nvme_spec::identify::controller::set_ascii;
use nvme_spec::log_page::{ActiveFirmware, ChangedNamespaces, FirmwareSlots, LogPageId};
use nvme_spec::{Nsid, Status};
use std::sync::atomic::Ordering;
use zerocopy::IntoBytes;

/// Every log page that the controller has.
pub(crate) const LOG_PAGES: [LogPageId; 8] = [
    LogPageId::SUPPORTED_LOG_PAGES,
    LogPageId::ERROR_INFORMATION,
    LogPageId::SMART_HEALTH,
    LogPageId::FIRMWARE_SLOT,
    LogPageId::CHANGED_NAMESPACES,
    LogPageId::COMMANDS_SUPPORTED_AND_EFFECTS,
    LogPageId::FEATURES_SUPPORTED_AND_EFFECTS,
    LogPageId::MI_COMMANDS_SUPPORTED_AND_EFFECTS,
];

/// Bytes of the NVMe-MI Commands Supported and Effects page.
const MI_COMMANDS: usize = 4096;

impl Controller {
    pub(crate) fn get_log_page(
        &mut self,
        command: &Command,
        cx: &mut Context<'_>,
    ) -> Result<Outcome, Status> {
        let asked = GetLogPage::parse(command);
        // Offsets count bytes, in dwords; no page is a list to be indexed (IOS 0 in page 00h).
        if asked.ot || !asked.lpo.is_multiple_of(4) {
            return Err(INVALID_FIELD);
        }
        let page = self.log_page(&asked, command.nsid, cx)?;
        let rest = usize::try_from(asked.lpo).ok().and_then(|offset| page.get(offset..));
        self.send(command, asked.bytes(), rest.ok_or(INVALID_FIELD)?, cx)?;
        if !asked.rae {
            self.log_page_read(asked.lid);
        }
        Ok(Outcome::Done(0))
    }

    fn log_page(
        &mut self,
        asked: &GetLogPage,
        nsid: Nsid,
        cx: &mut Context<'_>,
    ) -> Result<Vec<u8>, Status> {
        Ok(match asked.lid {
            LogPageId::SUPPORTED_LOG_PAGES => effects::log_pages().as_bytes().to_vec(),
            LogPageId::ERROR_INFORMATION => {
                self.collect_reports(cx);
                self.errors.page().as_bytes().to_vec()
            }
            LogPageId::SMART_HEALTH => {
                // LPA says that there is no page of a namespace.
                if nsid.is_specific() {
                    return Err(INVALID_FIELD);
                }
                self.smart(cx).as_bytes().to_vec()
            }
            LogPageId::FIRMWARE_SLOT => {
                firmware(&cx.subsystem.config().firmware).as_bytes().to_vec()
            }
            LogPageId::CHANGED_NAMESPACES => self.changed_namespaces().as_bytes().to_vec(),
            LogPageId::COMMANDS_SUPPORTED_AND_EFFECTS => {
                if asked.csi != CommandSet::NVM {
                    return Err(INVALID_FIELD);
                }
                self.commands().as_bytes().to_vec()
            }
            LogPageId::FEATURES_SUPPORTED_AND_EFFECTS => effects::features().as_bytes().to_vec(),
            // There is no management interface, so no command of it.
            LogPageId::MI_COMMANDS_SUPPORTED_AND_EFFECTS => vec![0; MI_COMMANDS],
            _ => return Err(Status::INVALID_LOG_PAGE.with_dnr()),
        })
    }

    fn changed_namespaces(&self) -> ChangedNamespaces {
        let words = &self.segment.admin.changed_namespaces;
        let changed = |index: &usize| {
            let word = words.get(index / 64).map_or(0, |word| word.load(Ordering::Relaxed));
            word & 1 << (index % 64) != 0
        };
        let indexes = (0..MAX_NAMESPACES).filter(changed);
        ChangedNamespaces::new(indexes.map(|index| Nsid(index as u32 + 1)))
    }
}

fn firmware(revision: &str) -> FirmwareSlots {
    let mut page = FirmwareSlots::zeroed();
    page.afi = ActiveFirmware::new().with_active(1);
    if let Some(first) = page.frs.first_mut() {
        set_ascii(first, revision);
    }
    page
}
