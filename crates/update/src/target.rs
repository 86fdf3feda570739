//! Files of a release, and the check of their bytes while these stream.

use std::io::{self, Read, Write};

use data_encoding::HEXLOWER;
use serde::Deserialize as _;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::delta::{self, DeltaInfo};
use crate::document::sha256;
use crate::error::UpdateError;
use crate::limits::{DELTA_BLOCK_BYTES, TARGET_BYTES_MAX, TARGET_NAME_BYTES_MAX};
use crate::release::{self, InvalidRelease, ReleaseInfo};

/// Bytes that [`UpdateTarget::copy`] holds at a time.
const COPY_BYTES: usize = 64 << 10;

/// A file that the targets role has signed, by its length and hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateTarget {
    /// The name of the file.
    pub name: String,
    /// The length in bytes.
    pub bytes: u64,
    /// The SHA-256 of the bytes.
    pub sha256: [u8; 32],
    /// The description of a program that a machine can boot; other files have none.
    pub release: Option<ReleaseInfo>,
    /// The description of a delta, which makes such a program from another one.
    pub delta: Option<DeltaInfo>,
}

impl UpdateTarget {
    /// Describes the bytes of a file.
    ///
    /// # Errors
    /// The file cannot be read, or its name, length or description is refused.
    pub fn describe(
        name: &str,
        release: Option<ReleaseInfo>,
        file: &mut dyn Read,
    ) -> Result<Self, UpdateError> {
        let mut digest = Sha256::new();
        let mut bytes = 0;
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            let read = read_some(file, &mut buffer).map_err(|e| UpdateError::source(name, e))?;
            if read == 0 {
                break;
            }
            digest.update(&buffer[..read]);
            bytes += read as u64;
        }
        let target = Self {
            name: name.to_owned(),
            bytes,
            sha256: digest.finalize().into(),
            release,
            delta: None,
        };
        target.check_description(name)?;
        Ok(target)
    }

    /// Describes a delta.
    ///
    /// # Errors
    /// The file cannot be read, or its name, length or description is refused.
    pub fn describe_delta(
        name: &str,
        mut delta: DeltaInfo,
        file: &mut dyn Read,
    ) -> Result<Self, UpdateError> {
        let mut bytes = Vec::new();
        // One byte more, so that a longer file is refused.
        let mut bounded = file.take(TARGET_BYTES_MAX + 1);
        let read = bounded.read_to_end(&mut bytes);
        read.map_err(|error| UpdateError::source(name, error))?;
        let mut target = Self::describe(name, None, &mut &*bytes)?;
        let blocks = bytes.chunks(DELTA_BLOCK_BYTES);
        delta.blocks = blocks
            .map(|it| HEXLOWER.encode(&Sha256::digest(it)))
            .collect();
        target.delta = Some(delta);
        target.check_description(name)?;
        Ok(target)
    }

    /// Reads an entry of a targets document (section 4.5).
    pub(crate) fn read(file: &str, name: &str, target: &Value) -> Result<Self, UpdateError> {
        let malformed = |why: &str| {
            let shown: String = name.chars().take(TARGET_NAME_BYTES_MAX).collect();
            UpdateError::malformed(file, format_args!("target '{shown}' {why}"))
        };
        let sha256 = sha256(&target["hashes"]).map_err(malformed)?;
        let bytes = target["length"].as_u64();
        let bytes = bytes.ok_or_else(|| malformed("has no valid length"))?;
        let described = &target["custom"][release::MEMBER];
        let wrong = |source| UpdateError::Release {
            target: name.to_owned(),
            source,
        };
        let release = match described {
            Value::Null => None,
            described => Some(
                ReleaseInfo::deserialize(described).map_err(|e| wrong(InvalidRelease::new(e)))?,
            ),
        };
        // Of a description that this version cannot read, only the delta is of no use, and not the whole release.
        let described = &target["custom"][delta::MEMBER];
        let delta = DeltaInfo::deserialize(described).ok();
        let delta = delta.filter(|delta| delta.check(bytes).is_ok());
        let target = Self {
            name: name.to_owned(),
            bytes,
            sha256,
            release,
            delta,
        };
        target.check_description(file)?;
        Ok(target)
    }

    fn check_description(&self, file: &str) -> Result<(), UpdateError> {
        if !is_name(&self.name) {
            let shown: String = self.name.chars().take(TARGET_NAME_BYTES_MAX).collect();
            let why = format_args!(
                "'{shown}' is no name of a target: it has other than 1 to {TARGET_NAME_BYTES_MAX} letters, digits and '._-', \
                 or begins with a dot"
            );
            return Err(UpdateError::malformed(file, why));
        }
        if self.bytes > TARGET_BYTES_MAX {
            return Err(UpdateError::TooLarge {
                file: self.name.clone(),
                max: TARGET_BYTES_MAX,
            });
        }
        let checked = self.release.as_ref().map_or(Ok(()), ReleaseInfo::check);
        let delta = self.delta.as_ref();
        let delta = delta.map_or(Ok(()), |delta| delta.check(self.bytes));
        checked.and(delta).map_err(|source| UpdateError::Release {
            target: self.name.clone(),
            source,
        })
    }

    /// The entry of a targets document.
    pub(crate) fn to_json(&self) -> Value {
        let mut entry = json!({
            "hashes": { "sha256": HEXLOWER.encode(&self.sha256) },
            "length": self.bytes,
        });
        if let Some(release) = &self.release {
            entry["custom"][release::MEMBER] = json!(release);
        }
        if let Some(delta) = &self.delta {
            entry["custom"][delta::MEMBER] = json!(delta);
        }
        entry
    }

    /// The name of the file in a repository: with the hash before it if the repository is consistent (section 6.2).
    #[must_use]
    pub fn file_name(&self, consistent: bool) -> String {
        match consistent {
            true => format!("{}.{}", HEXLOWER.encode(&self.sha256), self.name),
            false => self.name.clone(),
        }
    }

    /// A check of bytes that arrive one after the other.
    #[must_use]
    pub fn check(&self) -> TargetCheck<'_> {
        TargetCheck {
            target: self,
            digest: Sha256::new(),
            bytes: 0,
        }
    }

    /// Copies the target, and checks it meanwhile. Until this returns, nothing of `output` may be used.
    ///
    /// Reads at most 64 KiB behind the signed length, and writes nothing of them.
    ///
    /// # Errors
    /// The bytes are not the signed ones, or reading or writing fails.
    pub fn copy(&self, input: &mut dyn Read, output: &mut dyn Write) -> Result<(), UpdateError> {
        let mut check = self.check();
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            let read = read_some(input, &mut buffer);
            let read = read.map_err(|e| UpdateError::source(&self.name, e))?;
            if read == 0 {
                return check.finish();
            }
            // The check comes first, so that no byte behind the signed length is ever written.
            check.update(&buffer[..read])?;
            let written = output.write_all(&buffer[..read]);
            written.map_err(|e| UpdateError::source(&self.name, e))?;
        }
    }
}

/// One read that a signal does not end.
fn read_some(input: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match input.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

/// Whether a name can be a file name on every system, and stays in its folder.
fn is_name(name: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=TARGET_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(is_plain)
        && !name.starts_with('.')
}

/// The length and hash of a target whose bytes arrive one after the other.
#[derive(Clone, Debug)]
pub struct TargetCheck<'a> {
    target: &'a UpdateTarget,
    digest: Sha256,
    bytes: u64,
}

impl TargetCheck<'_> {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// There are more bytes than the signed length. The stream may be endless: read no further.
    pub fn update(&mut self, bytes: &[u8]) -> Result<(), UpdateError> {
        let sum = self.bytes.saturating_add(bytes.len() as u64);
        // The length is compared before the bytes are hashed: an endless stream ends here after one buffer.
        if sum > self.target.bytes {
            return Err(self.other_length());
        }
        self.bytes = sum;
        self.digest.update(bytes);
        Ok(())
    }

    /// Returns if the bytes were the signed ones, all of them.
    ///
    /// # Errors
    /// They were fewer, or others.
    pub fn finish(self) -> Result<(), UpdateError> {
        if self.bytes != self.target.bytes {
            return Err(self.other_length());
        }
        let found: [u8; 32] = self.digest.finalize().into();
        if found != self.target.sha256 {
            return Err(UpdateError::Hash {
                file: self.target.name.clone(),
            });
        }
        Ok(())
    }

    fn other_length(&self) -> UpdateError {
        UpdateError::Length {
            file: self.target.name.clone(),
            expected: self.target.bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader without an end, which counts what was read.
    struct EndlessTarget(u64);

    impl Read for EndlessTarget {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            buffer.fill(0);
            self.0 += buffer.len() as u64;
            Ok(buffer.len())
        }
    }

    fn target(content: &[u8]) -> UpdateTarget {
        UpdateTarget::describe("a.efi", None, &mut &*content).expect("a target")
    }

    fn refusal(target: &UpdateTarget, content: &[u8]) -> String {
        let copied = target.copy(&mut &*content, &mut Vec::new());
        copied.expect_err("refused").to_string()
    }

    #[test]
    fn the_signed_bytes_are_copied() {
        let content: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
        let mut copy = Vec::new();
        target(&content)
            .copy(&mut &*content, &mut copy)
            .expect("the signed bytes");
        assert!(copy == content, "{} bytes", copy.len());
    }

    #[test]
    fn other_bytes_are_refused() {
        assert_eq!(
            refusal(&target(b"kernel"), b"kernal"),
            "a.efi has another SHA-256 than the signed one. It was changed or damaged on its way. Get the bundle again from its \
             publisher"
        );
        let short = "a.efi has another length than the signed 6 bytes. It was cut off or changed on its way. Get the bundle again \
                     from its publisher";
        assert_eq!(refusal(&target(b"kernel"), b"kerne"), short);
        assert_eq!(refusal(&target(b"kernel"), b"kernel!"), short);
    }

    #[test]
    fn an_endless_stream_is_read_for_one_buffer_and_not_written() {
        let (mut input, mut output) = (EndlessTarget(0), Vec::new());
        let copied = target(b"kernel").copy(&mut input, &mut output);
        assert!(
            matches!(copied, Err(UpdateError::Length { .. })),
            "{copied:?}"
        );
        assert_eq!((input.0, output.len()), (COPY_BYTES as u64, 0));
    }

    #[test]
    fn a_name_that_leaves_its_folder_is_no_name() {
        for name in [
            "",
            ".",
            "..",
            ".a",
            "a/b",
            "../a",
            "a\\b",
            "a\0",
            "a b",
            &"a".repeat(36),
        ] {
            let described = UpdateTarget::describe(name, None, &mut &b""[..]);
            let error = described.expect_err(name).to_string();
            assert!(error.contains("is no name of a target"), "{error}");
        }
        let longest = "a".repeat(TARGET_NAME_BYTES_MAX);
        UpdateTarget::describe(&longest, None, &mut &b""[..]).expect("the longest name");
    }
}
