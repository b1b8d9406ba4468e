//! Log pages that say what there is: pages (00h), commands (05h), features (12h).

use super::LOG_PAGES;
use crate::admin::feature::{FEATURES, is_namespace_specific};
use crate::controller::Controller;
use nvme_spec::command::{AdminOpcode, NvmOpcode};
use nvme_spec::feature::FeatureId;
use nvme_spec::log_page::effects::{
    CommandEffects, CommandsSupported, Exclusion, FeatureEffects, FeaturesSupported,
    LogPageSupport, Scope, SupportedLogPages,
};
use nvme_spec::register::CommandSetSelected;

pub(super) fn log_pages() -> SupportedLogPages {
    let mut page = SupportedLogPages::zeroed();
    for lid in LOG_PAGES {
        page.set(lid, LogPageSupport::new().with_lsupp(true));
    }
    page
}

pub(super) fn features() -> FeaturesSupported {
    let mut page = FeaturesSupported::zeroed();
    for fid in FEATURES {
        let scope = match is_namespace_specific(fid) {
            true => Scope::new().with_namespace(true),
            false => Scope::new().with_controller(true),
        };
        let effects = FeatureEffects::new()
            .with_fsupp(true)
            .with_ncc(fid == FeatureId::NAMESPACE_WRITE_PROTECTION)
            .with_fsp(scope);
        page.set(fid, effects);
    }
    page
}

impl Controller {
    pub(super) fn commands(&self) -> CommandsSupported {
        let mut page = CommandsSupported::zeroed();
        let supported = CommandEffects::new().with_csupp(true);
        let controller = supported.with_csp(Scope::new().with_controller(true));
        let namespace = supported.with_csp(Scope::new().with_namespace(true));
        for opcode in (0..=u8::MAX).map(AdminOpcode).filter(|&opcode| self.offers(opcode)) {
            page.set_admin(opcode, controller);
        }
        if self.offers(AdminOpcode::FORMAT_NVM) {
            let format = namespace.with_lbcc(true).with_ncc(true).with_cse(Exclusion::NAMESPACE);
            page.set_admin(AdminOpcode::FORMAT_NVM, format);
        }
        if self.registers.cc.css() == CommandSetSelected::ADMIN_ONLY {
            return page;
        }
        // Without a scope, which is as good as none reported: Linux warns of "unusual effects" of an I/O command that has
        // any other bit than these two.
        for opcode in [NvmOpcode::FLUSH, NvmOpcode::READ, NvmOpcode::COMPARE, NvmOpcode::VERIFY] {
            page.set_nvm(opcode, supported);
        }
        for opcode in [
            NvmOpcode::WRITE,
            NvmOpcode::WRITE_ZEROES,
            NvmOpcode::DATASET_MANAGEMENT,
            NvmOpcode::COPY,
        ] {
            page.set_nvm(opcode, supported.with_lbcc(true));
        }
        page
    }
}
