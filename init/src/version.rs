//! The version of the appliance. The image says it, because one program may be in images of several versions.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::OnceLock;

/// The file in the root of an image.
const FILE: &str = "/version";
/// What an image has as its program. A file of the name [`FILE`] on another system means something else.
const PROGRAM: &str = "/init";
/// Longest version in bytes, as for the build of an image.
const BYTES_MAX: usize = 64;

/// The version of the image that this program was started from, else that of the program.
#[must_use]
pub fn image_version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| {
        let of_image = match is_of_image() {
            true => read(Path::new(FILE)),
            false => None,
        };
        of_image.unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned())
    })
}

/// PID 1 starts the node through `/proc/self/exe`, which keeps the name of the file.
fn is_of_image() -> bool {
    std::env::current_exe().is_ok_and(|path| path == Path::new(PROGRAM))
}

/// `None` if the file is missing, or has another text than a version.
fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    let file = File::open(path).ok()?;
    // A version and its line feed, and a byte more to see that it is too long.
    file.take(BYTES_MAX as u64 + 2)
        .read_to_string(&mut text)
        .ok()?;
    let version = text.strip_suffix('\n').unwrap_or(&text);
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    let is_version = (1..=BYTES_MAX).contains(&version.len()) && version.bytes().all(is_plain);
    is_version.then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_system_has_the_version_of_the_program() {
        assert_eq!(image_version(), env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn only_a_version_is_read() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("version");
        let longest = "1".repeat(BYTES_MAX);
        for (text, expected) in [
            ("0.2.0-rc.1\n", Some("0.2.0-rc.1")),
            ("0.2.0", Some("0.2.0")),
            (&longest, Some(&*longest)),
            (&format!("{longest}1"), None),
            ("", None),
            ("0.2.0\nmore\n", None),
            ("0.2.0\u{1b}[2J\n", None),
        ] {
            std::fs::write(&path, text).expect("writable");
            assert_eq!(read(&path).as_deref(), expected, "{text:?}");
        }
        assert_eq!(read(&folder.path().join("missing")), None);
    }
}
