//! An SNTP server whose time stands still (RFC 4330).

use super::wire::array;

/// UDP port of the server.
pub(crate) const PORT: u16 = 123;

/// Length of a message without authentication.
const MESSAGE_BYTES: usize = 48;

/// Seconds between 1900 and 1970.
const NTP_TO_UNIX_S: u64 = 2_208_988_800;

/// Mode of a client's message, and of ours.
const CLIENT: u8 = 3;
const SERVER: u8 = 4;

/// The answer to `question` of a server whose clock says `unix_s`, in seconds since 1970.
pub(crate) fn answer(question: &[u8], unix_s: u64) -> Option<Vec<u8>> {
    let (first, sent) = (*question.first()?, array::<8>(question, 40)?);
    if question.len() < MESSAGE_BYTES || first & 7 != CLIENT {
        return None;
    }
    // The seconds are of an era, and the message does not say which era.
    let stamp = (unix_s.wrapping_add(NTP_TO_UNIX_S) << 32).to_be_bytes();
    // No leap second, the client's version, stratum 1, its poll interval, microseconds.
    let mut message = vec![first & 0x38 | SERVER, 1, *question.get(2)?, 0xec];
    // No distance to the source, which is a clock called LOCL.
    message.extend([0; 8]);
    message.extend(b"LOCL");
    // The times of setting, asking, receiving and sending.
    for stamp in [stamp, sent, stamp, stamp] {
        message.extend(stamp);
    }
    Some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question() -> Vec<u8> {
        let mut message = vec![0x23, 0, 6, 0];
        message.resize(40, 0);
        message.extend(*b"a secret");
        message
    }

    #[test]
    fn the_question_comes_back_with_the_time() {
        let answer = answer(&question(), 1).expect("it is answered");
        assert_eq!(answer.len(), MESSAGE_BYTES);
        assert_eq!((answer[0], answer[1]), (0x24, 1));
        assert_eq!(&answer[24..32], b"a secret");
        assert_eq!(answer[40..], [0x83, 0xaa, 0x7e, 0x81, 0, 0, 0, 0]);
    }

    #[test]
    fn what_is_no_question_is_not_answered() {
        assert_eq!(answer(&[], 1), None);
        assert_eq!(answer(&question()[..47], 1), None);
        let mut reply = question();
        reply[0] = 0x24;
        assert_eq!(answer(&reply, 1), None, "a server's message");
    }
}
