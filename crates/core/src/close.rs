//! The codes with which connections and streams end. Peers switch on the numbers, so that no number can change.

use std::fmt;
use std::time::Duration;

/// Application close code of a connection (QUIC `CONNECTION_CLOSE`, RFC 9000 section 19.19). TCP carries no code: the
/// peer sees only `close_notify`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseCode {
    /// 7: an error of this node, also a handler's panic; a retry is reasonable.
    Internal,
    /// 6: the node waits for its vault; retry after 30 s.
    Locked,
    /// 9: no handler serves this protocol.
    NoHandler,
    /// 0: a regular end.
    Normal,
    /// 2: too much load; retry with back-off of at least 1 s.
    Overload,
    /// 1: authentication required, forbidden, revoked or expired; do not retry.
    Policy,
    /// 5: the peer broke the protocol; do not retry.
    Protocol,
    /// 3: the node drains; retry after 5 s.
    Shutdown,
    /// 4: a newer connection of the same peer took over.
    Superseded,
    /// 8: idle or login time exceeded.
    Timeout,
}

impl CloseCode {
    /// Every code, in numeric order.
    pub const ALL: [Self; 10] = [
        Self::Normal,
        Self::Policy,
        Self::Overload,
        Self::Shutdown,
        Self::Superseded,
        Self::Protocol,
        Self::Locked,
        Self::Internal,
        Self::Timeout,
        Self::NoHandler,
    ];

    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::Normal => 0,
            Self::Policy => 1,
            Self::Overload => 2,
            Self::Shutdown => 3,
            Self::Superseded => 4,
            Self::Protocol => 5,
            Self::Locked => 6,
            Self::Internal => 7,
            Self::Timeout => 8,
            Self::NoHandler => 9,
        }
    }

    /// The code with this number, if it is one of this project's.
    #[must_use]
    pub fn from_code(code: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|c| u64::from(c.code()) == code)
    }

    /// The name in logs and documents.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Normal => "NORMAL",
            Self::Policy => "POLICY",
            Self::Overload => "OVERLOAD",
            Self::Shutdown => "SHUTDOWN",
            Self::Superseded => "SUPERSEDED",
            Self::Protocol => "PROTOCOL",
            Self::Locked => "LOCKED",
            Self::Internal => "INTERNAL",
            Self::Timeout => "TIMEOUT",
            Self::NoHandler => "NO_HANDLER",
        }
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.code(), self.name())
    }
}

/// The reason for which a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseReason {
    /// This side closed it.
    Local,
    /// The carriage failed: reset, unreachable, TLS failure.
    Lost(String),
    /// The peer closed it with an application code (`None` where the carriage loses codes).
    Peer(Option<u64>, String),
    /// Nothing came for the idle time.
    TimedOut,
}

impl CloseReason {
    /// How long the dialler waits before it dials a peer again that closed the connection for this reason; `None`:
    /// until an administrator changes something.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use alknet_core::{CloseCode, CloseReason};
    ///
    /// let closed = |code: CloseCode| CloseReason::Peer(Some(u64::from(code.code())), String::new());
    /// assert_eq!(closed(CloseCode::Shutdown).pause(), Some(Duration::from_secs(5)));
    /// assert_eq!(closed(CloseCode::Policy).pause(), None);
    /// ```
    #[must_use]
    pub fn pause(&self) -> Option<Duration> {
        // Only the peer's code can ask for a pause.
        let Self::Peer(Some(code), _) = self else {
            return Some(Duration::ZERO);
        };
        let seconds = match CloseCode::from_code(*code) {
            Some(
                CloseCode::Policy
                | CloseCode::Superseded
                | CloseCode::Protocol
                | CloseCode::NoHandler,
            ) => return None,
            Some(CloseCode::Locked) => 30,
            Some(CloseCode::Shutdown) => 5,
            Some(CloseCode::Overload) => 1,
            // A number of another protocol says nothing about when to dial again.
            _ => 0,
        };
        Some(Duration::from_secs(seconds))
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("closed here"),
            Self::Lost(why) => write!(f, "connection lost: {why}"),
            Self::Peer(None, _) => f.write_str("closed by the peer"),
            Self::Peer(Some(code), why) => match CloseCode::from_code(*code) {
                Some(code) => write!(f, "closed by the peer: {code} {why}"),
                None => write!(f, "closed by the peer: code {code} {why}"),
            },
            Self::TimedOut => f.write_str("timed out"),
        }
    }
}

/// Code of a stream's RESET_STREAM or STOP_SENDING (RFC 9000 sections 19.4 and 19.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamCode {
    /// 0: the requester is no longer interested.
    Cancelled,
    /// 8: a time limit passed.
    Deadline,
    /// A number of a protocol with codes of its own, such as HTTP/3.
    Foreign(u32),
    /// 7: an error of this node.
    Internal,
    /// 2: too much load.
    Overload,
    /// 5: malformed input.
    Protocol,
}

impl StreamCode {
    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::Cancelled => 0,
            Self::Overload => 2,
            Self::Protocol => 5,
            Self::Internal => 7,
            Self::Deadline => 8,
            Self::Foreign(code) => code,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peers_reason_decides_about_coming_back() {
        let after =
            |code: CloseCode| CloseReason::Peer(Some(code.code().into()), String::new()).pause();
        let seconds = |n| Some(Duration::from_secs(n));
        for (code, pause) in [
            (CloseCode::Normal, seconds(0)),
            (CloseCode::Policy, None),
            (CloseCode::Overload, seconds(1)),
            (CloseCode::Shutdown, seconds(5)),
            (CloseCode::Superseded, None),
            (CloseCode::Protocol, None),
            (CloseCode::Locked, seconds(30)),
            (CloseCode::Internal, seconds(0)),
            (CloseCode::Timeout, seconds(0)),
            (CloseCode::NoHandler, None),
        ] {
            assert_eq!(after(code), pause, "{code}");
        }
        for reason in [
            CloseReason::TimedOut,
            CloseReason::Lost("reset".to_owned()),
            CloseReason::Peer(None, String::new()),
        ] {
            assert_eq!(reason.pause(), seconds(0), "{reason}");
        }
    }
}
