//! Which submission queue is served next: round robin with a bounded burst. NVMe Base 2.0c 3.4.4.1. On the hot path.
//!
//! Queues that have been idle for long are cold: of those only one cache line of doorbells is looked at per poll, so an
//! idle queue costs next to nothing however many there are.

use ipc::layout::MAX_QUEUES;

/// Commands fetched from one queue before the next one's turn, whatever the host asks for: no queue stalls others.
pub const MAX_BURST: u32 = 32;

/// Polls without work after which a queue is cold.
const COLD_AFTER: u16 = 1000;
/// Queues whose doorbells share a cache line of 64 bytes: two doorbells of 4 bytes each.
const PER_LINE: usize = 8;
/// Lines of doorbells.
const LINES: usize = MAX_QUEUES / PER_LINE;
/// With this many queues or fewer none becomes cold: they are in one or two lines anyway.
const ALWAYS_HOT: usize = 4;

/// The burst for Arbitration Burst (AB) of feature 01h as a number of commands: the host's limit, or ours where it has
/// none (0) or a greater one.
pub fn burst(host: u32) -> u32 {
    match host {
        0 => MAX_BURST,
        limit => limit.min(MAX_BURST),
    }
}

/// The order in which queues are looked at.
#[derive(Clone, Debug, Default)]
pub struct Rotation {
    /// Hot queues, with the number of polls that found them idle.
    hot: Vec<(u8, u16)>,
    first: usize,
    /// Cold queues, one bit each, by line of doorbells.
    cold: [u8; LINES],
    cold_count: usize,
    line: usize,
}

/// The cold queues of one line.
#[derive(Clone, Copy, Debug)]
pub struct ColdLine {
    first: usize,
    queues: u8,
}

impl Rotation {
    /// Adds a queue, hot.
    pub fn insert(&mut self, qid: usize) {
        self.remove(qid);
        if qid < MAX_QUEUES {
            self.hot.push((qid as u8, 0));
        }
    }

    /// Takes a queue out.
    pub fn remove(&mut self, qid: usize) {
        self.hot.retain(|&(hot, _)| usize::from(hot) != qid);
        if let Some(line) = self.cold.get_mut(qid / PER_LINE)
            && *line & 1 << (qid % PER_LINE) != 0
        {
            *line &= !(1 << (qid % PER_LINE));
            self.cold_count -= 1;
        }
        self.first = 0;
    }

    /// Takes all queues out.
    pub fn clear(&mut self) {
        self.hot.clear();
        *self = Self { hot: std::mem::take(&mut self.hot), ..Self::default() };
    }

    /// Number of hot queues.
    #[inline]
    pub fn hot_count(&self) -> usize {
        self.hot.len()
    }

    /// The queue, if there is one alone: it has every turn, and nothing of it is to be noted.
    #[inline(always)]
    pub fn only(&self) -> Option<usize> {
        match self.hot.as_slice() {
            [(qid, _)] if self.cold_count == 0 => Some(usize::from(*qid)),
            _ => None,
        }
    }

    /// The queue whose turn it is, of `0..hot_count()`.
    #[inline]
    pub fn hot(&self, turn: usize) -> usize {
        usize::from(self.hot.get(self.place(turn)).map_or(0, |hot| hot.0))
    }

    /// Notes whether that queue had work.
    #[inline]
    pub fn note(&mut self, turn: usize, worked: bool) {
        let place = self.place(turn);
        if let Some((_, idle)) = self.hot.get_mut(place) {
            *idle = if worked { 0 } else { idle.saturating_add(1) };
        }
    }

    /// Ends a round: another queue is first in the next one, and one that was idle for long becomes cold.
    #[inline]
    pub fn next_turn(&mut self) {
        self.first += 1;
        if self.first >= self.hot.len() {
            self.first = 0;
        }
        if self.hot.len() + self.cold_count > ALWAYS_HOT
            && let Some(&(qid, idle)) = self.hot.get(self.first)
            && idle >= COLD_AFTER
        {
            self.hot.swap_remove(self.first);
            self.cold[usize::from(qid) / PER_LINE] |= 1 << (usize::from(qid) % PER_LINE);
            self.cold_count += 1;
            self.first = 0;
        }
    }

    /// Whether there are cold queues.
    #[inline]
    pub fn has_cold(&self) -> bool {
        self.cold_count > 0
    }

    /// The next line of doorbells that has cold queues.
    #[inline]
    pub fn next_cold_line(&mut self) -> ColdLine {
        for _ in 0..LINES {
            self.line = (self.line + 1) % LINES;
            if self.cold[self.line] != 0 {
                break;
            }
        }
        ColdLine { first: self.line * PER_LINE, queues: self.cold[self.line] }
    }

    /// A cold queue has work again.
    pub fn warm(&mut self, qid: usize) {
        self.insert(qid);
    }
}

impl ColdLine {
    /// Takes the next queue of the line.
    #[inline]
    pub fn next_queue(&mut self) -> Option<usize> {
        if self.queues == 0 {
            return None;
        }
        let bit = self.queues.trailing_zeros() as usize;
        self.queues &= self.queues - 1;
        Some(self.first + bit)
    }
}

impl Rotation {
    #[inline]
    fn place(&self, turn: usize) -> usize {
        let place = self.first + turn;
        if place >= self.hot.len() { place - self.hot.len() } else { place }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Runs one round; returns the queues that were looked at.
    fn round(rotation: &mut Rotation, busy: impl Fn(usize) -> bool) -> Vec<usize> {
        let mut seen = Vec::new();
        for turn in 0..rotation.hot_count() {
            let qid = rotation.hot(turn);
            rotation.note(turn, busy(qid));
            seen.push(qid);
        }
        rotation.next_turn();
        if rotation.has_cold() {
            let mut line = rotation.next_cold_line();
            while let Some(qid) = line.next_queue() {
                seen.push(qid);
                if busy(qid) {
                    rotation.warm(qid);
                }
            }
        }
        seen
    }

    #[test]
    fn burst_is_bounded_whatever_the_host_says() {
        assert_eq!(burst(0), MAX_BURST);
        assert_eq!(burst(1), 1);
        assert_eq!(burst(u32::MAX), MAX_BURST);
    }

    #[test]
    fn every_queue_is_first_in_turn() {
        let mut rotation = Rotation::default();
        (1..=3).for_each(|qid| rotation.insert(qid));
        let firsts: Vec<usize> = (0..6).map(|_| round(&mut rotation, |_| true)[0]).collect();
        assert_eq!(firsts, [1, 2, 3, 1, 2, 3]);
    }

    #[test]
    fn idle_queues_become_cold_and_are_still_looked_at() {
        let mut rotation = Rotation::default();
        (1..MAX_QUEUES).for_each(|qid| rotation.insert(qid));
        for _ in 0..usize::from(COLD_AFTER) + 100 * MAX_QUEUES {
            round(&mut rotation, |qid| qid == 77);
        }
        assert_eq!(rotation.hot_count(), 1);
        assert_eq!(rotation.hot(0), 77);
        let seen: BTreeSet<usize> =
            (0..LINES).flat_map(|_| round(&mut rotation, |_| false)).collect();
        assert_eq!(seen.len(), MAX_QUEUES - 1, "each within as many polls as there are lines");

        let mut polls = 0;
        while !round(&mut rotation, |qid| qid == 5).contains(&5) {
            polls += 1;
        }
        assert!(polls < LINES);
        assert_eq!(rotation.hot_count(), 2);
    }

    #[test]
    fn removed_queue_is_never_looked_at() {
        let mut rotation = Rotation::default();
        (1..20).for_each(|qid| rotation.insert(qid));
        for _ in 0..10_000 {
            round(&mut rotation, |_| false);
        }
        rotation.remove(9);
        for _ in 0..100 {
            assert!(!round(&mut rotation, |_| false).contains(&9));
        }
        rotation.clear();
        assert!(round(&mut rotation, |_| true).is_empty());
        assert!(!rotation.has_cold());
    }
}
