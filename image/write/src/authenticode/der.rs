//! As much of DER (X.690) as signatures and certificates need.

pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;
pub(super) const OCTET_STRING: u8 = 0x04;
/// `[0]`, constructed; the next tags follow it.
pub(super) const CONTEXT_0: u8 = 0xa0;
/// `[0]`, in the place of the tag of a string.
pub(super) const IA5_IN_CONTEXT_0: u8 = 0x80;
const INTEGER: u8 = 0x02;
const OBJECT: u8 = 0x06;
/// The parameter of algorithms without one.
pub(super) const NULL: &[u8] = &[0x05, 0x00];

/// An element with these parts.
pub(super) fn element(tag: u8, parts: &[Vec<u8>]) -> Vec<u8> {
    let content = parts.concat();
    let mut out = vec![tag];
    let length = content.len().to_be_bytes();
    let zeros = length.iter().take_while(|byte| **byte == 0).count();
    match content.len() {
        short @ 0..=127 => out.push(short as u8),
        _ => {
            out.push(0x80 | (length.len() - zeros) as u8);
            out.extend(&length[zeros..]);
        }
    }
    out.extend(content);
    out
}

/// A number below 128.
pub(super) fn integer(number: u8) -> Vec<u8> {
    vec![INTEGER, 1, number & 0x7f]
}

/// An object identifier.
pub(super) fn object(numbers: &[u64]) -> Vec<u8> {
    let mut content = Vec::new();
    let (first, rest) = numbers.split_at(2);
    // The first two numbers share one (X.690 section 8.19.4).
    let head = first[0] * 40 + first[1];
    for number in std::iter::once(&head).chain(rest) {
        let mut groups = vec![(number & 0x7f) as u8];
        let mut left = number >> 7;
        while left > 0 {
            groups.push((left & 0x7f) as u8 | 0x80);
            left >>= 7;
        }
        content.extend(groups.into_iter().rev());
    }
    element(OBJECT, &[content])
}

/// The identifier of an algorithm with its parameter; an empty one is left out.
pub(super) fn algorithm(numbers: &[u64], parameter: &[u8]) -> Vec<u8> {
    element(SEQUENCE, &[object(numbers), parameter.to_vec()])
}

/// An element that was read.
#[derive(Clone, Copy)]
pub(super) struct DerElement<'a> {
    pub(super) tag: u8,
    /// With its tag and length.
    pub(super) whole: &'a [u8],
    pub(super) content: &'a [u8],
}

/// Takes the next element off `rest`. `None` if there is no whole one, or its length is not in the shortest form.
pub(super) fn next<'a>(rest: &mut &'a [u8]) -> Option<DerElement<'a>> {
    let (tag, length) = (*rest.first()?, usize::from(*rest.get(1)?));
    let (length, head) = match length {
        0..=127 => (length, 2),
        // Four bytes of length are more than any certificate has.
        0x81..=0x84 => {
            let bytes = length - 0x80;
            let digits = rest.get(2..2 + bytes)?;
            let number = digits
                .iter()
                .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            // DER has the shortest form alone (X.690 section 10.1). Firmware reads some lengths at fixed places.
            if number < 0x80 || digits.first() == Some(&0) {
                return None;
            }
            (number, 2 + bytes)
        }
        _ => return None,
    };
    let whole = rest.get(..head.checked_add(length)?)?;
    *rest = &rest[whole.len()..];
    Some(DerElement {
        tag,
        whole,
        content: &whole[head..],
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn identifiers_have_the_known_bytes() {
        let sha256 = [
            0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01,
        ];
        assert_eq!(object(&[2, 16, 840, 1, 101, 3, 4, 2, 1]), sha256);
        let rsa = [
            0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01,
        ];
        assert_eq!(object(&[1, 2, 840, 113_549, 1, 1, 1]), rsa);
    }

    #[test]
    fn a_length_that_is_not_in_the_shortest_form_is_refused() {
        for (content, longer) in [
            (2_u8, &[0x81, 2][..]),
            (2, &[0x82, 0, 2][..]),
            (200, &[0x82, 0, 200][..]),
            (200, &[0x83, 0, 0, 200][..]),
        ] {
            let content = vec![0; content.into()];
            let shortest = element(SEQUENCE, std::slice::from_ref(&content));
            assert!(next(&mut &shortest[..]).is_some());
            let written = [&[SEQUENCE][..], longer, &content].concat();
            assert!(next(&mut &written[..]).is_none(), "{longer:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(content in proptest::collection::vec(any::<u8>(), 0..70_000)) {
            let written = element(SEQUENCE, std::slice::from_ref(&content));
            let mut rest = &written[..];
            let read = next(&mut rest).expect("an element");
            prop_assert_eq!((read.tag, read.content), (SEQUENCE, &content[..]));
            prop_assert_eq!(read.whole, &written[..]);
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn no_bytes_are_read_beyond_the_end(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut rest = &bytes[..];
            while let Some(read) = next(&mut rest) {
                prop_assert!(read.whole.len() >= 2 && read.content.len() < read.whole.len());
            }
        }
    }
}
