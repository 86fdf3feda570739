//! Where a bundle comes from.

use std::fmt::Display;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use alknet_image::open_regular;
use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::cli::call::call_error;
use crate::cli::node_caller::NodeCaller;
use crate::cli::target::NodeRoute;
use crate::cli::{CommandError, CommandExit};

/// Bytes of one piece, until the node has said how many it wants.
pub(super) const PIECE_BYTES: usize = 64 << 10;
/// Fewest bytes of a piece, whatever the node wants. The last one may be shorter.
pub(super) const PIECE_BYTES_LEAST: usize = 16 << 10;
/// Most bytes of one piece.
pub(super) const PIECE_BYTES_MAX: usize = 256 << 10;

/// Where a bundle comes from.
pub(super) enum BundleSource {
    /// The node downloads that of its channel, or that of the channel with this name.
    Channel(Option<String>),
    File(BundleFile),
    /// A hub that has one for its workers.
    Hub(NodeRoute),
    /// The node downloads it.
    Url(String),
}

/// A bundle on this computer, which is opened once: another person may put a pipe or another file at its path.
pub(super) struct BundleFile {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl BundleFile {
    fn open(path: &Path) -> Result<Self, CommandError> {
        let refused = |why: &dyn Display| {
            CommandError::usage(format!("cannot read {}: {why}", path.display()))
        };
        let file = open_regular(path).map_err(|error| refused(&error))?;
        let bytes = file.metadata().map_err(|error| refused(&error))?.len();
        match bytes {
            0 => Err(refused(&"it is empty")),
            bytes => Ok(Self {
                path: path.to_owned(),
                file,
                bytes,
            }),
        }
    }

    /// The piece of so many bytes that begins at an offset. Empty behind the end.
    fn piece(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let mut piece = vec![0; bytes];
        let mut read = 0;
        while read < piece.len() {
            match self.file.read_at(&mut piece[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        piece.truncate(read);
        Ok(piece)
    }
}

/// Whether a word is the address of a bundle.
pub(super) fn is_url(word: &str) -> bool {
    word.starts_with("https://") || word.starts_with("http://")
}

/// Whether a word is a file here, or can be nothing else.
pub(super) fn looks_like_file(word: &str) -> bool {
    let path = Path::new(word);
    word.contains('/') || path.extension().is_some_and(|it| it == "tar") || path.is_file()
}

impl BundleSource {
    pub(super) fn open(
        source: Option<&str>,
        hub: Option<NodeRoute>,
        channel: Option<&str>,
    ) -> Result<Self, CommandError> {
        match (source, hub) {
            (_, Some(hub)) => Ok(Self::Hub(hub)),
            (None, None) => Ok(Self::Channel(channel.map(str::to_owned))),
            (Some(url), None) if url.starts_with("http://") => Err(CommandError::usage(format!(
                "{url}: a node downloads over https only; download the file yourself, and give it as SOURCE"
            ))),
            (Some(url), None) if is_url(url) => Ok(Self::Url(url.to_owned())),
            (Some(file), None) => BundleFile::open(file.as_ref()).map(Self::File),
        }
    }
}

/// The bytes of a bundle that this command passes on.
pub(super) enum BundlePieces<'s> {
    File(&'s BundleFile),
    Hub { hub: &'s NodeCaller, bytes: u64 },
}

impl BundlePieces<'_> {
    /// The bundle of a hub.
    pub(super) async fn of_hub(hub: &NodeCaller) -> Result<BundlePieces<'_>, CommandError> {
        let answer = hub.call("hub/update_read", &json!({ "offset": 0 })).await;
        let answer = answer.map_err(call_error)?;
        let bytes = answer.value()["bytes"].as_u64().unwrap_or_default();
        Ok(BundlePieces::Hub { hub, bytes })
    }

    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::File(file) => file.bytes,
            Self::Hub { bytes, .. } => *bytes,
        }
    }

    /// The piece that begins at an offset. One of a file has so many bytes; a hub gives as many as it wants.
    pub(super) async fn at(&self, offset: u64, bytes: usize) -> Result<Vec<u8>, CommandError> {
        match self {
            Self::File(file) => {
                let path = file.path.display();
                let piece = file
                    .piece(offset, bytes)
                    .map_err(|error| CommandError::local(format!("cannot read {path}: {error}")))?;
                match piece.is_empty() {
                    true => Err(CommandError::local(format!("{path} became shorter"))),
                    false => Ok(piece),
                }
            }
            Self::Hub { hub, bytes } => {
                let answer = hub
                    .call("hub/update_read", &json!({ "offset": offset }))
                    .await;
                let answer = answer.map_err(call_error)?;
                hub_piece(answer.value(), bytes.saturating_sub(offset))
            }
        }
    }
}

/// The bytes of a piece in the answer of a hub, which has `left` bytes of the bundle from its offset on.
///
/// # Errors
/// `INVALID_OUTPUT`: the answer has no base64, or the piece is longer or shorter than one of a hub; `CONFLICT`: the
/// bundle ends elsewhere.
fn hub_piece(answer: &Value, left: u64) -> Result<Vec<u8>, CommandError> {
    let malformed = |why: &dyn Display| {
        let text = format!("the hub answered with a piece of the bundle that is {why}");
        CommandError::new(CommandExit::Failed, "INVALID_OUTPUT", text)
    };
    let data = answer["data"].as_str();
    let data = data.ok_or_else(|| malformed(&"no text"))?;
    let piece = BASE64
        .decode(data.as_bytes())
        .map_err(|error| malformed(&format_args!("no base64: {error}")))?;
    // This piece goes to a node, which takes none that is longer.
    if piece.len() > PIECE_BYTES_MAX {
        return Err(malformed(&format_args!(
            "longer than {PIECE_BYTES_MAX} bytes"
        )));
    }
    let bytes = piece.len() as u64;
    // An offset below the length has bytes, and no more than the bundle, unless another one took the place of this one.
    if piece.is_empty() || bytes > left {
        return Err(CommandError::new(
            CommandExit::Failed,
            "CONFLICT",
            "the hub has another bundle now",
        ));
    }
    // Pieces of a few bytes each would make the upload take millions of calls.
    if bytes < left.min(PIECE_BYTES_LEAST as u64) {
        return Err(malformed(&format_args!(
            "shorter than {PIECE_BYTES_LEAST} bytes, and not the last one"
        )));
    }
    Ok(piece)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use nix::errno::Errno;
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    /// The attack: another person has put a pipe, or a link to a watchdog, at the path of the bundle, or puts it there
    /// while the command sends the bundle. The kernel reports each open of the pipe.
    #[tokio::test]
    async fn a_bundle_is_opened_once_and_what_is_no_regular_file_is_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [pipe, link, bundle] = ["pipe", "link", "bundle.tar"].map(|it| folder.path().join(it));
        mkfifo(&pipe, Mode::S_IRWXU).expect("the folder is ours");
        symlink(&pipe, &link).expect("the folder is ours");
        let opened = Inotify::init(InitFlags::IN_NONBLOCK).expect("inotify");
        opened
            .add_watch(&pipe, AddWatchFlags::IN_OPEN)
            .expect("it is there");
        let open = |path: &Path| {
            let word = path.to_str().expect("temporary paths are UTF-8");
            BundleSource::open(Some(word), None, None)
        };
        for path in [&pipe, &link] {
            let refused = open(path).err().expect("no regular file").message;
            assert!(refused.contains("no regular file"), "{refused}");
        }
        fs::write(&bundle, "").expect("the folder is ours");
        let refused = open(&bundle).err().expect("nothing is in it").message;
        assert!(refused.ends_with("it is empty"), "{refused}");

        let content = [vec![1; PIECE_BYTES], vec![2; 3]].concat();
        fs::write(&bundle, &content).expect("the folder is ours");
        let Ok(BundleSource::File(file)) = open(&bundle) else {
            panic!("it is a regular file");
        };
        fs::rename(&pipe, &bundle).expect("the folder is ours");
        let pieces = BundlePieces::File(&file);
        assert_eq!(pieces.bytes(), content.len() as u64);
        let mut sent = Vec::new();
        for offset in [0, PIECE_BYTES as u64] {
            sent.extend(pieces.at(offset, PIECE_BYTES).await.expect("it is open"));
        }
        assert!(sent == content);
        assert!(pieces.at(content.len() as u64, 1).await.is_err());
        let events = opened.read_events().map(|events| events.len());
        assert_eq!(events, Err(Errno::EAGAIN), "the pipe was opened");
    }

    /// A hub with damaged answers is not taken for one whose bundle was replaced.
    #[test]
    fn a_piece_of_a_hub_that_is_no_base64_is_called_that() {
        let refusal = |data: &Value| hub_piece(&json!({ "data": data }), 9).expect_err("no piece");
        for (data, why) in [
            (json!("AA="), "no base64"),
            (json!("bundle.tar!!"), "no base64"),
            (json!(7), "no text"),
            (Value::Null, "no text"),
        ] {
            let refused = refusal(&data);
            assert_eq!(refused.code, "INVALID_OUTPUT", "{data}");
            assert!(refused.message.contains(why), "{data}: {refused}");
        }
        let replaced = refusal(&json!(""));
        assert_eq!(replaced.code, "CONFLICT");
        let piece = hub_piece(&json!({ "data": BASE64.encode(b"piece") }), 5);
        assert_eq!(piece.expect("it is base64"), b"piece");
    }

    /// The attack: a hub gives its bundle a byte at a time, or megabytes that a node does not take.
    #[test]
    fn a_piece_of_a_hub_has_a_length_within_bounds() {
        let (least, most) = (PIECE_BYTES_LEAST, PIECE_BYTES_MAX);
        let read = |bytes: usize, left: usize| {
            let answer = json!({ "data": BASE64.encode(&vec![7; bytes]) });
            hub_piece(&answer, left as u64).map(|piece| piece.len())
        };
        for (bytes, left) in [(least, 9 * most), (most, 9 * most), (1, 1), (least, least)] {
            assert_eq!(read(bytes, left), Ok(bytes), "{left}");
        }
        for (bytes, left, code) in [
            (1, 9 * most, "INVALID_OUTPUT"),
            (1, 2, "INVALID_OUTPUT"),
            (least - 1, least, "INVALID_OUTPUT"),
            (most + 1, 9 * most, "INVALID_OUTPUT"),
            (4 * most, most, "INVALID_OUTPUT"),
            (0, 9, "CONFLICT"),
            (0, 0, "CONFLICT"),
            (9, 8, "CONFLICT"),
        ] {
            let refused = read(bytes, left).expect_err("out of bounds");
            assert_eq!(refused.code, code, "{bytes} of {left}: {refused}");
        }
    }
}
