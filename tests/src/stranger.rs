//! What may stand where a target should: sockets that speak garbage, say nothing or hang up.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use tempfile::TempDir;

use crate::wait::PATIENCE;

/// What it does with whoever connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Answers every message with text of another protocol.
    Garbage,
    /// Reads and never answers.
    Silence,
    /// Closes the connection at once.
    HangUp,
}

/// A socket with a stranger behind it, until it is dropped.
pub struct Stranger {
    directory: TempDir,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Stranger {
    /// Listens.
    pub fn listen(manner: Manner) -> Self {
        let directory = tempfile::Builder::new().prefix("vireo-test.").tempdir().expect("tempdir");
        let listener = UnixListener::bind(directory.path().join("cntrl")).expect("bind");
        let done = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&done);
        let thread = std::thread::spawn(move || {
            let mut guests = Vec::new();
            // The last to connect is whoever drops this.
            while let Ok((stream, _)) = listener.accept()
                && !ended.load(Ordering::Acquire)
            {
                guests.extend(receive(stream, manner));
            }
        });
        Self { directory, done, thread: Some(thread) }
    }

    /// The directory that its socket is in.
    pub fn endpoint(&self) -> &Path {
        self.directory.path()
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("cntrl")
    }
}

/// Treats a guest; a connection that is to stay open is returned.
fn receive(mut stream: UnixStream, manner: Manner) -> Option<UnixStream> {
    // Enough for its first message, whatever it is.
    stream.set_read_timeout(Some(PATIENCE)).expect("read timeout");
    match manner {
        Manner::HangUp => None,
        Manner::Silence => Some(stream),
        Manner::Garbage => {
            let mut first = [0; 16];
            stream.read_exact(&mut first).ok()?;
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").ok()?;
            Some(stream)
        }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Release);
        UnixStream::connect(self.socket()).ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}
