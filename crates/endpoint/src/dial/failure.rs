//! Translates a failed dial attempt into the error that the caller gets.

use std::io;
use std::time::Duration;

use alknet_core::{CloseReason, PeerAddr as Target};
use alknet_tls::TlsRemote;
use quinn::ConnectionError;
use rustls::AlertDescription;

use super::attempt::DialAttempt;
use crate::error::EndpointDialError;
use crate::quic;

/// First QUIC code of a TLS alert (RFC 9001 section 4.8).
const QUIC_ALERT_BASE: u64 = 0x100;

/// QUIC `CONNECTION_REFUSED` (RFC 9000 section 20.1).
const QUIC_REFUSED: u64 = 0x2;

impl DialAttempt<'_> {
    pub(crate) fn no_key(&self) -> EndpointDialError {
        self.tls_error("the server presented no key")
    }

    /// The error of a connection that ended because no packet of the server came for the time `idle`.
    pub(crate) fn silence_error(&self, idle: Duration) -> EndpointDialError {
        timed_out(self.target, self.dialer.dial_timeout.min(idle))
    }

    pub(super) fn quic_error(&self, error: ConnectionError) -> EndpointDialError {
        let (code, reason) = match &error {
            ConnectionError::TransportError(error) => (u64::from(error.code), error.reason.clone()),
            ConnectionError::ConnectionClosed(close) => (
                u64::from(close.error_code),
                String::from_utf8_lossy(&close.reason).into_owned(),
            ),
            ConnectionError::TimedOut => return self.silence_error(quic::IDLE),
            _ => return self.refused(quic::close_reason(error)),
        };
        self.handshake_error(code, &reason, &error.to_string())
    }

    /// Translates the code with which a QUIC handshake ended, whichever side sent it.
    pub(crate) fn handshake_error(
        &self,
        code: u64,
        reason: &str,
        whole: &str,
    ) -> EndpointDialError {
        match alert_of(code) {
            Some(alert) => self.alert_error(alert, reason),
            None if code == QUIC_REFUSED => self.refused(CloseReason::Peer(
                None,
                "it takes no more connections".into(),
            )),
            None => self.tls_error(whole),
        }
    }

    pub(super) fn tcp_error(&self, error: io::Error) -> EndpointDialError {
        let tls = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match tls {
            Some(rustls::Error::AlertReceived(alert)) => {
                self.alert_error(*alert, &error.to_string())
            }
            Some(rustls::Error::InvalidCertificate(reason)) => {
                self.alert_error(AlertDescription::BadCertificate, &reason.to_string())
            }
            Some(rustls::Error::NoApplicationProtocol) => self.no_protocol(),
            Some(error) => self.alert_error(AlertDescription::InternalError, &error.to_string()),
            None => self.refused(CloseReason::Lost(error.to_string())),
        }
    }

    /// Translates the alert with which a handshake ended, whichever side sent it.
    fn alert_error(&self, alert: AlertDescription, reason: &str) -> EndpointDialError {
        use AlertDescription as A;
        if alert == A::NoApplicationProtocol {
            return self.no_protocol();
        }
        // The library reduces the verifier's error to an alert, so the verifier has noted the key that it saw.
        if let Some(mismatch) = self.remote.take_mismatch() {
            return mismatch.into();
        }
        match (&self.remote, alert) {
            (
                TlsRemote::Public(_),
                A::BadCertificate
                | A::CertificateExpired
                | A::CertificateRevoked
                | A::CertificateUnknown
                // A signature in the chain does not verify, or the server's own.
                | A::DecryptError
                | A::UnknownCA
                | A::UnsupportedCertificate,
            ) => EndpointDialError::Certificate {
                target: self.target.address(),
                reason: reason.to_owned(),
            },
            _ => self.tls_error(&format!("{alert:?} {reason}")),
        }
    }

    pub(crate) fn no_protocol(&self) -> EndpointDialError {
        EndpointDialError::NoProtocol {
            target: self.target.address(),
            alpn: String::from_utf8_lossy(self.alpn).into_owned(),
        }
    }

    pub(crate) fn refused(&self, reason: CloseReason) -> EndpointDialError {
        EndpointDialError::Refused {
            target: self.target.address(),
            reason,
        }
    }

    pub(crate) fn tls_error(&self, reason: &str) -> EndpointDialError {
        EndpointDialError::Tls {
            target: self.target.address(),
            reason: reason.to_owned(),
        }
    }

    pub(crate) fn unreachable(&self, source: io::Error) -> EndpointDialError {
        EndpointDialError::Unreachable {
            target: self.target.address(),
            source,
        }
    }
}

pub(crate) fn timed_out(target: &Target, after: Duration) -> EndpointDialError {
    EndpointDialError::TimedOut {
        target: target.address(),
        seconds: after.as_secs(),
    }
}

/// The TLS alert in a QUIC error code.
pub(crate) fn alert_of(code: u64) -> Option<AlertDescription> {
    let alert = code.checked_sub(QUIC_ALERT_BASE)?;
    Some(u8::try_from(alert).ok()?.into())
}

/// The one of two failures that says more about the server.
pub(crate) fn heavier(first: EndpointDialError, second: EndpointDialError) -> EndpointDialError {
    if first.weight() >= second.weight() {
        first
    } else {
        second
    }
}
