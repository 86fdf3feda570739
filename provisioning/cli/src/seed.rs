//! The forms of a seed, and the files of each.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use alknet_provisioning::{ConsoleDocument, strings};
use alknet_vault::slots::SeedKey;
use alknet_vault::{Entropy, SecretStr};
use zeroize::Zeroizing;

use crate::media::{self, VolumeFile};
use crate::{ProvisionError, SeedForm};

/// Longest word for a kernel's command line, which is 2048 bytes on x86 and has other words too.
pub const COMMAND_LINE_BYTES_MAX: usize = 1800;
/// Longest OEM string.
const STRING_BYTES_MAX: usize = 1024;

/// Everything that a node gets from its seed.
pub(crate) struct NodeSeed<'a> {
    pub(crate) document: &'a str,
    pub(crate) words: Option<&'a Entropy>,
    pub(crate) passphrase: &'a SecretStr,
    pub(crate) seed_key: Option<&'a SeedKey>,
    /// Names and secrets.
    pub(crate) credentials: &'a [(String, SecretStr)],
}

/// A file to write. Its path is in the named folder, or is the named file.
struct SeedFile {
    path: PathBuf,
    content: Zeroizing<Vec<u8>>,
}

/// What was written, and how it is used.
pub(crate) struct WrittenFiles {
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) usage: Vec<String>,
}

impl NodeSeed<'_> {
    pub(crate) fn has_secrets(&self) -> bool {
        self.words.is_some() || self.seed_key.is_some() || !self.credentials.is_empty()
    }

    /// The text of a form that is a single text, with its line end.
    pub(crate) fn text(&self, form: SeedForm) -> Result<Zeroizing<String>, ProvisionError> {
        let whole = self.whole(true);
        let text = match form {
            SeedForm::Console => ConsoleDocument::line(whole.as_bytes()),
            SeedForm::Cmdline => {
                let word = strings(whole.as_bytes(), usize::MAX).remove(0);
                // The kernel truncates a longer line silently, and the node would find half a
                // document.
                if word.len() > COMMAND_LINE_BYTES_MAX {
                    return Err(ProvisionError::usage(format!(
                        "the document is too long for a kernel's command line ({} of \
                         {COMMAND_LINE_BYTES_MAX} bytes): take another --form",
                        word.len()
                    )));
                }
                word
            }
            _ => return Ok(whole),
        };
        Ok(Zeroizing::new(format!("{}\n", *text)))
    }

    /// Writes all files of the seed.
    pub(crate) fn write(
        &self,
        form: SeedForm,
        out: &Path,
        force: bool,
    ) -> Result<WrittenFiles, ProvisionError> {
        let made = self.files(form, out)?;
        let is_new_folder = !form.is_one_file() && !out.exists();
        for file in &made {
            if let Some(folder) = file.path.parent().filter(|_| !form.is_one_file()) {
                fs::create_dir_all(folder).map_err(ProvisionError::write(folder))?;
            }
            store(file, force)?;
        }
        Ok(WrittenFiles {
            usage: usage(form, out, &made, is_new_folder),
            paths: made.into_iter().map(|file| file.path).collect(),
        })
    }

    fn files(&self, form: SeedForm, out: &Path) -> Result<Vec<SeedFile>, ProvisionError> {
        let one = |content| {
            let path = out.to_owned();
            vec![SeedFile { path, content }]
        };
        match form {
            SeedForm::Cmdline | SeedForm::Console | SeedForm::Text => {
                let text = self.text(form)?;
                Ok(one(Zeroizing::new(text.as_bytes().to_vec())))
            }
            SeedForm::Esp => Ok(self.beside(
                out,
                ["alknet.toml", "alknet/vault.words", "alknet/seed.key"],
            )),
            SeedForm::FwCfg => Ok(self.beside(out, ["node.toml", "words", "seed.key"])),
            SeedForm::NocloudFat | SeedForm::NocloudIso => {
                let folder = self.beside(Path::new(""), ["user-data", "vault.words", "seed.key"]);
                let mut files = vec![VolumeFile {
                    // The file is empty, but without it the volume is not a NoCloud volume.
                    name: "meta-data",
                    content: b"",
                }];
                files.extend(folder.iter().map(|made| VolumeFile {
                    name: made.path.to_str().unwrap_or_default(),
                    content: &made.content,
                }));
                if form == SeedForm::NocloudIso {
                    return Ok(one(media::iso(&files)));
                }
                let mut serial = [0; 4];
                let no_luck = |error| ProvisionError::Local(format!("no random bytes: {error}"));
                getrandom::fill(&mut serial).map_err(no_luck)?;
                let image = media::fat(&files, serial);
                image.map(one).ok_or_else(|| {
                    ProvisionError::usage("the document does not fit; take --form nocloud-iso")
                })
            }
            SeedForm::Smbios => {
                let strings = strings(self.whole(true).as_bytes(), STRING_BYTES_MAX);
                let file = |(number, string): (usize, Zeroizing<String>)| SeedFile {
                    path: out.join(format!("node.{number}")),
                    content: Zeroizing::new(string.as_bytes().to_vec()),
                };
                Ok(strings.into_iter().enumerate().map(file).collect())
            }
        }
    }

    /// The document, and a file for each secret, with these names.
    fn beside(&self, folder: &Path, [document, words, seed_key]: [&str; 3]) -> Vec<SeedFile> {
        let file = |name: &str, text: &str| SeedFile {
            path: folder.join(name),
            content: Zeroizing::new(text.as_bytes().to_vec()),
        };
        let mut files = vec![file(document, &self.whole(false))];
        if let Some(entropy) = self.words {
            let line = Zeroizing::new(format!("{}\n", entropy.phrase().expose()));
            files.push(file(words, &line));
        }
        files.extend(
            self.seed_key
                .map(|key| file(seed_key, key.to_text().expose())),
        );
        files
    }

    /// Upper limit of the text's bytes, so that the text never grows and leaves a copy in memory.
    fn capacity(&self) -> usize {
        /// Bytes of an escaped character.
        const ESCAPED_BYTES: usize = 6;
        let one = |(name, secret): &(String, SecretStr)| {
            name.len() + secret.expose().len() * ESCAPED_BYTES + 8
        };
        let credentials: usize = self.credentials.iter().map(one).sum();
        self.document.len() + credentials + 16_384
    }

    /// The document with the secrets that have no file of their own.
    fn whole(&self, with_all: bool) -> Zeroizing<String> {
        // Large enough for the whole text, since a text that grows would leave a copy of the
        // secrets in memory.
        let mut text = Zeroizing::new(String::with_capacity(self.capacity()));
        text.push_str(self.document);
        let has_passphrase = self.words.is_some() && !self.passphrase.is_empty();
        let has_credentials = !self.credentials.is_empty();
        let has_table = has_passphrase || has_credentials || with_all && self.has_secrets();
        if !has_table {
            return text;
        }
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str("\n[secrets]\n");
        if let Some(entropy) = self.words.filter(|_| with_all) {
            for part in ["words = \"", entropy.phrase().expose(), "\"\n"] {
                text.push_str(part);
            }
        }
        if has_passphrase {
            text.push_str("words_passphrase = ");
            quote(self.passphrase.expose(), &mut text);
            text.push('\n');
        }
        if let Some(key) = self.seed_key.filter(|_| with_all) {
            for part in ["seed_key = \"", key.to_text().expose().trim_end(), "\"\n"] {
                text.push_str(part);
            }
        }
        if has_credentials {
            // A separate table, which the node erases after it has stored the credentials.
            text.push_str("\n[secrets.credentials]\n");
        }
        for (name, secret) in self.credentials {
            text.push_str(name);
            text.push_str(" = ");
            quote(secret.expose(), &mut text);
            text.push('\n');
        }
        text
    }
}

impl SeedForm {
    const fn is_one_file(self) -> bool {
        !matches!(self, Self::Esp | Self::FwCfg | Self::Smbios)
    }

    /// Refuses an output that cannot be written, before the owner writes words down.
    pub(crate) fn check(self, out: &Path, force: bool) -> Result<(), ProvisionError> {
        // Without its parent, the path of a mounted boot partition is mistyped, or nothing is
        // mounted there, and the node would start without its seed.
        if self == Self::Esp && !out.is_dir() && !can_make_folder(out) {
            return Err(ProvisionError::usage(format!(
                "{}: no folder, and cannot make it; name where the boot partition of the flashed \
                 image is mounted, or a new folder in one that exists",
                out.display()
            )));
        }
        let taken = match self {
            Self::Esp => out.join("alknet.toml"),
            Self::FwCfg => out.join("node.toml"),
            Self::Smbios => out.join("node.0"),
            _ => out.to_owned(),
        };
        if taken.exists() && !force {
            return Err(ProvisionError::usage(format!(
                "{} is there already: take another --out, or --force",
                taken.display()
            )));
        }
        Ok(())
    }
}

/// Whether only the last component of a path is missing.
fn can_make_folder(path: &Path) -> bool {
    let parent = match path.parent() {
        // The parent of a single name is the current folder.
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return false,
    };
    parent.is_dir() && !path.exists()
}

/// A TOML string. Only necessary characters are escaped.
fn quote(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            // A TOML string allows no control character except the tab, but a secret may contain
            // any.
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Writes the file, which from the start only its owner can read.
fn store(file: &SeedFile, force: bool) -> Result<(), ProvisionError> {
    let failed = || ProvisionError::write(&file.path);
    if force && file.path.exists() {
        // Removed and created again, because an existing file keeps its mode, which may let others
        // read it.
        fs::remove_file(&file.path).map_err(failed())?;
    }
    let mut opened = OpenOptions::new()
        .write(true)
        // The name may be a link that was put there meanwhile.
        .create_new(true)
        .mode(0o600)
        .open(&file.path)
        .map_err(failed())?;
    opened.write_all(&file.content).map_err(failed())?;
    // The user may pull the medium as soon as the command ends.
    opened.sync_all().map_err(failed())
}

/// How the node gets the seed: options of QEMU, or what to do.
fn usage(form: SeedForm, out: &Path, made: &[SeedFile], is_new_folder: bool) -> Vec<String> {
    let text = match form {
        // The folder may be where the owner thought that a boot partition was mounted.
        SeedForm::Esp if is_new_folder => {
            return vec![format!(
                "{} is a new folder: copy its files onto the boot partition, or name it with \
                 `alknet image write --seed FOLDER`",
                out.display()
            )];
        }
        SeedForm::Cmdline => "add the word to the kernel's command line",
        SeedForm::Console => "paste the line at the node's console",
        SeedForm::Esp => "unmount the boot partition, and start the node from it",
        SeedForm::NocloudFat => "attach it as a drive, or write it onto one",
        SeedForm::NocloudIso => "attach it as a CD or a drive",
        SeedForm::Text => {
            "give it as a NoCloud volume's user-data, or as alknet.toml; it is not for 'alknet serve', which has no \
             vault"
        }
        SeedForm::FwCfg => {
            let entries = [
                ("node", "node.toml"),
                ("words", "words"),
                ("seed.key", "seed.key"),
            ];
            let is_made = |name: &str| made.iter().any(|file| file.path.ends_with(name));
            let option = |(entry, name): (&str, &str)| {
                let file = out.join(name);
                format!(
                    "-fw_cfg name=opt/org.alknet/{entry},file={}",
                    file.display()
                )
            };
            let there = entries.into_iter().filter(|(_, name)| is_made(name));
            return there.map(option).collect();
        }
        SeedForm::Smbios => {
            let option = |file: &SeedFile| format!("-smbios type=11,path={}", file.path.display());
            return made.iter().map(option).collect();
        }
    };
    vec![text.to_owned()]
}
