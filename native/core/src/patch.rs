//! Which ranges of a slot differ from the current value, so that `write_at` carries over only what
//! the slot it goes to lacks.

/// Ranges remembered for a slot; more are merged, which costs copying but loses nothing.
const MOST: usize = 4;

/// A set of byte ranges, sorted and apart, possibly larger than what was added but never smaller.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ranges {
    len: u8,
    ranges: [(u32, u32); MOST],
}

impl Ranges {
    /// Everything up to `end`.
    pub(crate) fn whole(end: usize) -> Self {
        let mut all = Self::default();
        all.add(0, end);
        all
    }

    /// The ranges, as (start, end).
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.ranges[..usize::from(self.len)]
            .iter()
            .map(|(start, end)| (*start as usize, *end as usize))
    }

    /// Adds a range; capacities are at most 1 GiB, so 32 bits hold it.
    pub(crate) fn add(&mut self, start: usize, end: usize) {
        if start >= end {
            return;
        }
        let mut merged = (start as u32, end as u32);
        let mut kept = [(0, 0); MOST + 1];
        let mut count = 0;
        for range in &self.ranges[..usize::from(self.len)] {
            if range.1 < merged.0 || merged.1 < range.0 {
                kept[count] = *range;
                count += 1;
            } else {
                merged = (range.0.min(merged.0), range.1.max(merged.1));
            }
        }
        kept[count] = merged;
        count += 1;
        kept[..count].sort_unstable();
        if count > MOST {
            // Join the two neighbours with the smallest gap.
            let gap = |i: usize| kept[i + 1].0 - kept[i].1;
            let at = (0..count - 1).min_by_key(|i| gap(*i)).unwrap_or(0);
            kept[at].1 = kept[at + 1].1;
            kept.copy_within(at + 2..count, at + 1);
            count -= 1;
        }
        self.ranges.copy_from_slice(&kept[..MOST]);
        self.len = count as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn covers_all_that_was_added(adds in prop::collection::vec((0usize..200, 0usize..40), 0..20)) {
            let mut set = Ranges::default();
            for (start, len) in &adds {
                set.add(*start, start + len);
            }
            let covered = |at: usize| set.iter().any(|(s, e)| (s..e).contains(&at));
            for (start, len) in &adds {
                prop_assert!((*start..start + len).all(covered));
            }
            let list: Vec<_> = set.iter().collect();
            prop_assert!(list.len() <= MOST);
            prop_assert!(list.windows(2).all(|w| w[0].1 < w[1].0));
        }
    }
}
