//! Every feature that the controller has: read, set, read back, and what a reset makes of it.

use nvme_driver::{AdminData, Controller, Error, QueueOptions, Request};
use nvme_spec::feature::{
    Arbitration, ErrorRecovery, FeatureCapabilities, FeatureId, FeatureSelect, HostBehaviorSupport,
    InterruptCoalescing, InterruptVectorConfiguration, NumberOfQueues, PowerManagement,
    TemperatureThreshold, Timestamp, TimestampAttributes, TimestampOrigin, VolatileWriteCache,
    WriteAtomicity, WriteProtectionState,
};
use nvme_spec::ids::InterruptVector;
use nvme_spec::{BlockCount, Lba, Nsid, Status};
use zerocopy::IntoBytes;

use crate::{ENDPOINTS, MEMORY, connect, round_trip, run, start, status};

/// A feature without a buffer, and a value that it takes and is not its default.
fn settings() -> Vec<(FeatureId, Nsid, u32)> {
    let none = Nsid::NONE;
    vec![
        (FeatureId::ARBITRATION, none, Arbitration::new().with_ab(3).into_bits()),
        (FeatureId::POWER_MANAGEMENT, none, PowerManagement::new().with_wh(1).into_bits()),
        (
            FeatureId::TEMPERATURE_THRESHOLD,
            none,
            TemperatureThreshold::new().with_tmpth(350).into_bits(),
        ),
        (FeatureId::ERROR_RECOVERY, MEMORY, ErrorRecovery::new().with_tler(7).into_bits()),
        (FeatureId::VOLATILE_WRITE_CACHE, none, VolatileWriteCache::new().into_bits()),
        (
            FeatureId::INTERRUPT_COALESCING,
            none,
            InterruptCoalescing::new().with_thr_z(3).with_time(2).into_bits(),
        ),
        (
            FeatureId::INTERRUPT_VECTOR_CONFIGURATION,
            none,
            InterruptVectorConfiguration::new()
                .with_iv(InterruptVector(2))
                .with_cd(true)
                .into_bits(),
        ),
        (FeatureId::WRITE_ATOMICITY_NORMAL, none, WriteAtomicity::new().with_dn(true).into_bits()),
    ]
}

/// Reads a feature of which the vector, if it is about one, is 2.
#[track_caller]
fn get(controller: &Controller, fid: FeatureId, select: FeatureSelect, nsid: Nsid) -> u32 {
    use nvme_spec::command::admin::GetFeaturesDword10;
    use nvme_spec::{AdminOpcode, Command, CommandId};
    let mut command = Command::admin(AdminOpcode::GET_FEATURES, CommandId(0));
    command.nsid = nsid;
    command.cdw10 = GetFeaturesDword10::new().with_fid(fid).with_sel(select).into_bits();
    if fid == FeatureId::INTERRUPT_VECTOR_CONFIGURATION {
        command.cdw11 = 2;
    }
    let answer = controller.admin_command(command, AdminData::None);
    answer.unwrap_or_else(|error| panic!("{fid}: {error}")).dw0
}

#[track_caller]
fn refused(result: Result<u32, Error>, wanted: Status) {
    match result {
        Err(Error::Command { status, .. }) => assert_eq!(status.code(), wanted),
        other => panic!("{other:?} instead of {wanted}"),
    }
}

#[test]
fn every_feature_takes_a_value_and_a_reset_takes_it_back() {
    let target = start();
    for endpoint in ENDPOINTS {
        let controller = connect(&target, endpoint);
        let namespace = controller.namespace(MEMORY).expect("there");
        let mut queue = controller.queue_pair(&QueueOptions::default()).expect("a queue pair");
        for (fid, nsid, value) in settings() {
            let default = get(&controller, fid, FeatureSelect::DEFAULT, nsid);
            assert_ne!(default, value, "{fid}");
            assert_eq!(get(&controller, fid, FeatureSelect::SAVED, nsid), default, "{fid}");
            let capabilities = get(&controller, fid, FeatureSelect::SUPPORTED_CAPABILITIES, nsid);
            let capabilities = FeatureCapabilities::from_bits(capabilities);
            assert!(capabilities.changeable() && !capabilities.saveable(), "{fid}");
            assert_eq!(capabilities.namespace_specific(), nsid == MEMORY, "{fid}");
            controller.set_feature(fid, value, nsid, AdminData::None, false).expect("it is taken");
            assert_eq!(get(&controller, fid, FeatureSelect::CURRENT, nsid), value, "{fid}");
            refused(
                controller.set_feature(fid, value, nsid, AdminData::None, true),
                Status::FEATURE_NOT_SAVEABLE,
            );
        }
        round_trip(&controller, &mut queue, &namespace, 9, 40);
        controller.reset().expect("it comes back");
        for (fid, nsid, _) in settings() {
            let default = get(&controller, fid, FeatureSelect::DEFAULT, nsid);
            assert_eq!(get(&controller, fid, FeatureSelect::CURRENT, nsid), default, "{fid}");
        }
        round_trip(&controller, &mut queue, &namespace, 9, 40);
    }
    assert!(target.stop().success());
}

#[test]
fn features_with_a_buffer_and_those_of_the_driver() {
    let target = start();
    for endpoint in ENDPOINTS {
        let controller = connect(&target, endpoint);
        let granted =
            get(&controller, FeatureId::NUMBER_OF_QUEUES, FeatureSelect::CURRENT, Nsid::NONE);
        assert_eq!(NumberOfQueues::from_bits(granted).nsq_z(), 63);
        assert_eq!(controller.granted_queues(), 8, "as many as were asked for");
        let value = NumberOfQueues::new().into_bits();
        let _queue = controller.queue_pair(&QueueOptions::default()).expect("a queue pair");
        let late = controller.set_feature(
            FeatureId::NUMBER_OF_QUEUES,
            value,
            Nsid::NONE,
            AdminData::None,
            false,
        );
        refused(late, Status::COMMAND_SEQUENCE_ERROR);

        let mut read = Timestamp::default();
        let fid = FeatureId::TIMESTAMP;
        let current = FeatureSelect::CURRENT;
        controller
            .feature(fid, current, Nsid::NONE, AdminData::In(read.as_mut_bytes()))
            .expect("a timestamp");
        assert_eq!(read.attributes.origin(), TimestampOrigin::RESET);
        let set = Timestamp::new(1_700_000_000_000, TimestampAttributes::new());
        controller
            .set_feature(fid, 0, Nsid::NONE, AdminData::Out(set.as_bytes()), false)
            .expect("it is taken");
        controller
            .feature(fid, current, Nsid::NONE, AdminData::In(read.as_mut_bytes()))
            .expect("a timestamp");
        assert_eq!(read.attributes.origin(), TimestampOrigin::SET);
        let passed = read.milliseconds() - set.milliseconds();
        assert!(passed < 30_000, "{passed} ms later");

        let mut behavior = HostBehaviorSupport::zeroed();
        behavior.acre = 1;
        let fid = FeatureId::HOST_BEHAVIOR_SUPPORT;
        controller
            .set_feature(fid, 0, Nsid::NONE, AdminData::Out(behavior.as_bytes()), false)
            .expect("it is taken");
        let mut read = HostBehaviorSupport::zeroed();
        controller
            .feature(fid, current, Nsid::NONE, AdminData::In(read.as_mut_bytes()))
            .expect("host behavior");
        assert_eq!(read, behavior);

        let fid = FeatureId::COMMAND_SET_PROFILE;
        assert_eq!(get(&controller, fid, current, Nsid::NONE), 0);
        refused(
            controller.set_feature(fid, 1, Nsid::NONE, AdminData::None, false),
            Status::COMMAND_SET_COMBINATION_REJECTED,
        );
        let events = get(&controller, FeatureId::ASYNC_EVENT_CONFIGURATION, current, Nsid::NONE);
        assert_ne!(events, 0, "the driver asked for events");
        let absent = controller.feature(FeatureId(0xC0), current, Nsid::NONE, AdminData::None);
        refused(absent, Status::INVALID_FIELD);
        let field =
            controller.set_feature(FeatureId::ARBITRATION, 0, MEMORY, AdminData::None, false);
        refused(field, Status::FEATURE_NOT_NAMESPACE_SPECIFIC);
    }
    assert!(target.stop().success());
}

#[test]
fn a_write_protected_namespace_is_read_and_not_written() {
    let target = start();
    for endpoint in ENDPOINTS {
        let controller = connect(&target, endpoint);
        let before = controller.namespace(MEMORY).expect("there");
        let mut queue = controller.queue_pair(&QueueOptions::default()).expect("a queue pair");
        round_trip(&controller, &mut queue, &before, 50, 4);
        let buffer = || controller.allocate(512).expect("memory");
        controller.write_protect(MEMORY, WriteProtectionState::WRITE_PROTECT).expect("protected");
        let fid = FeatureId::NAMESPACE_WRITE_PROTECTION;
        let state = get(&controller, fid, FeatureSelect::CURRENT, MEMORY);
        assert_eq!(state, u32::from(WriteProtectionState::WRITE_PROTECT.0));
        // Whoever looks anew is told by the driver, whoever does not by the controller.
        let after = controller.namespace(MEMORY).expect("there");
        assert!(before.is_writable() && !after.is_writable());
        let rejected =
            queue.submit(Request::write(&after, Lba(50), buffer())).expect_err("refused");
        assert_eq!(rejected.reason, nvme_driver::Reason::WriteProtected);
        let protected = Status::NAMESPACE_WRITE_PROTECTED;
        assert_eq!(status(&mut queue, Request::write(&before, Lba(50), buffer())), protected);
        let zeroes = Request::write_zeroes(&before, Lba(50), BlockCount(1), true);
        assert_eq!(status(&mut queue, zeroes), protected);
        let done = run(&mut queue, Request::read(&after, Lba(50), buffer()));
        assert_eq!(done.result, Ok(0));
        assert_eq!(done.buffer.expect("back").to_vec(), crate::pattern(2048, 54)[..512]);
        // A reset does not lift it.
        controller.reset().expect("it comes back");
        assert!(!controller.namespace(MEMORY).expect("there").is_writable());
        controller.write_protect(MEMORY, WriteProtectionState::NONE).expect("lifted");
        let after = controller.namespace(MEMORY).expect("there");
        round_trip(&controller, &mut queue, &after, 50, 4);
    }
    assert!(target.stop().success());
}
