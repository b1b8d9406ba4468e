use vfio_user::dma::{DmaRequest, Iova, parse_reply};
use vfio_user::{Command, Errno, Header};

use crate::support::{Rig, bytes};

fn header(command: Command, body: usize) -> Header {
    Header::command(3, command, body).reply(body)
}

#[test]
fn requests_have_the_published_form() {
    let rig = Rig::new();
    let read = DmaRequest::Read { iova: Iova(0x1000), count: 8 };
    let expected = bytes().u16(3).u16(11).u32(32).u32(0).u32(0).u64(0x1000).u64(8);
    assert_eq!(rig.session.dma_command(3, &read), Ok(expected.0.clone()));
    assert_eq!(DmaRequest::parse(Command::DMA_READ, &expected.0[16..]), Ok(read));
    let write = DmaRequest::Write { iova: Iova(0x1000), data: vec![1, 2] };
    let expected = bytes().u16(3).u16(12).u32(34).u32(0).u32(0).u64(0x1000).u64(2).raw(&[1, 2]);
    assert_eq!(rig.session.dma_command(3, &write), Ok(expected.0.clone()));
    assert_eq!(DmaRequest::parse(Command::DMA_WRITE, &expected.0[16..]), Ok(write));
}

#[test]
fn requests_past_the_clients_limit_are_not_built() {
    let mut rig = Rig::fresh();
    let read = DmaRequest::Read { iova: Iova(0), count: 4097 };
    assert_eq!(rig.session.dma_command(0, &read), Err(Errno::EINVAL), "nothing negotiated");
    let json = b"{\"capabilities\":{\"max_data_xfer_size\":4096}}\0";
    rig.ok(Command::VERSION, bytes().u16(0).u16(0).raw(json));
    assert_eq!(rig.session.dma_command(0, &read), Err(Errno::EINVAL));
    assert!(rig.session.dma_command(0, &DmaRequest::Read { iova: Iova(0), count: 4096 }).is_ok());
}

#[test]
fn replies_with_long_and_short_counts_are_understood() {
    let read = DmaRequest::Read { iova: Iova(0x1000), count: 4 };
    let write = DmaRequest::Write { iova: Iova(0x1000), data: vec![9; 4] };
    let long = || bytes().u64(0x1000).u64(4);
    let short = || bytes().u64(0x1000).u32(4);
    for head in [long, short] {
        let body = head().raw(&[5, 6, 7, 8]).0;
        let parsed = parse_reply(&read, &header(Command::DMA_READ, body.len()), &body);
        assert_eq!(parsed, Ok(vec![5, 6, 7, 8]));
        let body = head().0;
        let parsed = parse_reply(&write, &header(Command::DMA_WRITE, body.len()), &body);
        assert_eq!(parsed, Ok(Vec::new()));
    }
}

#[test]
fn replies_that_do_not_fit_are_refused() {
    let read = DmaRequest::Read { iova: Iova(0x1000), count: 4 };
    for body in [
        bytes(),
        bytes().u64(0x1000).u32(4),
        bytes().u64(0x1000).u64(3).raw(&[1, 2, 3]),
        bytes().u64(0x2000).u64(4).raw(&[1, 2, 3, 4]),
        bytes().u64(0x1000).u64(4).raw(&[1, 2, 3, 4, 5]),
    ] {
        let reply = header(Command::DMA_READ, body.0.len());
        assert_eq!(parse_reply(&read, &reply, &body.0), Err(Errno::EINVAL));
    }
    let failed = Header::command(3, Command::DMA_READ, 16).error_reply(Errno::EFAULT);
    assert_eq!(parse_reply(&read, &failed, &[]), Err(Errno::EFAULT));
}

#[test]
fn requests_that_do_not_agree_with_their_count_are_refused() {
    for (command, body) in [
        (Command::DMA_READ, bytes().u64(0)),
        (Command::DMA_READ, bytes().u64(0).u64(1 << 21)),
        (Command::DMA_READ, bytes().u64(0).u64(4).u32(0)),
        (Command::DMA_WRITE, bytes().u64(0).u64(4).raw(&[1])),
        (Command::DMA_WRITE, bytes().u64(0).u64(u64::MAX)),
    ] {
        assert_eq!(DmaRequest::parse(command, &body.0), Err(Errno::EINVAL));
    }
    let other = DmaRequest::parse(Command::DEVICE_RESET, &bytes().u64(0).u64(0).0);
    assert_eq!(other, Err(Errno::ENOTSUP));
}
