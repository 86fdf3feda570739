//! `alknet image`: images of the appliance on this computer, without a node.

mod build;
mod bundle;
mod cosign;
mod delta;
mod download;
mod interrupt;
mod named_output;
mod named_stream;
mod release;
mod renew;
mod root;
mod sign;
mod verify;
mod write;

use std::fs;
use std::io::Read;
use std::path::Path;

use alknet_image::{ImageError, RegularFileError, read_regular};
use alknet_image_write::{FlashError, SignedProgramsError, VerifyError};
use clap::Subcommand;

use super::{CommandError, CommandExit};

/// The code of a disk that is not written, and so keeps what it has.
const DISK_REFUSED: &str = "DISK_REFUSED";
/// The code of a source that is no image.
const NOT_IMAGE: &str = "NOT_IMAGE";
/// The code of a file or a disk that is not what its manifest or its signature says.
const IMAGE_DIFFERS: &str = "IMAGE_DIFFERS";

/// The verbs below `alknet image`.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageVerb {
    /// Put a kernel and this program into every bootable form.
    ///
    /// The time of the bill of materials is that of the variable SOURCE_DATE_EPOCH, in seconds since 1970. Without it,
    /// it is that of the bill in the folder of --shipped, or the first second of 1970.
    #[command(
        after_help = "Examples:\n  alknet image build --kernel bzImage --form oci --out out\n  \
alknet image build --kernel bzImage --stub linuxx64.efi.stub --form uki --out out\n  \
alknet image build --kernel bzImage --stub linuxx64.efi.stub --loader alknet-loader.efi \\\n      \
--grub grub --grub-version 2.06-13+deb12u2 --form raw --packed --out out\n  \
alknet image build --kernel bzImage --stub linuxx64.efi.stub --form uki --out out \\\n      \
--efi-key owner.key --efi-cert owner.pem"
    )]
    Build(build::ImageBuildArgs),
    /// Make and sign an update bundle of an image's EFI program.
    #[command(
        after_help = "Examples:\n  alknet image bundle out --key release.pem --root 1.root.json --number 7 \\\n      \
--expires 2028-01-31 --timestamp-expires 2027-03-31 --changes changes.txt --out alknet_0.2.0.bundle\n  \
alknet image bundle out --key release.pem --manifest-key minisign.pub --root 1.root.json --number 7 \\\n      \
--expires 2028-01-31 --timestamp-expires 2027-03-31 --out alknet_0.2.0.bundle\n  \
alknet image bundle alknet_0.2.0.efi --dir vault --root 1.root.json --root 2.root.json --number 8 \\\n      \
--expires 2028-01-31 --timestamp-expires 2027-03-31 --out alknet_0.2.0.bundle"
    )]
    Bundle(bundle::ImageBundleArgs),
    /// Add a signature to a root document, or to the documents of a bundle, that others have begun.
    ///
    /// The order in which people sign does not matter. Look at what the command prints before you hand the file on: you
    /// have signed that.
    #[command(
        after_help = "Examples:\n  alknet image cosign 1.root.json --key ben.pem\n  \
alknet image cosign 2.root.json --previous 1.root.json --key ben.pem\n  \
alknet image cosign bundle.tar --root 1.root.json --key ben.pem --out signed.tar\n  \
alknet image cosign bundle.tar from-*.tar --root 1.root.json --key ben.pem"
    )]
    Cosign(cosign::ImageCosignArgs),
    /// Give an update bundle a later timestamp, by the key of the timestamp alone.
    #[command(
        after_help = "Example:\n  alknet image renew bundle.tar --key timestamp.pem --root 1.root.json --release 1 \\\n      \
--number 2 --timestamp-expires 2027-05-31 --out renewed.tar"
    )]
    Renew(renew::ImageRenewArgs),
    /// Make or replace the root document of updates: the keys that may sign releases.
    #[command(
        after_help = "Examples:\n  alknet image root --dir vault --expires 2032-01-31 --out 1.root.json\n  \
alknet image root --key ada.pem --key ben.pem --threshold 2 --expires 2032-01-31 --out 1.root.json\n  \
alknet image root --key ada.pem --threshold 2 \\\n      \
--trust ed25519:d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a \\\n      \
--trust ed25519:3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c \\\n      \
--incomplete --expires 2032-01-31 --out 1.root.json\n  \
alknet image root --key ada.pem --key cy.pem --previous 1.root.json \\\n      \
--expires 2033-01-31 --out 2.root.json"
    )]
    Root(root::ImageRootArgs),
    /// Sign the files of an image as minisign does, or an EFI program for Secure Boot.
    #[command(
        after_help = "Examples:\n  alknet image sign out --key minisign.key\n  \
alknet image sign out --dir vault\n  \
alknet image sign alknet.efi --efi-key owner.key --efi-cert owner.pem --out signed.efi"
    )]
    Sign(sign::ImageSignArgs),
    /// Check a file or a written disk against the manifest of its build, and against signatures.
    #[command(
        after_help = "Examples:\n  alknet image verify alknet_0.1.0.raw.zst --manifest manifest.json --key minisign.pub\n  \
alknet image verify /dev/sdb --manifest manifest.json\n  alknet image verify manifest.json --key minisign.pub\n  \
alknet image verify out --efi-cert owner.pem"
    )]
    Verify(verify::ImageVerifyArgs),
    /// Write an image to a disk of this computer, read it back and compare. Everything on the disk is lost.
    #[command(
        after_help = "Examples:\n  alknet image write alknet_0.1.0.raw.zst /dev/sdb\n  \
alknet image write https://example.org/alknet_0.1.0.raw.zst /dev/sdb --seed node.toml\n  \
curl -s https://example.org/alknet_0.1.0.raw.zst | alknet image write - /dev/sdb --serial S4EVNX0N --yes"
    )]
    Write(write::ImageWriteArgs),
}

/// Runs it.
pub(crate) fn run(verb: ImageVerb, json: bool) -> Result<CommandExit, CommandError> {
    match verb {
        ImageVerb::Build(args) => build::run(&args, json),
        ImageVerb::Bundle(args) => bundle::run(&args, json),
        ImageVerb::Cosign(args) => cosign::run(&args, json),
        ImageVerb::Renew(args) => renew::run(&args, json),
        ImageVerb::Root(args) => root::run(&args, json),
        ImageVerb::Sign(args) => sign::run(&args, json),
        ImageVerb::Verify(args) => verify::run(&args, json),
        ImageVerb::Write(args) => write::run(&args, json),
    }
}

/// The content of a regular file of at most `most` bytes. It may be in a folder of another user.
fn read_bounded(path: &Path, most: u64) -> Result<Vec<u8>, CommandError> {
    read_regular(path, most).map_err(|error| of_regular_file(path, &error))
}

/// Like `read_bounded`, as text.
fn read_text(path: &Path, most: u64) -> Result<String, CommandError> {
    as_text(path, read_bounded(path, most)?)
}

/// The content of a file that the caller alone chose, such as a private key. It may be a pipe, into which a program of the
/// caller writes a secret that no disk has.
fn read_own(path: &Path, most: u64) -> Result<Vec<u8>, CommandError> {
    let failed = |error: std::io::Error| {
        CommandError::usage(format!("cannot read {}: {error}", path.display()))
    };
    let mut content = Vec::new();
    let file = fs::File::open(path).map_err(failed)?;
    file.take(most + 1)
        .read_to_end(&mut content)
        .map_err(failed)?;
    match content.len() as u64 > most {
        true => Err(too_long(path, most)),
        false => Ok(content),
    }
}

/// Like `read_own`, as text.
fn read_own_text(path: &Path, most: u64) -> Result<String, CommandError> {
    as_text(path, read_own(path, most)?)
}

fn as_text(path: &Path, content: Vec<u8>) -> Result<String, CommandError> {
    String::from_utf8(content)
        .map_err(|_| CommandError::usage(format!("{} is no text", path.display())))
}

fn of_regular_file(path: &Path, error: &RegularFileError) -> CommandError {
    match error {
        RegularFileError::TooLong { bytes_max, .. } => too_long(path, *bytes_max),
        error => CommandError::usage(format!("cannot read {}: {error}", path.display())),
    }
}

fn too_long(path: &Path, most: u64) -> CommandError {
    CommandError::usage(format!("{} is longer than {most} bytes", path.display()))
}

fn of_image(error: &ImageError) -> CommandError {
    if matches!(error, ImageError::OtherContent { .. }) {
        return CommandError::new(CommandExit::Failed, IMAGE_DIFFERS, error);
    }
    match error.exit_code() {
        2 => CommandError::usage(error),
        _ => CommandError::local(error),
    }
}

fn of_flash(error: &FlashError) -> CommandError {
    match error {
        FlashError::NotImage { .. } | FlashError::NoLayout => {
            CommandError::new(CommandExit::Usage, NOT_IMAGE, error)
        }
        FlashError::OtherContent { .. } | FlashError::OtherLength { .. } => {
            CommandError::new(CommandExit::Failed, IMAGE_DIFFERS, error)
        }
        FlashError::NotDisk { .. }
        | FlashError::NotFile { .. }
        | FlashError::NotOwn { .. }
        | FlashError::OtherDisk { .. }
        | FlashError::Partition { .. }
        | FlashError::SystemDisk { .. }
        | FlashError::Mounted { .. }
        | FlashError::Swap { .. }
        | FlashError::Held { .. }
        | FlashError::Busy { .. }
        | FlashError::ReadOnly { .. }
        | FlashError::TooSmall { .. } => {
            CommandError::new(CommandExit::Denied, DISK_REFUSED, error)
        }
        _ => CommandError::local(error),
    }
}

fn of_verify(error: &VerifyError) -> CommandError {
    match error {
        VerifyError::OtherContent { .. }
        | VerifyError::OtherPart { .. }
        | VerifyError::OtherFiles { .. }
        | VerifyError::TooShort { .. } => {
            CommandError::new(CommandExit::Failed, IMAGE_DIFFERS, error)
        }
        VerifyError::NotListed { .. } | VerifyError::NoDisk => CommandError::usage(error),
        _ => CommandError::local(error),
    }
}

fn of_signed_programs(error: &SignedProgramsError) -> CommandError {
    match error {
        SignedProgramsError::Folder(error) => of_image(error),
        SignedProgramsError::Missing { .. }
        | SignedProgramsError::NotSigned { .. }
        | SignedProgramsError::OtherForm { .. }
        | SignedProgramsError::OtherLayout { .. } => {
            CommandError::new(CommandExit::Failed, IMAGE_DIFFERS, error)
        }
        _ => CommandError::usage(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::thread;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn a_disk_that_keeps_its_content_is_refused_and_another_failure_is_not() {
        let disk = || "sda".to_owned();
        let mount_points = || vec!["/".to_owned()];
        for error in [
            FlashError::Busy { disk: disk() },
            FlashError::ReadOnly { disk: disk() },
            FlashError::Mounted {
                disk: disk(),
                mount_points: mount_points(),
            },
            FlashError::SystemDisk {
                disk: disk(),
                mount_points: mount_points(),
            },
            FlashError::TooSmall {
                disk: disk(),
                needed: 2,
                present: 1,
            },
        ] {
            let refused = of_flash(&error);
            assert_eq!(
                (refused.exit, refused.code.as_str()),
                (CommandExit::Denied, DISK_REFUSED)
            );
        }
        let failed = of_flash(&FlashError::ReadBack {
            disk: disk(),
            what: "the image",
        });
        assert_eq!(failed.exit, CommandExit::Failed);
    }

    #[test]
    fn a_file_beyond_its_limit_is_not_read() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("file");
        fs::write(&path, "12345").expect("writable");
        assert_eq!(read_text(&path, 5).expect("it fits"), "12345");
        let refused = read_text(&path, 4).expect_err("too long");
        assert!(refused.message.contains("longer than 4 bytes"), "{refused}");
        fs::write(&path, [0xff]).expect("writable");
        assert!(read_text(&path, 4).is_err());
    }

    #[test]
    fn only_a_file_of_the_caller_may_be_a_pipe() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let [pipe, device] = ["pipe", "device"].map(|name| dir.path().join(name));
        mkfifo(&pipe, Mode::S_IRWXU).expect("creatable");
        let key = thread::scope(|scope| {
            // It waits for the reader.
            scope.spawn(|| fs::write(&pipe, "key").expect("a pipe"));
            read_own_text(&pipe, 3)
        });
        assert_eq!(key.expect("it fits"), "key");
        symlink("/dev/null", &device).expect("creatable");
        for path in [&pipe, &device] {
            let refused = read_text(path, 3).expect_err("no regular file");
            assert!(refused.message.contains("no regular file"), "{refused}");
        }
    }
}
