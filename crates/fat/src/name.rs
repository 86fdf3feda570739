//! Names: eleven bytes of every entry, and the long names in the entries before it (FAT specification, "Long Directory
//! Entries").

use crate::bytes::u16_at;
use crate::error::FatError;
use crate::geometry::ENTRY_BYTES;
use crate::limits::FOLDER_DEPTH_MAX;

/// Bytes of a short name: eight, and three after the dot.
pub(crate) const SHORT_BYTES: usize = 11;
/// UTF-16 units of a long name in one entry.
const PART_UNITS: usize = 13;
/// Positions of these units in the entry.
const UNITS_AT: [usize; PART_UNITS] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
/// Entries of the longest name.
const PARTS_MAX: usize = 20;
/// UTF-16 units of the longest name.
const UNITS_MAX: usize = 255;
/// Mark in the number of the part that ends the name, which comes first.
const LAST_PART: u8 = 0x40;
/// Marks of Windows NT, Linux and mtools in byte 12 of an entry: the name, and the extension, are shown in lower case.
const LOWER_STEM: u8 = 0x08;
const LOWER_EXTENSION: u8 = 0x10;

/// A name of at most eight characters and three after the dot, in FAT's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShortName(pub(crate) [u8; SHORT_BYTES]);

impl ShortName {
    pub(crate) const DOT: Self = Self(*b".          ");
    pub(crate) const DOT_DOT: Self = Self(*b"..         ");

    /// Splits `NAME.EXT`. `None` if it does not fit or has a character that FAT would change.
    ///
    /// ```
    /// use alknet_fat::ShortName;
    ///
    /// assert!(ShortName::new("BOOTX64.EFI").is_some());
    /// for other in ["bootx64.efi", "ALKNET.TOML", "A.B.C", ".EFI"] {
    ///     assert_eq!(ShortName::new(other), None);
    /// }
    /// ```
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let (stem, extension) = name.split_once('.').unwrap_or((name, ""));
        // Lower case would need a long name beside the short one.
        let plain = |text: &str| {
            text.bytes()
                .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
        };
        if stem.is_empty() || stem.len() > 8 || extension.len() > 3 {
            return None;
        }
        if !plain(stem) || !plain(extension) {
            return None;
        }
        let mut out = [b' '; SHORT_BYTES];
        out[..stem.len()].copy_from_slice(stem.as_bytes());
        out[8..8 + extension.len()].copy_from_slice(extension.as_bytes());
        Some(Self(out))
    }

    /// The name as systems show it, with the marks of the entry for lower case. `None` if the specification forbids one
    /// of its bytes. A byte above ASCII depends on the code page of the system that wrote it, which is unknown.
    pub(crate) fn shown(mut self, marks: u8) -> Option<String> {
        const FORBIDDEN: &[u8] = b"\"*+,./:;<=>?[\\]|";

        // The first byte of a deleted entry is that of a letter of some code pages, which therefore have another one.
        if self.0[0] == 0x05 {
            self.0[0] = 0xe5;
        }
        let is_allowed = |byte: &u8| *byte >= b' ' && *byte != 0x7f && !FORBIDDEN.contains(byte);
        if self.0[0] == b' ' || !self.0.iter().all(is_allowed) {
            return None;
        }
        let (stem, extension) = self.0.split_at(8);
        let mut name = text(stem, marks & LOWER_STEM != 0);
        let extension = text(extension, marks & LOWER_EXTENSION != 0);
        if !extension.is_empty() {
            name.push('.');
            name.push_str(&extension);
        }
        Some(name)
    }

    /// Whether a part of a path in capitals is this name. A name with bytes above ASCII is unknown.
    pub(crate) fn is_named(self, folded_part: &str) -> bool {
        self.0.is_ascii()
            && self
                .shown(0)
                .is_some_and(|shown| folded(&shown) == folded_part)
    }

    /// The sum that links a long name to this short one. A system that knows only short names may have moved the file.
    pub(crate) fn checksum(self) -> u8 {
        let bytes = self.0.iter();
        bytes.fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
    }
}

/// A part of a short name without the spaces behind it.
fn text(bytes: &[u8], is_lower: bool) -> String {
    let end = bytes.iter().rposition(|byte| *byte != b' ');
    let bytes = &bytes[..end.map_or(0, |at| at + 1)];
    let shown = bytes.iter().map(|byte| match byte {
        0x80.. => char::REPLACEMENT_CHARACTER,
        byte if is_lower => char::from(byte.to_ascii_lowercase()),
        byte => char::from(*byte),
    });
    shown.collect()
}

/// The parts of a long name, as they come: the last part first.
#[derive(Debug)]
pub(crate) struct LongNameParts {
    units: Vec<u16>,
    checksum: u8,
    /// Number of the part that came last. 1 once all have come.
    part: usize,
}

impl LongNameParts {
    /// Begins with an entry of a long name. `None` if it is not the last part of one.
    pub(crate) fn begin(slot: &[u8]) -> Option<Self> {
        let (number, is_last) = (usize::from(slot[0] & !LAST_PART), slot[0] & LAST_PART != 0);
        if !is_last || !(1..=PARTS_MAX).contains(&number) || !is_part(slot) {
            return None;
        }
        let mut name = Self {
            units: vec![0; number * PART_UNITS],
            checksum: slot[13],
            part: number,
        };
        name.take(slot);
        Some(name)
    }

    /// Continues with the next entry. `None` if it does not belong to the name.
    pub(crate) fn with(mut self, slot: &[u8]) -> Option<Self> {
        // The numbers count down to 1, so a part of another name ends this one.
        if usize::from(slot[0]) + 1 != self.part || slot[0] == 0 {
            return None;
        }
        if slot[13] != self.checksum || !is_part(slot) {
            return None;
        }
        self.part -= 1;
        self.take(slot);
        Some(self)
    }

    fn take(&mut self, slot: &[u8]) {
        let first = (self.part - 1) * PART_UNITS;
        for (unit, at) in self.units[first..].iter_mut().zip(UNITS_AT) {
            *unit = u16_at(slot, at);
        }
    }

    /// The name, if all parts have come, belong to this short name, and are a name that a person can tell from a path.
    pub(crate) fn finish(mut self, short: ShortName) -> Option<String> {
        const FORBIDDEN: &str = "\"*/:<>?\\|";

        if self.part != 1 || self.checksum != short.checksum() {
            return None;
        }
        if let Some(end) = self.units.iter().position(|unit| *unit == 0) {
            // The name ends with a zero if there is room, and what follows is 0xffff.
            if self.units[end + 1..].iter().any(|unit| *unit != 0xffff) {
                return None;
            }
            self.units.truncate(end);
        }
        if self.units.is_empty() || self.units.len() > UNITS_MAX {
            return None;
        }
        let name = String::from_utf16(&self.units).ok()?;
        let is_allowed = |c: char| !c.is_control() && !FORBIDDEN.contains(c);
        let is_name = name != "." && name != ".." && name.chars().all(is_allowed);
        is_name.then_some(name)
    }
}

/// Whether the fields that a long name does not use are as the specification wants them.
fn is_part(slot: &[u8]) -> bool {
    debug_assert_eq!(slot.len(), ENTRY_BYTES);
    slot[12] == 0 && u16_at(slot, 26) == 0
}

/// The form of a name in which it is compared: FAT knows no difference between upper and lower case.
pub(crate) fn folded(name: &str) -> String {
    name.chars().flat_map(char::to_uppercase).collect()
}

/// The parts of a path, from the root on. A path may have slashes of either kind, also at its ends.
pub(crate) fn parts_of(path: &str) -> Result<Vec<&str>, FatError> {
    let parts = path.split(['\\', '/']).filter(|part| !part.is_empty());
    let parts: Vec<&str> = parts.take(FOLDER_DEPTH_MAX + 1).collect();
    if parts.len() > FOLDER_DEPTH_MAX {
        return Err(FatError::Limit {
            what: "levels of folders",
            limit: FOLDER_DEPTH_MAX as u64,
        });
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::put;

    #[test]
    fn only_plain_short_names_are_taken() {
        assert_eq!(
            ShortName::new("BOOTX64.EFI"),
            Some(ShortName(*b"BOOTX64 EFI"))
        );
        assert_eq!(ShortName::new("EFI"), Some(ShortName(*b"EFI        ")));
        for long in [
            "",
            ".EFI",
            "ALKNET.TOML",
            "ALKNETNOD.EFI",
            "efi",
            "A B",
            "A.B.C",
            "É",
        ] {
            assert_eq!(ShortName::new(long), None, "{long}");
        }
    }

    #[test]
    fn short_names_are_shown_as_their_marks_say() {
        for (name, marks, shown) in [
            (b"README  TXT", 0, Some("README.TXT")),
            (b"README  TXT", LOWER_STEM, Some("readme.TXT")),
            (
                b"README  TXT",
                LOWER_STEM | LOWER_EXTENSION,
                Some("readme.txt"),
            ),
            (b"A B     X  ", 0, Some("A B.X")),
            (b"EFI        ", 0, Some("EFI")),
            (b"\x05BC        ", 0, Some("\u{fffd}BC")),
            (b"A/B        ", 0, None),
            (b"A.B        ", 0, None),
            (b" AB        ", 0, None),
            (b"A\nB        ", 0, None),
        ] {
            let name = ShortName(*name);
            assert_eq!(name.shown(marks).as_deref(), shown, "{name:?}");
        }
    }

    /// The entries of a long name, the last part first.
    fn slots(name: &str, short: ShortName) -> Vec<[u8; ENTRY_BYTES]> {
        let mut units: Vec<u16> = name.encode_utf16().collect();
        let parts = units.len().div_ceil(PART_UNITS);
        if units.len() < parts * PART_UNITS {
            units.push(0);
        }
        units.resize(parts * PART_UNITS, 0xffff);
        let slot = |part: usize| {
            let mut out = [0; ENTRY_BYTES];
            let last = if part + 1 == parts { LAST_PART } else { 0 };
            put(&mut out, 0, &[(part as u8 + 1) | last]);
            put(&mut out, 11, &[0x0f, 0, short.checksum()]);
            for (unit, at) in units[part * PART_UNITS..].iter().zip(UNITS_AT) {
                put(&mut out, at, &unit.to_le_bytes());
            }
            out
        };
        (0..parts).rev().map(slot).collect()
    }

    fn read(slots: &[[u8; ENTRY_BYTES]], short: ShortName) -> Option<String> {
        let (first, others) = slots.split_first()?;
        let mut name = LongNameParts::begin(first)?;
        for slot in others {
            name = name.with(slot)?;
        }
        name.finish(short)
    }

    const SHORT: ShortName = ShortName(*b"LONGNA~1TXT");

    #[test]
    fn long_names_of_every_length_come_back() {
        for length in 1..=UNITS_MAX {
            let name = "ä".repeat(length);
            let read = read(&slots(&name, SHORT), SHORT);
            assert_eq!(read.as_ref(), Some(&name), "{length}");
        }
        let pair = "a name with a 🦀 in it";
        assert_eq!(read(&slots(pair, SHORT), SHORT).as_deref(), Some(pair));
    }

    #[test]
    fn a_long_name_of_another_entry_or_out_of_order_is_ignored() {
        let good = slots("a long name that has several parts", SHORT);
        assert!(good.len() == 3 && read(&good, SHORT).is_some());
        assert_eq!(
            read(&good, ShortName(*b"OTHER   TXT")),
            None,
            "another file"
        );
        assert_eq!(read(&good[1..], SHORT), None, "without its last part");
        assert_eq!(read(&good[..2], SHORT), None, "without its first part");
        assert_eq!(read(&[good[0], good[2], good[1]], SHORT), None, "order");
        let mut other = good.clone();
        other[1][13] ^= 1;
        assert_eq!(read(&other, SHORT), None, "a part of another name");
        let mut many = good[0];
        many[0] = LAST_PART | 21;
        assert!(LongNameParts::begin(&many).is_none(), "21 parts");
        let mut zero = good[0];
        zero[0] = LAST_PART;
        assert!(LongNameParts::begin(&zero).is_none(), "no part");
    }

    #[test]
    fn names_that_look_like_paths_are_ignored() {
        for name in ["a/b", r"a\b", "..", ".", "a\u{7}b", "a:b"] {
            assert_eq!(read(&slots(name, SHORT), SHORT), None, "{name:?}");
        }
        let mut half = slots("pair", SHORT);
        // The first half of a surrogate pair.
        put(&mut half[0], 1, &0xd83e_u16.to_le_bytes());
        assert_eq!(read(&half, SHORT), None);
        let mut behind = slots("end", SHORT);
        put(&mut behind[0], 30, &0x41_u16.to_le_bytes());
        assert_eq!(read(&behind, SHORT), None, "text behind the end");
    }

    #[test]
    fn paths_have_slashes_of_either_kind() {
        let expected = ["EFI", "ALKNET", "A.EFI"];
        for path in [
            r"\EFI\ALKNET\A.EFI",
            "EFI/ALKNET/A.EFI",
            r"//EFI\\ALKNET/A.EFI/",
        ] {
            assert_eq!(parts_of(path).expect("a path"), expected, "{path}");
        }
        assert!(parts_of("").expect("the root").is_empty());
        assert!(parts_of(&"A/".repeat(FOLDER_DEPTH_MAX)).is_ok());
        assert!(parts_of(&"A/".repeat(FOLDER_DEPTH_MAX + 1)).is_err());
    }
}
