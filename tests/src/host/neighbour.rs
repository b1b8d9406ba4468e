//! A well-behaved guest beside a hostile one: verified I/O in a thread of its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use nvme_spec::{Lba, Nsid};

use super::Host;
use crate::random::Random;
use crate::wait::until;

/// Blocks of 512 bytes that it uses, and blocks of one command.
const AREA: u64 = 4096;
const BLOCKS: u32 = 8;

/// A host that writes, reads back and compares until it is told to finish.
pub struct Neighbour {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Neighbour {
    /// Attaches to the socket and begins, from block `start` of the namespace on.
    pub fn start(socket: impl Into<PathBuf>, nsid: Nsid, start: Lba) -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (told, count, socket) = (Arc::clone(&stop), Arc::clone(&rounds), socket.into());
        let thread = std::thread::Builder::new().name("neighbour".into());
        let thread = thread.spawn(move || {
            let mut host = Host::connect(socket);
            let mut random = Random::new(start.0);
            while !told.load(Ordering::Relaxed) {
                let slot = random.in_range(0..AREA / u64::from(BLOCKS));
                let lba = Lba(start.0 + slot * u64::from(BLOCKS));
                let data = random.bytes(BLOCKS as usize * 512);
                host.write(nsid, lba, &data, 512).expect("the neighbour's write");
                let back = host.read(nsid, lba, BLOCKS, 512).expect("the neighbour's read");
                assert!(back == data, "the neighbour reads what it did not write at {lba:?}");
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        let neighbour = Self { stop, rounds, thread: Some(thread.expect("spawn")) };
        neighbour.goes_on();
        neighbour
    }

    /// Waits until it has done some more.
    ///
    /// # Panics
    /// If it ended, or does nothing within [`crate::wait::PATIENCE`].
    #[track_caller]
    pub fn goes_on(&self) {
        let wanted = self.rounds.load(Ordering::Relaxed) + 8;
        until("the neighbour's verified I/O", || {
            let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            assert!(!ended, "the neighbour failed; its own panic says how");
            self.rounds.load(Ordering::Relaxed) >= wanted
        });
    }

    /// Ends it; how many times it wrote and read back.
    #[track_caller]
    pub fn finish(mut self) -> u64 {
        self.goes_on();
        self.stop.store(true, Ordering::Relaxed);
        let result = self.thread.take().map(JoinHandle::join);
        assert!(matches!(result, Some(Ok(()))), "the neighbour failed");
        self.rounds.load(Ordering::Relaxed)
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
