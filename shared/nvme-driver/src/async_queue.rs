//! The async face of a queue pair, for any executor: requests are futures of one thread.
//!
//! One task polls for all: [`AsyncQueuePair::drive`] all the time, [`AsyncQueuePair::drive_by`] when a wait of the
//! caller's returns, which is how interrupts reach a reactor. A future that is dropped leaves its request outstanding; the
//! buffer comes back to nobody and is given up when the request ends.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::queue_pair::{Completed, QueuePair, Reason, Rejected};
use crate::request::Request;

/// A queue pair whose requests are futures.
///
/// ```no_run
/// # use nvme_driver::{AsyncQueuePair, Controller, QueueOptions, Request};
/// # use nvme_spec::{Lba, Nsid};
/// # async fn example(controller: Controller) -> Result<(), Box<dyn std::error::Error>> {
/// let namespace = controller.namespace(Nsid(1))?;
/// let queue = AsyncQueuePair::new(controller.queue_pair(&QueueOptions::default())?)?;
/// let read = async |lba| {
///     let buffer = controller.allocate(4096)?;
///     let done = queue.run(Request::read(&namespace, lba, buffer)).await?;
///     Ok::<_, Box<dyn std::error::Error>>(done.result?)
/// };
/// tokio::select! {
///     never = queue.drive() => match never {},
///     both = async { tokio::try_join!(read(Lba(0)), read(Lba(8))) } => both?,
/// };
/// # Ok(())
/// # }
/// ```
///
/// It stays in its thread, as its futures do:
///
/// ```compile_fail,E0277
/// fn shared_between_threads<T: Sync>() {}
/// shared_between_threads::<nvme_driver::AsyncQueuePair>();
/// ```
pub struct AsyncQueuePair {
    state: RefCell<State>,
    /// What its interrupts signal, as a descriptor of its own.
    event: Option<OwnedFd>,
}

struct State {
    queue: QueuePair,
    /// By the token that the queue pair knows a request by.
    requests: Vec<Progress>,
    free: Vec<usize>,
    /// Those whose request found the queue full.
    full: VecDeque<Waker>,
    /// Those to wake, kept for its room.
    awake: Vec<Waker>,
}

/// How far a request is.
enum Progress {
    Free,
    /// It has the caller's token, and its future waits.
    Outstanding(u64, Option<Waker>),
    Done(Completed),
    /// Nobody waits for it any more.
    Abandoned,
}

/// A request that was taken.
struct Outstanding<'a> {
    queue: &'a AsyncQueuePair,
    index: usize,
}

impl AsyncQueuePair {
    /// Takes a queue pair over on which nothing is outstanding.
    ///
    /// # Errors
    /// If there is no descriptor left for its interrupts.
    pub fn new(queue: QueuePair) -> io::Result<Self> {
        let event = queue.event().map(|event| event.try_clone_to_owned()).transpose()?;
        let room = usize::from(queue.depth());
        let state = State {
            queue,
            requests: Vec::with_capacity(room),
            free: Vec::with_capacity(room),
            full: VecDeque::with_capacity(room),
            awake: Vec::with_capacity(room),
        };
        Ok(Self { state: RefCell::new(state), event })
    }

    /// Submits a request, when there is room, and completes with it. Somebody has to [`drive`](Self::drive) meanwhile.
    ///
    /// # Errors
    /// [`Rejected`], never for a full queue; the completion holds the error of a request that was taken.
    pub async fn run(&self, request: Request) -> Result<Completed, Rejected> {
        let mut request = request;
        let index = loop {
            match self.submit(request) {
                Ok(index) => break index,
                Err(rejected) if rejected.reason == Reason::Full => {
                    request = rejected.request;
                    self.room().await;
                }
                Err(rejected) => return Err(rejected),
            }
        };
        Ok(Outstanding { queue: self, index }.await)
    }

    /// Polls all the time, and lets other tasks of the executor run in between. It never ends: drop it.
    pub async fn drive(&self) -> Infallible {
        self.drive_by(async || {
            let mut yielded = false;
            poll_fn(|context| {
                if yielded {
                    return Poll::Ready(());
                }
                yielded = true;
                context.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
        })
        .await
    }

    /// Polls each time that `wait` returns. It is to return when [`event`](Self::event) is readable, and after some
    /// milliseconds even if not, so that time-outs and a dead target are noticed. It never ends: drop it.
    pub async fn drive_by(&self, mut wait: impl AsyncFnMut()) -> Infallible {
        loop {
            self.progress();
            wait().await;
        }
    }

    /// The descriptor that is readable when an interrupt came since the last [`progress`](Self::progress); `None` if the
    /// queue pair has no interrupts.
    #[must_use]
    pub fn event(&self) -> Option<BorrowedFd<'_>> {
        self.event.as_ref().map(AsFd::as_fd)
    }

    /// Tells the controller what is new, takes what is complete and wakes whoever waits for it. Returns how many
    /// requests ended.
    pub fn progress(&self) -> usize {
        let mut state = self.state.borrow_mut();
        if self.event.is_some() {
            // Takes the event back before it looks: what comes later signals again.
            state.queue.wait(Duration::ZERO);
        }
        let State { queue, requests, free, full, awake } = &mut *state;
        let ended = queue.poll(usize::MAX, |_, completed| {
            // Tokens are indexes.
            let index = completed.token as usize;
            let Some(request) = requests.get_mut(index) else { return };
            match std::mem::replace(request, Progress::Free) {
                Progress::Outstanding(token, waker) => {
                    *request = Progress::Done(Completed { token, ..completed });
                    awake.extend(waker);
                }
                Progress::Abandoned => free.push(index),
                Progress::Free | Progress::Done(_) => {}
            }
        });
        if ended > 0 {
            awake.extend(full.drain(..));
        }
        // Whatever wakers do, they do it without the state.
        let mut woken = std::mem::take(awake);
        drop(state);
        woken.drain(..).for_each(Waker::wake);
        self.state.borrow_mut().awake = woken;
        ended
    }

    /// Requests that were taken and have not ended.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        let state = self.state.borrow();
        let waits = |request: &&Progress| {
            matches!(request, Progress::Outstanding(..) | Progress::Abandoned)
        };
        state.requests.iter().filter(waits).count()
    }

    fn submit(&self, mut request: Request) -> Result<usize, Rejected> {
        let State { queue, requests, free, .. } = &mut *self.state.borrow_mut();
        let index = free.pop().unwrap_or_else(|| {
            requests.push(Progress::Free);
            requests.len() - 1
        });
        let token = std::mem::replace(&mut request.token, index as u64);
        match queue.submit(request) {
            Ok(()) => {
                if let Some(place) = requests.get_mut(index) {
                    *place = Progress::Outstanding(token, None);
                }
                // A driver that sleeps on the interrupt does not come by to ring.
                if self.event.is_some() {
                    queue.ring();
                }
                Ok(index)
            }
            Err(mut rejected) => {
                rejected.request.token = token;
                free.push(index);
                Err(rejected)
            }
        }
    }

    /// Waits until a request ended.
    async fn room(&self) {
        let mut asked = false;
        poll_fn(|context| {
            if asked {
                return Poll::Ready(());
            }
            asked = true;
            self.state.borrow_mut().full.push_back(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Future for Outstanding<'_> {
    type Output = Completed;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Completed> {
        let this = self.get_mut();
        let State { requests, free, .. } = &mut *this.queue.state.borrow_mut();
        let Some(request) = requests.get_mut(this.index) else { return Poll::Pending };
        match std::mem::replace(request, Progress::Free) {
            Progress::Done(completed) => {
                // The place is another request's from now on.
                free.push(std::mem::replace(&mut this.index, usize::MAX));
                Poll::Ready(completed)
            }
            Progress::Outstanding(token, waker) => {
                let waker = waker.filter(|waker| waker.will_wake(context.waker()));
                let waker = waker.unwrap_or_else(|| context.waker().clone());
                *request = Progress::Outstanding(token, Some(waker));
                Poll::Pending
            }
            // Not reached: its place is its own until it is done.
            other @ (Progress::Free | Progress::Abandoned) => {
                *request = other;
                Poll::Pending
            }
        }
    }
}

impl Drop for Outstanding<'_> {
    fn drop(&mut self) {
        let State { requests, free, .. } = &mut *self.queue.state.borrow_mut();
        let Some(request) = requests.get_mut(self.index) else { return };
        match request {
            Progress::Outstanding(..) => *request = Progress::Abandoned,
            Progress::Done(_) => {
                *request = Progress::Free;
                free.push(self.index);
            }
            Progress::Free | Progress::Abandoned => {}
        }
    }
}

impl fmt::Debug for AsyncQueuePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncQueuePair")
            .field("in_flight", &self.in_flight())
            .field("interrupts", &self.event.is_some())
            .finish_non_exhaustive()
    }
}
