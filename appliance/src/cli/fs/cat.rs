//! `alknet fs cat`: the content of a file on standard output.

use std::io::{self, Write};

use data_encoding::BASE64;
use serde_json::json;

use super::address::FilesArgs;
use super::connection::{ResumableWork, finish};
use super::content::{ContentDownload, ContentName};
use crate::cli::node_caller::NodeCaller;
use crate::cli::target::NodeArgs;
use crate::cli::{CommandError, CommandExit, output};

/// Longest content that is a part of a JSON value, in bytes.
const JSON_BYTES_MAX: usize = 16 << 20;

/// The work of `alknet fs cat`.
struct CatWork<'w> {
    download: ContentDownload,
    sink: CatSink<'w>,
    name: Option<ContentName>,
}

/// Where the content goes.
enum CatSink<'w> {
    /// For a JSON value.
    Memory(Vec<u8>),
    /// A terminal, a pipe or a file.
    Stream(&'w mut dyn Write),
}

impl CatSink<'_> {
    fn take(&mut self, block: &[u8]) -> Result<(), CommandError> {
        match self {
            Self::Memory(bytes) => {
                // A JSON value is printed at once, so that all of it is in memory.
                if bytes.len() + block.len() > JSON_BYTES_MAX {
                    return Err(CommandError::usage(format!(
                        "with --json a content has at most {JSON_BYTES_MAX} bytes: 'alknet fs get' fetches longer ones"
                    )));
                }
                bytes.extend_from_slice(block);
                Ok(())
            }
            Self::Stream(out) => out.write_all(block).map_err(|error| closed(&error)),
        }
    }
}

impl ResumableWork for CatWork<'_> {
    fn answers(&self) -> u64 {
        self.download.received()
    }

    async fn go_on(&mut self, node: &NodeCaller) -> Result<(), CommandError> {
        let sink = &mut self.sink;
        let mut take = |block: &[u8]| sink.take(block);
        self.name = Some(self.download.receive(node, &mut take).await?);
        Ok(())
    }
}

/// Prints one file. A terminal gets its text with escapes in the place of control characters.
pub(super) fn run(args: FilesArgs, json: bool) -> Result<CommandExit, CommandError> {
    let (node, address) = args.single()?;
    let address = address.to_string();
    let download = ContentDownload::new(address.clone(), node.dial.timeout, json);
    if json {
        return print_json(&node, &address, download);
    }
    let mut out: Box<dyn Write> = match output::is_terminal() {
        // An attacker may have written the file, and its bytes can change the terminal's keys.
        true => Box::new(output::shown(false)),
        false => Box::new(output::bytes()),
    };
    let mut work = CatWork {
        download,
        sink: CatSink::Stream(&mut *out),
        name: None,
    };
    finish(&node, &mut work)?;
    out.flush().map_err(|error| closed(&error))?;
    Ok(CommandExit::Ok)
}

fn print_json(
    node: &NodeArgs,
    address: &str,
    download: ContentDownload,
) -> Result<CommandExit, CommandError> {
    let mut work = CatWork {
        download,
        sink: CatSink::Memory(Vec::new()),
        name: None,
    };
    finish(node, &mut work)?;
    if let (CatSink::Memory(bytes), Some(name)) = (&work.sink, &work.name) {
        output::json_line(&json!({
            "path": address, "hash": name.hash, "size": name.size, "bytes": BASE64.encode(bytes),
        }))?;
    }
    Ok(CommandExit::Ok)
}

/// Standard output is gone.
fn closed(error: &io::Error) -> CommandError {
    match error.kind() {
        // Such as `head`, which has read enough.
        io::ErrorKind::BrokenPipe => {
            CommandError::new(CommandExit::Ok, "CLOSED", "the reader went away")
        }
        _ => CommandError::local(format!("cannot write to standard output: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_value_has_a_limit_and_a_stream_has_none() {
        let mut memory = CatSink::Memory(vec![0; JSON_BYTES_MAX]);
        assert_eq!(memory.take(&[]), Ok(()));
        let refused = memory.take(&[1]).expect_err("it is too long");
        assert_eq!(refused.exit, CommandExit::Usage);
        let mut out = Vec::new();
        CatSink::Stream(&mut out).take(b"hello").expect("it grows");
        assert_eq!(out, b"hello");
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        let gone = closed(&io::ErrorKind::BrokenPipe.into());
        assert_eq!(gone.exit, CommandExit::Ok);
        let full = closed(&io::ErrorKind::StorageFull.into());
        assert_eq!(full.exit, CommandExit::Failed);
    }
}
