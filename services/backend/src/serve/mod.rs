//! The serve loop: one thread that takes requests from every ring, has the devices serve them, and completes them. On
//! the path of I/O by ring.
//!
//! It spins for a short while after the last request, then parks every ring and waits in poll(2) for its kick event
//! (rings, commands) and the devices' own events.

mod command;
mod state;

pub use command::{ChannelKey, Command, DeviceKey, Owner, Resize};

use ipc::event::{EventError, EventFd};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use state::State;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{self, error::TryRecvError};

/// How long the loop spins after the last thing it did: about what parking and being woken costs a request.
const SPIN: Duration = Duration::from_micros(20);
/// Most commands that wait for the loop.
const COMMANDS: usize = 256;
/// Longest sleep: a bound on what a lost event could cost.
const LONGEST_SLEEP: Duration = Duration::from_millis(500);

/// The control side's way to the loop.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    kick: std::sync::Arc<EventFd>,
}

/// The loop has ended.
#[derive(Debug)]
pub struct Stopped;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unanswered {
    /// The loop has ended.
    Stopped,
    /// Not in time. The command may be carried out later.
    Late,
}

impl From<Stopped> for Unanswered {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

/// The loop, not yet running.
pub struct Serve {
    commands: mpsc::Receiver<Command>,
    kick: std::sync::Arc<EventFd>,
    state: State,
}

/// A loop and its handle. Run [`Serve::run`] on a thread of its own.
///
/// # Errors
/// If no eventfd can be made.
pub fn new() -> Result<(Serve, Handle), EventError> {
    let (send, receive) = mpsc::channel(COMMANDS);
    let kick = std::sync::Arc::new(EventFd::create()?);
    let serve = Serve { commands: receive, kick: kick.clone(), state: State::default() };
    Ok((serve, Handle { commands: send, kick }))
}

impl Handle {
    /// Hands a command over.
    ///
    /// # Errors
    /// [`Stopped`] if the loop has ended.
    pub async fn send(&self, command: Command) -> Result<(), Stopped> {
        self.commands.send(command).await.map_err(|_| Stopped)?;
        self.kick.signal().map_err(|_| Stopped)
    }

    /// Hands a command over and waits for its answer.
    ///
    /// # Errors
    /// [`Stopped`] if the loop has ended.
    pub async fn ask<T>(
        &self,
        command: impl FnOnce(tokio::sync::oneshot::Sender<T>) -> Command,
    ) -> Result<T, Stopped> {
        let (done, answer) = tokio::sync::oneshot::channel();
        self.send(command(done)).await?;
        answer.await.map_err(|_| Stopped)
    }

    /// Hands a command over and waits at most `bound` for its answer.
    ///
    /// # Errors
    /// [`Unanswered`]; if late, the command may be with the loop all the same.
    pub async fn ask_within<T>(
        &self,
        bound: Duration,
        command: impl FnOnce(tokio::sync::oneshot::Sender<T>) -> Command,
    ) -> Result<T, Unanswered> {
        match tokio::time::timeout(bound, self.ask(command)).await {
            Ok(answer) => answer.map_err(Unanswered::from),
            Err(_) => Err(Unanswered::Late),
        }
    }

    /// Whether the loop takes a command in and answers within `bound`.
    pub async fn is_alive(&self, bound: Duration) -> bool {
        self.ask_within(bound, |done| Command::Ping { done }).await.is_ok()
    }

    /// A descriptor of the event that wakes the loop, for workers.
    ///
    /// # Errors
    /// If there are no descriptors left.
    pub fn kick(&self) -> Result<EventFd, EventError> {
        self.kick.try_clone()
    }
}

impl Serve {
    /// Serves until told to stop, or until every handle is gone.
    pub fn run(mut self) {
        let start = Instant::now();
        let now = || u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let spin = SPIN.as_nanos() as u64;
        let mut busy_at = 0;
        loop {
            match self.take_commands() {
                Ok(true) => busy_at = now(),
                Ok(false) => {}
                Err(()) => return,
            }
            let time = now();
            if self.state.turn(time) > 0 {
                busy_at = time;
            } else if time.saturating_sub(busy_at) < spin {
                std::hint::spin_loop();
            } else {
                self.sleep(time);
            }
        }
    }

    /// Whether there were commands; `Err` to stop. As many as the queue holds, so that whoever sends without end holds
    /// up no ring.
    fn take_commands(&mut self) -> Result<bool, ()> {
        let mut any = false;
        for _ in 0..COMMANDS {
            match self.commands.try_recv() {
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return Err(()),
                Ok(command) => {
                    self.state.command(command);
                    any = true;
                }
                Err(TryRecvError::Empty) => break,
            }
        }
        Ok(any)
    }

    fn sleep(&mut self, now: u64) {
        let wait = match self.state.deadline() {
            Some(deadline) => Duration::from_nanos(deadline.saturating_sub(now)).min(LONGEST_SLEEP),
            None => LONGEST_SLEEP,
        };
        // A wait below the clock's grain of poll is spent spinning.
        if self.state.park() && wait >= Duration::from_millis(1) {
            let timeout = PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
            let mut fds = vec![PollFd::new(self.kick.as_fd(), PollFlags::POLLIN)];
            fds.extend(self.state.events().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            // An error here (EINTR) means another turn; there is no other that could come.
            poll(&mut fds, timeout).ok();
            self.kick.drain().ok();
        }
        self.state.unpark();
    }
}
