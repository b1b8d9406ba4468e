//! Tests of the ring: by threads and by hand without loom, all interleavings with it.

#[cfg(not(loom))]
use super::RingError;
use super::{Consumer, Padded, Producer, RingControl, RingEntry, RingView};
use crate::sync::{AtomicU32, AtomicU64};
#[cfg(loom)]
use loom::{sync::Arc, thread};
#[cfg(not(loom))]
use std::{sync::Arc, sync::atomic::Ordering, thread};

struct Memory<const N: usize> {
    control: RingControl,
    entries: Vec<RingEntry<N>>,
}

impl<const N: usize> Memory<N> {
    fn new(depth: usize) -> Arc<Self> {
        let word = || Padded(AtomicU32::new(0));
        let control = RingControl { tail: word(), head: word(), parked: word() };
        let entry = |_| RingEntry(std::array::from_fn(|_| AtomicU64::new(0)));
        Arc::new(Self { control, entries: (0..depth).map(entry).collect() })
    }

    fn view(&self) -> RingView<'_, N> {
        RingView::new(&self.control, &self.entries, self.entries.len()).expect("a power of two")
    }
}

/// Every entry arrives once, whole and in order, over a ring that is smaller than their number.
#[cfg(loom)]
#[test]
fn ring_model_delivers_every_entry_in_order() {
    loom::model(|| {
        let memory = Memory::<2>::new(2);
        let theirs = memory.clone();
        let producer = thread::spawn(move || {
            let mut producer = Producer::default();
            let mut next = 1;
            while next <= 3 {
                match producer.push(theirs.view(), [next, next + 100]) {
                    Ok(true) => next += 1,
                    Ok(false) => thread::yield_now(),
                    Err(error) => panic!("{error}"),
                }
                let _ = producer.publish(theirs.view());
            }
        });
        let mut consumer = Consumer::default();
        let mut expected = 1;
        while expected <= 3 {
            match consumer.pop(memory.view()).expect("an honest producer") {
                Some(words) => {
                    assert_eq!(words, [expected, expected + 100]);
                    expected += 1;
                    consumer.release(memory.view());
                }
                None => thread::yield_now(),
            }
        }
        producer.join().expect("producer");
    });
}

/// Whatever the interleaving, a consumer that goes to sleep is signalled for what was published.
#[cfg(loom)]
#[test]
fn ring_model_loses_no_wake_up() {
    loom::model(|| {
        let memory = Memory::<1>::new(2);
        let event = Arc::new(AtomicU32::new(0));
        let (theirs, signal) = (memory.clone(), event.clone());
        let producer = thread::spawn(move || {
            let mut producer = Producer::default();
            for value in 1..=2 {
                assert_eq!(producer.push(theirs.view(), [value]), Ok(true));
                if producer.publish(theirs.view()) {
                    signal.fetch_add(1, crate::sync::Ordering::AcqRel);
                }
            }
        });
        let mut consumer = Consumer::default();
        let asleep = consumer.park(memory.view());
        producer.join().expect("producer");
        if asleep {
            // Everything has been published by now; a sleeper without a signal would sleep for ever.
            assert_eq!(event.load(crate::sync::Ordering::Acquire), 1, "lost wake-up");
        } else {
            assert_eq!(consumer.pop(memory.view()), Ok(Some([1])));
        }
    });
}

#[cfg(not(loom))]
#[test]
fn full_ring_refuses_and_empty_ring_gives_nothing() {
    let memory = Memory::<1>::new(4);
    let (mut producer, mut consumer) = (Producer::default(), Consumer::default());
    assert_eq!(consumer.pop(memory.view()), Ok(None));
    for value in 0..4 {
        assert_eq!(producer.push(memory.view(), [value]), Ok(true));
    }
    assert_eq!(producer.push(memory.view(), [9]), Ok(false));
    assert_eq!(consumer.pop(memory.view()), Ok(None), "visible before it was published");
    assert!(!producer.publish(memory.view()));
    for value in 0..4 {
        assert_eq!(consumer.pop(memory.view()), Ok(Some([value])));
    }
    assert_eq!(producer.push(memory.view(), [9]), Ok(false), "slots not yet given back");
    consumer.release(memory.view());
    assert_eq!(producer.push(memory.view(), [9]), Ok(true));
}

#[cfg(not(loom))]
#[test]
fn positions_run_over_the_end_of_32_bits() {
    let memory = Memory::<1>::new(4);
    let start = u32::MAX - 1;
    memory.control.tail.0.store(start, Ordering::Relaxed);
    memory.control.head.0.store(start, Ordering::Relaxed);
    let mut producer = Producer { tail: start, published: start, head: start };
    let mut consumer = Consumer { head: start, published: start, tail: start };
    for round in 0..16 {
        assert_eq!(producer.push(memory.view(), [round]), Ok(true));
        let _ = producer.publish(memory.view());
        assert_eq!(consumer.pop(memory.view()), Ok(Some([round])));
        consumer.release(memory.view());
    }
}

#[cfg(not(loom))]
#[test]
fn impossible_positions_of_the_peer_are_errors() {
    for found in [5, 1 << 31, u32::MAX] {
        let memory = Memory::<1>::new(4);
        memory.control.tail.0.store(found, Ordering::Relaxed);
        let mut consumer = Consumer::default();
        let error = Err(RingError::Corrupt { found, own: 0 });
        assert_eq!(consumer.pop(memory.view()), error);
        assert!(!consumer.park(memory.view()), "a corrupt ring is not slept on");

        let memory = Memory::<1>::new(4);
        let mut producer = Producer::default();
        for value in 0..4 {
            assert_eq!(producer.push(memory.view(), [value]), Ok(true));
        }
        let _ = producer.publish(memory.view());
        memory.control.head.0.store(found, Ordering::Relaxed);
        assert_eq!(producer.push(memory.view(), [4]), Err(RingError::Corrupt { found, own: 4 }));
    }
}

#[cfg(not(loom))]
#[test]
fn head_past_what_was_published_is_an_error() {
    let memory = Memory::<1>::new(4);
    let mut producer = Producer::default();
    for value in 0..4 {
        assert_eq!(producer.push(memory.view(), [value]), Ok(true));
    }
    // Nothing is published, yet the peer claims to have taken two.
    memory.control.head.0.store(2, Ordering::Relaxed);
    assert_eq!(producer.push(memory.view(), [4]), Err(RingError::Corrupt { found: 2, own: 0 }));
}

#[cfg(not(loom))]
#[test]
fn depth_is_a_power_of_two_within_the_entries() {
    let memory = Memory::<1>::new(8);
    for depth in [0, 3, 16, 1 << 20] {
        assert!(RingView::new(&memory.control, &memory.entries, depth).is_none(), "{depth}");
    }
    assert!(RingView::new(&memory.control, &memory.entries, 4).is_some());
}

/// Two threads, a small ring, and a consumer that parks whenever it finds nothing.
#[cfg(not(loom))]
#[test]
fn hammered_ring_with_parking_delivers_every_entry_in_order() {
    const COUNT: u64 = 300_000;
    let memory = Memory::<2>::new(8);
    let theirs = memory.clone();
    let consumer = thread::spawn(move || {
        let mut consumer = Consumer::default();
        let mut sum = 0_u64;
        for expected in 0..COUNT {
            let words = loop {
                if let Some(words) = consumer.pop(theirs.view()).expect("an honest producer") {
                    break words;
                }
                consumer.release(theirs.view());
                while consumer.park(theirs.view()) {
                    // A bound, so that a lost wake-up is seen as such and not as a test that hangs.
                    let slept = std::time::Instant::now();
                    thread::park_timeout(std::time::Duration::from_secs(60));
                    assert!(slept.elapsed().as_secs() < 50, "lost wake-up");
                    consumer.unpark(theirs.view());
                }
            };
            assert_eq!(words, [expected, !expected]);
            sum = sum.wrapping_add(words[0]);
            if expected % 3 == 0 {
                consumer.release(theirs.view());
            }
        }
        sum
    });
    let mut producer = Producer::default();
    for value in 0..COUNT {
        while !producer.push(memory.view(), [value, !value]).expect("an honest consumer") {
            if producer.publish(memory.view()) {
                consumer.thread().unpark();
            }
            thread::yield_now();
        }
        if value % 5 == 0 && producer.publish(memory.view()) {
            consumer.thread().unpark();
        }
    }
    if producer.publish(memory.view()) {
        consumer.thread().unpark();
    }
    assert_eq!(consumer.join().expect("consumer"), COUNT * (COUNT - 1) / 2);
}
