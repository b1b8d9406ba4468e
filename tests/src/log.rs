//! Children of a test: their output kept as it comes.

use std::io::Read;
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::wait::within;

/// What a child printed so far, both streams together.
#[derive(Clone, Debug, Default)]
pub struct Log {
    text: Arc<Mutex<String>>,
    /// Streams that are still open.
    open: Arc<AtomicUsize>,
    closed: Arc<AtomicBool>,
}

impl Log {
    /// Keeps what the child prints from now on; its streams must be pipes.
    pub fn of(child: &mut Child) -> Self {
        let log = Self::default();
        log.keep(child.stdout.take());
        log.keep(child.stderr.take());
        log
    }

    /// The text so far.
    pub fn text(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops listening: from the next line on, whoever writes there finds nobody.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Whether one of the two streams has ended.
    pub fn is_closed(&self) -> bool {
        self.open.load(Ordering::Acquire) < 2
    }

    /// The whole text of a child that has ended, unless a child of its own holds the stream open.
    pub fn whole_text(&self) -> String {
        let ended = || (self.open.load(Ordering::Acquire) == 0).then_some(());
        within(Duration::from_secs(20), ended);
        self.text()
    }

    fn keep(&self, from: Option<impl Read + Send + 'static>) {
        let (Some(mut from), log) = (from, self.clone()) else { return };
        self.open.fetch_add(1, Ordering::Relaxed);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut buffer)
                && !log.closed.load(Ordering::Relaxed)
            {
                let text = String::from_utf8_lossy(&buffer[..count]);
                log.text.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
            }
            log.open.fetch_sub(1, Ordering::Release);
        });
    }
}
