use super::*;
use crate::segment::Segment;

mod turns;

#[test]
fn a_rate_that_changes_begins_anew_and_others_go_on() {
    let segment = Segment::<LimitsLayout>::create("limits", 1).unwrap();
    let row = &segment.namespaces[3];
    assert_eq!(row.load(), (0, [0; RATES]));
    assert!(row.set([100, 0, 0, 4096, 0, 0]));
    row.due.0[Rate::Iops as usize].store(7000, Ordering::Relaxed);
    row.due.0[Rate::Bandwidth as usize].store(8000, Ordering::Relaxed);
    assert!(!row.set([100, 0, 0, 4096, 0, 0]), "nothing changes");
    assert!(row.set([200, 0, 0, 4096, 0, 0]));
    assert_eq!(row.load(), (3, [200, 0, 0, 4096, 0, 0]));
    let due = |rate: Rate| row.due.0[rate as usize].load(Ordering::Relaxed);
    assert_eq!((due(Rate::Iops), due(Rate::Bandwidth)), (3, 8000));
}

#[test]
fn an_account_is_moved_on_by_its_own_rate_alone() {
    let segment = Segment::<LimitsLayout>::create("limits", 1).unwrap();
    let row = &segment.controllers[9];
    let index = Rate::Iops as usize;
    row.set([10, 0, 0, 0, 0, 0]);
    assert_eq!(row.take(index, 10, 100, 5000), Some(5000));
    assert_eq!(row.take(index, 10, 100, 5010), Some(5100), "behind the first");
    row.give_back(index, 10, 100);
    assert_eq!(row.take(index, 10, 100, 6000), Some(6000), "nothing is saved up in a number");
    let seen = row.look(index, 10).expect("it is that rate");
    row.set([20, 0, 0, 0, 0, 0]);
    assert!(!row.advance(index, seen, seen + 100), "it was changed in between");
    row.set([10, 0, 0, 0, 0, 0]);
    assert!(!row.advance(index, seen, seen + 100), "and back again");
    assert_eq!(row.take(index, 20, 100, 7000), None);
    row.give_back(index, 20, 100);
    assert!(row.due.0[index].load(Ordering::Relaxed) < 100, "nobody has paid anything");
}

#[test]
fn limits_are_numbers_and_back() {
    for bits in 0..=u8::MAX {
        let limit = Limit::from_bits(bits);
        assert_eq!(limit.is_some(), (1..=12).contains(&bits));
        assert!(limit.is_none_or(|limit| limit.to_bits() == bits));
    }
}
