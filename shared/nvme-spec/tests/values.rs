//! Values go round through bytes, names are those of the specification, and what nobody knows is kept.

use nvme_spec::command::{AdminOpcode, Command, Fuse, NvmOpcode};
use nvme_spec::completion::Completion;
use nvme_spec::feature::event::AsyncEvent;
use nvme_spec::identify::CommandSet;
use nvme_spec::identify::controller::{IdentifyController, set_ascii};
use nvme_spec::identify::descriptor::NamespaceIdentifiers;
use nvme_spec::identify::list::{ControllerList, NamespaceList};
use nvme_spec::ids::{
    BlockCount, CommandId, ControllerId, Eui64, Iova, Lba, Nguid, Nsid, QueueId, QueueSize, Uuid,
};
use nvme_spec::log_page::ChangedNamespaces;
use nvme_spec::register::{DoorbellKind, doorbell_at, doorbell_offset};
use nvme_spec::sgl::SglDescriptor;
use nvme_spec::status::Status;
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
use zerocopy::{FromBytes, IntoBytes};

proptest! {
    #[test]
    fn commands_go_round(bytes in any::<[[u8; 16]; 4]>()) {
        let command = Command::read_from_bytes(bytes.as_bytes()).unwrap();
        prop_assert_eq!(command.as_bytes(), bytes.as_bytes());
        prop_assert_eq!(Command::from_words(command.into_words()), command);
        prop_assert_eq!(command.cid().0.to_le_bytes(), [bytes[0][2], bytes[0][3]]);
        prop_assert_eq!(&command.prp1().0.to_le_bytes(), &bytes.as_bytes()[24..32]);
        prop_assert_eq!(&command.prp2().0.to_le_bytes(), &bytes.as_bytes()[32..40]);
        prop_assert_eq!(&command.slba().0.to_le_bytes(), &bytes.as_bytes()[40..48]);
        prop_assert_eq!(command.with_slba(command.slba()), command);
        prop_assert_eq!(command.with_sgl(command.sgl()).dptr, command.dptr);
        prop_assert_eq!(command.with_prps(command.prp1(), command.prp2()).dptr, command.dptr);
    }

    #[test]
    fn completions_go_round(halves in any::<[u64; 2]>(), phase in any::<bool>()) {
        let completion = Completion::from_halves(halves);
        prop_assert_eq!([completion.low(), completion.high()], halves);
        let other = completion.with_phase(phase);
        prop_assert_eq!(other.status(), completion.status());
        prop_assert_eq!(other.high(), halves[1] & !(1 << 48) | u64::from(phase) << 48);
    }

    #[test]
    fn any_status_can_be_completed(raw in any::<u16>()) {
        // Bit 15 does not exist on the wire; a status that has it set nevertheless must not disturb anything.
        let completion = Completion::new(QueueId(1), CommandId(2), 3, Status::from_bits(raw)).with_phase(true);
        prop_assert_eq!(completion.status().into_bits(), raw & 0x7FFF);
        prop_assert!(completion.phase());
        prop_assert!(!completion.status().to_string().is_empty());
    }

    #[test]
    fn sgl_descriptors_go_round(words in any::<[u64; 2]>()) {
        let descriptor = SglDescriptor::from_words(words);
        prop_assert_eq!(descriptor.as_bytes(), words.as_bytes());
        let keyed = descriptor.keyed();
        prop_assert_eq!(keyed.as_bytes(), words.as_bytes());
    }

    #[test]
    fn doorbells_go_round(dstrd in 0_u8..16, queue in any::<u16>(), tail in any::<bool>()) {
        let kind = if tail { DoorbellKind::SubmissionTail } else { DoorbellKind::CompletionHead };
        let offset = doorbell_offset(dstrd, QueueId(queue), kind);
        prop_assert_eq!(doorbell_at(dstrd, offset), Some((QueueId(queue), kind)));
        prop_assert_eq!(doorbell_at(dstrd, offset + 1), None);
    }

    #[test]
    fn descriptor_lists_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
        // A list that is read holds only what a list that is written can say.
        let identifiers = NamespaceIdentifiers::from_list(&bytes);
        let again = NamespaceIdentifiers::from_list(&identifiers.to_list());
        prop_assert_eq!(again.csi, identifiers.csi);
        prop_assert_eq!(again.nguid, identifiers.nguid.filter(|id| id.0 != [0; 16]));
    }

    #[test]
    fn ranges_agree_with_wide_arithmetic(lba in any::<u64>(), count in any::<u64>(), size in any::<u64>()) {
        let inside = u128::from(lba) + u128::from(count) <= u128::from(size);
        prop_assert_eq!(Lba(lba).fits(BlockCount(count), BlockCount(size)), inside);
    }
}

#[test]
fn descriptor_list_names_each_identifier() {
    let identifiers = NamespaceIdentifiers {
        eui64: Some(Eui64([1, 2, 3, 4, 5, 6, 7, 8])),
        nguid: Some(Nguid([9; 16])),
        uuid: Some(Uuid([7; 16])),
        csi: Some(CommandSet::NVM),
    };
    let list = identifiers.to_list();
    assert_eq!(list[..12], [1, 8, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(list[12..16], [2, 16, 0, 0]);
    assert_eq!(list[32..36], [3, 16, 0, 0]);
    assert_eq!(list[52..57], [4, 1, 0, 0, 0]);
    assert!(list[57..].iter().all(|&byte| byte == 0));
    assert_eq!(NamespaceIdentifiers::from_list(&list), identifiers);
}

#[test]
fn zero_identifier_is_left_out() {
    let identifiers = NamespaceIdentifiers { uuid: Some(Uuid([0; 16])), ..Default::default() };
    assert_eq!(identifiers.to_list(), [0; 4096]);
}

#[test]
fn descriptor_past_the_end_is_not_read() {
    assert_eq!(
        NamespaceIdentifiers::from_list(&[3, 16, 0, 0, 1, 2]),
        NamespaceIdentifiers::default()
    );
    assert_eq!(
        NamespaceIdentifiers::from_list(&[1, 4, 0, 0, 1, 2, 3, 4]).eui64,
        None,
        "a length EUI64 has not"
    );
}

#[test]
fn changed_namespaces_overflow_to_broadcast() {
    let full = ChangedNamespaces::new((1..=1024).map(Nsid));
    assert_eq!((full.0.nsids[0], full.0.nsids[1023]), (Nsid(1), Nsid(1024)));
    let over = ChangedNamespaces::new((1..=1025).map(Nsid));
    assert_eq!(over.0.iter().collect::<Vec<_>>(), [Nsid::BROADCAST]);
}

#[test]
fn lists_stop_at_their_room() {
    assert_eq!(NamespaceList::new((1..=2000).map(Nsid)).iter().count(), 1024);
    let controllers = ControllerList::new((0..3000).map(ControllerId));
    assert_eq!((controllers.count, controllers.iter().count()), (2047, 2047));
    let lying = ControllerList { count: 0xFFFF, ..controllers };
    assert_eq!(lying.iter().count(), 2047);
}

#[test]
fn statuses_are_distinct_and_named() {
    let mut known: Vec<u16> = Status::KNOWN.iter().map(|status| status.into_bits()).collect();
    known.sort_unstable();
    known.dedup();
    assert_eq!(known.len(), Status::KNOWN.len());
    assert!(Status::KNOWN.iter().all(|status| status.name().is_some() && *status == status.code()));
}

#[test]
fn names_are_the_specifications() {
    assert_eq!(Status::INVALID_FIELD.to_string(), "Invalid Field in Command");
    assert_eq!(
        Status::INVALID_FIELD.with_dnr().to_string(),
        "Invalid Field in Command, do not retry"
    );
    assert_eq!(Status::ABORTED_BY_HOST.with_more().to_string(), "Command Aborted By Host, more");
    assert_eq!(Status::from_bits(0x07C1).to_string(), "status type 0x7 code 0xc1");
    assert_eq!(AdminOpcode::FORMAT_NVM.to_string(), "Format NVM");
    assert_eq!(AdminOpcode(0xC5).to_string(), "0xc5");
    assert_eq!(format!("{:?}", NvmOpcode::COPY), "Copy (0x19)");
    assert_eq!(AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED.to_string(), "Namespace Attribute Changed");
    assert_eq!(Nsid::BROADCAST.to_string(), "0xffffffff");
    assert_eq!(format!("{:?}", QueueId(3)), "QueueId(3)");
}

#[test]
fn units_refuse_to_overflow() {
    assert_eq!(Lba(u64::MAX).checked_add(BlockCount(1)), None);
    assert_eq!(Lba(1).checked_add(BlockCount(1)), Some(Lba(2)));
    assert_eq!(Lba(1 << 52).byte_offset(12), None);
    assert_eq!(Lba((1 << 52) - 1).byte_offset(12), Some(u64::MAX - 4095));
    assert_eq!(BlockCount::from_z(0xFFFF).bytes(12), Some(1 << 28));
    assert_eq!(BlockCount(1).bytes(64), None);
    assert_eq!(Iova(u64::MAX).checked_add(1), None);
    assert_eq!(Iova(0x1234).page_offset(12), 0x234);
    assert_eq!(QueueSize::from_z(0xFFFF), QueueSize(65_536));
    assert!(Nsid::MAX.is_specific() && !Nsid::NONE.is_specific() && !Nsid::BROADCAST.is_specific());
}

#[test]
fn reserved_fuse_is_cut_to_its_field() {
    let command = Command::nvm(NvmOpcode::COMPARE, CommandId(1), Nsid(1)).with_fuse(Fuse(0xFD));
    assert_eq!((command.fuse(), command.nvm_opcode()), (Fuse::FIRST, NvmOpcode::COMPARE));
}

#[test]
fn ascii_fields_are_padded_and_cut() {
    let mut controller = IdentifyController::zeroed();
    set_ascii(&mut controller.fr, "1.0");
    assert_eq!(&controller.fr, b"1.0     ");
    set_ascii(&mut controller.fr, "long\u{e9}\nrevision");
    assert_eq!(&controller.fr, b"long??re");
}
