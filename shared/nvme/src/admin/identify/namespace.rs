//! Identify Namespace (CNS 00h) and its command set independent part (CNS 08h).

use crate::controller::{Context, Controller};
use crate::namespace::{LBA_FORMATS, Namespace};
use crate::nvm::{COPY_BYTES, COPY_RANGE_BYTES, COPY_RANGES};
use nvme_spec::BlockCount;
use nvme_spec::identify::namespace::{
    DeallocatedRead, Dlfeat, Flbas, IdentifyIndependentNamespace, IdentifyNamespace, LbaFormat,
    Nmic, Nsattr, Nsfeat, Nstat,
};

/// What devices like to write and to give back: a page of 4 KiB, as a shift.
const GRANULARITY: u32 = 12;

impl Controller {
    pub(crate) fn namespace(&self, namespace: &Namespace, cx: &Context<'_>) -> IdentifyNamespace {
        let config = namespace.config();
        let shift = config.block_shift;
        let BlockCount(blocks) = namespace.blocks();
        // A fused pair is one request under the backend's range lock, as long as any transfer.
        let fused = self.config.max_transfer.checked_shr(shift).unwrap_or(0).saturating_sub(1);
        let granule = 1_u16.checked_shl(GRANULARITY.saturating_sub(shift)).unwrap_or(1) - 1;
        let deallocated = if config.deallocated_zeroes {
            DeallocatedRead::ZEROES
        } else {
            DeallocatedRead::NOT_REPORTED
        };
        let mut page = IdentifyNamespace {
            nsze: BlockCount(blocks),
            ncap: BlockCount(blocks),
            nuse: BlockCount(blocks),
            nsfeat: Nsfeat::new().with_nsabp(true).with_optperf(true),
            nlbaf_z: (LBA_FORMATS.len() - 1) as u8,
            flbas: Flbas::new().with_index_low(namespace.lba_format() as u8),
            nmic: Nmic::new().with_shared(cx.subsystem.config().shared),
            dlfeat: Dlfeat::new().with_read(deallocated).with_write_zeroes(true),
            nacwu_z: saturated(u64::from(fused)),
            npwg_z: granule,
            npwa_z: granule,
            npdg_z: granule,
            npda_z: granule,
            mssrl: saturated(COPY_RANGE_BYTES >> shift),
            mcl: u32::try_from(COPY_BYTES >> shift).unwrap_or(u32::MAX),
            msrc_z: (COPY_RANGES - 1) as u8,
            nsattr: Nsattr::new().with_write_protected(namespace.is_write_protected()),
            nguid: namespace.identity.nguid,
            eui64: namespace.identity.eui64,
            ..IdentifyNamespace::zeroed()
        };
        for (format, lbads) in page.lbaf.iter_mut().zip(LBA_FORMATS) {
            *format = LbaFormat::new().with_lbads(lbads as u8);
        }
        page
    }
}

pub(crate) fn independent(namespace: &Namespace, shared: bool) -> IdentifyIndependentNamespace {
    IdentifyIndependentNamespace {
        nmic: Nmic::new().with_shared(shared),
        nsattr: Nsattr::new().with_write_protected(namespace.is_write_protected()),
        nstat: Nstat::new().with_nrdy(namespace.formatting.is_none()),
        ..IdentifyIndependentNamespace::zeroed()
    }
}

fn saturated(value: u64) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}
