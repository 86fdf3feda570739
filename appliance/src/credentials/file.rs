//! The file of sealed values. It refuses a file that another user can have written or read.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use alknet_core::EncryptedData;
use alknet_core::config::is_credential_name;
use serde::{Deserialize, Serialize};

use crate::cli::CommandError;

use super::MODE;

/// The format that this program reads and writes.
const FORMAT: u64 = 1;
/// Maximum size of the file in bytes: 256 values of 16 KiB in base64, with their names and times,
/// take 5.7 MiB.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// User id of root, who may read and write every file.
const ROOT: u32 = 0;

/// The content of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SealedFile {
    /// Number of the format.
    alkcred: u64,
    /// Fingerprint of the key that sealed the values.
    pub(super) key: String,
    pub(super) entries: BTreeMap<String, SealedEntry>,
}

/// One sealed value.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SealedEntry {
    /// When the value was set, in seconds since 1970.
    pub(super) set_s: u64,
    pub(super) record: EncryptedData,
}

/// The member that every version of the file has.
#[derive(Deserialize)]
struct SealedFormat {
    alkcred: Option<u64>,
}

impl Default for SealedFile {
    fn default() -> Self {
        Self {
            alkcred: FORMAT,
            key: String::new(),
            entries: BTreeMap::new(),
        }
    }
}

/// Reads the file. Returns `None` if it does not exist.
pub(super) fn read(path: &Path) -> Result<Option<SealedFile>, CommandError> {
    let Some(file) = open_private(path)? else {
        return Ok(None);
    };
    let mut text = Vec::new();
    // One byte more than the limit shows that the file is too long, without reading all of it.
    let read = file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text);
    read.map_err(|error| unreadable(path, &error))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let why = format!("it is longer than {FILE_BYTES_MAX} bytes");
        return Err(damaged(path, &why));
    }
    parse(path, &text).map(Some)
}

fn parse(path: &Path, text: &[u8]) -> Result<SealedFile, CommandError> {
    // The message names the position only: the parser's own error may quote a secret from the text.
    let at =
        |error: &serde_json::Error| format!("line {}, column {}", error.line(), error.column());
    // The format is parsed first and alone: a newer format may have members that the parser of this
    // one refuses.
    let format: SealedFormat =
        serde_json::from_slice(text).map_err(|error| damaged(path, &at(&error)))?;
    let shown = path.display();
    match format.alkcred {
        Some(FORMAT) => {}
        Some(newer) if newer > FORMAT => {
            return Err(CommandError::local(format!(
                "{shown} has format {newer}, of a newer alknet: use that version, or remove the file and set each \
                 credential again"
            )));
        }
        _ => {
            return Err(CommandError::local(format!(
                "{shown} is no file of 'alknet credential': move it away"
            )));
        }
    }
    let file: SealedFile =
        serde_json::from_slice(text).map_err(|error| damaged(path, &at(&error)))?;
    match file.entries.keys().all(|name| is_credential_name(name)) {
        true => Ok(file),
        false => Err(damaged(path, "it has an entry whose name is no name")),
    }
}

/// Replaces the file durably.
pub(super) fn write(path: &Path, file: &SealedFile) -> Result<(), CommandError> {
    let text = serde_json::to_vec(file).map_err(CommandError::local)?;
    alknet_durable::replace(path, &[&text[..], b"\n"].concat(), MODE)
        .map_err(|error| CommandError::local(format!("cannot write {}: {error}", path.display())))
}

/// Returns whether the file exists. Fails if a user other than its owner may read it.
pub(super) fn is_private(path: &Path) -> Result<bool, CommandError> {
    Ok(open_private(path)?.is_some())
}

fn open_private(path: &Path) -> Result<Option<File>, CommandError> {
    let failed = |error: io::Error| unreadable(path, &error);
    // The owner and mode are read from the open file: a check of the path could be of another file.
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let about = file.metadata().map_err(failed)?;
    refuse_shared(path, &about, nix::unistd::geteuid().as_raw())?;
    Ok(Some(file))
}

/// Refuses a file that another user can have written or can read. `us` is the user id of this
/// process.
fn refuse_shared(path: &Path, about: &Metadata, us: u32) -> Result<(), CommandError> {
    let refused = |why: String| Err(CommandError::local(format!("{} {why}", path.display())));
    if !about.is_file() {
        return refused("is no file".to_owned());
    }
    let (owner, mode) = (about.uid(), about.mode() & 0o777);
    if owner != us && owner != ROOT {
        return refused(format!(
            "belongs to user {owner} and not to user {us}, who runs this: that user would choose the credentials"
        ));
    }
    if mode & !MODE != 0 {
        return refused(format!(
            "may be read or written by others (mode {mode:o}): 'chmod 600' closes it; if another user can have read it, \
             set each credential again and replace it at its server"
        ));
    }
    Ok(())
}

fn unreadable(path: &Path, error: &io::Error) -> CommandError {
    CommandError::local(format!("cannot read {}: {error}", path.display()))
}

fn damaged(path: &Path, why: &str) -> CommandError {
    CommandError::local(format!(
        "{} is damaged ({why}): put it back from a copy, or remove it and set each credential again",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown};

    use super::*;

    #[test]
    fn what_another_user_can_read_or_have_written_is_refused() {
        /// The id of a user without rights.
        const OTHER_USER: u32 = 65_534;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("sealed.json");
        fs::write(&path, "{}").expect("a writable directory");
        let us = nix::unistd::geteuid().as_raw();
        let judged = |mode: u32, us: u32| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("ours");
            refuse_shared(&path, &fs::metadata(&path).expect("there"), us)
        };
        assert_eq!(judged(0o600, us), Ok(()));
        assert_eq!(judged(0o400, us), Ok(()));
        for mode in [0o640, 0o604, 0o620, 0o602, 0o700, 0o644] {
            let error = judged(mode, us).expect_err("others may");
            assert!(error.message.contains("sealed.json"), "{error}");
            assert!(error.message.contains(&format!("{mode:o}")), "{error}");
        }
        // Every user may read a file of root, and only root can give a file to another user.
        let (owner, other) = match us {
            ROOT => {
                chown(&path, Some(OTHER_USER), None).expect("root may");
                (OTHER_USER, ROOT)
            }
            own => (own, own + 1),
        };
        let error = judged(0o600, other).expect_err("it belongs to another user");
        let said = format!("belongs to user {owner} and not to user {other}");
        assert!(error.message.contains(&said), "{error}");
        let folder = refuse_shared(dir.path(), &fs::metadata(dir.path()).expect("there"), us);
        assert!(folder.is_err_and(|error| error.message.ends_with("is no file")));
    }

    #[test]
    fn what_is_no_file_of_ours_is_named_and_not_quoted() {
        let path = Path::new("/s/credentials/sealed.json");
        for (text, word) in [
            ("", "is damaged (line 1"),
            ("{\"alkcred\":1,\"key\":\"hush", "is damaged (line 1"),
            ("hush", "is damaged (line 1"),
            ("[]", "is damaged"),
            ("{}", "is no file of 'alknet credential'"),
            ("{\"alkcred\":0}", "is no file of 'alknet credential'"),
            (
                "{\"alkcred\":2,\"hush\":1}",
                "has format 2, of a newer alknet",
            ),
            ("{\"alkcred\":1}", "is damaged"),
            (
                "{\"alkcred\":1,\"key\":\"\",\"entries\":{},\"hush\":1}",
                "is damaged",
            ),
            (
                "{\"alkcred\":1,\"key\":\"\",\"entries\":{\"a\":{\"set_s\":1,\"record\":\"hush\"}}}",
                "is damaged",
            ),
        ] {
            let error = parse(path, text.as_bytes()).err().expect(text);
            let said = &error.message;
            assert!(said.contains(word), "{text}: {said}");
            assert!(said.starts_with("/s/credentials/sealed.json "), "{said}");
            assert!(!said.contains("hush"), "{said}");
        }
    }
    /// An addition needs a new format: `what_is_no_file_of_ours_is_named_and_not_quoted` refuses an unknown member.
    #[test]
    fn the_first_format_of_sealed_credentials_is_read() {
        const SAMPLE: &str = r#"{"alkcred":1,"key":"SHA256:sample","entries":{"openai":{"set_s":1800000000,"record":{"key_version":2,"salt":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=","iv":"AgICAgICAgICAgIC","data":"AwMD","alg":"ALK1"}}}}"#;
        let file = parse(Path::new("sealed.json"), SAMPLE.as_bytes());
        let file = file.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(file.key, "SHA256:sample");
        let entry = &file.entries["openai"];
        let expected = EncryptedData {
            key_version: 2,
            salt: [1; 32],
            iv: [2; 12],
            data: vec![3; 3],
            alg: "ALK1".to_owned(),
        };
        assert_eq!((entry.set_s, &entry.record), (1_800_000_000, &expected));
        assert_eq!(serde_json::to_string(&file).expect("JSON"), SAMPLE);
    }
}
