//! How a figure went in the last minute, as a line of bars.

use std::collections::VecDeque;

/// How far back it goes, in seconds.
pub const TREND_SECONDS: f64 = 60.0;
/// Most points of a minute: ten a second, the shortest interval, and one more at the edge.
const MAX_POINTS: usize = 601;

/// A figure over the last minute.
#[derive(Clone, Debug, Default)]
pub struct Trend {
    points: VecDeque<(f64, f64)>,
}

/// What bars are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Glyphs {
    /// Blocks of Unicode.
    Blocks,
    /// For terminals that know nothing else.
    Ascii,
}

impl Glyphs {
    /// Zero, then eight heights.
    fn levels(self) -> [char; 9] {
        match self {
            Self::Blocks => ['·', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'],
            Self::Ascii => ['.', '_', ',', '-', '~', '=', '+', '*', '#'],
        }
    }
}

impl Trend {
    /// Notes a value at a time in seconds.
    pub fn push(&mut self, time: f64, value: f64) {
        self.points.push_back((time, value));
        let old = |points: &VecDeque<(f64, f64)>| {
            // The newest of those outside says how it was at the edge.
            points.get(1).is_some_and(|(next, _)| time - next > TREND_SECONDS)
        };
        while self.points.len() > MAX_POINTS || old(&self.points) {
            self.points.pop_front();
        }
    }

    /// Mean values of `width` equal parts of the minute before `now`; `None` where nothing is known.
    fn columns(&self, now: f64, width: usize) -> Vec<Option<f64>> {
        let step = TREND_SECONDS / width.max(1) as f64;
        let start = now - TREND_SECONDS;
        let (mut next, mut last) = (0, None);
        (0..width)
            .map(|column| {
                let end = start + step * (column + 1) as f64;
                let (mut sum, mut count) = (0.0, 0);
                while let Some((time, value)) = self.points.get(next) {
                    // A little beyond, for what rounding does to the newest.
                    if *time > end + step * 1e-6 {
                        break;
                    }
                    last = Some(*value);
                    if *time > end - step {
                        (sum, count) = (sum + value, count + 1);
                    }
                    next += 1;
                }
                if count > 0 { Some(sum / f64::from(count)) } else { last }
            })
            .collect()
    }

    /// The last minute before `now` in so many characters, the newest at the right. `full` is what fills a character;
    /// not given: the greatest value.
    pub fn bars(&self, now: f64, width: usize, full: Option<f64>, glyphs: Glyphs) -> String {
        let columns = self.columns(now, width);
        let greatest = columns.iter().flatten().copied().fold(0.0, f64::max);
        let full = full.unwrap_or(greatest);
        let levels = glyphs.levels();
        let bar = |value: &Option<f64>| match value {
            None => ' ',
            Some(value) if !(*value > 0.0 && full > 0.0) => levels[0],
            Some(value) => levels[((value / full * 8.0).ceil() as usize).clamp(1, 8)],
        };
        columns.iter().map(bar).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_at_the_right_and_what_is_not_known_is_blank() {
        let mut trend = Trend::default();
        assert_eq!(trend.bars(100.0, 4, None, Glyphs::Blocks), "    ");
        trend.push(80.0, 0.0);
        trend.push(100.0, 8.0);
        assert_eq!(trend.bars(100.0, 6, None, Glyphs::Blocks), "   ··█");
        trend.push(110.0, 1.0);
        assert_eq!(trend.bars(110.0, 6, None, Glyphs::Blocks), "  ··█▁");
        assert_eq!(trend.bars(110.0, 6, Some(16.0), Glyphs::Ascii), "  ..~_");
    }

    #[test]
    fn a_value_holds_until_the_next_one() {
        let mut trend = Trend::default();
        trend.push(40.0, 5.0);
        trend.push(100.0, 5.0);
        assert_eq!(trend.bars(100.0, 6, None, Glyphs::Blocks), "██████");
    }

    #[test]
    fn it_is_bounded_and_takes_any_number() {
        let mut trend = Trend::default();
        for tick in 0..10_000 {
            trend.push(f64::from(tick) / 100.0, f64::NAN);
        }
        assert!(trend.points.len() <= MAX_POINTS);
        assert_eq!(trend.bars(100.0, 3, None, Glyphs::Ascii), "  .", "what is kept is of 6 s");
        trend.push(101.0, f64::INFINITY);
        assert_eq!(trend.bars(101.0, 0, None, Glyphs::Ascii), "");
        for _ in 0..1_000 {
            trend.push(0.0, 1.0);
        }
        assert!(trend.points.len() <= MAX_POINTS, "a clock that went back is no way around it");
    }
}
