//! Queue pairs that workers have of a drive: granted, lost with either side, and granted again.

use super::*;

/// A target of two workers.
fn two_workers(endpoint: &Path) -> String {
    on_drive(endpoint, "").replace(
        "[[worker]]\nname = \"w0\"\n",
        "[[worker]]\nname = \"w0\"\n[[worker]]\nname = \"w1\"\n",
    )
}

#[track_caller]
fn await_leases(target: &Target, wanted: usize) {
    until("as many queue pairs as wanted", || leases(target) == wanted);
}

/// Channels that are rings.
fn rings(target: &Target) -> usize {
    target.status().to_string().matches("ring of").count()
}

fn said(target: &Target) -> bool {
    target.log().contains("no queue pair for a worker, a ring serves it")
}

#[test]
fn two_workers_have_a_queue_pair_each_and_see_one_drive() {
    let drive = Target::start(&one_memory_namespace(&["drive"]));
    let target = Target::start(&two_workers(&drive.endpoint("drive")));
    let mut client = Client::connect(&target, "vm0");
    let mut second = client.controller.queue_pair(&QueueOptions::default()).expect("queue");
    await_leases(&target, 2);
    shared_data(&mut client, &mut second);
    assert!(!said(&target), "{}", target.log());
}

#[test]
fn with_no_queue_pair_left_a_ring_serves() {
    // One for the backend itself, one for a worker.
    let drive = Target::start(&(one_memory_namespace(&["drive"]) + "queues = 2\n"));
    let target = Target::start(&two_workers(&drive.endpoint("drive")));
    let mut client = Client::connect(&target, "vm0");
    let mut second = client.controller.queue_pair(&QueueOptions::default()).expect("queue");
    shared_data(&mut client, &mut second);
    await_leases(&target, 1);
    until("it is said", || said(&target));
}

#[test]
fn a_ring_gives_way_to_a_queue_pair_that_comes_free() {
    // One for the backend itself, one for a client.
    let drive = Target::start(&(one_memory_namespace(&["drive"]) + "queues = 2\n"));
    let second = "[[endpoint]]\nname = \"vm1\"\nsubsystem = \"s0\"\n";
    let target = Target::start(&(on_drive(&drive.endpoint("drive"), "") + second));
    let mut first = Client::connect(&target, "vm0");
    first.write(0, 0, &[0x31; 4096]);
    await_leases(&target, 1);
    let mut second = Client::connect(&target, "vm1");
    second.write(8, 0, &[0x32; 4096]);
    until("a ring", || rings(&target) == 1);
    until("it is said", || said(&target));
    drop(first);
    until("a queue pair in its place", || (leases(&target), rings(&target)) == (1, 0));
    assert!(second.read(0, 0, 4096) == [0x31; 4096]);
    second.write(16, 0, &[0x33; 4096]);
    assert!(second.read(8, 0, 4096) == [0x32; 4096] && second.read(16, 0, 4096) == [0x33; 4096]);
}

/// What is written over one queue pair is read over the other.
#[track_caller]
fn shared_data(client: &mut Client, second: &mut QueuePair) {
    let mut random = Random::new(5);
    for lba in (0..64).map(|index| index * 100) {
        let data = random.bytes(16 << 10);
        client.write(lba, 0, &data);
        let request = Request::read(&client.namespace, Lba(lba), client.buffer(0, data.len()));
        let done = second.run(request).expect("a request that is taken");
        assert!(done.result.is_ok() && done.buffer.expect("its buffer").to_vec() == data);
        let mut buffer = client.buffer(0, 4096);
        buffer.copy_from(&data[..4096]);
        let request = Request::write(&client.namespace, Lba(lba + 50), buffer);
        assert!(second.run(request).expect("a request that is taken").result.is_ok());
        assert!(client.read(lba + 50, 0, 4096) == data[..4096]);
    }
}

/// There is one queue pair for a worker: a successor gets it only because its predecessor's is deleted.
#[test]
fn a_killed_worker_gives_its_queue_pair_up() {
    let drive = Target::start(&(one_memory_namespace(&["drive"]) + "queues = 2\n"));
    let target = Target::start(&on_drive(&drive.endpoint("drive"), ""));
    for round in 0..3_u64 {
        let mut client = Client::connect_waiting(&target, "vm0", Duration::from_secs(2));
        let stamp = [round as u8 + 1; 4096];
        client.write(round * 8, 0, &stamp);
        await_leases(&target, 1);
        let buffers = client.controller.allocate(32 * 4096).expect("memory").into_chunks(4096);
        for buffer in buffers {
            let request = Request::read(&client.namespace, Lba(0), buffer);
            client.queue.submit(request).expect("room");
        }
        client.queue.ring();
        target.kill_and_await_successor("w0");
        // Whatever became of them, they end.
        let started = Instant::now();
        while client.queue.wait_next().is_some() {
            assert!(started.elapsed() < 2 * PATIENCE, "requests of a dead worker do not end");
        }
        drop(client);
        let mut client = Client::connect(&target, "vm0");
        for earlier in 0..=round {
            assert!(client.read(earlier * 8, 0, 4096) == [earlier as u8 + 1; 4096]);
        }
        drop(client);
        until("the successor has the queue pair", || {
            let mut client = Client::connect(&target, "vm0");
            client.read(0, 0, 512);
            leases(&target) == 1
        });
    }
}

#[test]
fn requests_on_a_queue_pair_outlive_the_backend() {
    let (_drive, target) = two();
    let mut client = Client::connect(&target, "vm0");
    for round in 0..3_u64 {
        client.write(round * 8, 0, &[round as u8 + 1; 4096]);
        await_leases(&target, 1);
        target.kill_and_await_successor("b0");
        // They end, with an error that may be tried again; the driver does.
        client.holds(0, &[1; 4096]);
        client.write_again(round * 8 + 800, &[round as u8 + 101; 4096]);
        client.holds(round * 8 + 800, &[round as u8 + 101; 4096]);
        target.await_all_ready();
        client.holds(0, &[1; 4096]);
        await_leases(&target, 1);
    }
}

#[test]
fn a_drive_that_is_lost_and_found_is_leased_again() {
    let (drive, target) = two();
    let mut client = Client::connect(&target, "vm0");
    client.write(0, 0, &[0x44; 4096]);
    drive.kill_and_await_successor("f0");
    client.holds(0, &[0x44; 4096]);
    client.write_again(80, &[0x45; 4096]);
    // By ring, maybe, until the drive has made a queue pair again.
    await_leases(&target, 1);
    client.holds(80, &[0x45; 4096]);
    client.write_again(160, &[0x46; 4096]);
    client.holds(160, &[0x46; 4096]);
    await_leases(&target, 1);
}

/// Fused pairs go by the ring, writes by the queue pair; a pair is not disturbed, and writes go on after it.
#[test]
fn fused_pairs_and_leased_writes_take_turns() {
    let (_drive, target) = two();
    let mut client = Client::connect(&target, "vm0");
    let mut value = 0_u64;
    client.write(0, 0, &value.to_le_bytes().repeat(512));
    for _ in 0..50 {
        for lba in 0..8 {
            let mut buffer = client.buffer(0, 4096);
            buffer.copy_from(&[lba as u8; 4096]);
            let request = Request::write(&client.namespace, Lba(800 + lba * 8), buffer);
            client.queue.submit(request.with_token(lba)).expect("room");
        }
        let (mut left, mut right) = (client.buffer(0, 4096), client.buffer(0, 4096));
        left.copy_from(&value.to_le_bytes().repeat(512));
        value += 1;
        right.copy_from(&value.to_le_bytes().repeat(512));
        let compare = Request::compare(&client.namespace, Lba(0), left);
        let write = Request::write(&client.namespace, Lba(0), right);
        assert!(client.queue.submit_fused(compare, write).is_ok());
        let results: Vec<bool> =
            (0..10).map(|_| client.queue.wait_next().expect("10 of them").result.is_ok()).collect();
        assert_eq!(results, [true; 10]);
    }
    assert!(client.read(0, 0, 4096) == value.to_le_bytes().repeat(512));
    await_leases(&target, 1);
}
