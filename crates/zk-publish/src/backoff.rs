use std::time::Duration;

/// A pause that doubles with each failure in a row, up to a limit.
///
/// Each pause is drawn from between half of its length and all of it, so that
/// many devices that lost the same server don't come back in step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The pause after the first failure.
    pub first: Duration,
    /// The longest pause.
    pub most: Duration,
}

impl Backoff {
    /// The pause after `failures` in a row (from 1), where `random` says how
    /// much of the drawn half to take.
    pub(crate) fn pause(&self, failures: u32, random: u32) -> Duration {
        let factor = 2_u32.saturating_pow(failures.saturating_sub(1));
        let whole = self.first.saturating_mul(factor).min(self.most);
        whole.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff {
        first: Duration::from_secs(1),
        most: Duration::from_secs(60),
    };

    #[test]
    fn pauses_double_up_to_the_limit_and_stay_there() {
        let longest: Vec<_> = (1..=9)
            .map(|n| BACKOFF.pause(n, u32::MAX).as_secs())
            .collect();
        assert_eq!(longest, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(BACKOFF.pause(u32::MAX, u32::MAX), BACKOFF.most);
    }

    #[test]
    fn half_of_each_pause_is_drawn() {
        assert_eq!(BACKOFF.pause(3, 0), Duration::from_secs(2));
        assert_eq!(BACKOFF.pause(3, u32::MAX), Duration::from_secs(4));
        let middle = BACKOFF.pause(3, u32::MAX / 2);
        assert!(middle > BACKOFF.pause(3, 0) && middle < BACKOFF.pause(3, u32::MAX));
    }

    #[test]
    fn no_pause_stays_none() {
        let none = Backoff {
            first: Duration::ZERO,
            most: BACKOFF.most,
        };
        assert_eq!(none.pause(40, u32::MAX), Duration::ZERO);
    }
}
