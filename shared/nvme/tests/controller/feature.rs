//! Get Features and Set Features.

use crate::host::{DATA, Host, admin};
use nvme::{Protection, Request, ResetKind};
use nvme_spec::command::{AdminOpcode, Command};
use nvme_spec::feature::{FeatureId, Timestamp};
use nvme_spec::{Iova, Nsid, Status};
use std::sync::atomic::Ordering;
use std::time::Duration;
use zerocopy::{FromBytes, IntoBytes};

pub fn set(fid: FeatureId, value: u32) -> Command {
    let command =
        Command { cdw10: u32::from(fid.0), cdw11: value, ..admin(AdminOpcode::SET_FEATURES) };
    command.with_prps(Iova(DATA), Iova(0))
}

pub fn get(fid: FeatureId, select: u32) -> Command {
    let cdw10 = select << 8 | u32::from(fid.0);
    let command = Command { cdw10, ..admin(AdminOpcode::GET_FEATURES) };
    command.with_prps(Iova(DATA), Iova(0))
}

fn of(command: Command, nsid: u32) -> Command {
    Command { nsid: Nsid(nsid), ..command }
}

fn value(host: &mut Host, fid: FeatureId, select: u32) -> u32 {
    let entry = host.run(of(get(fid, select), 1));
    assert!(entry.status().is_success(), "{fid}: {}", entry.status());
    entry.dw0
}

const PLAIN: [(FeatureId, u32, u32, u32); 7] = [
    // Feature, default, a new value, what is kept of it.
    (FeatureId::ARBITRATION, 7, 0x0403_0203, 0x0403_0203),
    (FeatureId::POWER_MANAGEMENT, 0, 0b010_00000, 0b010_00000),
    (FeatureId::VOLATILE_WRITE_CACHE, 1, 1, 1),
    (FeatureId::INTERRUPT_COALESCING, 0, 0x0A07, 0x0A07),
    (FeatureId::WRITE_ATOMICITY_NORMAL, 0, 1, 1),
    (FeatureId::ASYNC_EVENT_CONFIGURATION, 0, 0xFFFF_FFFF, 0x1FF),
    (FeatureId::COMMAND_SET_PROFILE, 0, 0, 0),
];

#[test]
fn values_are_set_kept_and_reset() {
    let mut host = Host::enabled();
    for (fid, default, new, kept) in PLAIN {
        assert_eq!(value(&mut host, fid, 0), default, "{fid}");
        assert!(host.run(set(fid, new)).status().is_success(), "{fid}");
        assert_eq!(value(&mut host, fid, 0), kept, "{fid}");
        assert_eq!((value(&mut host, fid, 1), value(&mut host, fid, 2)), (default, default));
    }
    host.write32(nvme_spec::register::offset::CC, 0);
    host.acknowledge();
    host.enable();
    for (fid, default, ..) in PLAIN {
        assert_eq!(value(&mut host, fid, 0), default, "{fid} after a reset");
    }
}

#[test]
fn what_workers_heed_is_in_the_segment_before_the_completion() {
    let mut host = Host::enabled();
    host.acknowledge();
    host.submit(set(FeatureId::INTERRUPT_COALESCING, 0x0A07));
    host.process();
    let segment = host.controller.segment().clone();
    let settings = &segment.settings;
    assert_eq!(settings.coalescing_threshold.load(Ordering::Relaxed), 7);
    assert_eq!(settings.coalescing_time.load(Ordering::Relaxed), 10);
    assert!(host.completion().is_none());
    host.acknowledge();
    assert!(host.completion().unwrap().status().is_success());
    host.run(set(FeatureId::ARBITRATION, 3));
    assert_eq!(settings.arbitration_burst.load(Ordering::Relaxed), 8);
    host.run(set(FeatureId::ARBITRATION, 7));
    assert_eq!(settings.arbitration_burst.load(Ordering::Relaxed), 0);
}

#[test]
fn turning_the_write_cache_off_flushes_first() {
    let mut host = Host::enabled();
    host.effects();
    host.submit(set(FeatureId::VOLATILE_WRITE_CACHE, 0));
    host.process();
    host.acknowledge();
    let (ticket, request) = host.request();
    assert_eq!(request, Request::Flush);
    assert!(host.completion().is_none());
    host.complete(ticket, Err(Status::INTERNAL_ERROR));
    host.acknowledge();
    assert_eq!(host.completion().unwrap().status().code(), Status::INTERNAL_ERROR);
    assert_eq!(host.controller.segment().settings.write_cache.load(Ordering::Relaxed), 0);
}

#[test]
fn capabilities_tell_what_can_be_done() {
    let mut host = Host::enabled();
    for fid in (0..=u8::MAX).map(FeatureId) {
        let entry = host.run(get(fid, 3));
        let offered = matches!(fid.0, 1 | 2 | 4..=0xB | 0xE | 0x16 | 0x19 | 0x84);
        assert_eq!(entry.status().is_success(), offered, "{fid}");
        if offered {
            let per_namespace = matches!(fid.0, 5 | 0x84);
            assert_eq!(entry.dw0, 0b100 | u32::from(per_namespace) << 1, "{fid}");
        } else {
            assert_eq!(host.status(set(fid, 0)), Status::INVALID_FIELD);
        }
    }
    for select in 4..8 {
        assert_eq!(host.status(get(FeatureId::ARBITRATION, select)), Status::INVALID_FIELD);
    }
}

#[test]
fn invalid_values_are_refused() {
    let mut host = Host::enabled();
    let saved = Command { cdw10: 1 << 31 | 1, ..set(FeatureId::ARBITRATION, 0) };
    let cases = [
        ("save", saved, Status::FEATURE_NOT_SAVEABLE),
        ("nsid", of(set(FeatureId::ARBITRATION, 0), 1), Status::FEATURE_NOT_NAMESPACE_SPECIFIC),
        ("power state", set(FeatureId::POWER_MANAGEMENT, 1), Status::INVALID_FIELD),
        ("sensor", set(FeatureId::TEMPERATURE_THRESHOLD, 1 << 16), Status::INVALID_FIELD),
        ("threshold type", set(FeatureId::TEMPERATURE_THRESHOLD, 2 << 20), Status::INVALID_FIELD),
        ("dulbe", of(set(FeatureId::ERROR_RECOVERY, 1 << 16), 1), Status::INVALID_FIELD),
        ("recovery nsid", of(set(FeatureId::ERROR_RECOVERY, 1), 9), Status::INVALID_FIELD),
        (
            "recovery nsid",
            of(set(FeatureId::ERROR_RECOVERY, 1), 0),
            Status::INVALID_NAMESPACE_OR_FORMAT,
        ),
        ("vector", set(FeatureId::INTERRUPT_VECTOR_CONFIGURATION, 4), Status::INVALID_FIELD),
        ("vector", set(FeatureId::INTERRUPT_VECTOR_CONFIGURATION, 0xFFFF), Status::INVALID_FIELD),
        (
            "profile",
            set(FeatureId::COMMAND_SET_PROFILE, 1),
            Status::COMMAND_SET_COMBINATION_REJECTED,
        ),
        ("permanent", of(set(FeatureId::NAMESPACE_WRITE_PROTECTION, 3), 1), Status::INVALID_FIELD),
        ("protect", of(set(FeatureId::NAMESPACE_WRITE_PROTECTION, 1), 2), Status::INVALID_FIELD),
        (
            "of none",
            of(get(FeatureId::NAMESPACE_WRITE_PROTECTION, 0), 0),
            Status::INVALID_NAMESPACE_OR_FORMAT,
        ),
    ];
    for (what, command, status) in cases {
        assert_eq!(host.status(command), status, "{what}");
    }
}

#[test]
fn thresholds_and_vectors_have_a_value_each() {
    let mut host = Host::enabled();
    let threshold =
        |under: u32| Command { cdw11: under << 20, ..get(FeatureId::TEMPERATURE_THRESHOLD, 0) };
    assert_eq!(host.run(threshold(0)).dw0, 0xFFFF);
    host.run(set(FeatureId::TEMPERATURE_THRESHOLD, 350));
    host.run(set(FeatureId::TEMPERATURE_THRESHOLD, 1 << 20 | 270));
    assert_eq!((host.run(threshold(0)).dw0, host.run(threshold(1)).dw0), (350, 270));
    let vector =
        |iv: u32| Command { cdw11: iv, ..get(FeatureId::INTERRUPT_VECTOR_CONFIGURATION, 0) };
    host.run(set(FeatureId::INTERRUPT_VECTOR_CONFIGURATION, 1 << 16 | 2));
    assert_eq!((host.run(vector(1)).dw0, host.run(vector(2)).dw0), (1, 1 << 16 | 2));
    let disabled =
        host.controller.segment().settings.coalescing_disabled[0].load(Ordering::Relaxed);
    assert_eq!(disabled, 1 << 2);
    assert_eq!(host.status(vector(4)), Status::INVALID_FIELD);
}

#[test]
fn recovery_is_of_a_namespace() {
    let mut host = Host::enabled();
    host.subsystem.add_namespace(crate::host::namespace(2, 1 << 20)).unwrap();
    host.run(of(set(FeatureId::ERROR_RECOVERY, 7), 2));
    assert_eq!(value(&mut host, FeatureId::ERROR_RECOVERY, 0), 0);
    assert_eq!(host.run(of(get(FeatureId::ERROR_RECOVERY, 0), 2)).dw0, 7);
    host.run(of(set(FeatureId::ERROR_RECOVERY, 9), u32::MAX));
    assert_eq!(value(&mut host, FeatureId::ERROR_RECOVERY, 0), 9);
}

#[test]
fn the_timestamp_counts_on() {
    let mut host = Host::enabled();
    let read = |host: &mut Host| {
        Timestamp::read_from_bytes(&host.fetch(get(FeatureId::TIMESTAMP, 0), 8).unwrap()).unwrap()
    };
    host.now += Duration::from_millis(250);
    let before = read(&mut host);
    assert_eq!((before.milliseconds(), before.attributes.origin().0), (250, 0));
    host.fill(DATA, Timestamp::new(1_700_000_000_000, Default::default()).as_bytes());
    assert!(host.run(set(FeatureId::TIMESTAMP, 0)).status().is_success());
    host.now += Duration::from_millis(1500);
    let after = read(&mut host);
    assert_eq!((after.milliseconds(), after.attributes.origin().0), (1_700_000_001_500, 1));
    host.reset(ResetKind::Disable);
    host.acknowledge();
    host.now += Duration::from_millis(70);
    host.enable();
    let anew = read(&mut host);
    assert_eq!((anew.milliseconds(), anew.attributes.origin().0), (70, 0), "from the reset on");
}

#[test]
fn host_behaviour_is_kept_as_far_as_it_means_something() {
    let mut host = Host::enabled();
    let mut asked = [0_u8; 512];
    asked[..4].copy_from_slice(&[1, 1, 1, 9]);
    host.fill(DATA, &asked);
    assert!(host.run(set(FeatureId::HOST_BEHAVIOR_SUPPORT, 0)).status().is_success());
    let kept = host.fetch(get(FeatureId::HOST_BEHAVIOR_SUPPORT, 0), 512).unwrap();
    assert_eq!(&kept[..4], [1, 0, 0, 0]);
    host.fill(DATA, &[2]);
    assert_eq!(host.status(set(FeatureId::HOST_BEHAVIOR_SUPPORT, 0)), Status::INVALID_FIELD);
}

#[test]
fn write_protection_is_stored_and_heeded_before_the_completion() {
    let mut host = Host::enabled();
    host.acknowledge();
    host.effects();
    let fid = FeatureId::NAMESPACE_WRITE_PROTECTION;
    host.submit(of(set(fid, 1), 1));
    host.process();
    let (ticket, request) = host.request();
    assert_eq!(request, Request::Protect { nsid: Nsid(1), protection: Protection::Protected });
    assert_eq!(host.controller.segment().namespaces[0].flags.load(Ordering::Relaxed), 0);
    host.complete(ticket, Ok(()));
    assert_eq!(host.controller.segment().namespaces[0].flags.load(Ordering::Relaxed), 1);
    assert!(host.completion().is_none());
    host.acknowledge();
    assert!(host.completion().unwrap().status().is_success());
    assert_eq!(value(&mut host, fid, 0), 1);
    assert_eq!(value(&mut host, fid, 1), 0);
    host.effects();
    host.submit(of(set(fid, 0), 1));
    host.process();
    let (ticket, _) = host.request();
    host.complete(ticket, Err(Status::INTERNAL_ERROR));
    host.acknowledge();
    assert_eq!(host.completion().unwrap().status().code(), Status::INTERNAL_ERROR);
    assert_eq!(value(&mut host, fid, 0), 1, "what could not be stored did not happen");
}

#[test]
fn protection_until_power_cycle_ends_when_the_last_client_is_gone() {
    let mut host = Host::enabled();
    host.effects();
    let fid = FeatureId::NAMESPACE_WRITE_PROTECTION;
    host.submit(of(set(fid, 2), 1));
    host.process();
    let (ticket, _) = host.request();
    host.complete(ticket, Ok(()));
    host.acknowledge();
    assert!(host.completion().unwrap().status().is_success());
    assert_eq!(host.status(of(set(fid, 0), 1)), Status::FEATURE_NOT_CHANGEABLE);
    host.reset(ResetKind::Function);
    host.acknowledge();
    assert!(host.subsystem.namespace(Nsid(1)).unwrap().is_write_protected());
    host.reset(ResetKind::Disconnect);
    host.acknowledge();
    assert!(!host.subsystem.namespace(Nsid(1)).unwrap().is_write_protected());
}

#[test]
fn a_read_only_device_is_protected_for_good() {
    let mut host = Host::enabled();
    let config = nvme::NamespaceConfig { read_only: true, ..crate::host::namespace(3, 1 << 20) };
    host.subsystem.add_namespace(config).unwrap();
    let fid = FeatureId::NAMESPACE_WRITE_PROTECTION;
    assert_eq!(host.run(of(get(fid, 0), 3)).dw0, 1);
    assert_eq!(host.status(of(set(fid, 0), 3)), Status::FEATURE_NOT_CHANGEABLE);
    assert_eq!(host.status(of(set(fid, 0), u32::MAX)), Status::FEATURE_NOT_CHANGEABLE);
}
