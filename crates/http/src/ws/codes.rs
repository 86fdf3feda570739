//! The close codes of a WebSocket: those of RFC 6455, and codes from 4000 for reasons that it does
//! not cover.

use alknet_core::CloseCode;

use super::frame::WsProtocolError;

/// The reason in the answer to the peer's close frame.
pub(super) const ANSWERED: &str = "";

/// A message began and did not end in time.
pub(super) const LATE: WsProtocolError = WsProtocolError {
    code: 4408,
    reason: "partial message",
};

/// The new message would use too much memory, with the others that its sender has begun.
pub(super) const OVERFULL: WsProtocolError = WsProtocolError {
    code: 1013,
    reason: "overloaded",
};

/// The peer did not answer pings.
pub(super) const SILENT: WsProtocolError = WsProtocolError {
    code: 4408,
    reason: "no answer to pings",
};

/// The close frame for one of core's codes and this reason. `cut` means that not all data was sent.
pub(super) fn close_error(code: CloseCode, reason: &str, cut: bool) -> WsProtocolError {
    let fault = |code, reason| WsProtocolError { code, reason };
    match code {
        CloseCode::Normal if cut => fault(1011, "cut off"),
        CloseCode::Normal => fault(1000, "the end"),
        CloseCode::Policy => match reason {
            "expired" => fault(4401, "expired"),
            "revoked" => fault(4403, "revoked"),
            _ => fault(1008, "refused"),
        },
        CloseCode::Overload => fault(1013, "overloaded"),
        CloseCode::Shutdown => fault(1001, "draining"),
        CloseCode::Superseded => fault(4409, "superseded"),
        CloseCode::Protocol if reason == "frame too long" => fault(1009, "message too long"),
        CloseCode::Protocol => fault(1002, "the call protocol was broken"),
        CloseCode::Locked => fault(4423, "locked"),
        CloseCode::Timeout => fault(4408, "timed out"),
        _ => fault(1011, "internal error"),
    }
}

/// The close frame that answers the peer's one: it has the same code.
pub(super) fn answer(code: Option<u16>) -> WsProtocolError {
    WsProtocolError {
        code: code.unwrap_or(1000),
        reason: ANSWERED,
    }
}

/// The number of core's code that the peer's close code corresponds to.
pub(super) fn core(code: u16) -> Option<u64> {
    let code = match code {
        1000 | 1001 => CloseCode::Normal,
        1002 | 1003 | 1007 | 1009 | 1010 => CloseCode::Protocol,
        1008 | 4401 | 4403 => CloseCode::Policy,
        1011 => CloseCode::Internal,
        1012 => CloseCode::Shutdown,
        1013 => CloseCode::Overload,
        4408 => CloseCode::Timeout,
        4409 => CloseCode::Superseded,
        4423 => CloseCode::Locked,
        _ => return None,
    };
    Some(code.code().into())
}
