//! Requests that are sent again from where they are: [`nvme_driver::QueuePair::next_or_repeat`].

mod scripted;

use std::time::{Duration, Instant};

use nvme_driver::{Completed, Next, QueueOptions, QueuePair, Request};
use nvme_spec::{Lba, Nsid};
use scripted::{Script, Scripted};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);
const DEPTH: u64 = 8;
/// Blocks of a request.
const BLOCKS: u64 = 8;
/// Places for requests.
const PLACES: u64 = 64;

/// What lies at a place.
fn content(place: u64) -> Vec<u8> {
    (0..BLOCKS * 512).map(|at| (at / 512 * 31 + at * 7 + place * 13) as u8).collect()
}

fn start(script: Script) -> Scripted {
    let target = Scripted::start(script);
    for place in 0..PLACES {
        let from = (place * BLOCKS * 512) as usize;
        let content = content(place);
        target.engine.lock().unwrap().media[from..from + content.len()].copy_from_slice(&content);
    }
    target
}

/// Asks until there is something.
fn next(mut ask: impl FnMut() -> Option<Next>) -> Next {
    let started = Instant::now();
    loop {
        if let Some(next) = ask() {
            return next;
        }
        assert!(started.elapsed() < PATIENCE, "nothing completes");
        std::thread::yield_now();
    }
}

#[test]
fn requests_go_on_with_their_buffers_and_what_was_read_is_seen() {
    let target = start(Script::default());
    let controller = target.connect();
    let namespace = controller.namespace(Nsid(1)).unwrap();
    let options = QueueOptions { depth: DEPTH as u16, interrupt: false };
    let mut queue = controller.queue_pair(&options).unwrap();
    let buffers = controller.allocate((DEPTH * BLOCKS * 512) as usize).unwrap();
    // Where each request is, by its number.
    let mut places: Vec<u64> = (0..DEPTH).collect();
    for (token, buffer) in (0..).zip(buffers.into_chunks((BLOCKS * 512) as usize)) {
        let read = Request::read(&namespace, Lba(token * BLOCKS), buffer);
        queue.submit(read.with_token(token)).unwrap();
    }
    queue.ring();
    let (mut repeated, mut over) = (0, Vec::new());
    let mut upcoming = DEPTH;
    while over.len() < DEPTH as usize {
        let found = next(|| {
            queue.next_or_repeat(&namespace, |token, buffer| {
                let place = places[token as usize];
                assert!(buffer.to_vec() == content(place), "request {token} at place {place}");
                buffer.host().fill(0xEE);
                (upcoming < PLACES).then_some(Lba(upcoming * BLOCKS))
            })
        });
        match found {
            Next::Repeated(token) => {
                places[token as usize] = upcoming;
                upcoming += 1;
                repeated += 1;
                assert_eq!(u64::from(queue.in_flight()), DEPTH);
            }
            Next::Over(Completed { token, buffer, result }) => {
                assert_eq!(result, Ok(0));
                assert_eq!(buffer.unwrap().len() as u64, BLOCKS * 512);
                over.push(token);
            }
        }
        queue.ring();
    }
    assert_eq!(repeated, PLACES - DEPTH);
    over.sort_unstable();
    assert_eq!(over, (0..DEPTH).collect::<Vec<_>>());
    assert_eq!((queue.in_flight(), queue.is_busy()), (0, false));
    let mut seen: Vec<u64> =
        target.engine.lock().unwrap().seen.iter().filter_map(read_at).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..PLACES).map(|place| place * BLOCKS).collect::<Vec<_>>(), "each once");
}

/// Where an I/O command begins.
fn read_at((sqid, command): &(u16, nvme_spec::command::Command)) -> Option<u64> {
    (*sqid != 0).then(|| command.slba().0)
}

#[test]
fn what_cannot_go_as_it_was_is_over() {
    let target = start(Script { noiob: 32, ..Script::default() });
    let controller = target.connect();
    let namespace = controller.namespace(Nsid(1)).unwrap();
    let mut queue = controller.queue_pair(&QueueOptions::default()).unwrap();
    let mut buffer = controller.allocate((BLOCKS * 512) as usize).unwrap();
    let submit = |queue: &mut QueuePair, buffer| {
        queue.submit(Request::read(&namespace, Lba(0), buffer)).unwrap();
        queue.ring();
    };
    // Across a boundary, and past the last address.
    for place in [Lba(28), Lba(u64::MAX)] {
        submit(&mut queue, buffer);
        let found = next(|| queue.next_or_repeat(&namespace, |_, _| Some(place)));
        let Next::Over(done) = found else { panic!("sent again to {place:?}") };
        assert_eq!(done.result, Ok(0));
        buffer = done.buffer.unwrap();
    }
    // Several commands: what is read is whole when it is over, and was not seen before.
    let whole = controller.allocate((2 * 32 * 512) as usize).unwrap();
    submit(&mut queue, whole);
    let found = next(|| queue.next_or_repeat(&namespace, |_, _| panic!("it is no one command")));
    let Next::Over(done) = found else { panic!("several commands are sent again") };
    assert!(done.buffer.unwrap().to_vec()[..content(0).len()] == content(0));
    // And what fits goes.
    submit(&mut queue, buffer);
    let found = next(|| queue.next_or_repeat(&namespace, |_, _| Some(Lba(24))));
    assert!(matches!(found, Next::Repeated(0)));
    queue.ring();
    let Next::Over(done) = next(|| queue.next_completion().map(Next::Over)) else {
        panic!("nobody sent it again");
    };
    assert!(done.buffer.unwrap().to_vec() == content(3));
}
