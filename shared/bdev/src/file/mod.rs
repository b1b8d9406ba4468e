//! The file device: a regular file or a block device through io_uring, run by its backend's serve loop. Where the kernel
//! refuses io_uring, as the seccomp filters of containers do, a small pool of threads makes the same system calls.
//!
//! Reads and writes go straight between guest memory and the file. With O_DIRECT, where the file takes it, its alignment
//! is probed; a request whose memory is not aligned so goes through a buffer, one whose offsets are not is refused.
//! FUA is RWF_DSYNC, Flush is fdatasync. Deallocate punches holes, Write Zeroes zeroes ranges, both by fallocate (which
//! on block devices is the device's own way of zeroing), and both write zeroes where that is not supported. Fused pairs
//! run under a lock over their device range: writes that overlap wait for them, and they for those.
//!
//! The file is locked (flock) on the very description that requests use: when a successor gets the lock, every request
//! of its predecessor is over.

mod buffer;
mod engine;
mod job;
mod open;
mod system;
mod threads;
mod uring;

#[cfg(test)]
mod tests;

pub use open::FileOptions;

use crate::channel::{Channel, Geometry, Submitted};
use crate::error::Error;
use crate::request::{ErrorKind, Op, Outcome, Request};
use engine::Engine;
use ipc::guest_memory::RegionTable;
use job::{Job, Step};
use nix::errno::Errno;
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

/// Most requests that one file has under way; further ones wait in their rings.
const MAX_JOBS: usize = 256;

/// A file or block device.
pub struct FileDevice {
    engine: Engine,
    refusal: Option<Errno>,
    geometry: Geometry,
    alignment: Alignment,
    direct: bool,
    block_device: bool,
    jobs: Vec<Option<Job>>,
    free: Vec<usize>,
    /// Fused pairs among the jobs.
    fused: usize,
    /// Jobs that wait for one that excludes them, oldest first; not under way.
    blocked: VecDeque<usize>,
}

/// What the file asks of transfers, in bytes; 1 where it asks nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment {
    /// Of offsets and lengths on the file.
    pub unit: u64,
    /// Of memory addresses.
    pub memory: u64,
}

impl FileDevice {
    /// Opens and locks a file.
    ///
    /// # Errors
    /// What the kernel says, [`ErrorKind::Busy`] if another process holds the lock until `options.lock_wait` is over.
    pub fn open(options: &FileOptions) -> Result<Self, Error> {
        let open::Opened { file, size, alignment, direct, block_device } = options.open()?;
        let (engine, refusal) = Engine::new(file, MAX_JOBS, options.threads)?;
        Ok(Self {
            engine,
            refusal,
            geometry: Geometry { size, read_only: options.read_only },
            alignment,
            direct,
            block_device,
            jobs: (0..MAX_JOBS).map(|_| None).collect(),
            free: (0..MAX_JOBS).rev().collect(),
            fused: 0,
            blocked: VecDeque::with_capacity(MAX_JOBS),
        })
    }

    /// What the file asks of transfers.
    pub fn alignment(&self) -> Alignment {
        self.alignment
    }

    /// Whether requests bypass the page cache.
    pub fn direct(&self) -> bool {
        self.direct
    }

    /// With what error the kernel refused io_uring, if it did: threads do its work.
    pub fn refusal(&self) -> Option<Errno> {
        self.refusal
    }

    /// Takes over the size that is wanted (in bytes), or the one that the file has now if `wanted` is 0. A regular file
    /// that is smaller grows.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a size below the present one, or above a block device's.
    pub fn resize(&mut self, wanted: u64) -> Result<u64, Error> {
        let size = open::settle_size(
            self.engine.file(),
            wanted,
            !self.block_device && !self.geometry.read_only,
            self.alignment.unit,
        )?;
        if size < self.geometry.size {
            let what = format!("size {size} is below the present {}", self.geometry.size);
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        self.geometry.size = size;
        Ok(size)
    }

    /// Runs a job until its next operation is with the kernel; its outcome if there is none.
    fn run(&mut self, key: usize, spare: Option<buffer::OwnBuffer>) -> Option<Outcome> {
        let job = self.jobs.get_mut(key)?.as_mut()?;
        match job.step(spare) {
            Step::End(outcome) => Some(outcome),
            Step::Run(command, buffers) => {
                let pushed = self.engine.push(key, command, buffers);
                (!pushed).then_some(Err(ErrorKind::Busy))
            }
        }
    }

    fn remove(&mut self, key: usize) -> Option<Job> {
        let job = self.jobs.get_mut(key)?.take()?;
        self.free.push(key);
        self.fused -= usize::from(job.op == Op::CompareAndWrite);
        Some(job)
    }

    /// Whether a job must wait: one that excludes it is under way, or has waited longer. Looked at only while a fused
    /// pair is there.
    fn must_wait(&self, job: &Job, older: &[usize]) -> bool {
        let waits = |key: &usize| self.blocked.contains(key);
        let under_way = |(key, other): (usize, &Option<Job>)| {
            !waits(&key) && other.as_ref().is_some_and(|other| other.excludes(job))
        };
        let waited =
            |key: &usize| self.jobs[*key].as_ref().is_some_and(|other| other.excludes(job));
        self.jobs.iter().enumerate().any(under_way) || older.iter().any(waited)
    }

    /// Starts what waits and need not any more.
    fn unblock(&mut self, complete: &mut impl FnMut(u32, Outcome)) -> usize {
        let mut count = 0;
        let mut index = 0;
        while index < self.blocked.len() {
            let key = self.blocked[index];
            let older: Vec<usize> = self.blocked.iter().take(index).copied().collect();
            let waits = match &self.jobs[key] {
                Some(job) => self.must_wait(job, &older),
                None => false,
            };
            if waits {
                index += 1;
                continue;
            }
            self.blocked.remove(index);
            if let Some(outcome) = self.run(key, None)
                && let Some(job) = self.remove(key)
            {
                complete(job.tag, outcome);
                count += 1;
            }
        }
        count
    }
}

impl Channel for FileDevice {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&mut self, request: &Request<'_>, memory: &RegionTable, _now: u64) -> Submitted {
        if let Err(kind) = request.check_bounds(self.geometry.size) {
            return Submitted::Done(Err(kind));
        }
        if self.geometry.read_only && request.op.writes() {
            return Submitted::Done(Err(ErrorKind::ReadOnly));
        }
        let Some(&key) = self.free.last() else { return Submitted::Full };
        let Alignment { unit, memory: memory_align } = self.alignment;
        let job = match Job::new(request, memory, unit, memory_align) {
            Ok(job) => job,
            Err(kind) => return Submitted::Done(Err(kind)),
        };
        let fused = job.op == Op::CompareAndWrite;
        let older: Vec<usize> = self.blocked.iter().copied().collect();
        let waits = (fused || self.fused > 0) && self.must_wait(&job, &older);
        self.free.pop();
        self.jobs[key] = Some(job);
        self.fused += usize::from(fused);
        if waits {
            self.blocked.push_back(key);
            return Submitted::Pending;
        }
        match self.run(key, None) {
            Some(outcome) => {
                self.remove(key);
                Submitted::Done(outcome)
            }
            None => Submitted::Pending,
        }
    }

    fn publish(&mut self) {
        self.engine.submit();
    }

    fn poll(&mut self, _now: u64, complete: &mut impl FnMut(u32, Outcome)) -> usize {
        let mut count = 0;
        while let Some((key, result, buffers)) = self.engine.pop() {
            let Some(job) = self.jobs.get_mut(key).and_then(Option::as_mut) else { continue };
            let (outcome, spare) = job.take(result, buffers);
            let Some(outcome) = outcome.or_else(|| self.run(key, spare)) else { continue };
            if let Some(job) = self.remove(key) {
                complete(job.tag, outcome);
                count += 1;
            }
        }
        if count > 0 && !self.blocked.is_empty() {
            count += self.unblock(complete);
        }
        self.engine.submit();
        count
    }

    fn outstanding(&self) -> usize {
        MAX_JOBS - self.free.len()
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.engine.event())
    }
}
