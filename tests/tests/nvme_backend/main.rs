//! Targets whose block device is an NVMe drive: the controller of another target of ours, over vfio-user. The driver on
//! top and the device below are those of drives under VFIO, too, which `guest/drives.sh` runs in a guest. Workers have
//! queue pairs of the drive, unless a test says that they have none. Where it matters what the drive is told, or it is to
//! misbehave, it is the scripted controller of the driver's own tests.

mod interrupts;
mod lease;
mod lists;
#[path = "../../../shared/nvme-driver/tests/scripted/mod.rs"]
mod scripted;
mod trouble;
mod volumes;

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nvme_driver::{
    Controller, DmaBuffer, IoError, Namespace, Options, QueueOptions, QueuePair, Request,
};
use nvme_spec::identify::Cns;
use nvme_spec::nvm::{CopyRange, DatasetRange};
use nvme_spec::{BlockCount, Lba, Nsid, Status};
use vireo_tests::host::Host;
use vireo_tests::random::Random;
use vireo_tests::target::{Target, configuration, one_memory_namespace};
use vireo_tests::wait::{PATIENCE, until, within};

const NSID: Nsid = Nsid(1);
/// Blocks of the drive below.
const BLOCKS: u64 = (64 << 20) / 512;
/// Longest that a request may take whose drive is gone: less than its own time-out.
const END: Duration = Duration::from_secs(25);

/// A target whose namespace lies on the drive that `endpoint` serves; `options` are more lines of the bdev.
fn on_drive(endpoint: &Path, options: &str) -> String {
    configuration(&format!(
        "[[bdev]]\nname = \"nv0\"\ndriver = \"nvme\"\ntarget = \"vfio-user:{}\"\n{options}\
         [[subsystem]]\nname = \"s0\"\nserial = \"UPPER0001\"\n\
         [[subsystem.namespace]]\nnsid = 1\nbdev = \"nv0\"\n\
         [[endpoint]]\nname = \"vm0\"\nsubsystem = \"s0\"\n",
        endpoint.display()
    ))
}

/// A drive of 64 MiB of memory, and a target on it.
fn two() -> (Target, Target) {
    two_with("", "")
}

/// The same with more lines of the drive's endpoint and of the bdev on it.
fn two_with(of_drive: &str, of_bdev: &str) -> (Target, Target) {
    let drive = one_memory_namespace(&["drive"]) + of_drive;
    let drive = Target::start(&drive);
    let target = Target::start(&on_drive(&drive.endpoint("drive"), of_bdev));
    (drive, target)
}

/// Channels of a target that are leases.
fn leases(target: &Target) -> usize {
    target.status().to_string().matches("lease of").count()
}

/// A driver that has a target's namespace.
struct Client {
    controller: Controller,
    namespace: Namespace,
    queue: QueuePair,
}

impl Client {
    /// A target that stalls with its machine is none that failed: it has all the time that a test has.
    #[track_caller]
    fn connect(target: &Target, endpoint: &str) -> Self {
        Self::connect_waiting(target, endpoint, PATIENCE)
    }

    /// One that waits no longer than this for an admin command, as for the deletion of queues whose worker is dead.
    #[track_caller]
    fn connect_waiting(target: &Target, endpoint: &str, admin_timeout: Duration) -> Self {
        let address = format!("vfio-user:{}", target.endpoint(endpoint).display());
        let options = Options { connect_timeout: PATIENCE, admin_timeout, ..Options::default() };
        let client = within(PATIENCE, || {
            let controller = Controller::connect_with(&address, &options).ok()?;
            let namespace = controller.namespace(NSID).ok()?;
            let queue = controller.queue_pair(&QueueOptions::default()).ok()?;
            Some(Self { controller, namespace, queue })
        });
        client.expect("the endpoint takes a client")
    }

    /// Memory for `len` bytes that starts `offset` bytes into a page.
    fn buffer(&self, offset: usize, len: usize) -> DmaBuffer {
        let mut all = self.controller.allocate(offset + len).expect("memory");
        if offset == 0 { all } else { all.split_off(offset).expect("an offset within") }
    }

    #[track_caller]
    fn run(&mut self, request: Request) -> Result<Option<DmaBuffer>, IoError> {
        let done = self.queue.run(request).expect("a request that is taken");
        done.result.map(|_| done.buffer)
    }

    #[track_caller]
    fn write(&mut self, lba: u64, offset: usize, data: &[u8]) {
        let mut buffer = self.buffer(offset, data.len());
        buffer.copy_from(data);
        let request = Request::write(&self.namespace, Lba(lba), buffer);
        self.run(request).expect("write");
    }

    #[track_caller]
    fn read(&mut self, lba: u64, offset: usize, len: usize) -> Vec<u8> {
        let request = Request::read(&self.namespace, Lba(lba), self.buffer(offset, len));
        self.run(request).expect("read").expect("its buffer").to_vec()
    }

    /// Writes whole pages until that goes well. A queue pair goes on for a while when its drive or backend has died, so one
    /// good request does not say that the next one is.
    #[track_caller]
    fn write_again(&mut self, lba: u64, data: &[u8]) {
        until("a write goes well", || {
            let mut buffer = self.buffer(0, data.len());
            buffer.copy_from(data);
            self.run(Request::write(&self.namespace, Lba(lba), buffer)).is_ok()
        });
    }

    /// Reads whole pages until that goes well and they hold this.
    #[track_caller]
    fn holds(&mut self, lba: u64, data: &[u8]) {
        until("a read goes well", || {
            let request = Request::read(&self.namespace, Lba(lba), self.buffer(0, data.len()));
            self.run(request).is_ok_and(|buffer| buffer.expect("its buffer").to_vec() == data)
        });
    }

    #[track_caller]
    fn compare(&mut self, lba: u64, data: &[u8]) -> Result<(), IoError> {
        let mut buffer = self.buffer(0, data.len());
        buffer.copy_from(data);
        self.run(Request::compare(&self.namespace, Lba(lba), buffer)).map(drop)
    }
}

fn refused(result: Result<impl Sized, IoError>, wanted: Status) {
    match result {
        Err(IoError::Status(status)) => assert_eq!(status.code(), wanted),
        Err(error) => panic!("{error} instead of {wanted}"),
        Ok(_) => panic!("no error instead of {wanted}"),
    }
}

#[test]
fn data_goes_to_the_drive_and_back_without_a_copy() {
    let (drive, target) = two();
    exchange(drive, target, 1);
}

#[test]
fn the_same_goes_by_ring() {
    let (drive, target) = two_with("", "channel = \"ring\"\n");
    exchange(drive, target, 0);
}

/// The drive takes short commands: requests of the client's are many of them, some of which are under way at a time.
#[test]
fn long_requests_are_short_commands_of_the_drive() {
    for (channel, wanted) in [("lease", 1), ("ring", 0)] {
        let of_bdev = format!("channel = \"{channel}\"\n");
        let (drive, target) = two_with("max_transfer = \"16KiB\"\n", &of_bdev);
        exchange(drive, target, wanted);
    }
}

#[track_caller]
fn exchange(drive: Target, target: Target, wanted: usize) {
    let mut client = Client::connect(&target, "vm0");
    until("as many leases as wanted", || leases(&target) == wanted);
    assert_eq!((client.namespace.blocks().0, client.namespace.block_size()), (BLOCKS, 512));
    let mut random = Random::new(1);
    for round in 0..40 {
        // From one block to more than a command of either target carries, at any dword.
        let blocks = 1 + random.in_range(0..if round % 8 == 0 { 5000 } else { 64 });
        let lba = random.in_range(0..BLOCKS - blocks);
        let offset = 4 * random.in_range(0..1024) as usize;
        let data = random.bytes(blocks as usize * 512);
        client.write(lba, offset, &data);
        assert!(
            client.read(lba, (offset / 2) & !3, data.len()) == data,
            "{blocks} blocks at {lba}"
        );
    }
    let data = random.bytes(64 << 10);
    client.write(4096, 0, &data);
    client.run(Request::flush(&client.namespace)).expect("flush");
    assert!(!target.log().contains("data goes through buffers"), "{}", target.log());
    drop(client);
    // What lies on the drive is what the drive's own clients see.
    assert!(target.stop().success());
    let mut below = Client::connect(&drive, "drive");
    assert!(below.read(4096, 0, data.len()) == data);
}

#[test]
fn many_requests_at_a_time_come_back_each_with_its_own_data() {
    let (_drive, target) = two();
    let mut client = Client::connect(&target, "vm0");
    let stamp = |index: u64| index.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes();
    let total = 2000_u64;
    for writes in [true, false] {
        let mut free = client.controller.allocate(64 * 4096).unwrap().into_chunks(4096);
        let (mut next, mut ended) = (0, 0);
        let started = Instant::now();
        while ended < total {
            assert!(started.elapsed() < PATIENCE, "{ended} of {total} requests ended");
            while next < total
                && let Some(mut buffer) = free.pop()
            {
                let lba = Lba(next * 8);
                let request = if writes {
                    buffer.copy_from(&stamp(next).repeat(512));
                    Request::write(&client.namespace, lba, buffer)
                } else {
                    Request::read(&client.namespace, lba, buffer)
                };
                client.queue.submit(request.with_token(next)).expect("room");
                next += 1;
            }
            client.queue.ring();
            while let Some(done) = client.queue.next_completion() {
                done.result.expect("a request of many");
                let buffer = done.buffer.expect("its buffer");
                assert!(writes || buffer.to_vec() == stamp(done.token).repeat(512));
                free.push(buffer);
                ended += 1;
            }
        }
    }
}

#[test]
fn every_operation_does_on_the_drive_what_it_says() {
    for channel in ["lease", "ring"] {
        let (_drive, target) = two_with("", &format!("channel = \"{channel}\"\n"));
        every_operation(&target);
        // Commands of the drive that are shorter than the requests.
        let of_bdev = format!("channel = \"{channel}\"\n");
        let (_drive, target) = two_with("max_transfer = \"32KiB\"\n", &of_bdev);
        every_operation(&target);
    }
}

fn every_operation(target: &Target) {
    let mut client = Client::connect(target, "vm0");
    let mut random = Random::new(2);
    let data = random.bytes(1 << 20);
    client.write(0, 0, &data);

    assert_eq!(client.compare(8, &data[4096..40960]), Ok(()));
    let mut other = data[4096..40960].to_vec();
    other[20000] ^= 1;
    refused(client.compare(8, &other), Status::COMPARE_FAILURE);
    let verify = Request::verify(&client.namespace, Lba(0), BlockCount(2048));
    client.run(verify).expect("verify");

    let zeroes = Request::write_zeroes(&client.namespace, Lba(3), BlockCount(1000), false);
    client.run(zeroes.with_fua()).expect("write zeroes");
    assert!(client.read(3, 0, 512_000) == vec![0; 512_000]);
    assert!(client.read(0, 0, 3 * 512) == data[..3 * 512], "what lies before stays");
    let ranges = [
        DatasetRange { slba: Lba(1100), length: 100, ..DatasetRange::default() },
        DatasetRange { slba: Lba(1300), length: 7, ..DatasetRange::default() },
    ];
    let buffer = client.buffer(0, 4096);
    client.run(Request::deallocate(&client.namespace, &ranges, buffer)).expect("deallocate");
    assert!(client.read(1100, 0, 51_200) == vec![0; 51_200]);
    assert!(client.read(1300, 0, 3584) == vec![0; 3584]);
    assert!(client.read(1200, 0, 51_200) == data[1200 * 512..1300 * 512]);

    let ranges = [CopyRange { slba: Lba(1400), nlb_z: 599, ..CopyRange::default() }];
    let buffer = client.buffer(0, 4096);
    client.run(Request::copy(&client.namespace, &ranges, Lba(90_000), buffer)).expect("copy");
    assert!(client.read(90_000, 0, 600 * 512) == data[1400 * 512..2000 * 512]);

    fused(&mut client, &random.bytes(4096), &random.bytes(4096));
}

/// Compare and Write: written if and only if the comparison finds no difference.
fn fused(client: &mut Client, first: &[u8], second: &[u8]) {
    client.write(50_000, 0, first);
    for (expected, new, wanted) in [(first, second, true), (first, first, false)] {
        let (mut left, mut right) = (client.buffer(0, 4096), client.buffer(0, 4096));
        left.copy_from(expected);
        right.copy_from(new);
        let compare = Request::compare(&client.namespace, Lba(50_000), left);
        let write = Request::write(&client.namespace, Lba(50_000), right);
        assert!(client.queue.submit_fused(compare, write).is_ok());
        let results: Vec<bool> =
            (0..2).map(|_| client.queue.wait_next().unwrap().result.is_ok()).collect();
        assert_eq!(results, [wanted, wanted]);
        assert!(client.read(50_000, 0, 4096) == second, "it holds what was written last");
    }
}

#[test]
fn memory_that_its_owner_could_take_away_goes_through_buffers() {
    let (_drive, target) = two();
    let mut host = Host::connect(target.socket("vm0"));
    let mut random = Random::new(3);
    for blocks in [1, 8, 100, 300] {
        let data = random.bytes(blocks as usize * 512);
        host.write(NSID, Lba(77), &data, 512).expect("write");
        assert!(host.read(NSID, Lba(77), blocks, 512).expect("read") == data);
    }
    until("it is said", || target.log().contains("data goes through buffers"));
}

#[test]
fn a_drive_that_is_read_only_or_may_only_be_read_is_not_written() {
    let drive = Target::start(&one_memory_namespace(&["drive"]));
    let target = Target::start(&on_drive(&drive.endpoint("drive"), "read_only = true\n"));
    let mut host = Host::connect(target.socket("vm0"));
    let identify = host.identify(Cns::NAMESPACE, NSID);
    assert_eq!(identify[99] & 1, 1, "NSATTR says so");
    assert!(host.write(NSID, Lba(0), &[1; 512], 512).is_err());
    assert!(host.read(NSID, Lba(0), 1, 512).expect("read") == [0; 512]);
    drop(host);
    assert!(target.stop().success());

    // The drive itself refuses.
    let path = drive.site().directory().join("disk");
    std::fs::write(&path, vec![7; 1 << 20]).expect("write a file");
    let file = format!(
        "[[bdev]]\nname = \"disk\"\ndriver = \"file\"\npath = \"{}\"\nread_only = true\n\
         [[subsystem]]\nname = \"s0\"\nserial = \"S\"\n\
         [[subsystem.namespace]]\nnsid = 1\nbdev = \"disk\"\n\
         [[endpoint]]\nname = \"drive\"\nsubsystem = \"s0\"\n",
        path.display()
    );
    let protected = Target::start(&configuration(&file));
    let target = Target::start(&on_drive(&protected.endpoint("drive"), ""));
    let mut host = Host::connect(target.socket("vm0"));
    assert!(host.write(NSID, Lba(0), &[1; 512], 512).is_err());
    assert!(host.read(NSID, Lba(0), 1, 512).expect("read") == [7; 512]);
}

#[test]
fn a_drive_that_is_lost_ends_every_request_and_serves_again_when_it_is_back() {
    let (drive, target) = two();
    let mut client = Client::connect(&target, "vm0");
    client.write(0, 0, &[0x11; 8192]);
    kill(drive.pid("f0"), Signal::SIGKILL).expect("kill a process of our own");
    let started = Instant::now();
    for buffer in client.controller.allocate(32 * 4096).unwrap().into_chunks(4096) {
        let request = Request::read(&client.namespace, Lba(0), buffer);
        client.queue.submit(request).expect("room");
    }
    let mut ended = 0;
    while client.queue.wait_next().is_some() {
        ended += 1;
    }
    assert_eq!(ended, 32);
    assert!(started.elapsed() < END, "they ended after {:?}", started.elapsed());
    client.holds(0, &[0x11; 8192]);
    client.write_again(16, &[0x22; 4096]);
    client.holds(16, &[0x22; 4096]);
}

#[test]
fn a_drive_that_fails_is_reset_and_requests_go_on() {
    let (drive, target) = two();
    let mut client = Client::connect(&target, "vm0");
    client.write(0, 0, &[0x31; 4096]);
    // The drive reports a fatal error: its worker is gone.
    drive.kill_and_await_successor("w0");
    client.holds(0, &[0x31; 4096]);
    client.write_again(8, &[0x32; 4096]);
    client.holds(8, &[0x32; 4096]);
    let said = |what: &str| target.log().contains(what);
    until("it is said", || said("drive is reset") || said("fatal error"));
}

#[test]
fn a_killed_backend_is_replaced_and_takes_the_drive_over() {
    let (_drive, target) = two();
    let mut host = Host::connect(target.socket("vm0"));
    host.write(NSID, Lba(7), &[0x77; 1024], 512).expect("write");
    target.kill_and_await_successor("b0");
    host.wait("the namespace is served again", |host| host.read(NSID, Lba(7), 2, 512).ok());
    host.wait("it holds what it held", |host| {
        host.read(NSID, Lba(7), 2, 512).is_ok_and(|data| data == [0x77; 1024]).then_some(())
    });
    host.wait("it is written", |host| host.write(NSID, Lba(8), &[0x78; 512], 512).ok());
    drop(host);
    target.await_all_ready();
    let mut host = Host::connect(target.socket("vm0"));
    assert!(host.read(NSID, Lba(8), 1, 512).unwrap() == [0x78; 512]);
}

#[test]
fn a_drive_that_is_not_there_is_told_in_a_line_and_taken_when_it_comes() {
    let drive = Target::start(&one_memory_namespace(&["drive"]));
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    let with = |endpoint: &Path| {
        let bdev = "[[bdev]]\nname = \"nv0\"\ndriver = \"nvme\"\n";
        let path = endpoint.display();
        format!("{}{bdev}target = \"vfio-user:{path}\"\n", one_memory_namespace(&["vm0"]))
    };
    let output = target.reload(&with(&drive.site().directory().join("nowhere")));
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("bdev nv0") && text.contains("no vfio-user socket at"), "{text}");
    target.reload_ok(&one_memory_namespace(&["vm0"]));
    target.reload_ok(&with(&drive.endpoint("drive")));
    target.await_all_ready();
}
