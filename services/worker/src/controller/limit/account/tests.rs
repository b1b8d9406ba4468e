use super::*;
use ipc::layout::limits::LimitsLayout;
use ipc::segment::Segment;

const READ: Cost = Cost { class: Class::Read, commands: 1, bytes: 4096 };
const WRITE: Cost = Cost { class: Class::Write, commands: 1, bytes: 4096 };
const FLUSH: Cost = Cost { class: Class::Other, commands: 1, bytes: 0 };
const START: u64 = 7 * SECOND;

fn rates(pairs: &[(Rate, u64)]) -> [u64; RATES] {
    let mut rates = [0; RATES];
    pairs.iter().for_each(|(rate, value)| rates[*rate as usize] = *value);
    rates
}

fn segment(pairs: &[(Rate, u64)]) -> Segment<LimitsLayout> {
    let segment = Segment::<LimitsLayout>::create("limits", 1).unwrap();
    segment.namespaces[0].set(rates(pairs));
    segment
}

/// Commands that go within a second of `START`, of one after the other that wait for their places.
fn in_a_second(segment: &Segment<LimitsLayout>, cost: Cost) -> u64 {
    let row = &segment.namespaces[0];
    let mut account = Account::load(row);
    let mut now = START;
    for count in 0.. {
        now = now.max(account.charge(row, cost, now).release);
        if now >= START + SECOND {
            return count;
        }
    }
    unreachable!()
}

#[test]
fn a_rate_is_kept_but_for_a_burst() {
    for (pairs, cost, expected) in [
        (&[(Rate::Iops, 1000)][..], READ, 1000),
        (&[(Rate::Iops, 1000)], FLUSH, 1000),
        (&[(Rate::ReadIops, 3000)], READ, 3000),
        (&[(Rate::WriteIops, 3000), (Rate::Iops, 700)], WRITE, 700),
        (&[(Rate::Bandwidth, 4096 * 500)], READ, 500),
        (&[(Rate::WriteBandwidth, 4096 * 500), (Rate::ReadBandwidth, 1)], WRITE, 500),
    ] {
        let count = in_a_second(&segment(pairs), cost);
        assert!((expected..=expected + expected / 10 + 1).contains(&count), "{pairs:?}: {count}");
    }
}

#[test]
fn a_rate_counts_nothing_else() {
    let segment = segment(&[(Rate::ReadIops, 1), (Rate::ReadBandwidth, 1), (Rate::Bandwidth, 1)]);
    let row = &segment.namespaces[0];
    for cost in [FLUSH, Cost { bytes: 0, ..WRITE }] {
        assert_eq!(Account::load(row).charge(row, cost, START), Due::default());
    }
}

#[test]
fn what_is_larger_than_all_that_was_saved_passes_and_is_paid_for_after() {
    let segment = segment(&[(Rate::Bandwidth, 1 << 20)]);
    let row = &segment.namespaces[0];
    let mut account = Account::load(row);
    let large = Cost { bytes: 4 << 20, ..WRITE };
    assert!(account.charge(row, large, START).release <= START);
    let due = account.charge(row, READ, START);
    let rate = Some(Rate::Bandwidth);
    assert_eq!(due, Due { release: START + 4 * SECOND - BURST, rate });
}

#[test]
fn those_who_share_a_rate_take_turns() {
    let segment = segment(&[(Rate::Iops, 1000)]);
    let row = &segment.namespaces[0];
    let mut account = Account::load(row);
    // Each has one place at a time.
    let mut places = [0, 1].map(|_| account.charge(row, READ, START).release);
    let mut counts = [0_u64; 2];
    loop {
        let first = usize::from(places[1] < places[0]);
        if places[first] >= START + SECOND {
            break;
        }
        counts[first] += 1;
        places[first] = account.charge(row, READ, places[first].max(START)).release;
    }
    assert!(counts[0].abs_diff(counts[1]) <= 1, "{counts:?}");
    assert!((1000..=1102).contains(&(counts[0] + counts[1])), "{counts:?}");
}

#[test]
fn a_place_that_is_given_back_costs_nothing() {
    let segment = segment(&[(Rate::Iops, 10), (Rate::Bandwidth, 40960)]);
    let row = &segment.namespaces[0];
    let mut account = Account::load(row);
    let first = account.charge(row, READ, START).release;
    for _ in 0..1000 {
        account.charge(row, READ, START);
        account.refund(row, READ);
    }
    assert_eq!(account.charge(row, READ, START).release, first + SECOND / 10);
}

#[test]
fn a_rate_that_changed_owes_nothing_for_what_was_before() {
    let segment = segment(&[(Rate::Iops, 1)]);
    let row = &segment.namespaces[0];
    let mut before = Account::load(row);
    for _ in 0..100 {
        before.charge(row, READ, START);
    }
    row.set(rates(&[(Rate::Iops, 1000)]));
    before.refund(row, READ);
    assert!(Account::load(row).charge(row, READ, START).release <= START);
    let late = Account::load(row).charge(row, READ, START).release;
    assert!(late <= START, "a burst is saved up: {late}");
}

#[test]
fn nobody_pays_the_price_of_a_rate_that_was_changed() {
    let segment = segment(&[(Rate::Iops, 1), (Rate::Bandwidth, 64 << 10)]);
    let row = &segment.namespaces[0];
    // One worker has not taken in yet that the rates are higher now.
    let mut late = Account::load(row);
    let mut prompt = late;
    row.set(rates(&[(Rate::Iops, 100_000), (Rate::Bandwidth, 1 << 30)]));
    for _ in 0..10 {
        late.charge(row, Cost { bytes: 1 << 20, ..WRITE }, START);
        let due = prompt.charge(row, READ, START);
        assert!(due.release <= START, "{due:?}");
    }
    assert_eq!(late, prompt, "both have taken it in");
}

#[test]
fn a_rate_that_did_not_change_gets_its_places_back_when_another_does() {
    let segment = segment(&[(Rate::Iops, 10), (Rate::Bandwidth, 64 << 10)]);
    let row = &segment.namespaces[0];
    let mut account = Account::load(row);
    account.charge(row, Cost { bytes: 64 << 10, ..READ }, START);
    let release = |account: &mut Account| account.charge(row, READ, START).release;
    let first = release(&mut account);
    account.refund(row, READ);
    for iops in 11..100 {
        release(&mut account);
        row.set(rates(&[(Rate::Iops, iops), (Rate::Bandwidth, 64 << 10)]));
        account.refund(row, READ);
        account = Account::load(row);
    }
    assert_eq!(release(&mut account), first);
}

#[test]
fn prices_of_the_greatest_commands_fit() {
    let cost = Cost { class: Class::Read, commands: 1, bytes: 65536 << 16 };
    let prices: Vec<_> = cost.prices(&[1; RATES]).collect();
    assert_eq!(prices.len(), 4);
    assert!(prices.iter().all(|(_, price)| *price <= (65536 << 16) * SECOND));
}

#[test]
fn commands_cost_what_they_move() {
    let space = Namespace {
        blocks: nvme_spec::BlockCount(1 << 20),
        block_shift: 12,
        write_protected: false,
        formatting: false,
    };
    let cost = |opcode, blocks: u32, pair| {
        let mut command = Command::nvm(opcode, nvme_spec::CommandId(1), nvme_spec::Nsid(1));
        command.cdw12 = blocks - 1;
        let Cost { class, commands, bytes } = Cost::of(&command, pair, Some(&space), 1 << 20);
        assert_eq!(commands, 1);
        (class, bytes)
    };
    assert_eq!(cost(NvmOpcode::READ, 2, false), (Class::Read, 8192));
    assert_eq!(cost(NvmOpcode::COMPARE, 1, false), (Class::Read, 4096));
    assert_eq!(cost(NvmOpcode::COMPARE, 1, true), (Class::Write, 4096));
    assert_eq!(cost(NvmOpcode::VERIFY, 65536, false), (Class::Read, 256 << 20));
    assert_eq!(cost(NvmOpcode::WRITE, 256, false), (Class::Write, 1 << 20));
    assert_eq!(cost(NvmOpcode::WRITE, 257, false), (Class::Write, 0), "it will be refused");
    assert_eq!(cost(NvmOpcode::WRITE_ZEROES, 65536, false), (Class::Write, 0));
    assert_eq!(cost(NvmOpcode::FLUSH, 9, false), (Class::Other, 0));
    assert_eq!(cost(NvmOpcode::DATASET_MANAGEMENT, 9, false), (Class::Other, 0));
}
