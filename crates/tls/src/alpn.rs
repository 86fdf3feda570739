//! The protocol that a node prefers when a client offers several.

/// The most specific first. A protocol of this project that is not listed comes before the web's.
const ORDER: [&[u8]; 19] = [
    b"alknet/channels",
    b"alknet/call",
    b"alknet/ssh",
    b"alknet/sftp",
    b"alknet/git",
    b"alknet/fs-sync",
    b"alknet/tty",
    b"alknet/tensor",
    b"alknet/msg",
    b"alknet/mix",
    b"alknet/dns",
    b"alknet/enroll",
    b"/iroh-bytes/4",
    b"doq",
    b"dot",
    OTHERS,
    b"h3",
    b"h2",
    b"http/1.1",
];

/// Stands for protocols that are not listed. No ALPN is empty.
const OTHERS: &[u8] = b"";

/// Sorts `alpns`, the most preferred first. Equals keep their order.
///
/// ```
/// use alknet_tls::by_preference;
///
/// let sorted = by_preference(&[b"h2", b"example/echo", b"alknet/call"]);
/// assert_eq!(sorted, [&b"alknet/call"[..], b"example/echo", b"h2"]);
/// ```
#[must_use]
pub fn by_preference(alpns: &[&[u8]]) -> Vec<Vec<u8>> {
    let position = |id: &[u8]| ORDER.iter().position(|known| *known == id);
    let mut sorted: Vec<Vec<u8>> = alpns.iter().map(|id| id.to_vec()).collect();
    sorted.sort_by_key(|id| position(id).or_else(|| position(OTHERS)));
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specific_before_general() {
        let sorted = by_preference(&[
            b"http/1.1",
            b"h2",
            b"alknet/later",
            b"h3",
            b"alknet/call",
            b"alknet/new",
            b"alknet/channels",
        ]);
        let expected: [&[u8]; 7] = [
            b"alknet/channels",
            b"alknet/call",
            b"alknet/later",
            b"alknet/new",
            b"h3",
            b"h2",
            b"http/1.1",
        ];
        assert_eq!(sorted, expected);
    }
}
