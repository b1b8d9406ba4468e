//! Identify: every structure, and every way to ask for what is not there.

use crate::host::{Host, admin, namespace, subsystem};
use nvme_spec::command::{AdminOpcode, Command};
use nvme_spec::identify::command_set::{CommandSets, NvmController, NvmNamespace};
use nvme_spec::identify::controller::IdentifyController;
use nvme_spec::identify::descriptor::NamespaceIdentifiers;
use nvme_spec::identify::list::NamespaceList;
use nvme_spec::identify::namespace::{
    DeallocatedRead, IdentifyIndependentNamespace, IdentifyNamespace,
};
use nvme_spec::identify::{CommandSet, IDENTIFY_SIZE};
use nvme_spec::{BlockCount, Nsid, Status};
use zerocopy::FromBytes;

pub fn identify(cns: u8, nsid: u32) -> Command {
    let data = nvme_spec::Iova(crate::host::DATA);
    let command =
        Command { nsid: Nsid(nsid), cdw10: u32::from(cns), ..admin(AdminOpcode::IDENTIFY) };
    command.with_prps(data, nvme_spec::Iova(0))
}

fn fetch<T: FromBytes>(host: &mut Host, command: Command) -> Result<T, Status> {
    let bytes = host.fetch(command, IDENTIFY_SIZE)?;
    Ok(T::read_from_bytes(&bytes).unwrap())
}

fn controller(host: &mut Host) -> IdentifyController {
    fetch(host, identify(1, 0)).unwrap()
}

#[test]
fn the_controller_is_told_as_it_is() {
    let mut host = Host::enabled();
    let page = controller(&mut host);
    assert_eq!((page.vid, page.ssvid), (0x1234, 0x5678));
    assert_eq!(&page.sn, b"SERIAL1             ");
    assert_eq!(&page.mn[..8], b"A model ");
    assert_eq!(&page.fr, b"1.0     ");
    assert_eq!(page.mdts, 5, "128 KiB");
    assert_eq!(page.cntlid, host.controller.id());
    assert_eq!(page.ver.into_bits(), 0x0002_0000);
    assert_eq!(page.cntrltype.0, 1);
    assert_eq!(page.oaes.into_bits(), 1 << 8);
    assert_eq!(page.oacs.into_bits(), 1 << 1 | 1 << 8);
    assert_eq!((page.acl_z, page.aerl_z, page.elpe_z, page.npss_z), (3, 7, 63, 0));
    assert_eq!(page.frmw.into_bits(), 0x03);
    assert_eq!(page.lpa.into_bits(), 1 << 1 | 1 << 2 | 1 << 5);
    assert_eq!((page.sqes.into_bits(), page.cqes.into_bits()), (0x66, 0x44));
    assert_eq!((page.nn, page.mnan), (256, 256));
    assert_eq!(page.oncs.into_bits(), 0b1_1101_1101);
    assert_eq!(page.fuses.into_bits(), 1);
    assert_eq!(page.fna.into_bits(), 1 << 3);
    assert_eq!(page.vwc.into_bits(), 0b111);
    assert_eq!((page.awun_z, page.awupf_z, page.acwu_z), (0, 0, 0));
    assert_eq!(page.nwpc.into_bits(), 0b011);
    assert_eq!(page.ocfs.into_bits(), 1);
    assert_eq!(page.sgls.into_bits(), 1 | 1 << 16);
    assert_eq!((page.kas, page.wctemp, page.cmic.into_bits()), (0, 0, 0));
    let nqn = host.subsystem.config().nqn.clone();
    assert_eq!(&page.subnqn[..nqn.len()], nqn.as_bytes());
    assert_eq!(page.subnqn[nqn.len()], 0);
}

#[test]
fn doorbell_buffers_are_offered_where_doorbells_are_not_mapped() {
    let mut host = Host::with(subsystem(), |config| config.doorbells_mapped = true);
    host.enable();
    assert!(!controller(&mut host).oacs.doorbell_buffer());
    let config = admin(AdminOpcode::DOORBELL_BUFFER_CONFIG);
    assert_eq!(host.status(config), Status::INVALID_OPCODE);
}

#[test]
fn a_shared_subsystem_says_so() {
    let mut host = Host::enabled();
    host.subsystem.set_shared(true);
    assert!(controller(&mut host).cmic.multi_controller());
    let page: IdentifyNamespace = fetch(&mut host, identify(0, 1)).unwrap();
    assert!(page.nmic.shared());
}

#[test]
fn a_namespace_is_told_in_its_format() {
    let mut host = Host::enabled();
    let page: IdentifyNamespace = fetch(&mut host, identify(0, 1)).unwrap();
    let blocks = BlockCount((64 << 20) / 512);
    assert_eq!((page.nsze, page.ncap, page.nuse), (blocks, blocks, blocks));
    assert_eq!((page.nlbaf_z, page.flbas.into_bits()), (1, 0));
    assert_eq!((page.lbaf[0].lbads(), page.lbaf[1].lbads(), page.lbaf[2].lbads()), (9, 12, 0));
    assert_eq!((page.lbaf[0].ms(), page.mc.into_bits(), page.dpc.into_bits()), (0, 0, 0));
    assert_eq!(page.nsfeat.into_bits(), 1 << 1 | 1 << 4);
    assert_eq!((page.nawun_z, page.nawupf_z, page.nacwu_z), (0, 0, 255));
    assert_eq!((page.npwg_z, page.npda_z), (7, 7));
    assert_eq!(page.dlfeat.read(), DeallocatedRead::ZEROES);
    assert!(page.dlfeat.write_zeroes());
    assert_eq!((page.mssrl, page.mcl, page.msrc_z), (32768, 131_072, 127));
    assert!(page.nguid.0 != [0; 16] && page.eui64.0 != [0; 8]);
    let inactive: IdentifyNamespace = fetch(&mut host, identify(0, 2)).unwrap();
    assert_eq!(inactive, IdentifyNamespace::zeroed());
    for nsid in [0, 257, u32::MAX - 1, u32::MAX] {
        let status = fetch::<IdentifyNamespace>(&mut host, identify(0, nsid)).unwrap_err();
        assert_eq!(status, Status::INVALID_NAMESPACE_OR_FORMAT, "{nsid}");
    }
}

#[test]
fn lists_have_the_namespaces_above_the_identifier() {
    let mut host = Host::enabled();
    host.subsystem.add_namespace(namespace(7, 1 << 20)).unwrap();
    host.subsystem.add_namespace(namespace(256, 1 << 20)).unwrap();
    for cns in [2, 7] {
        for (after, expected) in
            [(0, vec![1, 7, 256]), (1, vec![7, 256]), (255, vec![256]), (256, vec![])]
        {
            let list: NamespaceList = fetch(&mut host, identify(cns, after)).unwrap();
            assert_eq!(list.iter().map(|nsid| nsid.0).collect::<Vec<_>>(), expected);
        }
        for after in [0xFFFF_FFFE, 0xFFFF_FFFF] {
            assert_eq!(host.status(identify(cns, after)), Status::INVALID_NAMESPACE_OR_FORMAT);
        }
    }
}

#[test]
fn descriptors_agree_with_the_namespace() {
    let mut host = Host::enabled();
    let page: IdentifyNamespace = fetch(&mut host, identify(0, 1)).unwrap();
    let list = host.fetch(identify(3, 1), IDENTIFY_SIZE).unwrap();
    let identifiers = NamespaceIdentifiers::from_list(&list);
    assert_eq!(identifiers.nguid, Some(page.nguid));
    assert_eq!(identifiers.eui64, Some(page.eui64));
    assert_eq!(identifiers.csi, Some(CommandSet::NVM));
    assert!(identifiers.uuid.is_some());
    for nsid in [0, 2, u32::MAX] {
        assert_eq!(host.status(identify(3, nsid)), Status::INVALID_NAMESPACE_OR_FORMAT);
    }
}

#[test]
fn command_set_structures_are_of_the_nvm_set_alone() {
    let mut host = Host::enabled();
    assert_eq!(fetch::<NvmNamespace>(&mut host, identify(5, 1)).unwrap(), NvmNamespace::zeroed());
    assert_eq!(fetch::<NvmController>(&mut host, identify(6, 0)).unwrap(), NvmController::zeroed());
    let independent: IdentifyIndependentNamespace = fetch(&mut host, identify(8, 1)).unwrap();
    assert!(independent.nstat.nrdy());
    assert_eq!(host.status(identify(8, 0)), Status::INVALID_NAMESPACE_OR_FORMAT);
    let sets = Command { cdw10: 0xFFFF_001C, ..identify(0x1C, 0) };
    assert_eq!(fetch::<CommandSets>(&mut host, sets).unwrap(), CommandSets::nvm_only());
    let elsewhere = Command { cdw10: 0x0BAD_001C, ..identify(0x1C, 0) };
    assert_eq!(host.status(elsewhere), Status::INVALID_FIELD);
    for cns in [5, 6, 7] {
        let zoned = Command { cdw11: 2 << 24, ..identify(cns, 1) };
        assert_eq!(host.status(zoned), Status::INVALID_FIELD, "cns {cns}");
    }
}

#[test]
fn structures_that_are_not_offered_are_refused() {
    let mut host = Host::enabled();
    for cns in [0x04, 0x09, 0x0A, 0x10, 0x11, 0x12, 0x13, 0x14, 0x17, 0x1A, 0x1B, 0x1D, 0xFF] {
        let entry = host.run(identify(cns, 1));
        assert_eq!(entry.status(), Status::INVALID_FIELD.with_dnr(), "cns {cns:#x}");
    }
}
