//! Errors of `alknet tensor pull` and `push`: which file, which node, and what the caller lacks.

use std::path::Path;

use alknet_core::{CloseCode, CloseReason};
use alknet_tensor::TensorErrorCode;
use alknet_tensor_serve::{ClientError, TensorFileRef};

use super::super::dial::CliDialer;
use super::super::{CommandError, CommandExit};

/// Codes of a node that has the right request, and cannot carry it out at this moment.
const OF_THE_NODE: [&str; 3] = ["E_BUSY", "E_IO", "E_QUOTA"];
/// Codes of a node for a request that it does not understand.
const OF_THE_REQUEST: [&str; 4] = ["E_JSON", "E_SHAPE", "E_VALUE", "E_VERSION"];

/// The way in which a file travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TransferWay {
    /// From the node.
    Pull,
    /// To the node.
    Push,
}

/// What an error of a transfer names.
pub(super) struct TransferNames<'a> {
    pub(super) way: TransferWay,
    /// The file on this computer.
    pub(super) file: &'a Path,
    /// The node, as the user calls it.
    pub(super) node: &'a str,
    /// The file in the store of the node.
    pub(super) stored: &'a TensorFileRef,
}

impl TransferNames<'_> {
    /// The error of a transfer, for the person at the keyboard. `dialer` knows the key that the node saw.
    pub(super) fn error(&self, error: &ClientError, dialer: &CliDialer) -> CommandError {
        if let Some(refused) = self.unknown_key(error, dialer) {
            return refused;
        }
        let (exit, text) = match error {
            ClientError::Local(_) => self.local(error),
            ClientError::Refused { code, .. } => self.refused(code, error),
            ClientError::Stream(_) => (CommandExit::Unreachable, self.about_stored(error)),
            _ => (CommandExit::Failed, self.about_stored(error)),
        };
        CommandError::new(exit, error.code(), text)
    }

    /// The error of a connection that the node closed because of the caller's key.
    fn unknown_key(&self, error: &ClientError, dialer: &CliDialer) -> Option<CommandError> {
        let CloseReason::Peer(Some(code), why) = error.close_reason()? else {
            return None;
        };
        if CloseCode::from_code(*code) != Some(CloseCode::Policy) {
            return None;
        }
        let (node, scope) = (self.node, self.scope());
        let text = match dialer.presented_key() {
            Some(key) => format!(
                "{node} refused the connection of your key {key}: {why}; an administrator can let the key in, with \
                 the scope {scope}"
            ),
            None => format!(
                "{node} refused the connection: {why}; tensor files are for known keys: leave out --anonymous"
            ),
        };
        let refused = CommandError::new(CommandExit::Denied, "UNAUTHENTICATED", text);
        Some(dialer.explained(refused))
    }

    /// The file of this computer cannot be read or written, or is no tensor file.
    fn local(&self, error: &ClientError) -> (CommandExit, String) {
        let file = self.file.display();
        match (self.way, error.code() == TensorErrorCode::Io.as_str()) {
            // The error has the path of the file that was written.
            (TransferWay::Pull, _) => (CommandExit::Failed, error.to_string()),
            (TransferWay::Push, true) => (CommandExit::Failed, format!("{file}: {error}")),
            (TransferWay::Push, false) => {
                let text = format!("{file} is no tensor file: {error}");
                (CommandExit::Usage, text)
            }
        }
    }

    /// A node gives one answer for a file that it does not have and for one that the caller may not use.
    fn refused(&self, code: &str, error: &ClientError) -> (CommandExit, String) {
        let (node, stored, scope) = (self.node, stored_name(self.stored), self.scope());
        let is_missing = code == TensorErrorCode::NotFound.as_str();
        match self.way {
            TransferWay::Pull if is_missing => {
                let text = format!(
                    "{stored} on {node}: {error}; the node has no such file, or you lack the scope {scope}"
                );
                (CommandExit::Failed, text)
            }
            // A node stores what it does not have yet: it refuses the caller.
            TransferWay::Push if is_missing => {
                let text =
                    format!("{stored} on {node}: {error}; to store it you need the scope {scope}");
                (CommandExit::Denied, text)
            }
            TransferWay::Pull if OF_THE_REQUEST.contains(&code) => {
                (CommandExit::Usage, self.about_stored(error))
            }
            TransferWay::Push if code.starts_with("E_") && !OF_THE_NODE.contains(&code) => {
                (CommandExit::Usage, self.about_stored(error))
            }
            _ => (CommandExit::Failed, self.about_stored(error)),
        }
    }

    fn about_stored(&self, error: &ClientError) -> String {
        format!("{} on {}: {error}", stored_name(self.stored), self.node)
    }

    /// The scope without which the node refuses.
    fn scope(&self) -> String {
        let access = match self.way {
            TransferWay::Pull => "read",
            TransferWay::Push => "write",
        };
        scope_for(access, self.stored)
    }
}

/// The scope by which a peer may read or write a stored file, or a folder that has it.
pub(super) fn scope_for(access: &str, stored: &TensorFileRef) -> String {
    format!("tensor:{access}:{}", stored.scope_path())
}

/// A stored file as the command line takes it.
pub(super) fn stored_name(stored: &TensorFileRef) -> String {
    match stored {
        TensorFileRef::Id(id) => id.to_string(),
        TensorFileRef::Path(path) => path.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use alknet_tensor_serve::StorePath;

    use super::*;

    fn refused(way: TransferWay, code: &str) -> (CommandExit, String) {
        let stored = TensorFileRef::Path(StorePath::parse("models/bert").expect("a path"));
        let names = TransferNames {
            way,
            file: Path::new("bert.mt"),
            node: "attic",
            stored: &stored,
        };
        let error = ClientError::Refused {
            code: code.to_owned(),
            msg: "no such file here".to_owned(),
        };
        names.refused(code, &error)
    }

    #[test]
    fn a_refusal_names_file_and_node_and_the_scope() {
        let (exit, text) = refused(TransferWay::Pull, "E_NOTFOUND");
        assert_eq!(exit, CommandExit::Failed);
        assert!(
            text.starts_with("models/bert on attic: no such file here"),
            "{text}"
        );
        assert!(text.contains("scope tensor:read:models/bert"), "{text}");
        let (exit, text) = refused(TransferWay::Push, "E_NOTFOUND");
        assert_eq!(exit, CommandExit::Denied);
        assert!(text.contains("scope tensor:write:models/bert"), "{text}");
    }

    #[test]
    fn wrong_input_and_a_node_that_fails_end_with_different_codes() {
        use TransferWay::{Pull, Push};
        for (way, code, exit) in [
            (Push, "E_LIMIT", CommandExit::Usage),
            (Push, "E_HASH", CommandExit::Usage),
            (Push, "E_QUOTA", CommandExit::Failed),
            (Push, "E_BUSY", CommandExit::Failed),
            (Pull, "E_VERSION", CommandExit::Usage),
            (Pull, "E_HASH", CommandExit::Failed),
            (Pull, "E_IO", CommandExit::Failed),
            (Push, "another", CommandExit::Failed),
        ] {
            let (found, text) = refused(way, code);
            assert_eq!(found, exit, "{way:?} {code}");
            assert!(text.starts_with("models/bert on attic: "), "{text}");
        }
    }
}
