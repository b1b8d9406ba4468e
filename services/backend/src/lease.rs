//! Lease numbers of one malloc device: each is a word of the memory's write gate, and has one writer.
//!
//! A number is free again when its worker gave it back, or when its worker is proven dead. A closed connection alone
//! proves nothing: the number is then set aside until the process is gone, or asks again: a worker writes from one
//! thread, so two of its leases may share a word. Holders are noted in the memory itself, for a backend's successor.

use ipc::device_memory::{DeviceMemory, MAX_LEASES};
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The numbers of one device.
#[derive(Debug)]
pub struct Leases {
    numbers: Vec<Number>,
    /// All numbers granted so far lie below; shared with the device, which looks at so many words.
    bound: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Free,
    Granted,
    /// Its connection closed; this process had it.
    Aside(i32),
}

impl Leases {
    /// The numbers of this memory. Those that a predecessor granted are set aside.
    pub fn adopt(memory: &DeviceMemory) -> Self {
        let last = (0..MAX_LEASES).rev().find(|&number| memory.holder(number).is_some());
        let number = |number| memory.holder(number).map_or(Number::Free, Number::Aside);
        let numbers: Vec<Number> = (0..last.map_or(0, |last| last + 1)).map(number).collect();
        let bound = Arc::new(AtomicUsize::new(numbers.len()));
        Self { numbers, bound }
    }

    /// The bound, for the device.
    pub fn bound(&self) -> Arc<AtomicUsize> {
        self.bound.clone()
    }

    /// A number that nobody but this process has; `None` if all are taken.
    pub fn grant(&mut self, process: i32, memory: &DeviceMemory) -> Option<usize> {
        let find = |wanted| self.numbers.iter().position(|number| *number == wanted);
        let number = match find(Number::Aside(process)).or_else(|| find(Number::Free)) {
            Some(number) => number,
            None if self.numbers.len() < MAX_LEASES => {
                self.numbers.push(Number::Free);
                self.numbers.len() - 1
            }
            None => return None,
        };
        self.numbers[number] = Number::Granted;
        memory.set_holder(number, Some(process));
        // Release: pairs with the Acquire of the device; it looks at this word before its writer has it.
        self.bound.store(self.numbers.len(), Ordering::Release);
        Some(number)
    }

    /// The worker gave the number back: it writes no more.
    pub fn give_back(&mut self, number: usize, memory: &DeviceMemory) {
        if let Some(entry) = self.numbers.get_mut(number) {
            release(number, memory);
            *entry = Number::Free;
        }
    }

    /// The worker's connection closed.
    pub fn set_aside(&mut self, number: usize, pid: i32) {
        if let Some(entry) = self.numbers.get_mut(number) {
            *entry = Number::Aside(pid);
        }
    }

    /// Frees the numbers of processes that are dead; whether some are left that are not.
    pub fn reap(&mut self, memory: &DeviceMemory) -> bool {
        let mut left = false;
        for (number, entry) in self.numbers.iter_mut().enumerate() {
            if let Number::Aside(pid) = *entry {
                if is_dead(pid) {
                    release(number, memory);
                    *entry = Number::Free;
                } else {
                    left = true;
                }
            }
        }
        left
    }
}

fn release(number: usize, memory: &DeviceMemory) {
    memory.clear_writer(number);
    memory.set_holder(number, None);
}

/// Whether no process of this id is left. Threads of our own (a test's whole target in one process) end with their
/// connection. A number that was taken by another process meanwhile only delays the proof.
fn is_dead(pid: i32) -> bool {
    let ours = pid == Pid::this().as_raw();
    // Not visible from our namespace of processes: there is no better proof than the connection.
    let invisible = pid <= 0;
    ours || invisible || kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_when_given_back_or_when_their_process_is_dead() {
        let memory = DeviceMemory::create("leases", 4096).unwrap();
        let mut leases = Leases::adopt(&memory);
        assert_eq!((leases.grant(1, &memory), leases.grant(2, &memory)), (Some(0), Some(1)));
        assert_eq!(leases.bound().load(Ordering::Relaxed), 2);
        leases.give_back(0, &memory);
        assert_eq!(leases.grant(1, &memory), Some(0));

        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        leases.set_aside(1, child.id() as i32);
        assert!(leases.reap(&memory), "its process lives");
        assert_eq!(leases.grant(1, &memory), Some(2), "a number is not granted twice");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!leases.reap(&memory));
        assert_eq!(leases.grant(1, &memory), Some(1));
    }

    #[test]
    fn a_successor_knows_who_may_still_write() {
        let memory = DeviceMemory::create("leases", 4096).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let living = child.id() as i32;
        let mut leases = Leases::adopt(&memory);
        assert_eq!(leases.grant(i32::MAX, &memory), Some(0));
        assert_eq!(leases.grant(living, &memory), Some(1));
        let mut successor = Leases::adopt(&memory);
        assert_eq!(successor.bound().load(Ordering::Relaxed), 2, "their words are looked at");
        assert_eq!(successor.grant(7, &memory), Some(2), "they have theirs still");
        assert_eq!(successor.grant(living, &memory), Some(1), "who asks again gets its own");
        successor.reap(&memory);
        assert_eq!(successor.grant(7, &memory), Some(0), "no such process");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn numbers_run_out() {
        let memory = DeviceMemory::create("leases", 4096).unwrap();
        let mut leases = Leases::adopt(&memory);
        assert_eq!((0..MAX_LEASES).filter_map(|_| leases.grant(1, &memory)).count(), MAX_LEASES);
        assert_eq!(leases.grant(1, &memory), None);
    }
}
