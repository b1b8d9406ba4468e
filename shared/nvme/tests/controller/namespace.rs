//! Subsystems and namespaces as their owner changes them.

use crate::host::{Host, namespace, subsystem};
use nvme::{Subsystem, SubsystemConfig, SubsystemError};
use nvme_spec::Nsid;
use std::sync::atomic::Ordering;

#[test]
fn names_that_do_not_fit_are_refused() {
    let good = subsystem().config().clone();
    let cases = [
        SubsystemConfig { nqn: "vireo".into(), ..good.clone() },
        SubsystemConfig { nqn: format!("nqn.{}", "x".repeat(220)), ..good.clone() },
        SubsystemConfig { serial: "x".repeat(21), ..good.clone() },
        SubsystemConfig { model: "x".repeat(41), ..good.clone() },
        SubsystemConfig { firmware: "x".repeat(9), ..good.clone() },
        SubsystemConfig { serial: "é".into(), ..good },
    ];
    for config in cases {
        assert!(Subsystem::new(config.clone()).is_err(), "{config:?}");
    }
}

#[test]
fn namespaces_that_are_not_possible_are_refused() {
    let mut subsystem = subsystem();
    assert_eq!(subsystem.add_namespace(namespace(1, 512)), Err(SubsystemError::Exists(1)));
    assert_eq!(subsystem.add_namespace(namespace(0, 512)), Err(SubsystemError::Nsid(0)));
    assert_eq!(subsystem.add_namespace(namespace(257, 512)), Err(SubsystemError::Nsid(257)));
    assert!(subsystem.add_namespace(namespace(2, 511)).is_err());
    let odd = nvme::NamespaceConfig { block_shift: 10, ..namespace(2, 4096) };
    assert!(subsystem.add_namespace(odd).is_err());
    let long = nvme::NamespaceConfig { bdev: "x".repeat(65), ..namespace(2, 4096) };
    assert!(subsystem.add_namespace(long).is_err());
    assert_eq!(subsystem.resize_namespace(Nsid(2), 4096), Err(SubsystemError::Missing(2)));
    assert_eq!(subsystem.remove_namespace(Nsid(2)), Err(SubsystemError::Missing(2)));
    assert!(subsystem.resize_namespace(Nsid(1), 100).is_err());
}

#[test]
fn controller_identifiers_are_unique_and_used_again() {
    let mut subsystem = subsystem();
    let first = subsystem.add_controller().unwrap();
    let second = subsystem.add_controller().unwrap();
    assert_ne!(first, second);
    subsystem.remove_controller(first);
    assert_eq!(subsystem.add_controller(), Some(first));
}

#[test]
fn rows_name_the_device_and_another_device_is_another_generation() {
    let mut host = Host::new();
    let segment = host.controller.segment().clone();
    let row = &segment.namespaces[0];
    assert_eq!(row.state.load(Ordering::Acquire), 1);
    assert_eq!((row.backend.load(), row.bdev.load()), ("b0".into(), "bdev1".into()));
    assert_eq!(row.block_shift.load(Ordering::Relaxed), 9);
    assert_eq!(segment.namespaces[1].state.load(Ordering::Relaxed), 0);
    let generation = row.generation.load(Ordering::Relaxed);
    host.subsystem.remove_namespace(Nsid(1)).unwrap();
    let other = nvme::NamespaceConfig { bdev: "other".into(), ..namespace(1, 1 << 20) };
    host.subsystem.add_namespace(other).unwrap();
    host.call(|controller, cx| controller.subsystem_changed(cx));
    assert_ne!(row.generation.load(Ordering::Relaxed), generation);
    assert_eq!((row.state.load(Ordering::Relaxed), row.bdev.load()), (1, "other".into()));
}

#[test]
fn a_removed_namespace_is_settled_when_workers_know() {
    let mut host = Host::enabled();
    host.acknowledge();
    assert!(host.controller.is_settled(&host.workers));
    host.subsystem.remove_namespace(Nsid(1)).unwrap();
    host.call(|controller, cx| controller.subsystem_changed(cx));
    host.acknowledge_one(0);
    assert!(!host.controller.is_settled(&host.workers));
    host.acknowledge_one(1);
    assert!(host.controller.is_settled(&host.workers));
}
