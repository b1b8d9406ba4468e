//! Messages of a client: any, in any order, with any descriptors, against the whole function.

use std::os::fd::OwnedFd;

use ipc::event::EventFd;
use nvme_spec::Nsid;
use vfio_user::message::HEADER_SIZE;
use vfio_user::{Command, Header, framing};

use super::input::Input;
use super::works_after_reset;
use crate::host::memory::memfd;
use crate::simulated::client::SharedWorld;
use crate::simulated::{Fate, World};

/// Messages of one input at most: what follows teaches nothing new.
const MESSAGES: usize = 64;

/// Sends what the input says; then the next client must find a controller that works.
///
/// # Panics
/// If a promise is broken.
pub fn frames(data: &[u8]) {
    let mut input = Input::new(data);
    let options = input.u8();
    let mut world = World::new(1, 1, options & 1 == 0, Fate::default());
    world.add_namespace(Nsid(1), 1 << 20, 9);
    world.connect(0);
    if options & 2 == 0 {
        let hello = Header::command(0, Command::VERSION, 4).with_body(&[0; 4]);
        world.message(0, &hello, Vec::new()).expect("a reply to VERSION");
    }
    for _ in 0..MESSAGES {
        if input.is_empty() {
            break;
        }
        let (bytes, fds) = message(&mut input);
        let header = Header::parse(&bytes).expect("a header is there");
        if framing::check(&header).is_err() {
            // The connection would be closed.
            break;
        }
        let (no_reply, is_reply) = (header.flags.no_reply(), header.is_reply());
        match world.message(0, &bytes, fds) {
            Some(reply) => {
                assert!(!no_reply && !is_reply, "a reply to what wants none");
                let answer = Header::parse(&reply.bytes).expect("a reply has a header");
                assert_eq!(answer.size as usize, reply.bytes.len());
                assert!((answer.id, answer.command) == (header.id, header.command));
                assert!(reply.bytes.len() <= framing::MAX_MESSAGE_SIZE && reply.fds.len() <= 1);
            }
            None => assert!(no_reply || is_reply, "no reply to {header:?}"),
        }
        world.step();
    }
    world.disconnect(0);
    let world = SharedWorld::new(world);
    let mut host = world.attach(0, options & 1 == 0, 1 << 20);
    works_after_reset(&mut host);
    host.transport.disconnect();
}

/// A message whose size is mostly true, and its descriptors.
fn message(input: &mut Input<'_>) -> (Vec<u8>, Vec<OwnedFd>) {
    let command = Command(u16::from(input.u8() % 20));
    let (flags, kinds, words) = (input.u8(), input.u8(), input.u8() % 16);
    let mut body = Vec::new();
    for _ in 0..words {
        let number = input.number();
        match input.u8() % 3 {
            0 => body.extend((number as u32).to_ne_bytes()),
            1 => body.extend(number.to_ne_bytes()),
            _ => body.extend(input.bytes(usize::from(number as u8))),
        }
    }
    let mut header = Header::command(input.u16(), command, body.len());
    match flags % 32 {
        0 => header.size = input.number() as u32,
        1 => header.flags = vfio_user::HeaderFlags::from(input.u32()),
        2..6 => header.flags.set_no_reply(true),
        _ => {}
    }
    // What was announced and is not there is zeroes, as the rest of a stream would be.
    let announced = (header.size as usize).clamp(HEADER_SIZE, 4096) - HEADER_SIZE;
    if header.size as usize > HEADER_SIZE + body.len() && framing::check(&header).is_ok() {
        body.resize(announced, 0);
        header.size = (HEADER_SIZE + body.len()) as u32;
    }
    let fds =
        (0..kinds % 5).map(|index| descriptor(kinds.rotate_left(u32::from(index)) / 32)).collect();
    (header.with_body(&body), fds)
}

/// A descriptor that a client might send.
fn descriptor(kind: u8) -> OwnedFd {
    match kind % 4 {
        0 | 1 => EventFd::create().expect("eventfd").into_fd(),
        2 => memfd(1 << 16),
        _ => std::fs::File::open("/dev/null").expect("/dev/null").into(),
    }
}
