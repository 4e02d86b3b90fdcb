//! What the benches of the workspace share: two sides that take turns, and the
//! row that comes of it.
//!
//! A bench prints one row a line, in JSON, to standard output; `cargo xtask
//! bench` makes a table of them. A figure alone says as much about the machine
//! and its other work as about the code, so a row compares two sides that were
//! measured in turns, and its ratio is the median of the ratios of all rounds.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "rows go to standard output")]

use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

mod bare;
mod role;

pub use bare::Bare;
pub use role::Role;

/// What was measured, and what it is held to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What ours does.
    pub name: String,
    /// What theirs is; `None` where a figure stands alone.
    pub against: Option<String>,
    /// Of `ours` and `theirs`.
    pub unit: String,
    /// The median.
    pub ours: f64,
    /// The median.
    pub theirs: Option<f64>,
    /// The median of each round's ours / theirs.
    pub ratio: Option<f64>,
    /// The lowest and the highest of the rounds: of the ratio where there is
    /// one, else of `ours`.
    pub spread: [f64; 2],
    /// What the ratio, or `ours` where there is none, should be.
    pub bar: Option<Bar>,
    /// Whether it is.
    pub holds: Option<bool>,
}

/// A limit that a row should keep.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bar {
    /// As much as this, or more.
    AtLeast(f64),
    /// As much as this, or less.
    AtMost(f64),
}

impl Row {
    /// The row of two sides, from what each of them had in each round.
    #[must_use]
    pub fn compare(
        name: &str,
        against: &str,
        unit: &str,
        bar: Option<Bar>,
        rounds: &[(f64, f64)],
    ) -> Self {
        let ratios: Vec<f64> = rounds.iter().map(|(ours, theirs)| ours / theirs).collect();
        let ours: Vec<f64> = rounds.iter().map(|(ours, _)| *ours).collect();
        let theirs: Vec<f64> = rounds.iter().map(|(_, theirs)| *theirs).collect();
        Self {
            against: Some(against.to_owned()),
            ours: median(&ours),
            theirs: Some(median(&theirs)),
            ratio: Some(median(&ratios)),
            ..Self::alone(name, unit, bar, &ratios)
        }
    }

    /// The row of a figure that stands alone.
    #[must_use]
    pub fn alone(name: &str, unit: &str, bar: Option<Bar>, rounds: &[f64]) -> Self {
        let value = median(rounds);
        let extreme = |of: fn(f64, f64) -> f64| rounds.iter().copied().reduce(of);
        Self {
            name: name.to_owned(),
            against: None,
            unit: unit.to_owned(),
            ours: value,
            theirs: None,
            ratio: None,
            spread: [f64::min, f64::max].map(|of| extreme(of).unwrap_or(f64::NAN)),
            bar,
            holds: bar.map(|bar| bar.holds(value)),
        }
    }

    /// Prints the row for `cargo xtask bench`.
    ///
    /// # Errors
    /// [`serde_json::Error`] for a figure that JSON has no word for.
    pub fn print(&self) -> Result<(), serde_json::Error> {
        println!("{}", serde_json::to_string(self)?);
        Ok(())
    }
}

impl Bar {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }
}

/// Runs both sides in so many rounds; who is first changes with each.
pub fn by_turns(
    rounds: usize,
    mut ours: impl FnMut() -> f64,
    mut theirs: impl FnMut() -> f64,
) -> Vec<(f64, f64)> {
    let mut round = |number: usize| {
        if number.is_multiple_of(2) {
            let first = ours();
            (first, theirs())
        } else {
            let first = theirs();
            (ours(), first)
        }
    };
    (0..rounds).map(&mut round).collect()
}

/// Compares two ways to compute, in microseconds of the processor's time for
/// one time, all threads together. Within a round they take turns too, of a few
/// milliseconds each, and the median turn counts.
pub fn compute<A, B>(
    mut ours: impl FnMut() -> A,
    mut theirs: impl FnMut() -> B,
) -> Vec<(f64, f64)> {
    // once for the caches, and to know how often
    let slower = time(1, &mut ours).max(time(1, &mut theirs));
    let times = (TURN.as_secs_f64() / slower.as_secs_f64()).clamp(1.0, 1e6) as u32;
    let mut round = || {
        let turns = by_turns(
            TURNS,
            || processor_time(times, &mut ours).as_secs_f64(),
            || processor_time(times, &mut theirs).as_secs_f64(),
        );
        let each = |turns: Vec<f64>| median(&turns) * 1e6 / f64::from(times);
        let (ours, theirs) = turns.into_iter().unzip();
        (each(ours), each(theirs))
    };
    (0..ROUNDS).map(|_| round()).collect()
}

fn processor_time<T>(times: u32, call: impl FnMut() -> T) -> Duration {
    let used = || {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        Duration::try_from(time).unwrap_or_default()
    };
    let before = used();
    time(times, call);
    used() - before
}

/// How long so many calls take.
pub fn time<T>(times: u32, mut call: impl FnMut() -> T) -> Duration {
    let start = Instant::now();
    for _ in 0..times {
        black_box(call());
    }
    start.elapsed()
}

/// Where a bench may put files: `ZK_BENCH_DIR`, or else `default`.
#[must_use]
pub fn directory(default: &str) -> PathBuf {
    std::env::var_os("ZK_BENCH_DIR").map_or_else(|| default.into(), PathBuf::from)
}

/// The middle one, or the mean of the two in the middle.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.get(middle) {
        None => f64::NAN,
        Some(upper) if sorted.len() % 2 == 1 => *upper,
        Some(upper) => (sorted[middle - 1] + upper) / 2.0,
    }
}

/// Rounds of a bench, odd for the median.
pub const ROUNDS: usize = 11;

const TURNS: usize = 20;
const TURN: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_of_medians_and_held_to_its_bar() {
        let rounds = [(10.0, 20.0), (90.0, 100.0), (30.0, 40.0)];
        let row = Row::compare("ours", "theirs", "µs", Some(Bar::AtMost(0.8)), &rounds);
        assert_eq!((row.ours, row.theirs), (30.0, Some(40.0)));
        assert_eq!((row.ratio, row.spread), (Some(0.75), [0.5, 0.9]));
        assert_eq!(row.holds, Some(true));
        let row = Row::alone("ours", "ms", Some(Bar::AtLeast(5.0)), &[1.0, 4.0]);
        assert_eq!(
            (row.ours, row.spread, row.holds),
            (2.5, [1.0, 4.0], Some(false))
        );
    }

    #[test]
    fn sides_take_turns() {
        let order = std::cell::RefCell::new(String::new());
        let side = |name| {
            let order = &order;
            move || {
                order.borrow_mut().push(name);
                0.0
            }
        };
        assert_eq!(by_turns(3, side('o'), side('t')).len(), 3);
        assert_eq!(*order.borrow(), "ottoot");
    }
}
