//! `manifest.json`, which lists inputs and outputs. It has no path, time or host, so it is the same
//! for the same build.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::disk_parts::ManifestDisk;
use crate::error::ImageError;
use crate::form::{ImageForm, OutputRole};
use crate::inputs::read_regular;

/// The manifest's file name in the output folder.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Maximum length of a manifest in bytes.
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// What is wrong with the name of an output.
pub(crate) const NO_FILE_NAME: &str =
    "is no name of a file in its folder; such a name has no '/' and no control character";
/// Most characters of a manifest's text that an error shows.
const SHOWN_CHARS_MAX: usize = 40;

/// The inputs and outputs of a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Manifest {
    /// Version of the image.
    pub version: String,
    /// The commit that was built.
    pub git: String,
    /// Architecture in the kernel's words: `x86_64`.
    pub arch: String,
    /// Release of the kernel, such as `6.12.95-alknet`.
    pub kernel_release: String,
    /// SHA-256 of the kernel's configuration, if it was given.
    pub kernel_config_sha256: Option<String>,
    /// The inputs, before stripping.
    pub inputs: Vec<ManifestInput>,
    /// The sources that the inputs were made from, and the tools whose version decides bytes.
    #[serde(default)]
    pub sources: Vec<ManifestSource>,
    /// The command line of each form.
    pub boot: Vec<ManifestBoot>,
    /// The parts of the disk of the form `raw` that stay the same on a disk in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<ManifestDisk>,
    /// Every file of every form. A file that several forms share is listed once for each.
    pub outputs: Vec<ManifestOutput>,
}

/// One input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ManifestInput {
    /// `kernel`, `binary`, `vmlinux`, `stub`, `loader`, `root document of updates`, or the name of a part of GRUB.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}

/// A source or a tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ManifestSource {
    /// Such as `linux`, `Cargo.lock` or `mkfs.erofs`.
    pub name: String,
    /// The version, in the words of its project.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub version: Option<String>,
    /// SHA-256 of the archive or the file, in lower-case hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sha256: Option<String>,
}

impl ManifestSource {
    /// A source with its version, its hash, or both.
    #[must_use]
    pub fn new(name: impl Into<String>, version: Option<String>, sha256: Option<String>) -> Self {
        Self {
            name: name.into(),
            version,
            sha256,
        }
    }
}

/// The start of a form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ManifestBoot {
    /// The form.
    pub form: ImageForm,
    /// The kernel command line: built into the forms with an EFI program, and for the loader to pass
    /// in the others. GRUB puts `BOOT_IMAGE=` and the kernel's name before it.
    pub cmdline: String,
}

/// One output file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ManifestOutput {
    /// The form that it belongs to.
    pub form: ImageForm,
    /// Its role in the form.
    pub role: OutputRole,
    /// File name in the manifest's folder.
    pub file: String,
    /// Apparent size in bytes. A disk is sparse and takes less space.
    pub bytes: u64,
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: String,
    /// The ways to start it: names of a [`StartMethod`](crate::StartMethod), and in the manifest of a later version
    /// also names that this one does not know. Empty for a file that only describes others, and in manifests from
    /// before 2026-11-28.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub start: Vec<String>,
}

impl Manifest {
    /// Reads `manifest.json` from an output folder.
    ///
    /// # Errors
    /// The file is missing or is not one of ours.
    pub fn read(dir: &Path) -> Result<Self, ImageError> {
        Self::read_file(&dir.join(MANIFEST_FILE))
    }

    /// Reads a manifest of any name.
    ///
    /// # Errors
    /// The errors of [`Manifest::read`].
    pub fn read_file(path: &Path) -> Result<Self, ImageError> {
        Self::parse(&Self::read_bytes(path)?, path)
    }

    /// Reads the bytes of a manifest, for a caller who checks their signature before [`Manifest::parse`]: another person
    /// may replace the file between two reads.
    ///
    /// # Errors
    /// The file cannot be read, is no regular file, or is longer than [`MANIFEST_BYTES_MAX`].
    pub fn read_bytes(path: &Path) -> Result<Vec<u8>, ImageError> {
        // Another person may have put a pipe or a device there.
        read_regular("image manifest", path, MANIFEST_BYTES_MAX)
    }

    /// Parses the bytes of the manifest at `path`.
    ///
    /// # Errors
    /// They are no manifest, an entry has a form or a role that this version does not know, or an output's name is that
    /// of a file outside of the manifest's folder.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self, ImageError> {
        let invalid = |why| ImageError::InputInvalid {
            what: "image manifest",
            path: path.to_owned(),
            why,
        };
        let parsed: Self = serde_json::from_slice(bytes).map_err(|source| {
            let manifest = || ImageError::Manifest {
                path: path.to_owned(),
                source,
            };
            unknown_name(bytes).map_or_else(manifest, invalid)
        })?;
        let mut outputs = parsed.outputs.iter();
        match outputs.find(|output| !is_file_name(&output.file)) {
            Some(output) => Err(invalid(format!("{:?} {NO_FILE_NAME}", output.file))),
            None => Ok(parsed),
        }
    }

    /// The file with `role` in `form`, inside the folder `dir`.
    #[must_use]
    pub fn path(&self, dir: &Path, form: ImageForm, role: OutputRole) -> Option<PathBuf> {
        let mut outputs = self.outputs.iter();
        let found = outputs.find(|output| output.form == form && output.role == role)?;
        Some(dir.join(&found.file))
    }

    /// The kernel command line of `form`, if it was built.
    #[must_use]
    pub fn cmdline(&self, form: ImageForm) -> Option<&str> {
        self.boot
            .iter()
            .find(|boot| boot.form == form)
            .map(|boot| boot.cmdline.as_str())
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self)
            .expect("texts, numbers and lists always have a JSON form");
        json.push(b'\n');
        json
    }
}

/// Names the first form or role in a manifest that this version does not know, as why the manifest cannot be used. A
/// reader that left such an entry out would sign or copy only a part of the files.
fn unknown_name(bytes: &[u8]) -> Option<String> {
    let manifest: Value = serde_json::from_slice(bytes).ok()?;
    let lists = ["boot", "outputs"].map(|list| manifest[list].as_array());
    let mut unknown = lists.into_iter().flatten().flatten().filter_map(|entry| {
        let (form, role) = (&entry["form"], &entry["role"]);
        if form.is_string() && ImageForm::deserialize(form).is_err() {
            Some(("form", form))
        } else if role.is_string() && OutputRole::deserialize(role).is_err() {
            Some(("role", role))
        } else {
            None
        }
    });
    let (kind, name) = unknown.next()?;
    let short = |text: &Value| {
        let text = text.as_str().unwrap_or_default();
        text.chars().take(SHOWN_CHARS_MAX).collect::<String>()
    };
    Some(format!(
        "the {kind} {:?} is unknown to this version of alknet; use the one that built the image, version {:?}, or a newer one",
        short(name),
        short(&manifest["version"]),
    ))
}

/// Whether a name stays in a folder that it is joined to, and is one line in a file of checksums.
pub(crate) fn is_file_name(name: &str) -> bool {
    let is_one_line = !name.contains(char::is_control);
    Path::new(name).file_name() == Some(OsStr::new(name)) && is_one_line
}

/// SHA-256 in lower-case hexadecimal.
pub(crate) fn hex_sha256(bytes: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn a_folder_without_a_manifest_and_a_foreign_file_give_different_errors() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let missing = Manifest::read(dir.path()).expect_err("it does not exist");
        assert!(
            matches!(missing, ImageError::InputUnreadable { .. }),
            "{missing}"
        );
        fs::write(dir.path().join(MANIFEST_FILE), "{}").expect("writable");
        let foreign = Manifest::read(dir.path()).expect_err("not ours");
        assert!(matches!(foreign, ImageError::Manifest { .. }), "{foreign}");
    }

    /// A folder of another person, whose names would make the owner's key sign files beyond it, and write signatures
    /// beside them.
    #[test]
    fn an_output_outside_of_the_folder_makes_a_manifest_unusable() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join(MANIFEST_FILE);
        let put = |name: &str| {
            let manifest = serde_json::json!({
                "version": "1", "git": "", "arch": "x86_64", "kernel_release": "", "kernel_config_sha256": null,
                "inputs": [], "boot": [],
                "outputs": [{ "form": "raw", "role": "disk", "file": name, "bytes": 1, "sha256": "" }],
            });
            fs::write(&path, manifest.to_string()).expect("writable");
            Manifest::read(dir.path())
        };
        for name in [
            "",
            ".",
            "..",
            "/etc/shadow",
            "../shadow",
            "a/b",
            "a/",
            "a/..",
            "./a",
            "a\0",
            "a\u{7f}",
            "a\u{85}",
            // With a link at `NAME.sha256` this was a line in a file of the owner.
            "a\nssh-ed25519 AAAA eve",
        ] {
            let refused = put(name).expect_err(name);
            assert!(
                matches!(refused, ImageError::InputInvalid { .. }),
                "{refused}"
            );
            let said = format!("{name:?} {NO_FILE_NAME}");
            assert!(refused.to_string().ends_with(&said), "{refused}");
        }
        assert!(put("alknet_0.1.0.raw").is_ok());
        assert!(put("Bär \\ 2.raw").is_ok());
    }

    /// The command of an earlier version checks and signs images of a later one.
    #[test]
    fn a_start_method_of_a_later_version_is_read_and_written_as_it_is() {
        let start = serde_json::json!(["bios", "hologram"]);
        let manifest = serde_json::json!({
            "version": "9", "git": "", "arch": "x86_64", "kernel_release": "", "kernel_config_sha256": null,
            "inputs": [], "boot": [],
            "outputs": [{
                "form": "raw", "role": "disk", "file": "a.raw", "bytes": 1, "sha256": "", "start": start,
            }],
        });
        let read = Manifest::parse(manifest.to_string().as_bytes(), Path::new(MANIFEST_FILE));
        let read = read.expect("a later version's manifest");
        assert_eq!(read.outputs[0].start, ["bios", "hologram"]);
        let written: Value = serde_json::from_slice(&read.to_json()).expect("ours");
        assert_eq!(written["outputs"][0]["start"], start);
    }

    /// A reader that left the entry out would sign or copy only a part of the files.
    #[test]
    fn a_form_or_a_role_of_a_later_version_is_named() {
        let refused = |form: &str, role: &str| {
            let manifest = serde_json::json!({
                "version": "9.1.0", "git": "", "arch": "x86_64", "kernel_release": "", "kernel_config_sha256": null,
                "inputs": [], "boot": [{ "form": "raw", "cmdline": "" }],
                "outputs": [{ "form": form, "role": role, "file": "a", "bytes": 1, "sha256": "" }],
            });
            let read = Manifest::parse(manifest.to_string().as_bytes(), Path::new(MANIFEST_FILE));
            read.map_or_else(|error| error.to_string(), |_| String::new())
        };
        assert_eq!(refused("raw", "disk"), "");
        let long = "x".repeat(1 << 20);
        for (form, role, expected) in [
            ("hologram", "disk", "the form \"hologram\""),
            ("raw", "plan-of-the-house", "the role \"plan-of-the-house\""),
            (&*long, "disk", "the form \"xxx"),
        ] {
            let said = refused(form, role);
            assert!(said.contains(expected), "{said}");
            assert!(said.contains("\"9.1.0\"") && said.len() < 400, "{said}");
        }
    }

    /// The attack: another person puts one of these into the folder of an image, and the owner's command waits for a
    /// writer of the pipe, or fills the memory.
    #[test]
    fn a_pipe_a_device_or_a_long_file_in_the_place_of_a_manifest_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let [pipe, long] = ["pipe", "long"].map(|name| dir.path().join(name));
        mkfifo(&pipe, Mode::S_IRWXU).expect("the folder is ours");
        for path in [&*pipe, Path::new("/dev/zero"), dir.path()] {
            let refused = Manifest::read_bytes(path).expect_err("no regular file");
            let said = format!(
                "{} is not a usable image manifest: it is no regular file; name another one",
                path.display()
            );
            assert_eq!(refused.to_string(), said);
        }
        let file = fs::File::create(&long).expect("the folder is ours");
        file.set_len(MANIFEST_BYTES_MAX + 1).expect("a sparse file");
        let refused = Manifest::read_bytes(&long).expect_err("too long");
        let said = "it is 4194305 bytes, beyond 4194304; name another file";
        assert!(refused.to_string().ends_with(said), "{refused}");
    }

    #[test]
    fn the_hash_is_the_known_one() {
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hex_sha256(b"abc"), known);
    }
}
