//! Events: namespaces that come, grow, change and go while controllers are in use.

use std::time::Duration;

use nvme_driver::{Controller, Error, QueueOptions};
use nvme_spec::command::admin::FormatNvmDword10;
use nvme_spec::feature::event::AsyncEvent;
use nvme_spec::{BlockCount, Nsid};
use vireo_tests::wait::PATIENCE;

use crate::{ENDPOINTS, MEMORY, connect, grown, round_trip, start};

const MORE: Nsid = Nsid(5);
const GROWN: Nsid = Nsid(6);

/// Waits until events have named all of these namespaces.
#[track_caller]
fn await_event(controller: &Controller, wanted: &[Nsid]) {
    let mut missing = wanted.to_vec();
    while !missing.is_empty() {
        let event = controller.next_event(PATIENCE).expect("events can be asked for");
        let event = event.unwrap_or_else(|| panic!("no event tells of {missing:?}"));
        assert_eq!(event.event, AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED);
        missing.retain(|nsid| !event.namespaces.contains(nsid));
    }
}

#[test]
fn namespaces_that_come_grow_and_go_are_announced_to_every_controller() {
    let target = start();
    let controllers = ENDPOINTS.map(|endpoint| connect(&target, endpoint));
    for controller in &controllers {
        assert_eq!(controller.next_event(Duration::ZERO).expect("none"), None);
        assert!(matches!(controller.namespace(MORE), Err(Error::NoNamespace { .. })));
    }
    let both = "[[subsystem.namespace]]\nnsid = 5\nbdev = \"more\"\n\
                [[subsystem.namespace]]\nnsid = 6\nbdev = \"grown\"\n";
    target.reload_ok(&grown(both, "1MiB"));
    for controller in &controllers {
        await_event(controller, &[MORE, GROWN]);
        let mut queue = controller.queue_pair(&QueueOptions::default()).expect("a queue pair");
        for nsid in [MORE, GROWN] {
            let namespace = controller.namespace(nsid).expect("it came");
            assert_eq!(namespace.blocks(), BlockCount(2048));
            round_trip(controller, &mut queue, &namespace, 2000, 48);
        }
    }
    target.reload_ok(&grown(both, "2MiB"));
    for controller in &controllers {
        await_event(controller, &[GROWN]);
        let mut queue = controller.queue_pair(&QueueOptions::default()).expect("a queue pair");
        let namespace = controller.namespace(GROWN).expect("it is there");
        assert_eq!(namespace.blocks(), BlockCount(4096));
        round_trip(controller, &mut queue, &namespace, 4000, 96);
    }
    target.reload_ok(&grown("", "2MiB"));
    for controller in &controllers {
        await_event(controller, &[MORE, GROWN]);
        let error = controller.namespace(MORE).expect_err("it went");
        assert!(matches!(error, Error::NoNamespace { .. }), "{error}");
    }
    assert!(target.stop().success());
}

#[test]
fn a_format_by_one_controller_is_announced_to_the_other() {
    let target = start();
    let [first, second] = ENDPOINTS.map(|endpoint| connect(&target, endpoint));
    let mut queue = second.queue_pair(&QueueOptions::default()).expect("a queue pair");
    let old = second.namespace(MEMORY).expect("there");
    round_trip(&second, &mut queue, &old, 0, 8);
    first.format(MEMORY, FormatNvmDword10::new().with_lbafl(1), PATIENCE).expect("a format");
    await_event(&second, &[MEMORY]);
    let new = second.namespace(MEMORY).expect("there");
    assert_eq!((old.block_size(), new.block_size()), (512, 4096));
    round_trip(&second, &mut queue, &new, 1, 8);
    assert!(target.stop().success());
}

#[test]
fn events_come_again_after_a_reset() {
    let target = start();
    let controller = connect(&target, "shadow");
    for round in 0..3 {
        controller.reset().expect("it comes back");
        let more = "[[subsystem.namespace]]\nnsid = 5\nbdev = \"more\"\n";
        target.reload_ok(&grown(if round % 2 == 0 { more } else { "" }, "1MiB"));
        await_event(&controller, &[MORE]);
    }
    assert!(target.stop().success());
}
