//! Queues that are deleted and made again by a host that does not clear what it rang.

use std::time::Duration;

use nvme_spec::Lba;
use vireo_tests::host::{Attach, Host, commands};

use crate::{ENDPOINTS, MEMORY, start};

#[test]
fn queues_made_again_begin_at_zero_whatever_was_rung_before() {
    let target = start();
    for endpoint in ENDPOINTS {
        let mut host = Host::attach(target.socket(endpoint), &Attach::default());
        host.enable();
        if endpoint == "shadow" {
            host.use_shadow_doorbells();
        }
        host.create_queues(1, 64);
        for round in 0..3_u8 {
            for block in 0..5 + u64::from(round) {
                host.write(MEMORY, Lba(block), &[round; 512], 512).unwrap();
            }
            let mut queue = host.queues.remove(0);
            host.admin_ok(commands::delete_sq(queue.qid));
            host.admin_ok(commands::delete_cq(queue.qid));
            // The doorbells stand at 5 and more.
            queue.reset(&host.memory);
            host.create_queue(queue);
            // What was never submitted would be fetched from zeroed memory, and be completed.
            std::thread::sleep(Duration::from_millis(20));
            assert!(host.poll(0).is_none(), "a command that nobody submitted, over {endpoint}");
        }
        assert!(host.read(MEMORY, Lba(0), 1, 512).unwrap() == [2; 512]);
    }
    assert!(target.stop().success());
}
