//! Identify, log pages, formats, Abort.

use std::time::Duration;

use nvme_driver::{AdminData, Controller, Error, QueueOptions, Request};
use nvme_spec::command::admin::{AbortCompletion, AbortDword10, FormatNvmDword10, SecureErase};
use nvme_spec::identify::command_set::{CommandSets, NvmController, NvmNamespace};
use nvme_spec::identify::controller::IdentifyController;
use nvme_spec::identify::list::NamespaceList;
use nvme_spec::identify::namespace::{IdentifyIndependentNamespace, IdentifyNamespace};
use nvme_spec::identify::{Cns, CommandSet, IDENTIFY_SIZE};
use nvme_spec::log_page::LogPageId;
use nvme_spec::log_page::effects::{CommandsSupported, FeaturesSupported, SupportedLogPages};
use nvme_spec::log_page::error::ErrorEntry;
use nvme_spec::{
    AdminOpcode, BlockCount, Command, CommandId, ControllerId, Lba, Nsid, NvmOpcode, QueueId,
    Status,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::{
    ENDPOINTS, MEMORY, RINGED, SIZE, SLOW, connect, connect_with, options, round_trip, run, start,
    status,
};

/// An Identify structure.
#[track_caller]
fn identify<T: FromBytes + IntoBytes>(controller: &Controller, cns: Cns, nsid: Nsid) -> T {
    let found = controller.identify_as(cns, nsid, ControllerId(0), CommandSet::NVM);
    found.unwrap_or_else(|error| panic!("{cns}: {error}"))
}

/// The status that Identify is refused with.
#[track_caller]
fn refused(controller: &Controller, cns: Cns, nsid: Nsid, csi: CommandSet) -> Status {
    let found: Result<[u8; IDENTIFY_SIZE], _> =
        controller.identify_as(cns, nsid, ControllerId(0), csi);
    match found {
        Err(Error::Command { status, .. }) => status.code(),
        other => panic!("{cns} of {nsid}: {:?}", other.err()),
    }
}

#[test]
fn every_identify_structure_says_what_is_there() {
    let target = start();
    for endpoint in ENDPOINTS {
        let controller = connect(&target, endpoint);
        let all: IdentifyController = identify(&controller, Cns::CONTROLLER, Nsid::NONE);
        assert_eq!(all, *controller.identify());
        assert_eq!(&all.sn[..10], b"DRIVER0001");
        let space: IdentifyNamespace = identify(&controller, Cns::NAMESPACE, MEMORY);
        assert_eq!(space.nsze, BlockCount(SIZE / 512));
        let absent: IdentifyNamespace = identify(&controller, Cns::NAMESPACE, Nsid(2));
        assert!(absent.as_bytes().iter().all(|&byte| byte == 0));
        let invalid = Status::INVALID_NAMESPACE_OR_FORMAT;
        assert_eq!(refused(&controller, Cns::NAMESPACE, Nsid::NONE, CommandSet::NVM), invalid);

        for cns in [Cns::ACTIVE_NAMESPACES, Cns::COMMAND_SET_ACTIVE_NAMESPACES] {
            let list: NamespaceList = identify(&controller, cns, Nsid::NONE);
            assert_eq!(list.iter().collect::<Vec<_>>(), [MEMORY, SLOW, RINGED]);
            let list: NamespaceList = identify(&controller, cns, MEMORY);
            assert_eq!(list.iter().collect::<Vec<_>>(), [SLOW, RINGED], "those above");
        }
        assert_eq!(controller.active_namespaces().expect("a list"), [MEMORY, SLOW, RINGED]);

        let [first, second] =
            [MEMORY, SLOW].map(|nsid| *controller.namespace(nsid).expect("there").identifiers());
        assert_eq!(first.csi, Some(CommandSet::NVM));
        assert!(first.nguid.is_some() && first.eui64.is_some() && first.uuid.is_some());
        assert_ne!(
            (first.nguid, first.eui64, first.uuid),
            (second.nguid, second.eui64, second.uuid)
        );
        assert_eq!(
            refused(&controller, Cns::NAMESPACE_DESCRIPTORS, Nsid(2), CommandSet::NVM),
            invalid
        );

        let _: NvmNamespace = identify(&controller, Cns::COMMAND_SET_NAMESPACE, MEMORY);
        let _: NvmController = identify(&controller, Cns::COMMAND_SET_CONTROLLER, Nsid::NONE);
        let independent: IdentifyIndependentNamespace =
            identify(&controller, Cns::INDEPENDENT_NAMESPACE, MEMORY);
        assert!(independent.nstat.nrdy() && !independent.nsattr.write_protected());
        let own = ControllerId(all.cntlid.0);
        let sets: CommandSets = controller
            .identify_as(Cns::COMMAND_SETS, Nsid::NONE, own, CommandSet::NVM)
            .expect("command sets");
        assert_eq!(sets, CommandSets::nvm_only());

        let field = Status::INVALID_FIELD;
        for cns in [Cns::NVM_SETS, Cns::ALLOCATED_NAMESPACES, Cns(0xEE)] {
            assert_eq!(refused(&controller, cns, MEMORY, CommandSet::NVM), field, "{cns}");
        }
        let zoned = refused(&controller, Cns::COMMAND_SET_NAMESPACE, MEMORY, CommandSet::ZONED);
        assert_eq!(zoned, field);
    }
    assert!(target.stop().success());
}

#[test]
fn a_namespace_that_is_not_there_is_named_with_those_there_are() {
    let target = start();
    let error = connect(&target, "mapped").namespace(Nsid(9)).expect_err("it is none of them");
    assert_eq!(error.to_string(), "namespace 9 is not there; active: 1, 3, 4");
}

#[test]
fn every_log_page_can_be_read_and_tells_of_what_was_done() {
    let target = start();
    for endpoint in ENDPOINTS {
        let controller = connect(&target, endpoint);
        let namespace = controller.namespace(MEMORY).expect("there");
        let mut queue = controller.queue_pair(&QueueOptions::default()).expect("a queue pair");
        let before = controller.smart().expect("smart");
        for lba in 0..10 {
            round_trip(&controller, &mut queue, &namespace, lba * 64, 8);
        }
        let buffer = controller.allocate(512).expect("memory");
        let outside = Request::read(&namespace, Lba(SIZE / 512), buffer);
        assert_eq!(status(&mut queue, outside), Status::LBA_OUT_OF_RANGE);
        let after = controller.smart().expect("smart");
        let grown = |field: fn(&nvme_spec::log_page::smart::SmartHealth) -> u128| {
            field(&after) - field(&before)
        };
        assert_eq!(grown(|page| page.host_write_commands.get()), 10);
        assert!(grown(|page| page.host_read_commands.get()) >= 10);
        assert_eq!(grown(|page| page.error_log_entries.get()), 1);

        let mut errors = [ErrorEntry::default(); 4];
        let read = |lid, nsid, data: &mut [u8]| controller.log_page(lid, nsid, data);
        read(LogPageId::ERROR_INFORMATION, Nsid::BROADCAST, errors.as_mut_bytes()).expect("errors");
        assert_eq!((errors[0].sqid, errors[0].nsid), (queue.id(), MEMORY));
        assert_eq!(errors[0].lba, Lba(SIZE / 512));
        assert_eq!(u128::from(errors[0].error_count), after.error_log_entries.get());

        let mut pages = SupportedLogPages::zeroed();
        read(LogPageId::SUPPORTED_LOG_PAGES, Nsid::NONE, pages.as_mut_bytes()).expect("log pages");
        let supported: Vec<_> = (0..=u8::MAX)
            .filter(|&lid| pages.lids[usize::from(lid)].lsupp())
            .map(LogPageId)
            .collect();
        assert!(supported.len() >= 8, "{supported:?}");
        for lid in (0..=u8::MAX).map(LogPageId) {
            let mut page = [0; 512];
            match read(lid, Nsid::BROADCAST, &mut page) {
                Ok(()) => assert!(supported.contains(&lid), "{lid} is served and not listed"),
                Err(Error::Command { status, .. }) => {
                    assert_eq!(status.code(), Status::INVALID_LOG_PAGE, "{lid}");
                    assert!(!supported.contains(&lid), "{lid} is listed and not served");
                }
                Err(error) => panic!("{lid}: {error}"),
            }
        }
        let mut commands = CommandsSupported::zeroed();
        let lid = LogPageId::COMMANDS_SUPPORTED_AND_EFFECTS;
        read(lid, Nsid::NONE, commands.as_mut_bytes()).expect("commands");
        let offered = commands.acs[usize::from(AdminOpcode::DOORBELL_BUFFER_CONFIG.0)].csupp();
        assert_eq!(offered, endpoint == "shadow");
        assert!(commands.iocs[usize::from(NvmOpcode::COPY.0)].csupp());
        let mut features = FeaturesSupported::zeroed();
        let lid = LogPageId::FEATURES_SUPPORTED_AND_EFFECTS;
        read(lid, Nsid::NONE, features.as_mut_bytes()).expect("features");
    }
    assert!(target.stop().success());
}

#[test]
fn a_format_changes_the_block_size_and_erases() {
    let target = start();
    for endpoint in ENDPOINTS {
        let controller = connect(&target, endpoint);
        let mut queue = controller.queue_pair(&QueueOptions::default()).expect("a queue pair");
        for (index, size) in [(1, 4096), (0, 512)] {
            let namespace = controller.namespace(MEMORY).expect("there");
            round_trip(&controller, &mut queue, &namespace, 77, 3);
            let settings =
                FormatNvmDword10::new().with_lbafl(index).with_ses(SecureErase::USER_DATA);
            controller.format(MEMORY, settings, Duration::from_secs(20)).expect("a format");
            let namespace = controller.namespace(MEMORY).expect("there");
            assert_eq!((namespace.block_size(), namespace.bytes()), (size, SIZE));
            let buffer = controller.allocate(1 << 20).expect("memory");
            buffer.host().fill(0xEE);
            let done = run(&mut queue, Request::read(&namespace, Lba(0), buffer));
            assert_eq!(done.result, Ok(0));
            assert!(done.buffer.expect("back").to_vec().iter().all(|&byte| byte == 0), "erased");
            round_trip(&controller, &mut queue, &namespace, 5, 300);
        }
        for (nsid, index, wanted) in [
            (MEMORY, 7, Status::INVALID_FORMAT),
            (Nsid::BROADCAST, 0, Status::INVALID_FIELD),
            (Nsid(2), 0, Status::INVALID_FIELD),
        ] {
            let settings = FormatNvmDword10::new().with_lbafl(index);
            match controller.format(nsid, settings, Duration::from_secs(20)) {
                Err(Error::Command { status, .. }) => assert_eq!(status.code(), wanted, "{nsid}"),
                other => panic!("{nsid}: {other:?}"),
            }
        }
    }
    assert!(target.stop().success());
}

#[test]
fn abort_of_what_is_not_outstanding_says_so() {
    let target = start();
    let controller = connect(&target, "mapped");
    for (sqid, cid) in [(QueueId(0), CommandId(0x1234)), (QueueId(7), CommandId(1))] {
        let mut abort = Command::admin(AdminOpcode::ABORT, CommandId(0));
        abort.cdw10 = AbortDword10::new().with_sqid(sqid).with_cid(cid).into_bits();
        let completion = controller.admin_command(abort, AdminData::None).expect("an answer");
        assert!(AbortCompletion::from_bits(completion.dw0).not_aborted(), "{sqid} {cid}");
    }
}

#[test]
fn what_the_driver_keeps_and_what_is_not_offered_is_refused() {
    let target = start();
    for endpoint in ENDPOINTS {
        let controller = connect(&target, endpoint);
        for opcode in [
            AdminOpcode::CREATE_IO_SQ,
            AdminOpcode::DELETE_IO_CQ,
            AdminOpcode::ASYNC_EVENT_REQUEST,
            AdminOpcode::DOORBELL_BUFFER_CONFIG,
        ] {
            let command = Command::admin(opcode, CommandId(0));
            let error = controller.admin_command(command, AdminData::None);
            assert!(matches!(error, Err(Error::Argument { .. })), "{opcode}: {error:?}");
        }
        for opcode in [AdminOpcode::FIRMWARE_COMMIT, AdminOpcode::SANITIZE, AdminOpcode(0xC1)] {
            let command = Command::admin(opcode, CommandId(0));
            match controller.admin_command(command, AdminData::None) {
                Err(Error::Command { status, .. }) => {
                    assert_eq!(status.code(), Status::INVALID_OPCODE, "{opcode}");
                }
                other => panic!("{opcode}: {other:?}"),
            }
        }
        let mut large = vec![0; 8192];
        let command = Command::admin(AdminOpcode::IDENTIFY, CommandId(0));
        let error = controller.admin_command(command, AdminData::In(&mut large));
        assert!(matches!(error, Err(Error::Argument { .. })), "{error:?}");
    }
}

#[test]
fn as_many_queues_as_are_granted_work_at_a_time() {
    let target = start();
    for endpoint in ENDPOINTS {
        let options = nvme_driver::Options { queues: 200, interrupts: true, ..options() };
        let controller = connect_with(&target, endpoint, &options);
        assert_eq!(controller.granted_queues(), 64, "what the endpoint is configured with");
        let namespace = controller.namespace(MEMORY).expect("there");
        let mut queues: Vec<_> = (0..64)
            .map(|index| {
                let options = QueueOptions { depth: 2 + index * 16, interrupt: index % 2 == 0 };
                controller.queue_pair(&options).expect("a queue pair")
            })
            .collect();
        let error = controller.queue_pair(&QueueOptions::default()).expect_err("all are in use");
        assert!(matches!(error, Error::NoQueue { granted: 64 }), "{error}");
        for (index, queue) in queues.iter_mut().enumerate() {
            assert_eq!(queue.event().is_some(), index % 2 == 0);
            round_trip(&controller, queue, &namespace, index as u64 * 100, 20);
        }
    }
    assert!(target.stop().success());
}
