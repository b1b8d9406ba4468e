//! Turns: whoever waits for a limit gets on, whatever others do.

use crate::limits::{Limits, MILLISECOND, Reader};
use crate::namespace_pauses::add_other;
use crate::traces::{records, tracing};
use crate::worker::{ENTRIES, Ticks, Worker};
use ipc::layout::limits::{Limit, Rate};
use nvme_spec::Nsid;

#[test]
fn a_line_that_never_empties_holds_up_no_other() {
    let limits = Limits::new();
    let mut worker = Worker::new();
    let entries = 512;
    let rig = limits.attach(&mut worker, 0, 2, entries);
    add_other(&mut worker, &rig);
    limits.controller(0, Rate::Iops, 1, &mut worker, &[&rig]);
    let mut readers = [1, 2].map(|qid| Reader::of(&rig, qid, entries, Nsid(qid as u32)));
    readers.iter_mut().for_each(|reader| reader.fill(200));
    worker.polls(100);
    // More than the worker can do: both lines stay as long as their guests keep at it.
    limits.controller(0, Rate::Iops, 10_000_000, &mut worker, &[&rig]);
    for _ in 0..100 {
        worker.polls(1);
        for reader in &mut readers {
            reader.take();
            assert!(reader.outstanding > 0, "the line does not empty");
            reader.fill(200);
        }
    }
    let done = readers.map(|reader| reader.done);
    assert!(done.iter().all(|done| *done > 1000), "both get on: {done:?}");
}

#[test]
fn a_worker_that_is_held_up_gets_its_turn_when_it_is_back_and_costs_others_nothing() {
    let limits = Limits::new();
    let clock = Ticks::default();
    let mut workers = [0, 1, 2].map(|_| Worker::by(clock.clone()));
    let mut row = 0;
    let rigs = workers.each_mut().map(|worker| {
        row += 1;
        limits.attach(worker, row, 1, ENTRIES)
    });
    limits.namespace(0, Rate::Iops, 1000, &mut workers[0], &[&rigs[0]]);
    workers.iter_mut().zip(&rigs).for_each(|(worker, rig)| worker.settle(rig));
    let mut readers = rigs.each_ref().map(|rig| Reader::new(rig, 1));
    for round in 0..1000 {
        clock.0.advance(MILLISECOND);
        for (index, (worker, reader)) in workers.iter_mut().zip(&mut readers).enumerate() {
            // The last one runs a moment every 50 ms.
            if index < 2 || round % 50 == 0 {
                reader.fill(8);
                worker.polls(65);
                reader.take();
            }
        }
    }
    let done = readers.map(|reader| reader.done);
    assert!(done[0].min(done[1]) >= 1000 / 3, "a third is theirs at least: {done:?}");
    assert!(done[2] >= 1000 / 50 - 1, "each time that it ran it got on: {done:?}");
    assert!(done.iter().sum::<u64>() <= 1000 + 100 + 24, "and the rate is kept: {done:?}");
}

#[test]
fn a_trace_says_which_limit_a_command_waited_for() {
    let cases = [
        (10, Limit { of_controller: true, rate: Rate::ReadIops }),
        (10_000, Limit { of_controller: false, rate: Rate::Bandwidth }),
    ];
    for (read_iops, limit) in cases {
        let limits = Limits::new();
        let (mut worker, mut found, _) = tracing(1, true);
        let rig = limits.attach(&mut worker, 0, 1, ENTRIES);
        limits.controller(0, Rate::ReadIops, read_iops, &mut worker, &[&rig]);
        limits.namespace(0, Rate::Bandwidth, 4096 * 100, &mut worker, &[&rig]);
        let mut reader = Reader::new(&rig, 1);
        reader.fill(30);
        for _ in 0..400 {
            worker.pass(10 * MILLISECOND);
            reader.take();
        }
        worker.polls(5);
        let found = records(&mut found);
        let waited = found.iter().filter(|record| record.held != 0);
        assert!(found.len() == 30 && waited.clone().count() >= 15, "{found:?}");
        assert!(waited.clone().all(|record| record.limit == Some(limit)), "{limit:?}: {found:?}");
    }
}
