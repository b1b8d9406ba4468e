//! A small pool of threads that does what io_uring would: the same operations by the same system calls, a few at a time.

use super::buffer::Buffers;
use super::engine::Command;
use super::system::perform;
use crate::error::Error;
use ipc::event::EventFd;
use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Threads of one file: enough to keep a disk busy, few enough not to matter.
const THREADS: usize = 8;

/// Threads for one file. Each key has at most one operation at a time.
pub struct Threads {
    file: Arc<File>,
    /// Absent only while this is dropped.
    tasks: Option<SyncSender<Task>>,
    ended: Arc<Ended>,
    /// What was taken out of `ended` and not popped yet.
    taken: VecDeque<Outcome>,
    busy: Vec<bool>,
    threads: Vec<JoinHandle<()>>,
}

struct Task {
    key: usize,
    command: Command,
    buffers: Buffers,
}

/// Key, count or negated errno, buffers.
type Outcome = (usize, i32, Buffers);

/// Operations that have ended. The event is raised exactly while there are some: both are changed under the lock.
struct Ended {
    list: Mutex<Vec<Outcome>>,
    some: AtomicBool,
    event: EventFd,
}

impl Threads {
    /// Threads for keys below `keys`, over a file that they own from now on.
    ///
    /// # Errors
    /// There is no room for a thread or a descriptor.
    pub fn new(file: File, keys: usize) -> Result<Self, Error> {
        let file = Arc::new(file);
        let event = EventFd::create().map_err(|error| Error {
            source: Some(Box::new(error)),
            ..Error::new(crate::error::ErrorKind::Busy, "make an event")
        })?;
        let list = Mutex::new(Vec::with_capacity(keys));
        let ended = Arc::new(Ended { list, some: AtomicBool::new(false), event });
        // One place for each key: a sender never waits.
        let (tasks, todo) = sync_channel(keys.max(1));
        let todo = Arc::new(Mutex::new(todo));
        let mut threads = Self {
            file,
            tasks: Some(tasks),
            ended,
            taken: VecDeque::with_capacity(keys),
            busy: vec![false; keys],
            threads: Vec::with_capacity(THREADS),
        };
        for _ in 0..THREADS.min(keys.max(1)) {
            let (file, todo, ended) =
                (Arc::clone(&threads.file), Arc::clone(&todo), Arc::clone(&threads.ended));
            let thread = std::thread::Builder::new().name("file".to_owned());
            let thread = thread.spawn(move || work(&file, &todo, &ended));
            threads.threads.push(thread.map_err(|error| Error::io("start a thread", error))?);
        }
        Ok(threads)
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Readable while an operation has ended and was not taken.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.ended.event.as_fd()
    }

    /// Hands an operation to the threads. `false`, and nothing happened, if the key is busy or not there.
    #[must_use]
    pub fn push(&mut self, key: usize, command: Command, buffers: Buffers) -> bool {
        let Some(busy) = self.busy.get_mut(key).filter(|busy| !**busy) else { return false };
        let task = Task { key, command, buffers };
        *busy = self.tasks.as_ref().is_some_and(|tasks| tasks.try_send(task).is_ok());
        *busy
    }

    /// A key whose operation ended, with its result (a count or a negated errno) and its buffers.
    pub fn pop(&mut self) -> Option<(usize, i32, Buffers)> {
        // Acquire: pairs with the Release in `work`. A look that comes too early is made up for by the event.
        if self.taken.is_empty() && self.ended.some.load(Ordering::Acquire) {
            let mut list = lock(&self.ended.list);
            self.taken.extend(list.drain(..));
            self.ended.some.store(false, Ordering::Relaxed);
            self.ended.event.drain().ok();
        }
        let ended = self.taken.pop_front()?;
        if let Some(busy) = self.busy.get_mut(ended.0) {
            *busy = false;
        }
        Some(ended)
    }
}

impl Drop for Threads {
    /// Waits for what is under way: the file's lock is given up when nothing lands on it any more.
    fn drop(&mut self) {
        self.tasks = None;
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

/// What each thread does until the sender is gone.
fn work(file: &File, todo: &Mutex<Receiver<Task>>, ended: &Ended) {
    let mut iovecs = Vec::new();
    loop {
        // Whoever waits for a task holds the lock; the others wait for that.
        let task = lock(todo).recv();
        let Ok(Task { key, command, mut buffers }) = task else { return };
        let result = perform(file, command, &mut buffers, &mut iovecs);
        let mut list = lock(&ended.list);
        list.push((key, result, buffers));
        if list.len() == 1 {
            // Release: pairs with the Acquire in `pop`.
            ended.some.store(true, Ordering::Release);
            // Ours and nonblocking: it cannot fail.
            ended.event.signal().ok();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
