//! Descriptors that a client sent and nobody wants, away from the thread that serves all clients.
//!
//! Closing a descriptor runs code of the file behind it: that of a FUSE file asks whoever serves it, which is the
//! client, and waits for the answer; a socket may linger. So the thread that serves clients closes, and looks at, memory
//! and eventfds alone, which wait for nobody. All else is closed by a thread that each endpoint has for itself while
//! there is something to close: a client that blocks it blocks its own endpoint.

use nix::fcntl::{FcntlArg, fcntl, readlink};
use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Descriptors of one endpoint that may wait to be closed before it takes in more: those of some messages.
pub const MAX_WAITING: usize = 256;
/// How often it is looked whether there is room again.
const ROOM_TICK: Duration = Duration::from_millis(100);

/// Closes descriptors of one endpoint's clients. Clones are the same.
#[derive(Clone, Default)]
pub struct Closer {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<OwnedFd>,
    /// A thread is at it.
    running: bool,
}

impl Closer {
    /// Closes the descriptors, sometime.
    pub fn close(&self, fds: impl IntoIterator<Item = OwnedFd>) {
        let mut state = self.lock();
        state.waiting.extend(fds);
        if state.running || state.waiting.is_empty() {
            return;
        }
        let closer = self.clone();
        let thread = std::thread::Builder::new().name("closer".to_owned());
        // Without a thread they wait for the next call.
        state.running = thread.spawn(move || closer.run()).is_ok();
    }

    /// Descriptors that are not closed yet.
    pub fn waiting(&self) -> usize {
        let state = self.lock();
        state.waiting.len() + usize::from(state.running)
    }

    /// Waits until fewer than [`MAX_WAITING`] descriptors wait.
    pub async fn room(&self) {
        while self.waiting() >= MAX_WAITING {
            tokio::time::sleep(ROOM_TICK).await;
        }
    }

    fn run(&self) {
        loop {
            let next = {
                let mut state = self.lock();
                let next = state.waiting.pop_front();
                state.running = next.is_some();
                next
            };
            // Closed without the lock.
            match next {
                Some(fd) => drop(fd),
                None => return,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The descriptors, in their order; in the place of each that is neither memory nor an eventfd there is one of
/// `/dev/null`, which is as little use to any command, and the descriptor itself goes to `useless`.
///
/// # Errors
/// If `/dev/null` cannot be opened; what was not sorted yet goes to `useless` too.
pub fn sort(fds: Vec<OwnedFd>, useless: &mut Vec<OwnedFd>) -> std::io::Result<Vec<OwnedFd>> {
    let mut sorted = Vec::with_capacity(fds.len());
    let mut fds = fds.into_iter();
    while let Some(fd) = fds.next() {
        if waits_for_nobody(&fd) {
            sorted.push(fd);
            continue;
        }
        useless.push(fd);
        match File::open("/dev/null") {
            Ok(null) => sorted.push(null.into()),
            Err(error) => {
                useless.extend(fds);
                return Err(error);
            }
        }
    }
    Ok(sorted)
}

/// Whether the file is memory (tmpfs and hugetlbfs have seals, and no other file system) or an eventfd. Neither question
/// reaches the file's own code.
fn waits_for_nobody(fd: &OwnedFd) -> bool {
    if fcntl(fd, FcntlArg::F_GET_SEALS).is_ok() {
        return true;
    }
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    readlink(path.as_str()).is_ok_and(|link| link.as_encoded_bytes() == b"anon_inode:[eventfd]")
}
