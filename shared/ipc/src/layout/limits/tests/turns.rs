//! Takers of one account that want all they can get, whose steps interleave at random and who stall at random: each gets
//! its turns, and all together keep to the rate.

use super::*;

const INDEX: usize = Rate::Iops as usize;
const SECOND: u64 = 1_000_000_000;
/// How long a rate is kept before it changes.
const PHASE: u64 = 12 * BURST;

/// Numbers from a seed (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ mixed >> 31) % bound.max(1)
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// What a taker does next; each is one access to what others write.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Looks at the clock.
    Hungry,
    /// Looks at the account.
    Looks { now: u64 },
    /// Takes a place.
    Takes { now: u64, before: u64 },
    /// Waits until its place is due.
    Waits { release: u64 },
    /// Looks at the account, to give its place back.
    Returns { release: u64 },
    /// Gives it back.
    Gives { release: u64, before: u64 },
}

struct Taker {
    /// What it wants at a time.
    amount: u64,
    /// The rate as it took it in, and after which change.
    generation: u64,
    rate: u64,
    step: Step,
    /// When it came to that step.
    entered: u64,
    stalled: u64,
    /// Times that it went, or gave its place back.
    turns: u64,
    /// Time that it did not spend waiting for a place to come due.
    late: u64,
}

impl Taker {
    fn price(&self, rate: u64) -> u64 {
        self.amount * SECOND / rate
    }

    fn take_in(&mut self, row: &LimitRow) {
        let (generation, rates) = row.load();
        (self.generation, self.rate) = (generation, rates[INDEX]);
    }

    /// Until when it waits with good reason.
    fn due(&self) -> u64 {
        match self.step {
            Step::Waits { release } => release.max(self.entered),
            _ => self.entered,
        }
    }

    fn enter(&mut self, step: Step, time: u64) {
        self.late += time.saturating_sub(self.due());
        (self.step, self.entered) = (step, time);
    }
}

/// What happens beside taking turns.
#[derive(Clone, Copy, Debug)]
struct Trouble {
    stalls: bool,
    returns: bool,
    deaths: bool,
}

struct Scene {
    segment: Segment<LimitsLayout>,
    random: Random,
    trouble: Trouble,
    time: u64,
    rate: u64,
    /// The rate was written, and its account does not begin anew yet.
    changing: bool,
    takers: Vec<Taker>,
    /// When something went, and its price.
    passes: Vec<(u64, u64)>,
    /// Places of the dead: when they are due, and their prices.
    dead: Vec<(u64, u64)>,
    /// Prices of places that were given back when they were due already.
    credit: u64,
}

impl Scene {
    fn new(seed: u64, amounts: &[u64], trouble: Trouble) -> Self {
        let taker = |&amount| Taker {
            amount,
            generation: 0,
            rate: 0,
            step: Step::Hungry,
            entered: 0,
            stalled: 0,
            turns: 0,
            late: 0,
        };
        Self {
            segment: Segment::create("limits", 1).expect("memfd"),
            random: Random(seed),
            trouble,
            time: 5 * SECOND,
            rate: 0,
            changing: false,
            takers: amounts.iter().map(taker).collect(),
            passes: Vec::new(),
            dead: Vec::new(),
            credit: 0,
        }
    }

    /// Longest that a place of a taker may take to come due: one of each other, and one that has just gone.
    fn longest(&self, taker: usize) -> u64 {
        let prices = self.takers.iter().map(|taker| taker.price(self.rate));
        let others = prices.clone().enumerate().filter(|(index, _)| *index != taker);
        others.map(|(_, price)| price).sum::<u64>() + prices.max().unwrap_or(0)
    }

    /// Lets time pass, and one taker take a step.
    fn step(&mut self) {
        let count = self.takers.len() as u64;
        let cheapest = self.takers.iter().map(|taker| taker.price(self.rate)).min().unwrap_or(1);
        self.time += 1 + self.random.below(cheapest / (3 * count));
        let index = self.random.below(count) as usize;
        let steps = PHASE / (cheapest / 6).max(1);
        if self.trouble.stalls && self.random.one_in(steps / 3) {
            // One of them, or the whole machine.
            let until = self.time + self.random.below(3 * BURST);
            let all = self.random.one_in(4);
            for (other, taker) in self.takers.iter_mut().enumerate() {
                taker.stalled = if all || other == index { until } else { taker.stalled };
            }
        }
        if self.takers[index].stalled <= self.time {
            self.act(index);
        }
    }

    fn act(&mut self, index: usize) {
        let row = &self.segment.namespaces[0];
        let (time, longest) = (self.time, self.longest(index));
        let taker = &mut self.takers[index];
        let (rate, price) = (taker.rate, taker.price(taker.rate.max(1)));
        let told = taker.generation != row.load().0 && self.random.one_in(8);
        let next = match taker.step {
            Step::Waits { release } if told => {
                taker.take_in(row);
                // By the rate at which it was taken, which forgets it if it was another one.
                if rate == taker.rate { Step::Returns { release } } else { Step::Hungry }
            }
            Step::Hungry => Step::Looks { now: time },
            Step::Looks { now } => match row.look(INDEX, rate) {
                Some(before) => Step::Takes { now, before },
                None => {
                    taker.take_in(row);
                    Step::Looks { now }
                }
            },
            Step::Takes { now, before } => {
                let place = before.max(now);
                if !row.advance(INDEX, before, place + price) {
                    taker.enter(Step::Looks { now }, time);
                    return;
                }
                let release = place.saturating_sub(BURST);
                if !self.changing && taker.generation == row.load().0 {
                    let dead = self.dead.iter().filter(|(due, _)| *due > time);
                    let bound = time + longest + dead.map(|(_, price)| price).sum::<u64>();
                    assert!(release <= bound, "{index} waits until {release}, not {bound}");
                }
                if release <= now {
                    self.passes.push((now, price));
                    taker.turns += 1;
                    Step::Hungry
                } else {
                    Step::Waits { release }
                }
            }
            Step::Waits { release } if release <= time => {
                self.passes.push((time, price));
                taker.turns += 1;
                Step::Hungry
            }
            Step::Waits { release } if self.trouble.returns && self.random.one_in(40) => {
                Step::Returns { release }
            }
            Step::Waits { release } if self.trouble.deaths && self.random.one_in(2000) => {
                self.dead.push((release, price));
                Step::Hungry
            }
            Step::Waits { .. } => return,
            Step::Returns { release } => match row.look(INDEX, rate) {
                Some(before) => Step::Gives { release, before },
                None => Step::Hungry,
            },
            Step::Gives { release, before } => {
                if !row.advance(INDEX, before, before.saturating_sub(price)) {
                    taker.enter(Step::Returns { release }, time);
                    return;
                }
                self.credit += if release <= time { price } else { 0 };
                taker.turns += 1;
                Step::Hungry
            }
        };
        taker.enter(next, time);
    }

    /// Changes the rate in the steps in which the frontend does, while all go on, and tells them of it.
    fn change(&mut self, rate: u64) {
        self.segment.namespaces[0].rates[INDEX].store(rate, Ordering::Relaxed);
        (self.rate, self.changing) = (rate, true);
        let between = self.random.below(200);
        (0..between).for_each(|_| self.step());
        self.segment.namespaces[0].forget(INDEX);
        self.changing = false;
        self.dead.clear();
        let told = |scene: &Self| {
            let generation = scene.segment.namespaces[0].load().0;
            scene.takers.iter().all(|taker| taker.generation == generation)
        };
        while !told(self) {
            self.step();
            // One that has no place is told all the same.
            let index = self.random.below(self.takers.len() as u64) as usize;
            let taker = &mut self.takers[index];
            let has_none = matches!(taker.step, Step::Hungry | Step::Looks { .. });
            if taker.stalled <= self.time && has_none {
                taker.take_in(&self.segment.namespaces[0]);
            }
        }
    }

    /// Keeps the rate for a phase, and answers how many turns each had.
    fn phase(&mut self) -> Vec<u64> {
        let start = self.time;
        self.passes.clear();
        self.credit = 0;
        for taker in &mut self.takers {
            (taker.turns, taker.late, taker.entered) = (0, 0, start);
        }
        while self.time < start + PHASE {
            self.step();
        }
        let died = self.dead.iter().filter(|(due, _)| *due > start);
        let died: u64 = died.map(|(_, price)| price).sum();
        let time = self.time;
        for index in 0..self.takers.len() {
            let longest = self.longest(index);
            let taker = &mut self.takers[index];
            taker.enter(taker.step, time);
            let waited = (time - start).saturating_sub(taker.late + died);
            let share = (waited / longest).saturating_sub(2);
            assert!(taker.turns >= share, "{index}: {} turns of {share}", taker.turns);
        }
        self.assert_rate_is_kept();
        self.takers.iter().map(|taker| taker.turns).collect()
    }

    /// In no span of time more passes than the rate allows in it, a burst, and what all had in their hands.
    fn assert_rate_is_kept(&mut self) {
        self.passes.sort_unstable();
        let most = BURST + 2 * self.longest(usize::MAX) + self.credit;
        let (mut ahead, mut last) = (0_u64, 0);
        for &(time, price) in &self.passes {
            ahead = ahead.saturating_sub(time - last) + price;
            last = time;
            assert!(ahead <= most, "{ahead} ns ahead of the rate, {most} at most");
        }
    }
}

#[test]
fn each_gets_its_turns_whatever_the_others_do() {
    for seed in 0..160 {
        println!("seed {seed}");
        let mut random = Random(seed << 32);
        let count = 2 + random.below(5);
        let most = if seed % 2 == 0 { 1 } else { 8 };
        let amounts: Vec<u64> = (0..count).map(|_| 1 + random.below(most)).collect();
        let [stalls, returns, deaths] = [1, 2, 4].map(|bit| seed >> 1 & bit != 0);
        let mut scene = Scene::new(seed, &amounts, Trouble { stalls, returns, deaths });
        for _ in 0..3 {
            // A slow rate's prices must not count at a fast one.
            let rate = [20, 300, 1000, 3000][random.below(4) as usize] + random.below(10);
            scene.change(rate);
            scene.phase();
        }
    }
}

#[test]
fn those_who_never_stall_get_the_same() {
    let trouble = Trouble { stalls: false, returns: false, deaths: false };
    let mut scene = Scene::new(7, &[1; 4], trouble);
    scene.change(1000);
    scene.phase();
    let turns = scene.phase();
    let fair = PHASE / SECOND.div_ceil(1000) / 4;
    assert!(turns.iter().all(|turns| turns.abs_diff(fair) <= fair / 10), "{turns:?} of {fair}");
}
