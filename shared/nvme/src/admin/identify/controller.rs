//! Identify Controller (CNS 01h): what the controller is and can. Whatever is said here is so, and what is not said is
//! not offered.

use crate::admin::abort::ACL_Z;
use crate::admin::event::AERL_Z;
use crate::admin::feature::RAB;
use crate::admin::queue::{CQES, SQES};
use crate::controller::{Context, Controller};
use crate::error::ELPE_Z;
use ipc::layout::MAX_NAMESPACES;
use nvme_spec::command::AdminOpcode;
use nvme_spec::identify::attributes::{
    Cmic, ControllerType, EntrySizes, FlushBroadcast, Fna, Frmw, Fuses, Lpa, Nwpc, Oacs, Oaes,
    Ocfs, Oncs, SglSupport, Sgls, Vwc,
};
use nvme_spec::identify::controller::{IdentifyController, set_ascii};
use nvme_spec::register::Vs;

/// What a host should grant a shutdown, in microseconds (RTD3E): as long as CAP.TO grants a disable.
const SHUTDOWN_TIME: u32 = 30_000_000;

impl Controller {
    pub(crate) fn identify_controller(&self, cx: &Context<'_>) -> IdentifyController {
        let names = cx.subsystem.config();
        let mut page = IdentifyController {
            vid: self.config.vendor,
            ssvid: self.config.subsystem_vendor,
            rab: RAB,
            cmic: Cmic::new().with_multi_controller(names.shared),
            mdts: self.config.mdts(),
            cntlid: self.config.id,
            ver: Vs::V2_0,
            rtd3e: SHUTDOWN_TIME,
            oaes: Oaes::new().with_namespace_attribute(true),
            cntrltype: ControllerType::IO,
            oacs: Oacs::new()
                .with_format_nvm(self.offers(AdminOpcode::FORMAT_NVM))
                .with_doorbell_buffer(self.offers(AdminOpcode::DOORBELL_BUFFER_CONFIG)),
            acl_z: ACL_Z,
            aerl_z: AERL_Z,
            frmw: Frmw::new().with_slot1_read_only(true).with_slots(1),
            lpa: Lpa::new()
                .with_commands_effects(true)
                .with_extended_data(true)
                .with_supported_pages(true),
            elpe_z: ELPE_Z,
            sqes: EntrySizes::new().with_required(SQES).with_maximum(SQES),
            cqes: EntrySizes::new().with_required(CQES).with_maximum(CQES),
            nn: MAX_NAMESPACES as u32,
            // Save of every feature is refused by the status that is meant for it; Select works.
            oncs: Oncs::new()
                .with_compare(true)
                .with_dataset_management(true)
                .with_write_zeroes(true)
                .with_save_select(true)
                .with_timestamp(true)
                .with_verify(true)
                .with_copy(true),
            fuses: Fuses::new().with_compare_and_write(true),
            fna: Fna::new().with_no_broadcast(true),
            vwc: Vwc::new().with_present(true).with_flush_broadcast(FlushBroadcast::SUPPORTED),
            nwpc: Nwpc::new().with_write_protect(true).with_until_power_cycle(true),
            ocfs: Ocfs::new().with_format0(true),
            sgls: Sgls::new().with_support(SglSupport::ANY_ALIGNMENT).with_bit_bucket(true),
            mnan: MAX_NAMESPACES as u32,
            ..IdentifyController::zeroed()
        };
        set_ascii(&mut page.sn, &names.serial);
        set_ascii(&mut page.mn, &names.model);
        set_ascii(&mut page.fr, &names.firmware);
        for (byte, from) in page.subnqn.iter_mut().zip(names.nqn.bytes()) {
            *byte = from;
        }
        page
    }
}
