//! Queue identifiers that are not to be used, since somebody may still ring their doorbells.

mod scripted;

use nvme_driver::QueueOptions;
use nvme_spec::QueueId;
use scripted::{Script, Scripted};

#[test]
fn a_reserved_queue_identifier_is_nobodys_until_it_is_released() {
    let target = Scripted::start(Script { queues: 2, ..Script::default() });
    let controller = target.connect();
    let options = QueueOptions { depth: 8, interrupt: false };
    assert!(controller.keeping().is_none(), "of a vfio-user target nothing is kept");
    assert!(controller.reserve_queue(QueueId(1)));
    assert!(!controller.reserve_queue(QueueId(1)), "once");
    assert!(!controller.reserve_queue(QueueId(3)), "not granted");
    assert!(!controller.reserve_queue(QueueId(0)), "the admin queue");
    let second = controller.bare_queue(&options).unwrap();
    assert_eq!(second.id(), QueueId(2));
    assert!(!controller.reserve_queue(QueueId(2)), "in use");
    controller.bare_queue(&options).unwrap_err();
    controller.release_queue(QueueId(1));
    assert_eq!(controller.bare_queue(&options).unwrap().id(), QueueId(1));
}
