//! Messages that no client sends.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use vfio_user::client::{Client, VersionStyle};
use vfio_user::message::{DmaMapBody, RegionAccess};
use vfio_user::region::RegionIndex;
use vfio_user::{Command, Header, HeaderFlags};
use vireo_tests::host::vfio_user::read_write;
use vireo_tests::wait::PATIENCE;
use zerocopy::IntoBytes;

use crate::Stage;

fn client(stage: &Stage) -> Client {
    let mut client = Client::connect(stage.target.socket("vm0")).unwrap();
    client.set_timeout(PATIENCE);
    client.version(&VersionStyle::Bare { minor: 0 }).unwrap();
    client
}

fn header(command: u16, size: u32) -> Vec<u8> {
    Header { id: 7, command: Command(command), size, ..Header::default() }.as_bytes().to_vec()
}

/// The connection answers as it should.
#[track_caller]
fn in_step(client: &mut Client) {
    assert_eq!(client.device_info().unwrap().argsz, 16);
}

#[test]
fn sizes_that_leave_no_boundary_end_the_connection_and_nothing_else() {
    let stage = Stage::start();
    for size in [0, 1, 15, 64 << 20, u32::MAX] {
        let mut client = client(&stage);
        client.send_raw(&header(4, size), &[]).unwrap();
        assert!(client.receive_raw().is_err(), "size {size:#x}: the connection is closed");
        stage.neighbour_goes_on();
    }
    stage.end();
}

#[test]
fn unknown_commands_are_skipped_with_their_payload() {
    let stage = Stage::start();
    let mut client = client(&stage);
    for command in [0, 14, 19, 255, 0xFFFF] {
        for payload in [0, 1, 16, 4096, 100_000] {
            let mut message = header(command, 16 + payload);
            message.resize(16 + payload as usize, 0x5A);
            client.send_raw(&message, &[]).unwrap();
            let reply = client.receive_raw().unwrap();
            assert!(reply.header.flags.error() && reply.body.is_empty(), "{command}, {payload}");
        }
        in_step(&mut client);
    }
    drop(client);
    stage.end();
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let stage = Stage::start();
    let mut client = client(&stage);
    let frontend = stage.target.pid("f0");
    let open = || std::fs::read_dir(format!("/proc/{frontend}/fd")).unwrap().count();
    let null = std::fs::File::open("/dev/null").unwrap();
    let fds = vec![null.as_fd(); 16];
    let send = |client: &mut Client| {
        let mut message = header(4, 32);
        message.resize(32, 0);
        message[16] = 16;
        client.send_raw(&message, &fds).unwrap();
        client.receive_raw().unwrap();
    };
    send(&mut client);
    let before = open();
    (0..50).for_each(|_| send(&mut client));
    vireo_tests::wait::until("descriptors are closed", || open() <= before + 4);
    in_step(&mut client);
    drop(client);
    stage.end();
}

#[test]
fn too_many_descriptors_end_the_connection_and_nothing_else() {
    let stage = Stage::start();
    let mut client = client(&stage);
    let null = std::fs::File::open("/dev/null").unwrap();
    // More than a message may have, in two parts of one message, as one sendmsg of this client takes no more.
    let fds = vec![null.as_fd(); 16];
    client.send_raw(&header(4, 32), &fds).unwrap();
    client.send_raw(&[0; 8], &fds).unwrap();
    client.send_raw(&[0; 8], &fds).ok();
    client.receive_raw().ok();
    stage.neighbour_goes_on();
    drop(client);
    stage.end();
}

#[test]
fn bytes_that_come_one_by_one_are_a_message() {
    let stage = Stage::start();
    let mut client = client(&stage);
    let mut message = header(4, 32);
    message.extend([16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for byte in &message {
        client.send_raw(&[*byte], &[]).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(!client.receive_raw().unwrap().header.flags.error());
    in_step(&mut client);
    drop(client);
    stage.end();
}

#[test]
fn half_a_message_holds_up_nobody_else() {
    let stage = Stage::start();
    let mut client = client(&stage);
    client.send_raw(&header(4, 32), &[]).unwrap();
    client.send_raw(&[16, 0, 0], &[]).unwrap();
    stage.neighbour_goes_on();
    drop(client);
    let mut client = super::messages::client(&stage);
    client.send_raw(&header(4, 32)[..5], &[]).unwrap();
    stage.neighbour_goes_on();
    drop(client);
    stage.end();
}

#[test]
fn a_client_that_never_reads_holds_up_nobody_else() {
    let stage = Stage::start();
    let mut client = client(&stage);
    client.set_timeout(Duration::from_millis(500));
    let access = RegionAccess { offset: 0, region: RegionIndex::CONFIG, count: 4096 };
    let message = Header::command(1, Command::REGION_READ, 16).with_body(access.as_bytes());
    // Until the socket is full: the server's replies wait, and so do we.
    let mut sent = 0;
    while sent < 20_000 && client.send_raw(&message, &[]).is_ok() {
        sent += 1;
    }
    stage.neighbour_goes_on();
    drop(client);
    stage.end();
}

#[test]
fn counts_and_offsets_at_their_limits_have_the_form_of_success() {
    let stage = Stage::start();
    let mut client = client(&stage);
    for (region, offset, count) in [
        (0, u64::MAX, 8),
        (0, 0x4000, 1),
        (0, 0x3FFF, 2),
        (7, 4095, 2),
        (8, 0, 4),
        (9, 0, 4),
        (u32::MAX, 0, 8),
    ] {
        let mut data = vec![0; count];
        client.region_read(RegionIndex(region), offset, &mut data).unwrap();
        assert!(data.iter().all(|&byte| byte == 0xFF), "region {region} at {offset:#x}");
        client.region_write(RegionIndex(region), offset, &data).unwrap();
    }
    // A count that is not the data's, or more than a transfer may be.
    for (count, data) in [(8, 4), (4, 8), (u32::MAX, 0), (2 << 20, 0)] {
        for command in [Command::REGION_READ, Command::REGION_WRITE] {
            let access = RegionAccess { offset: 0, region: RegionIndex::CONFIG, count };
            let body = [access.as_bytes(), &vec![0; data]].concat();
            client.call(command, &body, &[]).ok();
        }
    }
    in_step(&mut client);
    drop(client);
    stage.end();
}

#[test]
fn versions_of_any_kind_end_in_an_answer() {
    let stage = Stage::start();
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let long = format!("{{\"capabilities\":{{\"x\":\"{}\"}}}}", "y".repeat(40_000));
    for json in
        ["{", "[]", "null", "{\"capabilities\":7}", deep.as_str(), long.as_str(), "\u{1F980}"]
    {
        let mut client = Client::connect(stage.target.socket("vm0")).unwrap();
        let mut body = vec![0; 4];
        body.extend(json.as_bytes());
        body.push(0);
        client.call(Command::VERSION, &body, &[]).ok();
        stage.neighbour_goes_on();
    }
    // A command before the version, and a reply that nobody asked for.
    let mut client = Client::connect(stage.target.socket("vm0")).unwrap();
    assert!(client.device_info().is_err());
    drop(client);
    let mut client = self::client(&stage);
    let reply =
        Header { flags: HeaderFlags::new().with_message_type(1), size: 16, ..Header::default() };
    client.send_raw(reply.as_bytes(), &[]).unwrap();
    in_step(&mut client);
    drop(client);
    stage.end();
}

#[test]
fn mistakes_do_not_flood_the_log() {
    let stage = Stage::start();
    let mut client = client(&stage);
    let (before, begun) = (stage.target.log().len(), Instant::now());
    let map = DmaMapBody { argsz: 32, flags: read_write(), offset: 0, address: 0x1000, size: 4096 };
    let null = std::fs::File::open("/dev/null").unwrap();
    for _ in 0..5000 {
        assert!(client.call(Command::DMA_MAP, map.as_bytes(), &[null.as_fd()]).is_err());
    }
    drop(client);
    for _ in 0..200 {
        let mut client = Client::connect(stage.target.socket("vm0")).unwrap();
        client.send_raw(&header(4, 3), &[]).unwrap();
        client.receive_raw().ok();
    }
    let grown = stage.target.log().len() - before;
    // Some lines a second, however many mistakes there are.
    let most = (16 << 10) + 4096 * begun.elapsed().as_secs() as usize;
    assert!(grown < most, "{grown} bytes of log for mistakes of a client");
    stage.end();
}

#[test]
fn as_many_mappings_as_announced_and_no_more() {
    let stage = Stage::start();
    let mut client = client(&stage);
    let mut refusals = 0;
    let mut posted = Vec::new();
    for index in 0..66_000_u64 {
        let at = vfio_user::dma::Iova(index << 13);
        posted.push(client.post_dma_map(at, 4096, read_write(), None).unwrap());
        if posted.len() == 256 || index == 65_999 {
            refusals += posted.drain(..).filter(|&map| client.wait(map).is_err()).count();
        }
    }
    assert_eq!(refusals, 66_000 - 65_535);
    client.dma_unmap(vfio_user::dma::DmaUnmap::All).unwrap();
    client.dma_map(vfio_user::dma::Iova(0), 4096, read_write(), None).unwrap();
    stage.neighbour_goes_on();
    drop(client);
    stage.end();
}
