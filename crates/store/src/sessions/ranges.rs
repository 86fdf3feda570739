//! The ranges of a file that are there: what the writes of a session have covered, or what has arrived of a content.

use std::fmt;
use std::iter;
use std::ops::Range;

/// Ranges of bytes in order, of which no two touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ByteRanges(Vec<Range<u64>>);

impl ByteRanges {
    /// Number of separate ranges.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Bytes of a range that are not covered.
    pub(crate) fn missing_bytes(&self, range: &Range<u64>) -> u64 {
        self.gaps(range).map(|gap| gap.end - gap.start).sum()
    }

    /// Adds a range.
    pub(crate) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        // Ranges that touch become one, so that an upload in order is one range.
        let first = self.0.partition_point(|it| it.end < range.start);
        let behind = self.0.partition_point(|it| it.start <= range.end);
        let joined = self.0.get(first..behind).unwrap_or_default();
        let start = joined
            .first()
            .map_or(range.start, |it| it.start.min(range.start));
        let end = joined.last().map_or(range.end, |it| it.end.max(range.end));
        drop(self.0.splice(first..behind, iter::once(start..end)));
    }

    /// Removes everything from this byte on.
    pub(crate) fn truncate(&mut self, len: u64) {
        self.0.retain(|it| it.start < len);
        if let Some(last) = self.0.last_mut() {
            last.end = last.end.min(len);
        }
    }

    /// Covered parts of a range, in order.
    pub(crate) fn covered(&self, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let first = self.0.partition_point(|it| it.end <= range.start);
        let (start, end) = (range.start, range.end);
        let inside = self
            .0
            .iter()
            .skip(first)
            .take_while(move |it| it.start < end);
        inside.map(move |it| it.start.max(start)..it.end.min(end))
    }

    /// Parts of a range that are not covered, in order.
    pub(crate) fn gaps(&self, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let end = range.end;
        let mut at = range.start;
        // The end as an empty range, so that the gap behind the last covered part comes too.
        let covered = self.covered(range).chain(iter::once(end..end));
        covered.filter_map(move |part| {
            let gap = at..part.start;
            at = part.end;
            (!gap.is_empty()).then_some(gap)
        })
    }
}

/// The form of the row of a session: `0-100,200-300`, each without its last number.
impl fmt::Display for ByteRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, range) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { "," };
            write!(f, "{separator}{}-{}", range.start, range.end)?;
        }
        Ok(())
    }
}

impl ByteRanges {
    /// Reads the form of a row. `None` for any other text.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut ranges = Self::default();
        for range in text.split(',').filter(|range| !range.is_empty()) {
            let (start, end) = range.split_once('-')?;
            let range = start.parse::<u64>().ok()?..end.parse::<u64>().ok()?;
            ranges.insert(range);
        }
        // Only what the form has: ranges in order, without signs and zeros in front.
        (ranges.to_string() == text).then_some(ranges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(parts: &[(u64, u64)]) -> ByteRanges {
        let mut ranges = ByteRanges::default();
        for (start, end) in parts {
            ranges.insert(*start..*end);
        }
        ranges
    }

    #[test]
    fn ranges_are_read_as_they_are_written() {
        for text in ["", "0-20", "0-20,30-31"] {
            let read = ByteRanges::parse(text).expect("the form of a row");
            assert_eq!(read.to_string(), text);
        }
        for wrong in [
            "0",
            "5-5",
            "+0-20",
            "30-31,0-20",
            "0-20,10-30",
            "0-20,",
            "x-y",
        ] {
            assert_eq!(ByteRanges::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn ranges_that_touch_or_overlap_become_one() {
        for (parts, expected) in [
            (&[(0, 10), (10, 20)][..], "0-20"),
            (&[(10, 20), (0, 10)], "0-20"),
            (&[(0, 10), (20, 30), (5, 25)], "0-30"),
            (&[(0, 10), (20, 30)], "0-10,20-30"),
            (&[(20, 30), (0, 10), (12, 14)], "0-10,12-14,20-30"),
            (&[(0, 30), (5, 6)], "0-30"),
            (&[(5, 5)], ""),
        ] {
            assert_eq!(ranges(parts).to_string(), expected, "{parts:?}");
        }
    }

    #[test]
    fn gaps_and_covered_parts_make_the_whole_range() {
        let written = ranges(&[(10, 20), (30, 40)]);
        for (range, gaps, missing) in [
            (0..50, vec![(0, 10), (20, 30), (40, 50)], 30),
            (15..35, vec![(20, 30)], 10),
            (10..20, vec![], 0),
            (40..45, vec![(40, 45)], 5),
            (20..20, vec![], 0),
        ] {
            let found: Vec<_> = written.gaps(&range).map(|it| (it.start, it.end)).collect();
            assert_eq!(found, gaps, "{range:?}");
            assert_eq!(written.missing_bytes(&range), missing);
            let covered = written.covered(&range).map(|it| it.end - it.start);
            assert_eq!(covered.sum::<u64>() + missing, range.end - range.start);
        }
    }

    #[test]
    fn a_shorter_file_has_shorter_ranges() {
        let mut written = ranges(&[(10, 20), (30, 40)]);
        written.truncate(35);
        assert_eq!(written.to_string(), "10-20,30-35");
        written.truncate(15);
        assert_eq!(written.to_string(), "10-15");
        written.truncate(0);
        assert_eq!(written, ByteRanges::default());
    }
}
