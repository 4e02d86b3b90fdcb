//! Sets of sequence numbers, kept as ranges.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// A set of numbers. What it takes in memory goes with the number of its gaps,
/// not of its members.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges(
    /// First to last number of each range. Ranges neither overlap nor touch.
    BTreeMap<u64, u64>,
);

impl Ranges {
    pub(crate) fn contains(&self, number: u64) -> bool {
        self.0
            .range(..=number)
            .next_back()
            .is_some_and(|(_, last)| number <= *last)
    }

    /// Adds all numbers of `range`.
    pub(crate) fn insert(&mut self, range: RangeInclusive<u64>) {
        let (mut first, mut last) = range.into_inner();
        if first > last {
            return;
        }
        while let Some((&start, &end)) = self.0.range(..=last.saturating_add(1)).next_back() {
            if end < first.saturating_sub(1) {
                break;
            }
            first = first.min(start);
            last = last.max(end);
            self.0.remove(&start);
        }
        self.0.insert(first, last);
    }

    pub(crate) fn first(&self) -> Option<u64> {
        self.0.first_key_value().map(|(first, _)| *first)
    }

    pub(crate) fn last(&self) -> Option<u64> {
        self.0.last_key_value().map(|(_, last)| *last)
    }

    /// How many numbers there are.
    pub(crate) fn count(&self) -> u64 {
        self.0.iter().fold(0, |sum, (first, last)| {
            (last - first).saturating_add(1).saturating_add(sum)
        })
    }

    /// The ranges of it that lie within `bounds`, ascending.
    pub(crate) fn within(
        &self,
        bounds: RangeInclusive<u64>,
    ) -> impl Iterator<Item = RangeInclusive<u64>> + '_ {
        let (first, last) = bounds.into_inner();
        let from = self
            .0
            .range(..=first)
            .next_back()
            .map_or(first, |(start, _)| *start);
        let reach = if first <= last {
            Some(self.0.range(from..=last.max(from)))
        } else {
            None
        };
        reach
            .into_iter()
            .flatten()
            .map(move |(start, end)| (*start).max(first)..=(*end).min(last))
            .filter(|range| !range.is_empty())
    }

    /// The ranges within `bounds` that are not in it, ascending.
    pub(crate) fn gaps(&self, bounds: RangeInclusive<u64>) -> Vec<RangeInclusive<u64>> {
        let (first, last) = (*bounds.start(), *bounds.end());
        let mut gaps = Vec::new();
        let mut next = Some(first);
        for present in self.within(bounds) {
            if let Some(from) = next.filter(|from| from < present.start()) {
                gaps.push(from..=present.start() - 1);
            }
            next = present.end().checked_add(1);
        }
        if let Some(from) = next.filter(|from| *from <= last) {
            gaps.push(from..=last);
        }
        gaps
    }

    pub(crate) fn into_vec(self) -> Vec<RangeInclusive<u64>> {
        self.0
            .into_iter()
            .map(|(first, last)| first..=last)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Numbers near both ends, where arithmetic overflows.
    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![0_u64..40, (u64::MAX - 40)..=u64::MAX]
    }

    fn range() -> impl Strategy<Value = RangeInclusive<u64>> {
        (number(), 0_u64..6).prop_map(|(first, more)| first..=first.saturating_add(more))
    }

    proptest! {
        #[test]
        fn behaves_as_a_set_of_numbers(
            inserted in prop::collection::vec(range(), 0..30),
            bounds in range(),
        ) {
            let mut ranges = Ranges::default();
            let mut set = BTreeSet::new();
            for range in inserted {
                ranges.insert(range.clone());
                set.extend(range);
            }
            prop_assert_eq!(ranges.first(), set.first().copied());
            prop_assert_eq!(ranges.last(), set.last().copied());
            prop_assert_eq!(ranges.count(), set.len() as u64);
            for n in (0..50).chain(u64::MAX - 50..=u64::MAX) {
                prop_assert_eq!(ranges.contains(n), set.contains(&n), "{}", n);
            }
            let within: Vec<u64> = ranges.within(bounds.clone()).flatten().collect();
            let expected: Vec<u64> = bounds.clone().filter(|n| set.contains(n)).collect();
            prop_assert_eq!(within, expected);
            let gaps = ranges.gaps(bounds.clone());
            let expected: Vec<u64> = bounds.filter(|n| !set.contains(n)).collect();
            prop_assert!(gaps.windows(2).all(|g| g[0].end() + 1 < *g[1].start()), "maximal");
            prop_assert_eq!(gaps.into_iter().flatten().collect::<Vec<_>>(), expected);
            let list = ranges.into_vec();
            prop_assert!(list.windows(2).all(|g| g[0].end() + 1 < *g[1].start()), "maximal");
        }
    }
}
