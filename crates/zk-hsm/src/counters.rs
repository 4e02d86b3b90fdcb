use std::time::Duration;

/// What an [`Hsm`](crate::Hsm) has done since it was opened. All handles of
/// one HSM share these; nothing is ever reset.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Signatures made and found to verify. Subtract two readings around a TLS
    /// connection to see whether it resumed: a resumed one needs none.
    pub signatures: u64,
    /// Signatures that didn't verify and were discarded. These are among the
    /// transient failures, too.
    pub bad_signatures: u64,
    /// Calls into the HSM, opening included, that failed in a way that may
    /// pass. A call that succeeded at the second attempt counts here.
    pub transient_failures: u64,
    /// Calls into the HSM that closed it for good: 0 or 1.
    pub fatal_failures: u64,
    /// Calls that the HSM refused because of what was asked, such as unlocking
    /// data that was changed.
    pub logic_failures: u64,
    /// Calls that were made a second time after the HSM was opened again.
    pub retries: u64,
    /// Times the HSM was closed after a failure and opened again.
    pub reopens: u64,
    /// Callers that gave up while the HSM was at work for them.
    pub timeouts: u64,
    /// Answers that came after their caller had given up, and were discarded.
    pub late_results: u64,
    /// Calls that never reached the HSM because too many were before them.
    pub busy: u64,
    /// Time for one signature in the HSM, its verification included, without
    /// the time in the queue. Successful signatures only.
    pub sign_latency: Histogram,
}

/// Durations sorted into buckets of 1-2-5 steps from 100 µs to 10 s, as
/// Prometheus counts them.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// One more than `BOUNDS`: the last one is for everything longer.
    counts: [u64; BOUNDS.len() + 1],
    sum: Duration,
}

impl Histogram {
    /// How many durations were recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The sum of all durations.
    #[must_use]
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// Upper bound of each bucket and the number of durations up to and
    /// including it, in ascending order. The bucket without a bound (`+Inf`)
    /// is not among them: it is [`count`](Self::count).
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> {
        BOUNDS
            .iter()
            .zip(&self.counts)
            .scan(0, |below, (&bound, &count)| {
                *below += count;
                Some((Duration::from_micros(bound), *below))
            })
    }

    pub(crate) fn record(&mut self, took: Duration) {
        let bucket = BOUNDS.partition_point(|&bound| Duration::from_micros(bound) < took);
        self.counts[bucket] += 1;
        self.sum = self.sum.saturating_add(took);
    }
}

/// Upper bounds in microseconds.
const BOUNDS: [u64; 16] = [
    100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 2_000_000, 5_000_000, 10_000_000,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_the_bucket_whose_bound_they_do_not_pass() {
        let mut histogram = Histogram::default();
        for micros in [0, 100, 101, 10_000_000, 10_000_001, 60_000_000] {
            histogram.record(Duration::from_micros(micros));
        }
        let buckets: Vec<_> = histogram.buckets().collect();
        assert_eq!(buckets.len(), BOUNDS.len());
        assert_eq!(buckets[0], (Duration::from_micros(100), 2));
        assert_eq!(buckets[1], (Duration::from_micros(200), 3));
        assert_eq!(buckets[15], (Duration::from_secs(10), 4));
        assert_eq!(histogram.count(), 6);
        assert_eq!(histogram.sum(), Duration::from_micros(80_000_202));
        assert!(
            buckets
                .windows(2)
                .all(|w| w[0].0 < w[1].0 && w[0].1 <= w[1].1)
        );
    }
}
