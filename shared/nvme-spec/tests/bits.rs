//! Every bit stands where the specification has it: literal values on one side, names on the other.

use nvme_spec::command::admin::{
    CreateCqDword11, CreateQueueDword10, CreateSqDword11, FormatNvmDword10, GetFeaturesDword10,
    GetLogPage, IdentifyDword10, IdentifyDword11, SanitizeDword10, SecureErase, SetFeaturesDword10,
};
use nvme_spec::command::{AdminOpcode, Command, DataTransfer, Fuse, NvmOpcode, Psdt};
use nvme_spec::completion::Completion;
use nvme_spec::feature::event::{AsyncEvent, AsyncEventConfiguration};
use nvme_spec::feature::{
    Arbitration, FeatureId, InterruptCoalescing, InterruptVectorConfiguration, NumberOfQueues,
    TemperatureThreshold, Timestamp, TimestampAttributes, TimestampOrigin,
};
use nvme_spec::identify::attributes::{Lpa, Oacs, Oaes, Oncs, Sanicap, Sgls};
use nvme_spec::identify::namespace::{Dlfeat, Flbas, LbaFormat};
use nvme_spec::identify::{Cns, CommandSet};
use nvme_spec::ids::{
    BlockCount, CommandId, ControllerId, InterruptVector, Iova, Lba, Nsid, QueueId,
};
use nvme_spec::log_page::LogPageId;
use nvme_spec::log_page::effects::{
    CommandEffects, Exclusion, FeatureEffects, LogPageSupport, Scope,
};
use nvme_spec::nvm::{BlockIo, ContextAttributes, CopyDword12, IoDword12, IoDword13};
use nvme_spec::register::{
    Aqa, Cap, CapCrms, CapCss, Cc, CommandSetSelected, Crto, Csts, DoorbellKind,
    ShutdownNotification, ShutdownStatus, Vs, doorbell_at, doorbell_offset, offset,
    shadow_doorbell_offset,
};
use nvme_spec::sgl::{SglDescriptor, SglSubtype, SglType};
use nvme_spec::status::{Status, StatusCodeType};

#[test]
fn cap_bits() {
    assert_eq!(Cap::new().with_mqes_z(0xFFFF).into_bits(), 0xFFFF);
    assert_eq!(Cap::new().with_cqr(true).into_bits(), 1 << 16);
    assert_eq!(Cap::from_bits(1 << 17).ams().into_bits(), 1);
    assert_eq!(Cap::new().with_to(0xFF).into_bits(), 0xFF00_0000);
    assert_eq!(Cap::new().with_dstrd(0xF).into_bits(), 0xF << 32);
    assert_eq!(Cap::new().with_nssrs(true).into_bits(), 1 << 36);
    assert_eq!(Cap::new().with_css(CapCss::new().with_nvm(true)).into_bits(), 1 << 37);
    assert_eq!(Cap::new().with_css(CapCss::new().with_io_command_sets(true)).into_bits(), 1 << 43);
    assert_eq!(
        Cap::new().with_css(CapCss::new().with_no_io_command_set(true)).into_bits(),
        1 << 44
    );
    assert_eq!(Cap::new().with_bps(true).into_bits(), 1 << 45);
    assert_eq!(Cap::from_bits(3 << 46).cps().0, 3);
    assert_eq!(Cap::new().with_mpsmin(0xF).into_bits(), 0xF << 48);
    assert_eq!(Cap::new().with_mpsmax(0xF).into_bits(), 0xF << 52);
    assert_eq!(Cap::new().with_pmrs(true).into_bits(), 1 << 56);
    assert_eq!(Cap::new().with_cmbs(true).into_bits(), 1 << 57);
    assert_eq!(Cap::new().with_nsss(true).into_bits(), 1 << 58);
    assert_eq!(Cap::new().with_crms(CapCrms::new().with_crwms(true)).into_bits(), 1 << 59);
    assert_eq!(Cap::new().with_crms(CapCrms::new().with_crims(true)).into_bits(), 1 << 60);
}

#[test]
fn register_bits() {
    // What Linux writes to enable: EN, CSS all, 4 KiB pages, round robin, entries of 64 and 16 bytes.
    let cc = Cc::from_bits(0x0046_0061);
    assert!(cc.en());
    assert_eq!(cc.css(), CommandSetSelected::ALL);
    assert_eq!((cc.page_shift(), cc.iosqes(), cc.iocqes()), (12, 6, 4));
    assert_eq!(cc.shn(), ShutdownNotification::NONE);
    assert_eq!(Cc::from_bits(0x4000).shn(), ShutdownNotification::NORMAL);
    assert_eq!(Cc::from_bits(0x8000).shn(), ShutdownNotification::ABRUPT);
    assert_eq!(Cc::from_bits(0x780).page_shift(), 27);
    assert_eq!(Cc::from_bits(0x3800).ams().0, 7);
    assert!(Cc::from_bits(1 << 24).crime());

    assert_eq!(Csts::new().with_rdy(true).into_bits(), 1);
    assert_eq!(Csts::new().with_cfs(true).into_bits(), 2);
    assert_eq!(Csts::new().with_shst(ShutdownStatus::COMPLETE).into_bits(), 8);
    assert_eq!(Csts::new().with_nssro(true).into_bits(), 0x10);
    assert_eq!(Csts::new().with_pp(true).into_bits(), 0x20);
    assert_eq!(Csts::new().with_st(true).into_bits(), 0x40);

    let aqa = Aqa::from_bits(0x001F_003F);
    assert_eq!((aqa.asqs_z(), aqa.acqs_z()), (63, 31));
    assert_eq!(
        (Aqa::from_bits(u32::MAX).asqs_z(), Aqa::from_bits(u32::MAX).acqs_z()),
        (4095, 4095)
    );
    assert_eq!(Vs::V2_0.into_bits(), 0x0002_0000);
    assert_eq!(Vs::V1_4.into_bits(), 0x0001_0400);
    assert_eq!(Crto::new().with_crwmt(2).with_crimt(3).into_bits(), 0x0003_0002);
}

#[test]
fn doorbells_lie_by_stride() {
    use DoorbellKind::{CompletionHead, SubmissionTail};
    assert_eq!(doorbell_offset(0, QueueId::ADMIN, SubmissionTail), 0x1000);
    assert_eq!(doorbell_offset(0, QueueId::ADMIN, CompletionHead), 0x1004);
    assert_eq!(doorbell_offset(0, QueueId(1), SubmissionTail), 0x1008);
    assert_eq!(doorbell_offset(2, QueueId(3), CompletionHead), 0x1000 + 7 * 16);
    assert_eq!(doorbell_offset(15, QueueId(0xFFFF), CompletionHead), 0x1000 + 0x1_FFFF * (4 << 15));
    assert_eq!(shadow_doorbell_offset(0, QueueId(1), CompletionHead), 12);

    assert_eq!(doorbell_at(0, 0x100C), Some((QueueId(1), CompletionHead)));
    assert_eq!(doorbell_at(0, 0x0FFC), None, "below the doorbells");
    assert_eq!(doorbell_at(0, 0x1002), None, "inside of a doorbell");
    assert_eq!(doorbell_at(1, 0x1004), None, "in the gap between two doorbells");
    assert_eq!(doorbell_at(0, 0x1000 + 4 * 0x2_0000), None, "past the last queue");
    assert_eq!(doorbell_at(0, u64::MAX), None);
    assert_eq!(offset::ASQ, 0x28);
}

#[test]
fn command_bits() {
    let mut words = [0_u64; 8];
    words[0] = 0x0000_0007_1234_4202; // nsid 7, cid 1234h, PSDT 01b, FUSE 10b, opcode 02h
    words[3] = 0x0000_1111_2222_3000;
    words[4] = 0x0000_4444_5555_6000;
    words[5] = 0x0000_0001_8000_0000; // slba
    words[6] = 0x0000_0000_4000_00FF; // FUA, 256 blocks
    let command = Command::from_words(words);
    assert_eq!(command.nvm_opcode(), NvmOpcode::READ);
    assert_eq!(command.admin_opcode(), AdminOpcode::GET_LOG_PAGE);
    assert_eq!(command.fuse(), Fuse::SECOND);
    assert_eq!(command.psdt(), Psdt::SGL_METADATA_BUFFER);
    assert_eq!(command.cid(), CommandId(0x1234));
    assert_eq!(command.nsid, Nsid(7));
    assert_eq!(command.prp1(), Iova(0x1111_2222_3000));
    assert_eq!(command.prp2(), Iova(0x4444_5555_6000));
    assert_eq!(command.sgl().address, Iova(0x1111_2222_3000));
    assert_eq!(command.sgl().length, 0x5555_6000);
    assert_eq!(command.into_words(), words);

    let io = BlockIo::parse(&command);
    assert_eq!((io.slba, io.blocks), (Lba(0x1_8000_0000), BlockCount(256)));
    assert!(io.flags.fua() && !io.flags.lr());
}

#[test]
fn admin_dword_bits() {
    let create = CreateQueueDword10::from_bits(0x03FF_0005);
    assert_eq!((create.qid(), create.qsize_z()), (QueueId(5), 1023));
    let cq = CreateCqDword11::from_bits(0x0009_0003);
    assert!(cq.pc() && cq.ien());
    assert_eq!(cq.iv(), InterruptVector(9));
    let sq = CreateSqDword11::from_bits(0x0007_0005);
    assert!(sq.pc());
    assert_eq!((sq.qprio().0, sq.cqid()), (2, QueueId(7)));
    let identify = IdentifyDword10::from_bits(0x0102_001C);
    assert_eq!((identify.cns(), identify.cntid()), (Cns::COMMAND_SETS, ControllerId(0x102)));
    assert_eq!(IdentifyDword11::from_bits(0x0200_0001).csi(), CommandSet::ZONED);
    assert_eq!(GetFeaturesDword10::from_bits(0x0307).sel().0, 3);
    assert!(SetFeaturesDword10::from_bits(0x8000_0007).sv());
    assert_eq!(SetFeaturesDword10::from_bits(0x8000_0007).fid(), FeatureId::NUMBER_OF_QUEUES);
    let format = FormatNvmDword10::from_bits(0x0000_2211);
    assert_eq!((format.lbafl(), format.ses(), format.lbafu()), (1, SecureErase::USER_DATA, 2));
    assert!(format.mset());
    assert_eq!((format.lba_format(16), format.lba_format(17)), (1, 33));
    assert!(SanitizeDword10::from_bits(1 << 9).ndas());
}

#[test]
fn get_log_page_joins_its_halves() {
    let command = Command {
        cdw10: 0xFFFF_A502, // numdl FFFFh, RAE, LSP 25h, SMART
        cdw11: 0x0000_FFFF,
        cdw12: 0x0000_0004,
        cdw13: 0x8000_0000,
        cdw14: 0x0080_0001,
        ..Command::admin(AdminOpcode::GET_LOG_PAGE, CommandId(1))
    };
    let log = GetLogPage::parse(&command);
    assert_eq!((log.lid, log.lsp, log.rae), (LogPageId::SMART_HEALTH, 0x25, true));
    assert_eq!((log.dwords, log.bytes()), (1 << 32, 1 << 34));
    assert_eq!(log.lpo, 0x8000_0000_0000_0004);
    assert_eq!((log.ot, log.uuid, log.csi), (true, 1, CommandSet::NVM));
    assert_eq!(GetLogPage::parse(&Command::default()).dwords, 1, "0's based");
}

#[test]
fn completion_halves() {
    let status = Status::LBA_OUT_OF_RANGE.with_dnr();
    let completion = Completion::new(QueueId(3), CommandId(0xBEEF), 17, status)
        .with_dw0(0xAABB_CCDD)
        .with_phase(true);
    assert_eq!(completion.low(), 0x0000_0000_AABB_CCDD);
    assert_eq!(completion.high(), 0x8101_BEEF_0003_0011);
    assert_eq!(completion.with_phase(false).high(), 0x8100_BEEF_0003_0011);
    assert_eq!(Completion::from_halves([completion.low(), completion.high()]), completion);
    assert_eq!((completion.status(), completion.phase()), (status, true));
}

#[test]
fn status_bits() {
    assert_eq!(Status::INVALID_OPCODE.into_bits(), 0x0001);
    assert_eq!(Status::INVALID_QUEUE_ID.into_bits(), 0x0101);
    assert_eq!(Status::COMPARE_FAILURE.into_bits(), 0x0285);
    assert_eq!(Status::INTERNAL_PATH_ERROR.into_bits(), 0x0300);
    assert_eq!(Status::SUCCESS.with_crd(3).into_bits(), 0x1800);
    assert_eq!(Status::SUCCESS.with_more().into_bits(), 0x2000);
    assert_eq!(Status::SUCCESS.with_dnr().into_bits(), 0x4000);
    assert_eq!(Status::from_code(StatusCodeType::MEDIA, 0x85), Status::COMPARE_FAILURE);
    assert_eq!(Status::COMPARE_FAILURE.with_dnr().with_more().code(), Status::COMPARE_FAILURE);
    assert!(Status::SUCCESS.with_crd(1).is_success());
    assert!(!Status::INTERNAL_PATH_ERROR.is_success(), "code 0 of another type");
}

#[test]
fn io_dword_bits() {
    assert_eq!(IoDword12::new().with_nlb_z(0xFFFF).into_bits(), 0xFFFF);
    assert_eq!(IoDword12::from_bits(0xF << 20).dtype().0, 0xF);
    assert!(IoDword12::from_bits(1 << 24).stc());
    assert!(IoDword12::from_bits(1 << 25).deac());
    assert!(IoDword12::from_bits(1 << 26).prinfo().check_reference());
    assert!(IoDword12::from_bits(1 << 28).prinfo().check_guard());
    assert!(IoDword12::from_bits(1 << 29).prinfo().pract());
    assert!(IoDword12::from_bits(1 << 30).fua());
    assert!(IoDword12::from_bits(1 << 31).lr());
    let hints = IoDword13::from_bits(0xABCD_00F8);
    assert_eq!((hints.dspec(), hints.dsm().frequency().0, hints.dsm().latency().0), (0xABCD, 8, 3));
    assert!(hints.dsm().sequential() && hints.dsm().incompressible());
    assert!(ContextAttributes::from_bits(1 << 10).wp());
    assert_eq!(ContextAttributes::from_bits(0x5A00_0000).access_size(), 0x5A);
    let copy = CopyDword12::from_bits(0x4000_0103);
    assert_eq!((copy.ranges(), copy.desfmt().0, copy.fua()), (4, 1, true));
}

#[test]
fn sgl_bits() {
    let last = SglDescriptor::last_segment(Iova(0x1000), 64);
    assert_eq!(zerocopy::IntoBytes::as_bytes(&last)[15], 0x30);
    let bucket = SglDescriptor::from_words([0, 0x1000_0000_0000_0200]);
    assert_eq!((bucket.kind(), bucket.length), (SglType::BIT_BUCKET, 512));
    let keyed = SglDescriptor::from_words([0x9000, 0x4F12_3456_7800_0200]);
    assert_eq!(keyed.subtype(), SglSubtype::INVALIDATE_KEY);
    assert_eq!(
        (keyed.keyed().attributes.length(), keyed.keyed().attributes.key()),
        (512, 0x1234_5678)
    );
    let unknown = SglDescriptor::from_words([0, 0x9200_0000_0000_0000]);
    assert_eq!((unknown.kind(), unknown.subtype()), (SglType(9), SglSubtype(2)));
}

#[test]
fn identify_bits() {
    assert_eq!(Oacs::new().with_format_nvm(true).with_doorbell_buffer(true).into_bits(), 0x0102);
    assert_eq!(Oacs::new().with_lockdown(true).into_bits(), 1 << 10);
    assert_eq!(Oaes::new().with_namespace_attribute(true).into_bits(), 1 << 8);
    assert_eq!(Oaes::new().with_ana_change(true).with_discovery_log(true).into_bits(), 0x8000_0800);
    assert_eq!(Oncs::new().with_copy(true).with_verify(true).into_bits(), 0x0180);
    assert_eq!(Lpa::new().with_supported_pages(true).with_extended_data(true).into_bits(), 0x24);
    assert_eq!(Sanicap::new().with_ndi(true).into_bits(), 1 << 29);
    assert_eq!(Sgls::new().with_bit_bucket(true).with_transport(true).into_bits(), 0x0021_0000);
    assert_eq!(LbaFormat::new().with_lbads(12).with_ms(8).with_rp(2).into_bits(), 0x020C_0008);
    assert_eq!(Dlfeat::from_bits(0x09).read().0, 1);
    assert!(Dlfeat::from_bits(0x09).write_zeroes());
    assert_eq!((Flbas::from_bits(0x31).index(16), Flbas::from_bits(0x31).index(17)), (1, 17));
    assert!(Flbas::from_bits(0x31).extended());
}

#[test]
fn log_and_feature_bits() {
    assert_eq!(
        LogPageSupport::new().with_lsupp(true).with_ios(true).with_parameter(1).into_bits(),
        0x0001_0003
    );
    let effects = CommandEffects::new().with_csupp(true).with_cse(Exclusion::NAMESPACE);
    assert_eq!(effects.with_csp(Scope::new().with_namespace(true)).into_bits(), 0x0011_0001);
    assert_eq!(
        FeatureEffects::new().with_fsp(Scope::new().with_controller(true)).into_bits(),
        0x0020_0000
    );
    let arbitration = Arbitration::from_bits(0x0403_0207);
    assert_eq!((arbitration.ab(), arbitration.lpw_z(), arbitration.hpw_z()), (7, 2, 4));
    let threshold = TemperatureThreshold::from_bits(0x001F_0157);
    assert_eq!((threshold.tmpth(), threshold.tmpsel().0, threshold.thsel().0), (343, 0xF, 1));
    assert_eq!(NumberOfQueues::from_bits(0x0003_0007).ncq_z(), 3);
    assert_eq!(InterruptCoalescing::from_bits(0x0A07).time(), 10);
    assert!(InterruptVectorConfiguration::from_bits(0x0001_0004).cd());
    assert!(AsyncEventConfiguration::from_bits(0x100).namespace_attribute());
    assert!(AsyncEventConfiguration::from_bits(0x2).smart().temperature());
    assert_eq!(AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED.into_bits(), 0x0004_0002);
    assert_eq!(AsyncEvent::INVALID_DOORBELL_VALUE.into_bits(), 0x0001_0100);
    assert_eq!(AsyncEvent::DISCOVERY_LOG_CHANGE.into_bits(), 0x0070_F002);

    let attributes = TimestampAttributes::new().with_origin(TimestampOrigin::SET).with_synch(true);
    let timestamp = Timestamp::new(0xFFFF_0102_0304_0506, attributes);
    assert_eq!(zerocopy::IntoBytes::as_bytes(&timestamp), [6, 5, 4, 3, 2, 1, 3, 0]);
    assert_eq!(timestamp.milliseconds(), 0x0102_0304_0506, "48 bits");
}

#[test]
fn opcodes_tell_their_direction() {
    assert_eq!(NvmOpcode::READ.data_transfer(), DataTransfer::CONTROLLER_TO_HOST);
    assert_eq!(NvmOpcode::WRITE.data_transfer(), DataTransfer::HOST_TO_CONTROLLER);
    assert_eq!(NvmOpcode::WRITE_ZEROES.data_transfer(), DataTransfer::NONE);
    assert_eq!(AdminOpcode::IDENTIFY.data_transfer(), DataTransfer::CONTROLLER_TO_HOST);
    assert_eq!(AdminOpcode(0xC3).data_transfer(), DataTransfer::BIDIRECTIONAL);
}
