//! Where a bundle comes from.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use serde_json::json;

use crate::cli::call::call_error;
use crate::cli::node_caller::NodeCaller;
use crate::cli::query::text;
use crate::cli::target::NodeRoute;
use crate::cli::{CommandError, CommandExit};

/// Bytes of one piece.
pub(super) const PIECE_BYTES: usize = 256 << 10;

/// Where a bundle comes from.
pub(super) enum BundleSource {
    /// The node downloads that of its channel, or that of the channel with this name.
    Channel(Option<String>),
    File {
        path: PathBuf,
        bytes: u64,
    },
    /// A hub that has one for its workers.
    Hub(NodeRoute),
    /// The node downloads it.
    Url(String),
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
            (Some(file), None) => {
                let refused =
                    |why: String| CommandError::usage(format!("cannot read {file}: {why}"));
                let about = fs::metadata(file).map_err(|error| refused(error.to_string()))?;
                match about.is_file() && about.len() > 0 {
                    true => Ok(Self::File {
                        path: file.into(),
                        bytes: about.len(),
                    }),
                    false => Err(refused("it is no file, or an empty one".to_owned())),
                }
            }
        }
    }
}

/// The bytes of a bundle that this command passes on.
pub(super) enum BundlePieces<'s> {
    File { path: &'s Path, bytes: u64 },
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
            Self::File { bytes, .. } | Self::Hub { bytes, .. } => *bytes,
        }
    }

    /// The piece that begins at an offset, in base64.
    pub(super) async fn at(&self, offset: u64) -> Result<String, CommandError> {
        match self {
            Self::File { path, .. } => {
                let piece = read(path, offset).map_err(|error| {
                    CommandError::local(format!("cannot read {}: {error}", path.display()))
                })?;
                match piece.is_empty() {
                    true => Err(CommandError::local(format!(
                        "{} became shorter",
                        path.display()
                    ))),
                    false => Ok(BASE64.encode(&piece)),
                }
            }
            Self::Hub { hub, .. } => {
                let answer = hub
                    .call("hub/update_read", &json!({ "offset": offset }))
                    .await;
                let answer = answer.map_err(call_error)?;
                let data = text(&answer.value()["data"]).to_owned();
                // An offset below the length has bytes, unless a shorter bundle took the place of this one.
                match data.is_empty() {
                    true => Err(CommandError::new(
                        CommandExit::Failed,
                        "CONFLICT",
                        "the hub has another bundle now",
                    )),
                    false => Ok(data),
                }
            }
        }
    }
}

fn read(path: &Path, offset: u64) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    file.take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
    Ok(piece)
}
